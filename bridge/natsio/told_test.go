package natsio

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// completed is the receipt of a device's message by its number.
func completed(i int) bridge.Receipt {
	r := receipt()
	r.ID, r.Status, r.Sequence = fmt.Sprint("COMMANDS:", i, ":x"), bridge.StatusCompleted, uint64(i)
	return r
}

// storeMany stores the receipts from..to-1 of one device without waiting for each.
func storeMany(t testing.TB, n *bridgetest.NATS, r *Receipts, from, to int) {
	t.Helper()
	require.NoError(t, r.ensure(t.Context()))
	js := n.JetStream(t)
	for i := from; i < to; i++ {
		m, err := r.message(completed(i), bridge.Correlation{})
		require.NoError(t, err)
		publishAsync(t, js, m)
	}
	allStored(t, js)
}

func isTold(t testing.TB, r *Receipts, rec bridge.Receipt, since time.Time) bool {
	t.Helper()
	told, err := r.Told(t.Context(), rec, since)
	require.NoError(t, err)
	return told
}

// After a start each outcome is looked for, and a device may have thousands of receipts: they are read once, not for each.
func TestToldReadsOnce(t *testing.T) {
	t.Parallel()
	const stored, records = 5000, 100
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	r := newReceipts(t, c, "prod")
	begin := time.Now().Add(-time.Minute)
	storeMany(t, n, r, 0, stored)
	before := c.nc.Stats()
	var wg sync.WaitGroup
	for i := range records { // at once, as the records of one batch are
		wg.Go(func() {
			rec := completed(stored + i)
			require.False(t, isTold(t, r, rec, begin))
			require.NoError(t, r.Store(t.Context(), rec, bridge.Correlation{}))
			require.True(t, isTold(t, r, completed(i), begin.Add(-time.Duration(i)*time.Second)))
		})
	}
	wg.Wait()
	for i := range stored + records {
		if i%100 == 0 {
			require.True(t, isTold(t, r, completed(i), begin))
		}
	}
	after := c.nc.Stats()
	// Twice all: the records lie on both sides of a boundary at worst.
	require.Less(t, after.InMsgs-before.InMsgs, uint64(2*stored+15*records))
	require.Less(t, after.OutMsgs-before.OutMsgs, uint64(2*stored/100+8*records))
}

// What others store between two looks is seen, and what was stored before the time in question is not counted, though it is remembered.
func TestToldReadsOn(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r, other := newReceipts(t, connectTo(t, n.URL()), "prod"), newReceipts(t, connectTo(t, n.URL()), "prod")
	begin := time.Now().Add(-time.Minute)
	require.NoError(t, other.Store(t.Context(), completed(50), bridge.Correlation{}))
	require.False(t, isTold(t, r, completed(50), begin.Add(time.Hour)))
	require.True(t, isTold(t, r, completed(50), begin), "an earlier time than that of the last look")
	for i := range 3 {
		require.False(t, isTold(t, r, completed(i), begin))
		require.NoError(t, other.Store(t.Context(), completed(i), bridge.Correlation{}))
		require.True(t, isTold(t, r, completed(i), begin))
	}
	storeMany(t, n, other, 100, 1000)
	require.True(t, isTold(t, r, completed(999), begin))
	require.True(t, isTold(t, r, completed(100), begin))
	require.False(t, isTold(t, r, completed(100), time.Now()))
	for range 2 { // what is no receipt does not stop it
		_, err := n.JetStream(t).Publish(t.Context(), ReceiptSubject("prod", receipt().Hub, receipt().Device, bridge.StatusCompleted), []byte("{"))
		require.NoError(t, err)
		require.True(t, isTold(t, r, completed(1), begin))
	}
	require.NoError(t, other.Store(t.Context(), completed(4), bridge.Correlation{}))
	require.True(t, isTold(t, r, completed(4), begin))
}

// A stream that is purged, or made anew, has other receipts at the numbers that were read.
func TestToldOfAnotherStream(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	js := n.JetStream(t)
	begin := time.Now().Add(-time.Minute)
	storeMany(t, n, r, 0, 10)
	require.True(t, isTold(t, r, completed(5), begin))
	s, err := js.Stream(t.Context(), r.Stream())
	require.NoError(t, err)
	require.NoError(t, s.Purge(t.Context(), jetstream.WithPurgeSequence(8)))
	require.True(t, isTold(t, r, completed(9), begin))
	for range 2 {
		n.DeleteStream(t, r.Stream())
		require.False(t, isTold(t, r, completed(5), begin), "and no stream, but that is made again")
	}
	storeMany(t, n, r, 20, 25)
	require.True(t, isTold(t, r, completed(22), begin), "fewer than were read")
	n.DeleteStream(t, r.Stream())
	storeMany(t, n, r, 40, 80)
	require.False(t, isTold(t, r, completed(22), begin))
	require.True(t, isTold(t, r, completed(41), begin), "more than were read")
}

// What is remembered has a bound. Beyond it the rest is read each time, and nothing is missed.
func TestToldMemory(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	r.told.most = 300
	begin := time.Now().Add(-time.Minute)
	storeMany(t, n, r, 0, 1000)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			require.True(t, isTold(t, r, completed(i*25), begin))
			require.False(t, isTold(t, r, completed(2000+i), begin))
			rec := completed(i)
			rec.Device = fmt.Sprint("d", i%7)
			require.NoError(t, r.Store(t.Context(), rec, bridge.Correlation{}))
			require.True(t, isTold(t, r, rec, begin))
			require.False(t, isTold(t, r, completed(i), begin.Add(slotLength)), "a later time")
		})
	}
	wg.Wait()
	r.told.mu.Lock()
	held := 0
	for _, l := range r.told.of {
		held += len(l.stored)
	}
	require.LessOrEqual(t, held, 300)
	require.LessOrEqual(t, held, r.told.count)
	r.told.mu.Unlock()
	r.told.forget()
	require.Empty(t, r.told.of)
	require.True(t, isTold(t, r, completed(7), begin))
}

// Where there is no room, what comes again of what is remembered hides nothing before it, and a later time makes room.
func TestToldWithoutRoom(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	r.told.most = 5
	begin := time.Now().Add(-time.Minute)
	storeMany(t, n, r, 0, 10)
	m, err := r.message(completed(2), bridge.Correlation{})
	require.NoError(t, err)
	m.Header.Del(jetstream.MsgIDHeader) // or it were a repeat for the stream
	_, err = n.JetStream(t).PublishMsg(t.Context(), m)
	require.NoError(t, err)
	require.False(t, isTold(t, r, completed(99), begin))
	for i := range 10 {
		require.True(t, isTold(t, r, completed(i), begin), i)
	}
	l := r.told.list(m.Subject)
	require.True(t, l.full)
	require.EqualValues(t, 5, l.last)
	require.False(t, isTold(t, r, completed(2), begin.Add(time.Hour)))
	require.False(t, l.full)
	require.Empty(t, l.stored)
	require.Zero(t, r.told.count)
	require.True(t, isTold(t, r, completed(2), begin))
}

// BenchmarkTold is a look for an outcome of a device with many receipts, and its receipt, as after a start.
func BenchmarkTold(b *testing.B) {
	const stored = 5600
	n := bridgetest.RunNATS(b)
	c := connectTo(b, n.URL())
	r := newReceipts(b, c, "prod")
	begin := time.Now().Add(-time.Minute)
	storeMany(b, n, r, 0, stored)
	before, i := c.nc.Stats(), stored
	b.ReportAllocs()
	for b.Loop() {
		require.False(b, isTold(b, r, completed(i), begin))
		require.NoError(b, r.Store(b.Context(), completed(i), bridge.Correlation{}))
		i++
	}
	b.ReportMetric(float64(c.nc.Stats().InMsgs-before.InMsgs)/float64(b.N), "received/op")
}
