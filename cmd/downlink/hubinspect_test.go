package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/inspect"
)

func TestHubInspect(t *testing.T) {
	dir := t.TempDir()
	_, r := startHub(t, dir, "--device", "pump-1", "--device", "valve-1", "--virtual", "pump-*=complete", "--fault", "transfer=release,device=valve-*")
	for _, id := range []string{"pump-1", "valve-1", "valve-1"} {
		cli(t, "send", id, "--data", "hello", "--data-dir", dir)
	}
	// A virtual device completes on its own, maybe after the sender was told that the hub has the message.
	r.completed(t, "pump-1", 1)
	text := cli(t, "hub", "ls", "--data-dir", dir)
	require.Equal(t, exitOK, text.code, text.stderr)
	require.Regexp(t, `DEVICE +STATUS +CONNECTED +PENDING +ACCEPTED +REFUSED +COMPLETED +DEAD`, text.stdout)
	require.Regexp(t, `pump-1 +enabled +yes +0 +1 +0 +1 +0`, text.stdout)
	require.Regexp(t, `valve-1 +enabled +no +[12] `, text.stdout)
	require.NotContains(t, cli(t, "hub", "ls", "--data-dir", dir, "valve").stdout, "pump")
	require.Contains(t, cli(t, "hub", "ls", "--data-dir", dir, "--limit", "1").stdout, "and more")

	var d inspect.Device
	line := cli(t, "hub", "ls", "--data-dir", dir, "--json", "valve")
	require.NoError(t, json.Unmarshal([]byte(line.stdout), &d))
	require.Equal(t, "valve-1", d.DeviceID)
	pending := d.Pending

	text = cli(t, "hub", "show", "--data-dir", dir, "valve-1")
	require.Regexp(t, `\n1 +Enqueued +0 +\S+Z +\S* +"hello"`, text.stdout)
	require.NoError(t, json.Unmarshal([]byte(cli(t, "hub", "show", "--data-dir", dir, "--json", "valve-1").stdout), &d))
	require.Len(t, d.Queue, pending)
	require.Contains(t, cli(t, "hub", "show", "--data-dir", dir).stdout, `"total": 2`)
	require.Regexp(t, `^valve-1: [12] purged\n$`, cli(t, "hub", "purge", "--data-dir", dir, "valve-1").stdout)
	require.JSONEq(t, `{"deviceId":"valve-1","purged":0}`, cli(t, "hub", "purge", "--data-dir", dir, "--json", "valve-1").stdout)

	failed := cli(t, "hub", "show", "--data-dir", dir, "nobody")
	require.Equal(t, exitFailed, failed.code)
	require.Contains(t, failed.stderr, "no device nobody")
	failed = cli(t, "hub", "ls", "--data-dir", t.TempDir())
	require.Contains(t, failed.stderr, "no hub runs with the data directory")
	require.Equal(t, exitUsage, cli(t, "hub", "purge", "--data-dir", dir).code)
	require.Equal(t, exitUsage, cli(t, "hub", "ls", "--limit", "0").code)

	require.Contains(t, get(t, r.HTTP+"/metrics"), "downlink_embedded_hub_connected_devices 1")

	// The documented pages, as a test in any language asks them.
	require.Contains(t, get(t, r.HTTP+"/inspect/devices/pump-1"), `"deviceId": "pump-1"`)
	res, err := http.Post(r.HTTP+"/admin/faults", "text/plain", strings.NewReader("transfer=drop")) //nolint:noctx // a test against our own page
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Contains(t, get(t, r.HTTP+"/admin/faults"), `"kind": "drop"`)
}

func TestHubPlayFlags(t *testing.T) {
	for flag, want := range map[string]string{
		"--virtual=pump":             "--virtual \"pump\": write DEVICE=BEHAVIOUR",
		"--virtual=pump=explode":     "none of complete",
		"--fault=transfer":           "--fault \"transfer\": write POINT=KIND",
		"--fault=nowhere=drop":       "none of open",
		"--fault-order-puback=maybe": "neither always nor never",
	} {
		got := cli(t, "hub", "--data-dir", t.TempDir(), flag)
		require.Equal(t, exitUsage, got.code, flag)
		require.Contains(t, got.stderr, want)
	}
}

func TestHubWithoutPages(t *testing.T) {
	dir := t.TempDir()
	startHub(t, dir, "--http", "off", "--fault-order-puback", "never", "--virtual", "d=complete,online=5s,offline=5s")
	require.Contains(t, cli(t, "hub", "ls", "--data-dir", dir).stderr, "serves no pages")
}

func TestPoliciesOnTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	startHub(t, dir, "--http", "off") // which makes the keys
	seen := map[string]bool{}
	for _, policy := range []string{"iothubowner", "service", "device", "registryRead", "registryReadWrite"} {
		got := cli(t, "hub", "connection-string", "--data-dir", dir, policy)
		require.Equal(t, exitOK, got.code)
		require.Contains(t, got.stdout, "SharedAccessKeyName="+policy+";")
		require.False(t, seen[got.stdout])
		seen[got.stdout] = true
	}
	require.Equal(t, exitUsage, cli(t, "hub", "connection-string", "--data-dir", dir, "admin").code)
}

func TestIsLoopback(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "0.0.0.0:1": false, ":1": false, "10.0.0.1:1": false, "x": false} {
		require.Equal(t, want, isLoopback(address), address)
	}
}
