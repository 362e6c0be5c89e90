package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/natsio"
)

func runNATS(t *testing.T) string {
	t.Helper()
	s, err := natsio.StartServer(natsio.ServerOptions{Listen: "127.0.0.1:0", StoreDir: t.TempDir(),
		Streams: []natsio.Stream{{Name: "COMMANDS", Subjects: []string{"stored.>"}}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s.URL()
}

func TestPubSub(t *testing.T) {
	url := runNATS(t)
	asJSON := start(t, "sub", "edge.>", "--count", "2", "--json", "-s", url)
	asText := start(t, "sub", "edge.>", "-s", url)
	asJSON.says(t, "listening on edge.>")
	asText.says(t, "listening on edge.>")

	got := cli(t, "pub", "edge.d1.reboot", `{"delay":5}`, "-H", "X-User=ann", "-H", "X-User=bob", "-H", "Empty=", "--server", url)
	require.Equal(t, result{exitOK, "published edge.d1.reboot (11 bytes)\n", ""}, got)
	require.Equal(t, exitOK, cli(t, "pub", "edge.d1.reboot", "-s", url).code)

	require.Equal(t, exitOK, asJSON.wait(t))
	all := objects(t, asJSON.out.String())
	require.Len(t, all, 2)
	require.Equal(t, map[string]any{
		"subject": "edge.d1.reboot", "payload": `{"delay":5}`,
		"headers": map[string]any{"X-User": []any{"ann", "bob"}, "Empty": []any{""}},
	}, all[0])
	require.Equal(t, map[string]any{"subject": "edge.d1.reboot", "payload": ""}, all[1])
	asText.line(t, "  X-User: bob")
	require.Equal(t, exitOK, asText.stop(t))
}

func TestPubStdin(t *testing.T) {
	url := runNATS(t)
	nc, err := nats.Connect(url, nats.Timeout(patience))
	require.NoError(t, err)
	defer nc.Close()
	sub, err := nc.SubscribeSync("in")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	code := run(t.Context(), []string{"pub", "in", "-", "--count", "2", "-s", url}, strings.NewReader("from stdin\n"), io.Discard, io.Discard)
	require.Equal(t, exitOK, code)
	for range 2 {
		m, err := sub.NextMsg(patience)
		require.NoError(t, err)
		require.Equal(t, "from stdin\n", string(m.Data))
	}
}

func TestPubRequest(t *testing.T) {
	url := runNATS(t)
	got := cli(t, "pub", "nobody", "--request", "-s", url)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "nobody listens there")

	nc, err := nats.Connect(url, nats.Timeout(patience))
	require.NoError(t, err)
	defer nc.Close()
	_, err = nc.Subscribe("answers", func(m *nats.Msg) { _ = m.Respond([]byte("accepted")) })
	require.NoError(t, err)
	_, err = nc.Subscribe("silence", func(*nats.Msg) {})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	require.Equal(t, result{exitOK, "accepted\n", ""}, cli(t, "pub", "answers", "--request", "-s", url))
	got = cli(t, "pub", "silence", "--request", "--timeout", "50ms", "-s", url)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "no answer within 50ms")
	// A stream answers with its publish ack.
	require.Contains(t, cli(t, "pub", "stored.x", "--request", "-s", url).stdout, `"stream":"COMMANDS"`)
}

func TestPubUnreachable(t *testing.T) {
	got := cli(t, "pub", "a", "-s", "nats://127.0.0.1:1", "--connect-timeout", "100ms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "127.0.0.1:1")
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
}

func TestSubInterrupted(t *testing.T) {
	url := runNATS(t)
	s := start(t, "sub", "nothing.>", "--count", "1", "-s", url)
	s.says(t, "listening on nothing.>")
	require.Equal(t, exitFailed, s.stop(t))
	require.Contains(t, s.errs.String(), "stopped after 0 of 1 messages")
}

// TestNoPermission: the server tells a refusal only afterwards, and the commands still fail.
func TestNoPermission(t *testing.T) {
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{"secret.>"}},
			Subscribe: &server.SubjectPermission{Deny: []string{"secret.>"}},
		}}}
	})
	login := []string{"--server", n.URL(), "--user", "u", "--password-file", write(t, "password", "p\n")}
	require.Equal(t, exitOK, cli(t, append([]string{"pub", "open"}, login...)...).code)
	for _, command := range []string{"pub", "sub"} {
		got := cli(t, append([]string{command, "secret.x"}, login...)...)
		require.Equal(t, exitFailed, got.code)
		require.Contains(t, strings.ToLower(got.stderr), "permission")
		require.Contains(t, got.stderr, "secret.x")
	}
	got := cliWithin(t, "--connect-timeout", 200*time.Millisecond, "uthorization", "pub", "open", "--server", n.URL())
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, strings.ToLower(got.stderr), "authorization")
}
