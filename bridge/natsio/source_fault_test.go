package natsio

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// checkRun receives until want messages were seen, settles them at random, and checks that
// without repeats the order is that of the stream.
func checkRun(t *testing.T, w *owner, want int, limit time.Duration, ctx context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[uint64]bool{}
	var last uint64
	var open []bridge.Delivery
	for len(seen) < want {
		d, err := w.source.Receive(ctx)
		require.NoError(t, err, "%d of %d; ready: %v", len(seen), want, w.source.Ready())
		seq := d.Message().Sequence
		if !seen[seq] {
			require.Greater(t, seq, last, "out of order")
			last = seq
		}
		seen[seq] = true
		open = append(open, d)
		for len(open) > 0 && (r.IntN(2) == 0 || len(open) > 300) {
			i := r.IntN(len(open))
			require.NoError(t, open[i].Ack(ctx))
			open = slices.Delete(open, i, i+1)
		}
	}
	for _, d := range open {
		require.NoError(t, d.Ack(ctx))
	}
}

func TestSourceThroughServerRestarts(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	const total = 6000
	w := runOwner(t, n.URL(), nil)
	wait := faults(t, n, total, func() { n.Restart(t) })
	checkRun(t, w, total, 5*time.Minute, t.Context())
	wait()
	js := n.JetStream(t)
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 50*time.Millisecond)
}

func TestSourceThroughCuts(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	const total = 6000
	link := n.Link(t)
	w := runOwner(t, link.URL(), nil)
	wait := faults(t, n, total, link.Cut)
	checkRun(t, w, total, 5*time.Minute, t.Context())
	wait()
	js := n.JetStream(t)
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 50*time.Millisecond)
}

// faults publishes total messages in the background, in order and each exactly once, and lets the fault
// happen four times meanwhile.
func faults(t *testing.T, n *bridgetest.NATS, total int, fault func()) (wait func()) {
	var published atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); wg.Wait() })
	js := n.JetStream(t)
	wg.Go(func() {
		for i := 1; i <= total && ctx.Err() == nil; {
			pctx, cancel := context.WithTimeout(ctx, time.Second)
			_, err := js.Publish(pctx, fmt.Sprintf("cmd.d%d", i%7), []byte(strconv.Itoa(i)), jetstream.WithMsgID(strconv.Itoa(i)))
			cancel()
			if err == nil {
				published.Store(int64(i))
				i++
			}
		}
	})
	wg.Go(func() {
		for k := int64(1); k <= 4; k++ {
			for published.Load() < k*int64(total)/5 {
				if sleep(ctx, 5*time.Millisecond) != nil {
					return
				}
			}
			fault()
		}
	})
	return wg.Wait
}

func TestSourceConsumerDeleted(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Start = "new" })
	w.ready()
	publish(t, js, 1, 10)
	var open []bridge.Delivery
	for range 10 {
		open = append(open, w.next(20*time.Second))
	}
	require.NoError(t, open[0].Ack(t.Context()))
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 9 }, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, js.DeleteConsumer(t.Context(), "S", "downlink-test"))
	publish(t, js, 11, 20)
	for i := 11; i <= 20; i++ {
		d := w.next(20 * time.Second)
		require.EqualValues(t, i, d.Message().Sequence)
		open = append(open, d)
	}
	for _, d := range open {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Eventually(t, func() bool { ci := pendingOf(t, js); return ci.NumAckPending == 0 && ci.NumPending == 0 }, 30*time.Second, 10*time.Millisecond)
	w.ready()
}

// The stream is deleted and made again: numbers start at 1, and an ack for an old 1 must not reach the new one.
func TestSourceStreamMadeAnew(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Start = "new" })
	w.ready()
	publish(t, js, 1, 3)
	var old []bridge.Delivery
	for range 3 {
		old = append(old, w.next(20*time.Second))
	}
	require.NoError(t, js.DeleteStream(t.Context(), "S"))
	require.Eventually(t, func() bool { return w.source.Ready() != nil }, 30*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		err := w.source.Ready()
		return err != nil && err.Error() == "stream S does not exist: `nats stream add S --subjects 'cmd.>'` or set create: true on route commands"
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, old[0].Ack(t.Context()))
	n.CreateStream(t, "S", "cmd.>")
	publish(t, js, 101, 103)
	var got []bridge.Delivery
	for i := range 3 {
		d := w.next(20 * time.Second)
		require.Equal(t, strconv.Itoa(101+i), string(d.Message().Payload))
		got = append(got, d)
	}
	for _, d := range old {
		require.NoError(t, d.Ack(t.Context()))
	}
	stays(t, func() bool { return pendingOf(t, js).NumAckPending == 3 }, 500*time.Millisecond, 50*time.Millisecond)
	for _, d := range got {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 10*time.Millisecond)
}

// The server lost its latest notes on the consumer, as it does when it is killed: it hands out again what
// is held or settled here.
func TestSourceConsumerStateLost(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), nil)
	receive := func(from, to int) (out []bridge.Delivery) {
		for i := from; i <= to; i++ {
			d := w.next(20 * time.Second)
			require.EqualValues(t, i, d.Message().Sequence)
			out = append(out, d)
		}
		return out
	}
	publish(t, js, 1, 20)
	open := receive(1, 20)
	for _, d := range open[:10] {
		require.NoError(t, d.Ack(t.Context()))
	}
	notes := filepath.Join(n.Server().StoreDir(), "$G", "streams", "S", "obs", "downlink-test")
	n.Stop() // in order: the notes are written
	old := t.TempDir()
	require.NoError(t, os.CopyFS(old, os.DirFS(notes)))
	n.Start(t)
	isReady(t, w.conn)
	publish(t, js, 21, 60)
	open = append(open[10:], receive(21, 60)...)
	for _, d := range open[5:30] {
		require.NoError(t, d.Ack(t.Context()))
	}
	open = append(open[:5], open[30:]...)
	n.Stop()
	require.NoError(t, os.RemoveAll(notes))
	require.NoError(t, os.CopyFS(notes, os.DirFS(old)))
	n.Start(t)
	w.ready()
	publish(t, js, 61, 70)
	open = append(open, receive(61, 70)...)
	for _, d := range open {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Eventually(t, func() bool { ci := pendingOf(t, js); return ci.NumAckPending == 0 && ci.NumPending == 0 }, 30*time.Second, 10*time.Millisecond)
	w.none(100 * time.Millisecond)
}
