//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

const (
	pumps     = 20
	perDevice = 100
	// heavy devices get more than the hub queues, so that the bridge holds the rest
	// whatever it does with the others. Eight such would be taken for the hub's quota.
	heavy = 6
	// enough is how many messages a kill must catch unacked.
	enough = 100
)

// TestKilledProcesses holds the promise against kill -9: 2,000 messages for 20
// devices through four processes. The bridge and the relay are killed twice each, at
// least 100 messages unacked each time: once with what comes after it frozen, so
// that they are in its hands, and once in the middle of the traffic. The
// nats-server is killed with one of the relays, while the bridge lives. Every
// message is at the edge, in order for each device, as it was published.
func TestKilledProcesses(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 40 s: three times the bridge waits for JetStream's AckWait")
	}
	devices := make([]string, pumps)
	for d := range devices {
		devices[d] = deviceID(d)
	}
	l := newLandscape(t, devices)
	f := newFeed(l)

	f.to(0, pumps, 2)
	l.atEdge(pumps * 2)
	l.say("messages flow")

	killRelayAndNATS(l, f)
	killBridge(l, f)
	killBoth(l, f, devices)

	f.to(0, pumps, perDevice)
	l.atEdge(pumps * perDevice)
	l.checkEdge(f)
	l.checkBooks()
}

// killRelayAndNATS kills the relay with messages in its hands that the frozen
// nats-server cannot take, and then that, so that what is on its way is lost.
func killRelayAndNATS(l *landscape, f *feed) {
	l.t.Helper()
	l.freeze(l.relay) // for the hub to fill its windows
	f.to(0, pumps, 12)
	l.await("the hub to wait for the relay", func() error {
		b, err := l.books()
		return orNot(err, b.Accepted >= pumps*12 && b.unacked() >= enough, "%+v", b)
	})
	f.to(0, pumps, 20)
	l.await("traffic to the bridge", func() error {
		n := f.published()
		return orNot(nil, n >= pumps*15, "%d published", n)
	})
	l.freeze(l.nats)
	l.wake(l.relay)
	l.await("the relay to receive", func() error {
		n, err := l.inHands()
		return orNot(err, n >= enough, "%d messages", n)
	})
	l.relay.Kill()
	l.nats.Kill()
	dead := l.relayDead()
	l.say("nats-server killed after %d of %d publications", f.published(), pumps*20)

	l.startNATS(strings.TrimPrefix(l.natsURL, "nats://"))
	l.startRelay()
	l.hubRedelivered(dead)
	l.atEdge(pumps * 20)
	l.say("all is at the edge")
}

// killBridge kills the bridge with messages in its hands that the frozen hub cannot take.
func killBridge(l *landscape, f *feed) {
	l.t.Helper()
	l.freeze(l.hub)
	f.to(0, pumps, 28)
	l.await("the bridge to hold messages", func() error {
		c, err := l.consumer()
		// One of each device may have been accepted, its ack on the way.
		return orNot(err, err == nil && c.NumAckPending >= enough+pumps, "%+v", c)
	})
	dead := l.killBridge()
	l.wake(l.hub)

	l.startBridge()
	f.to(0, pumps, 30) // while it takes over
	l.jetStreamRedelivered(dead)
	l.atEdge(pumps * 30)
	l.say("all is at the edge")
}

// killBoth kills both in the middle of the traffic. What the heavy devices' queues
// do not take, the bridge holds meanwhile.
func killBoth(l *landscape, f *feed, devices []string) {
	l.t.Helper()
	l.freeze(l.relay)
	f.to(0, heavy, perDevice)
	const held = heavy * (perDevice - 30 - 50)
	l.await("full queues", func() error {
		b, err := l.books(devices[:heavy]...)
		return orNot(err, b.Pending == heavy*50, "%+v", b)
	})
	l.await("the bridge to hold the rest", func() error {
		c, err := l.consumer()
		return orNot(err, err == nil && c.NumAckPending >= held, "%+v", c)
	})
	before, err := l.books()
	require.NoError(l.t, err)
	f.to(heavy, pumps, 70)
	l.await("traffic for the other devices", func() error {
		b, err := l.books()
		return orNot(err, b.Accepted >= before.Accepted+(pumps-heavy)*20, "%+v", b)
	})
	bridge := l.killBridge()

	l.wake(l.relay)
	l.await("traffic at the edge", func() error {
		b, err := l.books()
		return orNot(err, b.Completed > before.Completed, "%+v", b)
	})
	l.relay.Kill()
	relay := l.relayDead()

	l.startRelay()
	l.startBridge()
	l.hubRedelivered(relay)
	l.jetStreamRedelivered(bridge)
}

// orNot is nil if ok, or else says what is not.
func orNot(err error, ok bool, format string, args ...any) error {
	if err != nil || ok {
		return err
	}
	return fmt.Errorf(format, args...)
}

// death is what was known when a process had been killed: how many deliveries
// until then were repeats, and how many messages were unacked.
type death struct{ repeated, unacked int }

// repeats is how many of the consumer's deliveries were not the first of their
// message: it takes all of the stream.
func repeats(c *jetstream.ConsumerInfo) int { return int(c.Delivered.Consumer - c.Delivered.Stream) }

// killBridge kills the bridge and proves that enough messages were unacked.
func (l *landscape) killBridge() death {
	l.t.Helper()
	l.bridge.Kill()
	var c *jetstream.ConsumerInfo
	l.await("JetStream to know that the bridge is gone", func() error {
		var err error
		c, err = l.consumer()
		return orNot(err, err == nil && c.NumWaiting == 0, "%+v", c)
	})
	l.say("bridge killed with %d messages unacked", c.NumAckPending)
	require.GreaterOrEqual(l.t, c.NumAckPending, enough, "unacked at the bridge")
	return death{repeated: repeats(c), unacked: c.NumAckPending}
}

// relayDead proves that enough messages had no PUBACK when the relay was killed.
func (l *landscape) relayDead() death {
	l.t.Helper()
	var b books
	l.await("the hub to know that the relay is gone", func() error {
		var err error
		b, err = l.books()
		return orNot(err, err == nil && b.Connected == 0, "%+v", b)
	})
	l.say("relay killed with %d messages without PUBACK", b.unacked())
	require.GreaterOrEqual(l.t, b.unacked(), enough, "delivered without PUBACK")
	return death{repeated: int(b.Redelivered), unacked: b.unacked()}
}

// hubRedelivered waits until what had no PUBACK has come again.
func (l *landscape) hubRedelivered(dead death) {
	l.t.Helper()
	var b books
	l.await("the hub's redeliveries", func() error {
		var err error
		b, err = l.books()
		return orNot(err, int(b.Redelivered) >= dead.repeated+dead.unacked, "%+v, killed at %+v", b, dead)
	})
	l.say("redelivered by the hub: %d", int(b.Redelivered)-dead.repeated)
}

// jetStreamRedelivered waits until what the bridge had not acked has come again. Acks that
// were on their way when it was killed still count, so it may be less than was unacked
// then, but not less than what could not be acked.
func (l *landscape) jetStreamRedelivered(dead death) {
	l.t.Helper()
	var c *jetstream.ConsumerInfo
	l.await("JetStream's redeliveries", func() error {
		var err error
		c, err = l.consumer()
		return orNot(err, err == nil && repeats(c) >= dead.repeated+enough, "%+v, killed at %+v", c, dead)
	})
	l.say("redelivered by JetStream: %d", repeats(c)-dead.repeated)
}

// atEdge waits until the edge stream holds so many messages.
func (l *landscape) atEdge(want int) {
	l.t.Helper()
	l.await(fmt.Sprintf("%d messages at the edge", want), func() error {
		n, err := l.stored("EDGE")
		return orNot(err, n >= want, "%d messages", n)
	})
}

// seen is one message at the edge.
type seen struct {
	sequence uint64
	at       time.Time
	id       string
	device   string
	msg      jetstream.Msg
}

// readEdge reads the whole edge stream.
func (l *landscape) readEdge() []seen {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), waitLimit)
	defer cancel()
	consumer, err := l.js.OrderedConsumer(ctx, "EDGE", jetstream.OrderedConsumerConfig{})
	require.NoError(l.t, err)
	messages, err := consumer.Messages()
	require.NoError(l.t, err)
	defer messages.Stop()
	var all []seen
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		require.NoError(l.t, err)
		meta, err := m.Metadata()
		require.NoError(l.t, err)
		all = append(all, seen{
			sequence: meta.Sequence.Stream, at: meta.Timestamp, msg: m,
			id: m.Headers().Get("Downlink-Message-Id"), device: m.Headers().Get("Downlink-Device"),
		})
		if meta.NumPending == 0 {
			return all
		}
	}
}

// checkEdge: every message at least once, in order without the repeats, intact.
func (l *landscape) checkEdge(f *feed) {
	l.t.Helper()
	var all []seen
	first := make(map[string]seen)
	l.await("each message at the edge", func() error {
		all = l.readEdge()
		clear(first)
		for _, s := range all {
			if _, ok := first[s.device+" "+s.id]; !ok {
				first[s.device+" "+s.id] = s
			}
		}
		return orNot(nil, len(first) >= pumps*perDevice, "%d different ones of %d", len(first), len(all))
	})
	require.Len(l.t, first, pumps*perDevice, "different messages at the edge")
	next := make(map[string]int)
	for _, s := range all {
		number, err := strconv.Atoi(s.msg.Headers().Get("X-Number"))
		require.NoError(l.t, err, "%v", s.msg.Headers())
		d := -1
		if _, err := fmt.Sscanf(s.device, "berlin-pump%d", &d); err != nil || d < 0 || d >= pumps {
			require.Fail(l.t, "an unknown device", s.device)
		}
		if first[s.device+" "+s.id].sequence == s.sequence {
			if number != next[s.device] {
				l.fail(f, all, d, next[s.device], number, "came too late, or not at all: the next one there is")
			}
			next[s.device]++
		}
		if err := intact(content(d, number), s.msg); err != nil {
			l.fail(f, all, d, number, number, err.Error())
		}
	}
	l.say("%d messages at the edge, %d of them repeats; %d tries to publish them", len(all), len(all)-len(first), f.tries)
}

// intact compares what is at the edge with what was published.
func intact(want *nats.Msg, got jetstream.Msg) error {
	if subject := strings.Replace(want.Subject, "cmd.berlin.", "edge.berlin-", 1); got.Subject() != subject {
		return fmt.Errorf("subject %q, not %q", got.Subject(), subject)
	}
	headers := make(nats.Header)
	for name, values := range got.Headers() {
		switch {
		case name == "verb", name == nats.MsgIdHdr, strings.HasPrefix(name, "Downlink-") && name != "Downlink-Enc":
		default:
			headers[name] = values
		}
	}
	for name, values := range want.Header {
		if len(headers[name]) != 1 || headers[name][0] != values[0] {
			return fmt.Errorf("header %q is %q, not %q", name, headers[name], values)
		}
		delete(headers, name)
	}
	if len(headers) > 0 {
		return fmt.Errorf("headers that nobody set: %v", headers)
	}
	if !bytes.Equal(want.Data, got.Data()) {
		return fmt.Errorf("a body of %d bytes, not the %d that were published", len(got.Data()), len(want.Data))
	}
	return nil
}

// fail ends the test with all that is known of a message and of the one it is about.
func (l *landscape) fail(f *feed, all []seen, d, n, other int, what string) {
	l.t.Helper()
	text := fmt.Sprintf("%s, message %d: %s", deviceID(d), n, what)
	if other != n {
		text += fmt.Sprintf(" message %d\n%s", other, l.trail(f, all, d, other))
	}
	l.t.Fatalf("%s\n%s", text, l.trail(f, all, d, n))
}

// trail is a message's way as the streams and the logs tell it.
func (l *landscape) trail(f *feed, all []seen, d, n int) string {
	f.mu.Lock()
	sequence := f.stored[d][n]
	f.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "message %d is number %d of stream COMMANDS", n, sequence)
	for _, s := range all {
		if s.device == deviceID(d) && s.msg.Headers().Get("X-Number") == strconv.Itoa(n) {
			fmt.Fprintf(&b, "\n  number %d of stream EDGE at %s, message ID %s", s.sequence, s.at.Format(time.RFC3339Nano), s.id)
		}
	}
	id := fmt.Sprintf("COMMANDS:%d:", sequence) // how its message ID begins
	for _, p := range l.all {
		for line := range strings.Lines(p.Log()) {
			if strings.Contains(line, id) {
				fmt.Fprintf(&b, "\n  %s: %s", p.Name, strings.TrimSpace(line))
			}
		}
	}
	return b.String()
}

// checkBooks: nothing is left on the way, and nothing took another way out.
func (l *landscape) checkBooks() {
	l.t.Helper()
	l.await("nothing to be left at the source", func() error {
		c, err := l.consumer()
		return orNot(err, err == nil && c.NumAckPending == 0 && c.NumPending == 0, "%+v", c)
	})
	var b books
	l.await("nothing to be left at the hub", func() error {
		var err error
		b, err = l.books()
		return orNot(err, b.Pending == 0, "%+v", b)
	})
	require.Equal(l.t, b.Accepted, b.Completed)
	require.Zero(l.t, b.Expired+b.Exceeded+b.Rejected+b.Purged)
	for _, stream := range []string{"CLOUD_DEAD", "SITE_DEAD"} {
		n, err := l.stored(stream)
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			require.NoError(l.t, err)
			require.Zero(l.t, n, "dead letters in %s", stream)
		}
	}
	l.say("the hub accepted %d messages, %d more than were published", b.Accepted, b.Accepted-pumps*perDevice)
}
