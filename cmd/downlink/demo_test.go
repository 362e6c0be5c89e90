package main

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

func events(all []map[string]any, name string) []map[string]any {
	var some []map[string]any
	for _, o := range all {
		if o["event"] == name {
			some = append(some, o)
		}
	}
	return some
}

func TestDemoCount(t *testing.T) {
	got := cli(t, "demo", "--count", "5", "--json", "--timeout", patience.String())
	require.Equal(t, exitOK, got.code, got.stderr)
	all := objects(t, got.stdout)
	require.Equal(t, "ready", all[0]["event"])
	require.Contains(t, all[0]["cloud_nats"], "nats://127.0.0.1:")
	require.Contains(t, all[0]["edge_nats"], "nats://127.0.0.1:")
	require.Len(t, all[0]["hub"], 5)
	require.Len(t, events(all, "published"), 6)

	delivered := events(all, "delivered")
	require.Len(t, delivered, 5)
	devices := map[any]bool{}
	for _, d := range delivered {
		devices[d["device"]] = true
		subject, device := d["subject"].(string), d["device"].(string)
		tokens := strings.Split(subject, ".")
		require.Equal(t, "berlin-"+tokens[2], device)
		require.Equal(t, "edge."+device+"."+tokens[3], d["edge_subject"])
		headers := d["headers"].(map[string]any)
		require.Equal(t, []any{tokens[3]}, headers["verb"])
		require.Contains(t, headers, "X-User")
		require.Contains(t, d["payload"], "{")
		require.Positive(t, d["latency_ms"])
	}
	require.Len(t, devices, 2)

	dead := events(all, "dead")
	require.Len(t, dead, 1)
	require.Equal(t, "device-not-found", dead[0]["reason"])
	require.Equal(t, "berlin-pump9", dead[0]["device"])
	require.Equal(t, "cmd.berlin.pump9.reboot", dead[0]["subject"])
	done := all[len(all)-1]
	require.Equal(t, "done", done["event"])
	require.Equal(t, true, done["ok"])
	require.InDelta(t, 5, done["delivered"], 0)
}

func TestDemoText(t *testing.T) {
	s := start(t, "demo")
	s.line(t, "edge.berlin-pump7.reboot")
	s.line(t, "dead letter")
	s.line(t, "/status") // after ten seconds also without the others
	text := s.out.String()
	require.Regexp(t, `cmd\.berlin\.pump7\.reboot +→ berlin-pump7 +→ edge\.berlin-pump7\.reboot +verb=reboot X-User=ann +[0-9.]+ ms\n`, text)
	require.Regexp(t, `cmd\.berlin\.pump9\.reboot +→ berlin-pump9 +→ dead letter device-not-found`, text)
	require.NotContains(t, text, "\x1b")
	require.NotContains(t, text, "SharedAccessKey")

	// What a second shell does shows here as well.
	cloud := text[strings.Index(text, "nats://"):]
	cloud = cloud[:strings.IndexByte(cloud, ' ')]
	require.Equal(t, exitOK, cli(t, "pub", "cmd.berlin.pump8.hello", "-H", "X-User=me", "-s", cloud).code)
	s.line(t, "cmd.berlin.pump8.hello")
	require.Equal(t, exitOK, s.stop(t))
}

// TestDemoOtherHub: the same demo against a hub given by connection strings.
func TestDemoOtherHub(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--device", "my.device:1", "--http", "off")
	args := []string{"demo", "--count", "3", "--json", "--timeout", patience.String(),
		"--hub-connection-string-file", write(t, "hub", hub.ServiceConnectionString),
		"--device-connection-string-file", write(t, "device", hub.Devices["my.device:1"]),
		"--amqp-address", hub.AMQPS, "--mqtt-address", hub.MQTTS, "--ca-file", hub.CAFile}
	got := cli(t, args...)
	require.Equal(t, exitOK, got.code, got.stderr)
	all := objects(t, got.stdout)
	require.NotContains(t, all[0], "hub")
	delivered := events(all, "delivered")
	require.Len(t, delivered, 3)
	for _, d := range delivered {
		require.Equal(t, "my.device:1", d["device"])
	}
	require.Len(t, events(all, "dead"), 1)

	// Again, with what nobody took the first time: not counted, since not of this run.
	require.Equal(t, exitOK, cli(t, "send", "my.device:1", "--data", "older", "--message-id", "COMMANDS:1:x", "--data-dir", dir).code)
	got = cli(t, args...)
	require.Equal(t, exitOK, got.code, got.stderr)
	all = objects(t, got.stdout)
	require.InDelta(t, 3, all[len(all)-1]["delivered"], 0)
	for _, d := range events(all, "delivered") {
		require.Equal(t, d["message_id"] == "COMMANDS:1:x", d["subject"] == "")
	}
}

func TestDemoTimeout(t *testing.T) {
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--device", "d1", "--http", "off")
	got := cliWithin(t, "--timeout", 700*time.Millisecond, "127.0.0.1:1:", "demo", "--count", "1",
		"--hub-connection-string-file", write(t, "hub", hub.ServiceConnectionString),
		"--device-connection-string-file", write(t, "device", hub.Devices["d1"]),
		"--amqp-address", "127.0.0.1:1", "--mqtt-address", hub.MQTTS, "--ca-file", hub.CAFile)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "not ready within ") // of several things that are missing the hub is one
	require.Contains(t, got.stderr, "127.0.0.1:1:")
}

func TestProperties(t *testing.T) {
	require.Equal(t, []string{"verb=reboot", "X-User=ann"}, properties(nats.Header{
		"X-User": {"ann"}, "verb": {"reboot"}, "Downlink-Device": {"d"}, "Nats-Msg-Id": {"x"}, "downlink-via": {"y"},
	}))
}
