package natsio

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

func TestMain(m *testing.M) {
	bridgetest.Parallel(6) // tests that measure time, or that keep the CPUs busy, run alone
	bridgetest.VerifyTestMain(m)
}

// run runs a part until the test ends, and waits for it.
func run(t testing.TB, part func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := part(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// stays checks that something is so for a while. Unlike require.Never it looks on the test's own goroutine, so that
// no look goes on behind it.
func stays(t testing.TB, so func() bool, d, tick time.Duration, why ...any) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); require.NoError(t, sleep(t.Context(), tick)) {
		require.True(t, so(), why...)
	}
}

func letter() bridge.DeadLetter {
	return bridge.DeadLetter{
		Message: &mapping.Input{
			Subject: "cmd.berlin.pump7.reboot", Payload: []byte("now"), Stream: "COMMANDS", Sequence: 7,
			Time:   time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			Header: map[string][]string{"X-User": {"ann"}, "Nats-Msg-Id": {"m1"}, "nats-rollup": {"all"}, "DOWNLINK-Via": {"other"}},
		},
		Route: "commands", Hub: "main", Device: "berlin-pump7", MessageID: "COMMANDS:7:x", Reason: bridge.ReasonExpired,
		Condition: "amqp:not-found", Text: "expired\r\nNats-Rollup: all", Attempts: 3, At: time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC),
	}
}
