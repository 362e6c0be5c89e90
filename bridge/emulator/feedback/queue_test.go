package feedback_test

import (
	"fmt"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/feedback"
)

// clock is a time that only the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newQueue(o feedback.Options) (*feedback.Queue, *clock) {
	c := &clock{t: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)}
	o.Now, o.HubName = c.now, "hub1"
	return feedback.New(o), c
}

func record(id string) feedback.Record {
	return feedback.Record{MessageID: id, Device: "d1", Generation: "g1", Status: "Success", At: time.Date(2025, 1, 2, 3, 4, 5, 678e6, time.UTC)}
}

func add(q *feedback.Queue, n int) {
	for i := range n {
		q.Add(record(fmt.Sprint("m", i)))
	}
}

func receive(t *testing.T, q *feedback.Queue) feedback.Batch {
	t.Helper()
	b, ok := q.Receive()
	require.True(t, ok, "%+v", q.Status())
	return b
}

// The record of the developer guide's page, key by key.
func TestBody(t *testing.T) {
	q, clock := newQueue(feedback.Options{})
	q.Add(record("m1"))
	for i, status := range []string{"Expired", "DeliveryCountExceeded", "Rejected", "Purged"} {
		r := record(fmt.Sprint("n", i))
		r.Status, r.At = status, r.At.In(time.FixedZone("", 3600)).Add(-678e6+1234567)
		q.Add(r)
	}
	clock.pass(15 * time.Second)
	b := receive(t, q)
	require.Equal(t, `[{"originalMessageId":"m1","description":"Success","deviceGenerationId":"g1","deviceId":"d1","enqueuedTimeUtc":"2025-01-02T03:04:05.678Z","statusCode":"Success"}`+
		`,{"originalMessageId":"n0","description":"Expired","deviceGenerationId":"g1","deviceId":"d1","enqueuedTimeUtc":"2025-01-02T03:04:05.0012345Z","statusCode":"Expired"}`+
		`,{"originalMessageId":"n1","description":"DeliveryCountExceeded","deviceGenerationId":"g1","deviceId":"d1","enqueuedTimeUtc":"2025-01-02T03:04:05.0012345Z","statusCode":"DeliveryCountExceeded"}`+
		`,{"originalMessageId":"n2","description":"Rejected","deviceGenerationId":"g1","deviceId":"d1","enqueuedTimeUtc":"2025-01-02T03:04:05.0012345Z","statusCode":"Rejected"}`+
		`,{"originalMessageId":"n3","description":"Purged","deviceGenerationId":"g1","deviceId":"d1","enqueuedTimeUtc":"2025-01-02T03:04:05.0012345Z","statusCode":"Purged"}]`, string(b.Body))
	require.Equal(t, 5, b.Records)
	require.Equal(t, clock.now(), b.Enqueued)
	require.Equal(t, "hub1", b.HubName)
	require.Equal(t, uint64(1), b.Sequence)
	require.Regexp(t, regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`), b.LockToken)
	tag := b.Tag
	require.Equal(t, fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x", tag[3], tag[2], tag[1], tag[0], tag[5], tag[4], tag[7], tag[6], tag[8:10], tag[10:]), b.LockToken)
}

func TestBatches(t *testing.T) {
	q, clock := newQueue(feedback.Options{})
	add(q, 63)
	q.Sweep()
	_, ok := q.Receive()
	require.False(t, ok, "neither 64 records nor 15 s")
	add(q, 2)
	require.Equal(t, 64, receive(t, q).Records)
	require.Equal(t, 1, q.Status().Records)
	clock.pass(15*time.Second - 1)
	q.Sweep()
	require.Equal(t, 0, q.Status().Batches)
	clock.pass(1)
	q.Sweep()
	require.Equal(t, 1, q.Status().Batches)
	require.Equal(t, 1, receive(t, q).Records)
	clock.pass(time.Minute)
	q.Sweep()
	require.Equal(t, uint64(2), q.Status().Received)
	require.Equal(t, 2, q.Status().Batches, "nothing to tell makes no batch; the two locks lapsed")
	add(q, 1)
	require.Equal(t, 3, q.Status().Batches, "15 s since the last batch are long over")
}

func TestBatchingIsAnOption(t *testing.T) {
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 2, Every: time.Millisecond}})
	require.Equal(t, time.Millisecond, q.Every())
	add(q, 3)
	require.Equal(t, 2, receive(t, q).Records)
	clock.pass(time.Millisecond)
	require.Equal(t, 1, receive(t, q).Records)
}

func TestSettling(t *testing.T) {
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1}})
	add(q, 4)
	a, b, c := receive(t, q), receive(t, q), receive(t, q)
	require.Equal(t, feedback.Status{Batches: 1, Locked: 3, Received: 3}, q.Status())
	require.True(t, q.Complete(b.LockToken))
	require.False(t, q.Complete(b.LockToken))
	require.True(t, q.Reject(c.LockToken))
	require.True(t, q.Abandon(a.LockToken))
	again := receive(t, q)
	require.Equal(t, a.Body, again.Body, "in its old place")
	require.Equal(t, a.Sequence, again.Sequence)
	require.Equal(t, 2, again.Deliveries)
	require.NotEqual(t, a.LockToken, again.LockToken)
	require.False(t, q.Complete(a.LockToken), "a token is for one delivery")
	require.Equal(t, feedback.Status{Batches: 1, Locked: 1, Received: 4, Completed: 1, Rejected: 1}, q.Status())

	clock.pass(time.Minute)
	require.False(t, q.Complete(again.LockToken), "the lock has lapsed, swept or not")
	require.Equal(t, 2, q.Status().Batches)
	require.False(t, q.Abandon("no such token"))
	require.False(t, q.Reject(""))
}

func TestLockLapses(t *testing.T) {
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1}})
	add(q, 2)
	first, second := receive(t, q), receive(t, q)
	clock.pass(time.Minute - 1)
	q.Sweep()
	require.Equal(t, 2, q.Status().Locked)
	clock.pass(1)
	q.Sweep()
	require.Equal(t, 2, q.Status().Batches)
	require.Equal(t, first.Sequence, receive(t, q).Sequence)
	require.Equal(t, second.Sequence, receive(t, q).Sequence)
}

func TestDroppedAfterTooManyDeliveries(t *testing.T) {
	for name, giveBack := range map[string]func(q *feedback.Queue, c *clock, token string){
		"abandoned": func(q *feedback.Queue, _ *clock, token string) { q.Abandon(token) },
		"unsettled": func(q *feedback.Queue, c *clock, _ string) { c.pass(time.Minute); q.Sweep() },
	} {
		q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1}})
		add(q, 1)
		for i := range 10 {
			b := receive(t, q)
			require.Equal(t, i+1, b.Deliveries)
			giveBack(q, clock, b.LockToken)
		}
		_, ok := q.Receive()
		require.False(t, ok, name)
		require.Equal(t, feedback.Status{Received: 10, Lost: 1}, q.Status(), name)
	}
}

func TestExpiry(t *testing.T) {
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1, Lock: 2 * time.Hour}})
	add(q, 1)
	clock.pass(30 * time.Minute)
	add(q, 2)
	clock.pass(30*time.Minute - 1)
	q.Sweep()
	require.Equal(t, 3, q.Status().Batches)
	clock.pass(1)
	q.Sweep()
	require.Equal(t, feedback.Status{Batches: 2, Lost: 1}, q.Status())
	b := receive(t, q)
	clock.pass(time.Hour)
	require.True(t, q.Complete(b.LockToken), "who has a batch may finish")
	_, ok := q.Receive()
	require.False(t, ok, "expired, swept or not")
}

func TestDeletedDevicesFeedbackIsDropped(t *testing.T) {
	gone := map[string]bool{}
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 2}, Alive: func(device, generation string) bool { return !gone[device+generation] }})
	other := record("other")
	other.Device = "d2"
	q.Add(record("m0"))
	q.Add(other)
	add(q, 3) // a batch of d1 alone, and one that is open
	first := receive(t, q)
	require.Equal(t, 2, first.Records)
	gone["d1g1"] = true
	require.True(t, q.Abandon(first.LockToken))
	b := receive(t, q)
	require.Equal(t, 1, b.Records)
	require.Contains(t, string(b.Body), `"deviceId":"d2"`)
	clock.pass(15 * time.Second)
	_, ok := q.Receive()
	require.False(t, ok)
	require.Equal(t, feedback.Status{Locked: 1, Received: 2}, q.Status())
}

func TestWhatNobodyReadsIsBounded(t *testing.T) {
	q, _ := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1, MaxBatches: 3}})
	add(q, 5)
	require.Equal(t, feedback.Status{Batches: 3, Lost: 2}, q.Status())
	require.Contains(t, string(receive(t, q).Body), `"m2"`, "the oldest went first")
}

func TestWatch(t *testing.T) {
	q, clock := newQueue(feedback.Options{Rules: feedback.Rules{BatchSize: 1}})
	early, stopEarly := q.Watch()
	defer stopEarly()
	require.Empty(t, early)
	add(q, 2)
	late, stopLate := q.Watch()
	for name, c := range map[string]<-chan struct{}{"early": early, "late": late} {
		require.Len(t, c, 1, name)
		<-c
	}
	b := receive(t, q)
	stopLate()
	q.Abandon(b.LockToken)
	require.Len(t, early, 1)
	require.Empty(t, late)
	<-early
	receive(t, q)
	clock.pass(time.Minute)
	q.Sweep()
	require.Len(t, early, 1)
}

// Whatever readers do at the same time, each batch is completed once.
func TestReadersAtTheSameTime(t *testing.T) {
	q := feedback.New(feedback.Options{Rules: feedback.Rules{BatchSize: 4, Every: time.Hour, Lock: time.Hour, MaxDeliveries: 1 << 20}})
	const records = 4000
	var readers sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for i := range 4 {
		readers.Go(func() {
			ready, stop := q.Watch()
			defer stop()
			for n := 0; ; n++ {
				b, ok := q.Receive()
				switch {
				case !ok:
					mu.Lock()
					done := got == records
					mu.Unlock()
					if done {
						return
					}
					select {
					case <-ready:
					case <-time.After(10 * time.Millisecond):
					}
				case (n+i)%3 == 0:
					q.Abandon(b.LockToken)
				case q.Complete(b.LockToken):
					mu.Lock()
					got += b.Records
					mu.Unlock()
				}
				q.Sweep()
			}
		})
	}
	add(q, records)
	readers.Wait()
	s := q.Status()
	require.Equal(t, uint64(records/4), s.Completed)
	require.Zero(t, s.Lost+s.Rejected)
}

func BenchmarkAddReceiveComplete(b *testing.B) {
	q := feedback.New(feedback.Options{})
	r := record("m1")
	b.ReportAllocs()
	for b.Loop() {
		q.Add(r)
		if x, ok := q.Receive(); ok {
			q.Complete(x.LockToken)
		}
	}
}
