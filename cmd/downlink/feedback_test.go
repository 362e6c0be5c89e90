package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/natsio"
)

func TestFeedback(t *testing.T) {
	url := runNATS(t)
	got := cli(t, "feedback", "-s", url)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "there is no stream DOWNLINK_RECEIPTS: no bridge named downlink has stored a receipt here")

	conn, err := natsio.Connect(natsio.Options{URLs: []string{url}})
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	store, err := natsio.NewReceipts(natsio.ReceiptsOptions{Conn: conn, Create: true})
	require.NoError(t, err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	tell := func(device, status string) {
		t.Helper()
		require.NoError(t, store.Store(t.Context(), bridge.Receipt{
			ID: "COMMANDS:7:x", Device: device, Hub: "main", Route: "commands", Status: status, Reason: "expired", Condition: "amqp:not-found",
			Text: "a\x1bb", Subject: "cmd.x", Stream: "COMMANDS", Sequence: 7, At: at,
		}, bridge.Correlation{Trace: "00-1-2-01"}))
	}
	tell("pump.7", bridge.StatusAccepted)
	tell("pump.7", bridge.StatusRejected)
	tell("pump", bridge.StatusAccepted)
	got = cli(t, "feedback", "-s", url, "--device", "pump.7")
	require.Equal(t, result{exitOK,
		"2026-01-02T03:04:05.006Z  accepted  pump.7  COMMANDS:7:x  hub=main  route=commands  subject=cmd.x  reason=expired  condition=amqp:not-found  from=COMMANDS:7  (a\\x1bb)\n" +
			"2026-01-02T03:04:05.006Z  rejected  pump.7  COMMANDS:7:x  hub=main  route=commands  subject=cmd.x  reason=expired  condition=amqp:not-found  from=COMMANDS:7  (a\\x1bb)\n", ""}, got)
	got = cli(t, "feedback", "-s", url, "--status", "accepted", "--hub", "main", "--json", "--since", "0")
	require.Equal(t, exitOK, got.code, got.stderr)
	all := objects(t, got.stdout)
	require.Len(t, all, 2)
	require.Equal(t, map[string]any{
		"id": "COMMANDS:7:x", "device": "pump.7", "hub": "main", "route": "commands", "status": "accepted", "reason": "expired",
		"condition": "amqp:not-found", "text": "a\x1bb", "subject": "cmd.x", "stream": "COMMANDS", "seq": 7.0, "attempts": 0.0,
		"at": "2026-01-02T03:04:05.006Z", "traceparent": "00-1-2-01",
	}, all[0])
	require.Equal(t, "pump", all[1]["device"])
	require.Equal(t, result{exitOK, "", "no receipt\n"}, cli(t, "feedback", "-s", url, "--hub", "other"))
	require.Equal(t, result{exitOK, "", "no receipt\n"}, cli(t, "feedback", "-s", url, "--since", "1ns"))

	following := start(t, "feedback", "-s", url, "--follow", "--device", "pump")
	following.line(t, "2026-01-02T03:04:05.006Z  accepted  pump  COMMANDS:7:x")
	tell("pump", bridge.StatusCompleted)
	tell("pump.7", bridge.StatusCompleted)
	tell("pump", bridge.StatusUnknown)
	following.line(t, "2026-01-02T03:04:05.006Z  completed  pump  COMMANDS:7:x")
	following.line(t, "2026-01-02T03:04:05.006Z  unknown  pump  COMMANDS:7:x")
	require.Equal(t, exitOK, following.stop(t))
	require.NotContains(t, following.out.String(), "pump.7")

	for _, args := range [][]string{{"--status", "lost"}, {"--since", "-1s"}, {"--name", ""}, {"--name", "a.b"}, {"extra"}} {
		got := cli(t, append([]string{"feedback", "-s", url}, args...)...)
		require.Equal(t, exitUsage, got.code, args)
		require.NotEmpty(t, got.stderr)
	}
}
