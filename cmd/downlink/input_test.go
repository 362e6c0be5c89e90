package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Awkward arguments end at once with exit code 2 and one line that names them,
// and reach no server.
func TestAwkwardInput(t *testing.T) {
	quoted := write(t, "quoted", `"HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0"`)
	for _, c := range []struct {
		args string // "''" is an empty argument
		want string
	}{
		{"pub '' x", `subject ""`},
		{"pub a --timeout 0s", "--timeout: 0s is not a time to wait"},
		{"pub a --connect-timeout 0s", "--connect-timeout: 0s is not a time to wait"},
		{"pub a --server ''", "--server is empty"},
		{"pub a --server http://127.0.0.1:1", "NATS server http://…: the scheme is not nats, tls, ws or wss"},
		{"sub >.a", `subject ">.a": ">" is only allowed as the last token`},
		{"sub a.>.b", "only allowed as the last token"},
		{"send ''", "DEVICE is empty"},
		{"listen ''", "DEVICE is empty"},
		{"init ''", "FILE is empty"},
		{"send d --hub-connection-string-file " + quoted, "has quotes in it; it holds the connection string without quotes"},
		{"demo --hub-connection-string-file x", "--hub-connection-string-file and --device-connection-string-file go together"},
		{"demo --device-connection-string-file x", "--hub-connection-string-file and --device-connection-string-file go together"},
	} {
		t.Run(strings.ReplaceAll(c.args, string(filepath.Separator), "_"), func(t *testing.T) {
			args := strings.Fields(c.args)
			for i := range args {
				if args[i] == "''" {
					args[i] = ""
				}
			}
			got := cli(t, args...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Contains(t, got.stderr, c.want)
			require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
			require.Empty(t, got.stdout)
			require.NotContains(t, got.stderr, "c2VjcmV0")
		})
	}
}

func TestVersionFlag(t *testing.T) {
	flag, command := cli(t, "--version"), cli(t, "version")
	require.Equal(t, exitOK, flag.code, flag.stderr)
	require.Equal(t, command.stdout, flag.stdout)
	require.True(t, strings.HasPrefix(flag.stdout, "downlink "), flag.stdout)
}
