//go:build unix

package main

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// TestKilledWhileNATSRefuses: NATS at the edge refuses what the relay publishes,
// and the relay is killed with what it could not publish. The hub gives it all to
// the next relay, and all of it is at the edge, in order, as it was published.
func TestKilledWhileNATSRefuses(t *testing.T) {
	t.Parallel()
	devices := make([]string, pumps)
	for d := range devices {
		devices[d] = deviceID(d)
	}
	l := newLandscape(t, devices)
	f := newFeed(l)
	f.to(0, pumps, 2)
	l.atEdge(pumps * 2)

	stream, err := l.js.Stream(t.Context(), "EDGE")
	require.NoError(t, err)
	open := stream.CachedInfo().Config
	full := open
	full.MaxMsgs, full.Discard = pumps*2, jetstream.DiscardNew
	_, err = l.js.UpdateStream(t.Context(), full)
	require.NoError(t, err)

	f.to(0, pumps, 22)
	l.await("the relay to hold what NATS refuses", func() error {
		n, err := l.inHands()
		return orNot(err, n >= enough, "%d messages", n)
	})
	n, err := l.stored("EDGE")
	require.NoError(t, err)
	require.Equal(t, pumps*2, n, "NATS takes none")
	l.relay.Kill()
	dead := l.relayDead()
	_, err = l.js.UpdateStream(t.Context(), open)
	require.NoError(t, err)

	l.startRelay()
	l.hubRedelivered(dead)
	f.to(0, pumps, perDevice)
	l.atEdge(pumps * perDevice)
	l.checkEdge(f)
	l.checkBooks()
}
