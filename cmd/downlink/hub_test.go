package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startHub runs the hub command on free ports.
func startHub(t *testing.T, dir string, args ...string) (*started, hubReady) {
	t.Helper()
	s := start(t, append([]string{"hub", "--json", "--data-dir", dir, "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0"}, args...)...)
	var r hubReady
	require.NoError(t, json.Unmarshal([]byte(s.line(t, `"ready"`)), &r))
	return s, r
}

// completed waits until a device has completed n messages, of a hub that serves its pages.
func (r hubReady) completed(t *testing.T, device string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		var status hubStatus
		return json.Unmarshal([]byte(get(t, r.HTTP+"/status")), &status) == nil && int(status.Devices[device].Counts.Completed) == n
	}, patience, 10*time.Millisecond, "%s: want %d", device, n)
}

func TestHubReady(t *testing.T) {
	dir := t.TempDir()
	s, r := startHub(t, dir, "--device", "d1", "--hostname", "hub.local", "--hostname", "localhost")
	require.Equal(t, "ready", r.Event)
	require.Equal(t, "hub.local", r.Hostname)
	require.Contains(t, r.ServiceConnectionString, "HostName=hub.local;SharedAccessKeyName=service;")
	require.Contains(t, r.Devices["d1"], "HostName=hub.local;DeviceId=d1;")
	require.FileExists(t, r.CAFile)
	require.FileExists(t, r.CABundleFile)

	// The same strings, from another command.
	require.Equal(t, r.ServiceConnectionString+"\n", cli(t, "hub", "connection-string", "--data-dir", dir, "service").stdout)
	require.Equal(t, r.OwnerConnectionString+"\n", cli(t, "emulator", "connection-string", "--data-dir", dir, "iothubowner").stdout)
	require.Equal(t, r.Devices["d1"]+"\n", cli(t, "hub", "connection-string", "--data-dir", dir, "device", "d1").stdout)
	require.Contains(t, cli(t, "hub", "connection-string", "--data-dir", dir, "device").stdout, "SharedAccessKeyName=device;")
	require.Contains(t, cli(t, "hub", "connection-string", "--data-dir", dir, "--hostname", "other", "service").stdout, "HostName=other;")

	// The pages, on a loopback port that nobody asked for.
	require.Equal(t, "ok\n", get(t, r.HTTP+"/livez"))
	require.Equal(t, "ok\n", get(t, r.HTTP+"/readyz"))
	require.Contains(t, get(t, r.HTTP+"/metrics"), "downlink_embedded_hub_devices 1")
	var status hubStatus
	require.NoError(t, json.Unmarshal([]byte(get(t, r.HTTP+"/status")), &status))
	require.Contains(t, status.Devices, "d1")

	// The address in use, and what is printed never in the log.
	got := cli(t, "hub", "--data-dir", dir, "--amqps", r.AMQPS, "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "--amqps")
	require.NotContains(t, s.errs.String(), "SharedAccessKey=")
	require.FileExists(t, filepath.Join(dir, endpointsFile))

	require.Equal(t, exitOK, s.stop(t))
	require.NoFileExists(t, filepath.Join(dir, endpointsFile))
	_, again := startHub(t, dir, "--device", "d1", "--hostname", "hub.local", "--http", "off")
	require.Equal(t, r.ServiceConnectionString, again.ServiceConnectionString, "stable across restarts")
	require.Equal(t, r.Devices, again.Devices)
	require.Empty(t, again.HTTP)
}

func TestHubText(t *testing.T) {
	dir := t.TempDir()
	s := start(t, "hub", "--data-dir", dir, "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--device", "d1", "--http", "127.0.0.1:0")
	s.line(t, "the SDKs do not.")
	text := s.out.String()
	service := strings.TrimSpace(cli(t, "hub", "connection-string", "--data-dir", dir, "service").stdout)
	for _, want := range []string{
		service, "HostName=localhost;DeviceId=d1;", filepath.Join(dir, "ca.pem"),
		"export SSL_CERT_FILE=" + filepath.Join(dir, "ca-bundle.pem") + " REQUESTS_CA_BUNDLE=",
		"export NODE_EXTRA_CA_CERTS=" + filepath.Join(dir, "ca.pem"),
		"export IOTHUB_CONNECTION_STRING='" + service + "'", "GatewayHostName=localhost", "amqp_address",
		"/inspect", "downlink hub ls --data-dir " + dir,
	} {
		require.Contains(t, text, want)
	}
}

func TestHubDefaultDirectory(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	s := start(t, "hub", "--json", "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--http", "off")
	var r hubReady
	require.NoError(t, json.Unmarshal([]byte(s.line(t, `"ready"`)), &r))
	require.Equal(t, exitOK, s.stop(t))
	require.Equal(t, r.ServiceConnectionString+"\n", cli(t, "hub", "connection-string", "service").stdout, "also of one that has stopped")
	info, err := os.Stat(filepath.Join(state, "downlink", "hub", "master.key"))
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o077, "the key is this user's alone")
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url) //nolint:noctx // a test against our own page
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
	return string(b)
}
