package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHubWrongUse: names, addresses and directories that cannot be meant, each with one line and nothing left behind.
func TestHubWrongUse(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	mistyped := filepath.Join(t.TempDir(), "hubb")
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"hub", "--amqps", ":99999"}, `"99999" is not a port`},
		{[]string{"hub", "--mqtts", "127.0.0.1:"}, `"" is not a port`},
		{[]string{"hub", "--https", "127.0.0.1:-1"}, `"-1" is not a port`},
		{[]string{"hub", "--amqps", "a b:1"}, "is not host:port"},
		{[]string{"hub", "--http", "[::1:0"}, "--http: "},
		{[]string{"hub", "--data-dir", t.TempDir(), "--amqps", "192.0.2.1:0", "--log-level", "error"}, "is no address of this machine"},
		{[]string{"hub", "--hostname", ""}, `--hostname: host name ""`},
		{[]string{"hub", "--hostname", "a b"}, `host name "a b"`},
		{[]string{"hub", "--hostname", "hub.local:5671"}, "without port"},
		{[]string{"hub", "--hostname", "::1"}, "give a name before it"},
		{[]string{"hub", "connection-string", "--hostname", "", "service"}, `--hostname: host name ""`},
		{[]string{"hub", "connection-string", "service"}, "start it with downlink hub, or name another"},
		{[]string{"hub", "connection-string", "--data-dir", mistyped, "service"}, mistyped + ": start it with downlink hub --data-dir " + mistyped},
		{[]string{"hub", "connection-string", "--data-dir", mistyped, "device", "ü"}, `"ü" is not a device ID`},
		{[]string{"hub", "connection-string", "--data-dir", mistyped, "device", strings.Repeat("x", 129)}, "is not a device ID"},
		{[]string{"hub", "connection-string", "device", "a", "b"}, `unexpected argument "b"`},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			got := cli(t, test.args...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Contains(t, got.stderr, test.want)
			require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
			require.Empty(t, got.stdout)
		})
	}
	require.NoDirExists(t, mistyped)
	require.NoDirExists(t, filepath.Join(state, "downlink"))
}
