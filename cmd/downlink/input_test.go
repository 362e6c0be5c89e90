package main

import (
	"os"
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
		{"pub a -H é=1", `--header "é": a header's name has ASCII letters, digits and ! # $ % & ' * + - . ^ _ `},
		{"pub a -H a/b=1", `--header "a/b": a header's name has`},
		{"pub a --timeout 0s", "--timeout: 0s is not a time to wait"},
		{"pub a --connect-timeout 0s", "--connect-timeout: 0s is not a time to wait"},
		{"pub a --server ''", "--server is empty"},
		{"pub a --server http://127.0.0.1:1", "NATS server http://…: the scheme is not nats, tls, ws or wss"},
		{"sub >.a", `subject ">.a": ">" is only allowed as the last token`},
		{"sub a.>.b", "only allowed as the last token"},
		{"send ''", "DEVICE is empty"},
		{"listen ''", "DEVICE is empty"},
		{"init ''", "FILE is empty"},
		{"demo --count x", `--count: "x" is not a whole number`},
		{"explain f a.b --stream S --seq -1", `--seq: "-1" is not a whole number from 0`},
		{"status --interval 5", `--interval: "5" is not a time such as 500ms, 90s or 1h30m`},
		{"soak --messages-per-second much", `--messages-per-second: "much" is not a number`},
		{"sub a --json=perhaps", `--json: "perhaps" is not true or false`},
		{"bench bogus", `unknown command "bogus" (downlink bench --help lists the commands)`},
		{"dead lss", `unknown command "lss", did you mean "ls"? (downlink dead --help lists the commands)`},
		{"mailbox bogus", `unknown command "bogus" (downlink mailbox --help lists the commands)`},
		{"feedback --since 1x", `--since: "1x" is neither how long ago`},
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

// Ctrl-C before there is anything to end in good order is a failure, in a word that people know.
func TestInterrupted(t *testing.T) {
	c := start(t, "pub", "a", "--server", "nats://127.0.0.1:1", "--connect-timeout", "30s")
	require.Equal(t, exitFailed, c.stop(t))
	require.Equal(t, "downlink: NATS: interrupted\n", c.errs.String())
}

func TestVersionFlag(t *testing.T) {
	flag, command := cli(t, "--version"), cli(t, "version")
	require.Equal(t, exitOK, flag.code, flag.stderr)
	require.Equal(t, command.stdout, flag.stdout)
	require.True(t, strings.HasPrefix(flag.stdout, "downlink "), flag.stdout)
}

// TestOneHubADirectory: a second hub would take the first one's place in the data
// directory, and leave it without any when it ends.
func TestOneHubADirectory(t *testing.T) {
	dir := t.TempDir()
	s, first := startHub(t, dir, "--any-device", "--http", "off", "--amqps", freeAddress(t))
	left, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	require.NoError(t, err)
	second := []string{"hub", "--data-dir", dir, "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--http", "off"}
	got := cli(t, second...)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "one runs with the data directory "+dir+" already")
	require.Contains(t, got.stderr, first.AMQPS)
	require.Equal(t, exitOK, cli(t, "send", "d1", "--data-dir", dir).code, "the first is still found")
	require.Equal(t, exitOK, s.stop(t))

	// What a killed one left holds up nobody, least of all on the same port.
	require.NoError(t, os.WriteFile(filepath.Join(dir, endpointsFile), left, 0o600))
	s = start(t, "hub", "--json", "--data-dir", dir, "--any-device", "--http", "off", "--amqps", first.AMQPS, "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0")
	s.line(t, `"ready"`)
	require.Equal(t, exitOK, cli(t, "send", "d1", "--data-dir", dir).code)
	require.Equal(t, exitOK, s.stop(t))
}
