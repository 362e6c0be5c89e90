package natsio

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// leased gives an owner a lease of its own.
func leased(t testing.TB) func(*SourceOptions) {
	return func(o *SourceOptions) {
		l, err := NewLease(LeaseOptions{Conn: o.Conn, Stream: o.Stream, Create: true, Logger: testLog(t)})
		require.NoError(t, err)
		o.Lease = l
	}
}

// patient is quick, but a lease lasts as long as in earnest: a machine that is slow does not lose it.
func patient() timing {
	t, real := quick(), realTiming()
	t.leaseTTL, t.leaseValid, t.leaseRenew, t.leasePoll = real.leaseTTL, real.leaseValid, real.leaseRenew, real.leasePoll
	return t
}

func (w *owner) own(limit time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	require.NoError(w.t, w.source.Own(ctx), "%v", w.source.Ready())
	require.True(w.t, w.source.Held())
}

// ownLater asks in the background, as the engine does.
func (w *owner) ownLater() (owned <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); ch <- w.source.Own(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
	return ch
}

func (w *owner) disowned(limit time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := w.source.Receive(ctx)
	require.ErrorIs(w.t, err, bridge.ErrDisowned)
	require.False(w.t, w.source.Held())
	w.none(50 * time.Millisecond) // once
}

// receives takes messages and settles them until one of a sequence came; they must be in order.
func (w *owner) receives(last uint64, limit time.Duration) (got []uint64) {
	w.t.Helper()
	deadline := time.Now().Add(limit)
	for len(got) == 0 || got[len(got)-1] < last {
		d := w.next(time.Until(deadline))
		got = append(got, d.Message().Sequence)
		require.NoError(w.t, d.Ack(context.Background()))
	}
	require.True(w.t, slices.IsSorted(got), "%v", got)
	return got
}

func TestOwnedWithoutALease(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	w := runOwner(t, n.URL(), nil)
	require.True(t, w.source.Held())
	require.NoError(t, w.source.Own(t.Context()))
	publish(t, n.JetStream(t), 1, 1)
	w.next(5 * time.Second)
}

// Nothing is pulled, and nothing is looked up, before Own.
// written is a log whose lines are each seen before the product goes on.
type written func(line string)

func (w written) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}

// Who takes a stream that nobody has is not ready before it consumes, not even for a moment.
func TestOwnedIsNotReadyTooSoon(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	const owns = "this process owns the stream now"
	var source *JetStreamSource
	var ready []error
	w := runOwnerAt(t, patient(), n.URL(), func(o *SourceOptions) {
		log := slog.New(slog.NewTextHandler(written(func(line string) {
			if strings.Contains(line, owns) {
				ready = append(ready, source.Ready())
			}
		}), nil))
		l, err := NewLease(LeaseOptions{Conn: o.Conn, Stream: o.Stream, Create: true, Logger: log})
		require.NoError(t, err)
		o.Lease = l
	})
	source = w.source
	w.own(30 * time.Second)
	require.Len(t, ready, 1)
	require.ErrorContains(t, ready[0], "not consuming yet")
	require.Eventually(t, func() bool { return source.Ready() == nil }, 30*time.Second, time.Millisecond)
}

func TestOwnedPullsOnlyWhileHeld(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwnerAt(t, patient(), n.URL(), leased(t))
	publish(t, js, 1, 3)
	w.none(500 * time.Millisecond)
	require.Error(t, w.source.Ready())
	require.False(t, w.source.Held())
	_, err := js.Consumer(t.Context(), "S", "downlink-test")
	require.Error(t, err, "not even the consumer is there")
	w.own(5 * time.Second)
	w.own(time.Second)
	require.Equal(t, []uint64{1, 2, 3}, w.receives(3, 5*time.Second))
	w.ready()

	b := runOwnerAt(t, patient(), n.URL(), leased(t))
	owned := b.ownLater()
	b.ready()
	publish(t, js, 4, 5)
	b.none(2 * quick().ackWait)
	require.Empty(t, owned)
	require.Equal(t, []uint64{4, 5}, w.receives(5, 5*time.Second))
}

// In order: what the old owner held comes to the new one at once, in order, and only once.
func TestOwnedHandover(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	a := runOwnerAt(t, realTiming(), n.URL(), leased(t))
	a.own(5 * time.Second)
	publish(t, js, 1, 400)
	var open []bridge.Delivery
	for range 100 {
		open = append(open, a.next(5*time.Second))
	}
	for _, d := range open[:50] {
		require.NoError(t, d.Ack(t.Context()))
	}
	b := runOwnerAt(t, realTiming(), n.URL(), leased(t))
	owned := b.ownLater()
	b.ready()
	a.source.Drain()
	a.none(100 * time.Millisecond)
	require.True(t, a.source.Held(), "what is in flight may be settled")
	require.NoError(t, open[60].Ack(t.Context()))
	publish(t, js, 401, 420)
	require.Empty(t, owned)
	start := time.Now()
	a.stop()
	require.NoError(t, <-owned)
	got := b.receives(420, 10*time.Second)
	require.Less(t, time.Since(start), realTiming().leaseTTL/3, "nothing had to run out")
	require.EqualValues(t, 51, got[0])
	require.Len(t, slices.Compact(got), 420-51)
	require.NotContains(t, got, uint64(61))
	require.NoError(t, open[55].Ack(t.Context()), "too late: it does nothing")
	require.Eventually(t, func() bool { ci := pendingOf(t, js); return ci.NumAckPending == 0 && ci.NumPending == 0 }, 5*time.Second, 10*time.Millisecond)
}

// kill -9: the lease, the pin and the AckWait run out side by side.
func TestOwnedTakeOverAfterACrash(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	link := n.Link(t)
	a := runOwner(t, link.URL(), leased(t))
	a.own(5 * time.Second)
	publish(t, js, 1, 300)
	for i := range 200 {
		d := a.next(5 * time.Second)
		if i%3 == 0 {
			require.NoError(t, d.Ack(t.Context()))
		}
	}
	require.Eventually(t, func() bool { return pendingOf(t, js).AckFloor.Stream > 0 }, 5*time.Second, 10*time.Millisecond)
	b := runOwner(t, n.URL(), leased(t))
	owned := b.ownLater()
	b.ready()
	a.crash(link)
	start := time.Now()
	publish(t, js, 301, 400)
	require.NoError(t, <-owned)
	b.receives(400, 20*time.Second)
	require.Less(t, time.Since(start), quick().leaseTTL+2*quick().ackWait)
	require.Eventually(t, func() bool { ci := pendingOf(t, js); return ci.NumAckPending == 0 && ci.NumPending == 0 }, 10*time.Second, 10*time.Millisecond)
}

// The owner stops renewing (SIGSTOP, a long pause) and wakes up as the next one works: what it holds is not its
// own any more, whatever it does.
func TestOwnedStalledOwner(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	link := n.Link(t)
	a := runOwner(t, link.URL(), leased(t))
	a.own(5 * time.Second)
	publish(t, js, 1, 20)
	var open []bridge.Delivery
	for range 10 { // ten more wait in its queue
		open = append(open, a.next(5*time.Second))
	}
	b := runOwner(t, n.URL(), leased(t))
	owned := b.ownLater()
	link.Down()
	require.NoError(t, <-owned)
	require.False(t, a.source.Held())
	var theirs []bridge.Delivery
	for i := range 20 {
		d := b.next(10 * time.Second)
		require.EqualValues(t, i+1, d.Message().Sequence)
		theirs = append(theirs, d)
	}
	link.Up()
	isReady(t, a.conn)
	for _, d := range open {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Never(t, func() bool { return pendingOf(t, js).NumAckPending != 20 }, 2*quick().ackWait, 20*time.Millisecond,
		"neither its acks nor its progress count")
	a.disowned(time.Second)
	again := a.ownLater()
	for _, d := range theirs {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 5*time.Second, 10*time.Millisecond)
	a.ready()
	// And back.
	publish(t, js, 21, 30)
	require.Empty(t, again)
	b.stop()
	require.NoError(t, <-again)
	require.EqualValues(t, 21, a.receives(30, 10*time.Second)[0])
}

// The server is away so long that the lease is lost; the same process has it again, and begins anew.
func TestOwnedThroughALongOutage(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), leased(t))
	w.own(5 * time.Second)
	publish(t, js, 1, 10)
	old := []bridge.Delivery{w.next(5 * time.Second), w.next(5 * time.Second)}
	require.NoError(t, old[0].Ack(t.Context()))
	require.Eventually(t, func() bool { return pendingOf(t, js).AckFloor.Stream == 1 }, 5*time.Second, 10*time.Millisecond)
	n.Stop()
	require.Eventually(t, func() bool { return !w.source.Held() }, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, old[1].Ack(t.Context()))
	w.disowned(time.Second)
	owned := w.ownLater()
	n.Start(t)
	require.NoError(t, <-owned)
	got := w.receives(10, 20*time.Second)
	require.Equal(t, []uint64{2, 3, 4, 5, 6, 7, 8, 9, 10}, got)
	w.ready()
}

// A short one, with everything in flight: the tenure goes on, and nothing is repeated.
func TestOwnedThroughARestart(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	const total = 3000
	w := runOwnerAt(t, patient(), n.URL(), leased(t))
	w.own(5 * time.Second)
	wait := faults(t, n, total, func() { n.Restart(t) })
	checkRun(t, w, total, time.Minute, t.Context())
	wait()
	require.True(t, w.source.Held())
	js := n.JetStream(t)
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 10*time.Second, 50*time.Millisecond)
}

// A process of a version without leases is pinned: it loses the pin to the owner at once, not after its TTL.
func TestOwnedTakesThePin(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	a := runOwner(t, n.URL(), nil)
	publish(t, js, 1, 1)
	require.NoError(t, a.next(5*time.Second).Ack(t.Context()))
	a.source.Drain() // it holds the pin, and takes nothing more
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 5*time.Second, 10*time.Millisecond)
	b := runOwnerAt(t, patient(), n.URL(), leased(t))
	start := time.Now()
	b.own(5 * time.Second)
	publish(t, js, 2, 2)
	require.Equal(t, []uint64{2}, b.receives(2, 5*time.Second))
	require.Less(t, time.Since(start), quick().pinnedTTL*3/4)
}

// The consumer is deleted while nobody owns the stream: the next tenure of a process goes on where the last one was.
func TestOwnedConsumerDeletedBetween(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { leased(t)(o); o.Start = "new" })
	w.own(5 * time.Second)
	w.ready()
	publish(t, js, 1, 5)
	w.receives(5, 5*time.Second)
	kv, err := js.KeyValue(t.Context(), "downlink-leases")
	require.NoError(t, err)
	_, err = kv.PutString(t.Context(), "S", "somebody")
	require.NoError(t, err)
	w.disowned(5 * time.Second)
	require.NoError(t, js.DeleteConsumer(t.Context(), "S", "downlink-test"))
	publish(t, js, 6, 8)
	w.own(10 * time.Second)
	require.Equal(t, []uint64{6, 7, 8}, w.receives(8, 10*time.Second))
}
