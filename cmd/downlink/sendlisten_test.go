package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSendListen: hub, send and listen as a newcomer uses them.
func TestSendListen(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--device", "d1")
	listening := start(t, "listen", "d1", "--data-dir", dir, "--count", "2", "--json")
	listening.says(t, "listening as d1 at "+hub.MQTTS)

	got := cli(t, "send", "d1", "--data", "hello", "-p", "verb=reboot", "-p", "empty=", "--ttl", "1h", "--ack", "full",
		"--message-id", "m-1", "--correlation-id", "c-1", "--user-id", "ann", "--content-type", "text/plain", "--content-encoding", "utf-8", "--data-dir", dir)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "accepted: the hub queued message m-1 for d1, until 20")
	require.Contains(t, got.stdout, "feedback asked: full")

	// By connection string, address and CA, as for any hub.
	got = cli(t, "send", "d1", "--data", "@"+write(t, "body", "from a file"), "--json", "--amqp-address", hub.AMQPS, "--ca-file", hub.CAFile,
		"--hub-connection-string-file", write(t, "hub", hub.ServiceConnectionString+"\n"))
	require.Equal(t, exitOK, got.code, got.stderr)
	sent := objects(t, got.stdout)[0]
	require.Equal(t, "accepted", sent["status"])

	require.Equal(t, exitOK, listening.wait(t))
	received := objects(t, listening.out.String())
	require.Len(t, received, 2)
	first := received[0]
	for key, want := range map[string]string{
		"device": "d1", "message_id": "m-1", "correlation_id": "c-1", "user_id": "ann", "content_type": "text/plain",
		"content_encoding": "utf-8", "ack": "full", "payload": "hello",
	} {
		require.Equal(t, want, first[key], key)
	}
	require.Equal(t, map[string]any{"verb": "reboot", "empty": ""}, first["properties"])
	expires, err := time.Parse(time.RFC3339Nano, first["expires"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), expires, time.Minute)
	require.Equal(t, sent["message_id"], received[1]["message_id"])
	require.Equal(t, "from a file", received[1]["payload"])

	// Both were completed: nothing comes again.
	hub.completed(t, "d1", 2)
	got = cliWithin(t, "--timeout", 300*time.Millisecond, "0 of 1 messages came within ", "listen", "d1", "--data-dir", dir, "--count", "1")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "0 of 1 messages came within ")
	require.NotContains(t, listening.errs.String()+got.stderr, "SharedAccessKey=")
}

func TestListenText(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--any-device", "--http", "off")
	// A loopback hub is nobody's real one, so it asks nothing; the variable names the device.
	t.Setenv("DOWNLINK_DEVICE_CONNECTION_STRING", strings.TrimSpace(cli(t, "hub", "connection-string", "--data-dir", dir, "device", "pump-7'").stdout))
	s := start(t, "listen", "pump-7'", "--mqtt-address", hub.MQTTS, "--ca-file", hub.CAFile)
	s.says(t, "listening as pump-7'")
	require.Equal(t, exitOK, s.stop(t))
}

// TestSendRefused: a refusal says what it means and what to do.
func TestSendRefused(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--device", "full", "--http", "off")
	got := cli(t, "send", "nobody", "--data", "x", "--data-dir", dir, "--message-id", "m-1")
	require.Equal(t, exitFailed, got.code)
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	for _, want := range []string{"send nobody (m-1): ", "amqp:not-found", "--device nobody or --any-device"} {
		require.Contains(t, got.stderr, want)
	}
	got = cli(t, "send", "nobody", "--data-dir", dir, "--json")
	require.Equal(t, exitFailed, got.code)
	refused := objects(t, got.stdout)[0]
	require.Equal(t, "refused", refused["status"])
	require.Equal(t, "amqp:not-found", refused["condition"])

	for range 50 {
		require.Equal(t, exitOK, cli(t, "send", "full", "--data-dir", dir).code)
	}
	got = cli(t, "send", "full", "--data-dir", dir)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "amqp:resource-limit-exceeded")
	require.Contains(t, got.stderr, "purge its queue")

	// A wrong key, a hub that is away, and a certificate that nobody vouches for.
	wrong := write(t, "wrong", "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=d3Jvbmc=\n")
	got = cli(t, "send", "full", "--hub-connection-string-file", wrong, "--amqp-address", hub.AMQPS, "--ca-file", hub.CAFile, "--timeout", "55s")
	require.Equal(t, exitFailed, got.code, "at once: it does not wait for a key to become right")
	require.Contains(t, got.stderr, "not sent: hub localhost: unauthorized: the hub refuses policy \"service\"")
	require.NotContains(t, got.stderr, "55s")
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	got = cliWithin(t, "--timeout", 500*time.Millisecond, "127.0.0.1:1", "send", "full", "--hub-connection-string-file", wrong, "--amqp-address", "127.0.0.1:1")
	require.Equal(t, exitFailed, got.code)
	require.Regexp(t, `not sent within \S+s: .*127\.0\.0\.1:1`, got.stderr)
	got = cliWithin(t, "--timeout", time.Second, "certificate", "send", "full", "--hub-connection-string-file", wrong, "--amqp-address", hub.AMQPS)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "certificate")
	require.NotContains(t, got.stderr, "d3Jvbmc")
}

// TestDefaultHub: without any flag, both find the hub that runs on this machine.
func TestDefaultHub(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	s := start(t, "hub", "--json", "--any-device", "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0")
	s.line(t, `"ready"`)
	require.Equal(t, exitOK, cli(t, "send", "d1", "--data", "hello").code)
	got := cli(t, "listen", "d1", "--count", "1", "--timeout", patience.String())
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "hello")
	require.Equal(t, exitOK, s.stop(t))
	got = cli(t, "send", "d1")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "start downlink hub")
}

// TestSendAdvice: what only a route could do is no advice to who sends.
func TestSendAdvice(t *testing.T) {
	for pair, want := range map[string]string{
		"x= y":         `--property: " y": has a leading space at byte 1, which the hub cannot carry`,
		"Downlink-X=y": `--property: "Downlink-X": Downlink-* is for Downlink's own properties; choose another name`,
	} {
		service := write(t, "service", "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0")
		got := cli(t, "send", "d", "-p", pair, "--hub-connection-string-file", service)
		require.Equal(t, result{exitUsage, "", "downlink: " + want + "\n"}, got)
	}
}
