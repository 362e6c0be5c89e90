package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

const bridgeFile = `version: 1
bridge:
  nats: {url: [%q]}
  hubs:
    - {connection_string_file: hub-service, amqp_address: %q, ca_file: %q}
  routes:
    - name: commands
      subject: "cmd.{device}.{verb}"
      stream: COMMANDS
      create: true
      device: "{device}"
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "X-*"}
relay:
  nats: {url: [%q]}
  devices:
    - {connection_string_file: hub-device, mqtt_address: %q, ca_file: %q}
  publish:
    subject: 'edge.{device}.{property["verb"]}'
    stream: EDGE
    create: true
`

// TestSeparateProcesses: hub, bridge and relay from one file, each by its own command.
func TestSeparateProcesses(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, filepath.Join(dir, "hub"), "--device", "d1", "--http", "off")
	cloud, edge := bridgetest.RunNATS(t).URL(), bridgetest.RunNATS(t).URL()
	cloudDir, edgeDir := t.TempDir(), t.TempDir()
	text := fmt.Sprintf(bridgeFile, cloud, hub.AMQPS, hub.CAFile, edge, hub.MQTTS, hub.CAFile)
	for _, d := range []string{cloudDir, edgeDir} {
		writeTo(t, filepath.Join(d, "downlink.yaml"), text)
	}
	// Each machine has its own secret and not the other's.
	writeTo(t, filepath.Join(cloudDir, "hub-service"), hub.ServiceConnectionString+"\n")
	writeTo(t, filepath.Join(edgeDir, "hub-device"), hub.Devices["d1"]+"\n")
	pages := freeAddress(t)
	bridge := start(t, "bridge", "-c", filepath.Join(cloudDir, "downlink.yaml"), "--http", pages)
	relay := start(t, "relay", "-c", filepath.Join(edgeDir, "downlink.yaml"), "--http", "off", "--log-format", "json")
	waitPage(t, pages, "/readyz", http.StatusOK, "ok")

	sub := start(t, "sub", "edge.>", "--count", "1", "--json", "-s", edge)
	sub.says(t, "listening")
	// The JetStream answer is the publish ack: stored.
	require.Contains(t, cli(t, "pub", "cmd.d1.reboot", "now", "-H", "X-User=ann", "--request", "-s", cloud).stdout, `"COMMANDS"`)
	require.Equal(t, exitOK, sub.wait(t))
	m := objects(t, sub.out.String())[0]
	require.Equal(t, "edge.d1.reboot", m["subject"])
	require.Equal(t, "now", m["payload"])
	require.Equal(t, []any{"ann"}, m["headers"].(map[string]any)["X-User"])

	// send reads the same file, listen as well, and knows that both are elsewhere.
	require.Equal(t, exitOK, cli(t, "send", "d1", "--data", "x", "-p", "verb=direct", "-c", filepath.Join(cloudDir, "downlink.yaml")).code)

	waitPage(t, pages, "/livez", http.StatusOK, "ok")
	waitPage(t, pages, "/metrics", http.StatusOK, "downlink_")
	waitPage(t, pages, "/status", http.StatusOK, `"ready": true`)
	require.Equal(t, exitOK, bridge.stop(t), bridge.errs)
	require.Equal(t, exitOK, relay.stop(t), relay.errs)
	for _, s := range []*started{bridge, relay} {
		require.NotContains(t, s.errs.String(), "SharedAccessKey")
		require.NotContains(t, s.errs.String(), "downlink: ")
		require.Empty(t, s.out.String(), "logs go to stderr")
	}
	require.True(t, strings.HasPrefix(relay.errs.String(), `{"time"`), relay.errs)
}

// TestUnreachable: servers that are away do not end the process; it says what is missing.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	writeTo(t, filepath.Join(dir, "hub-service"), "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0\n")
	writeTo(t, filepath.Join(dir, "ca.pem"), "")
	file := filepath.Join(dir, "downlink.yaml")
	writeTo(t, file, strings.ReplaceAll(fmt.Sprintf(bridgeFile, "nats://127.0.0.1:1", "127.0.0.1:2", "", "nats://127.0.0.1:1", "127.0.0.1:2", ""), `, ca_file: ""`, ""))
	pages := freeAddress(t)
	bridge := start(t, "bridge", "-c", file, "--http", pages, "--shutdown-grace", "1s")
	waitPage(t, pages, "/readyz", http.StatusServiceUnavailable, "127.0.0.1:1")
	waitPage(t, pages, "/readyz", http.StatusServiceUnavailable, "127.0.0.1:2")
	waitPage(t, pages, "/livez", http.StatusOK, "ok")

	got := cli(t, "bridge", "-c", file, "--http", pages)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "choose another address with --http")
	require.Equal(t, exitOK, bridge.stop(t), bridge.errs)
}

// TestEmbeddedInProcess: a bridge whose file says embedded brings hub and NATS along.
func TestEmbeddedInProcess(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "downlink.yaml")
	listen := freeAddress(t)
	writeTo(t, file, `version: 1
bridge:
  nats: {embedded: {listen: "`+listen+`", streams: [{name: COMMANDS, subjects: ["cmd.>"]}]}}
  hubs: [{embedded: true}]
  routes: [{subject: "cmd.{device}", stream: COMMANDS, start: all, device: "{device}"}]
`)
	pages := freeAddress(t)
	bridge := start(t, "bridge", "-c", file, "--http", pages, "--hub-data-dir", filepath.Join(dir, "hub"))
	waitPage(t, pages, "/readyz", http.StatusOK, "ok")
	listening := start(t, "listen", "any1", "--data-dir", filepath.Join(dir, "hub"), "--count", "1")
	require.Equal(t, exitOK, cli(t, "pub", "cmd.any1", "hello", "-s", "nats://"+listen).code)
	require.Equal(t, exitOK, listening.wait(t))
	require.Contains(t, listening.out.String(), "hello")
	require.Equal(t, exitOK, bridge.stop(t), bridge.errs)
	require.NoFileExists(t, filepath.Join(dir, "hub", endpointsFile))
}

// freeAddress is an address that was free a moment ago. Its port is below those that the system gives to whoever
// asks for any, so that no other listener or connection takes it before the one that it is for.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(20_000))))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	require.FailNow(t, "no port is free")
	return ""
}

// waitPage waits until a page answers like this.
func waitPage(t *testing.T, addr, path string, code int, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + addr + path) //nolint:noctx // a test against our own page
		if err != nil {
			return false
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == code && strings.Contains(string(b), text)
	}, patience, 10*time.Millisecond, "%s: want %d and %q", path, code, text)
}
