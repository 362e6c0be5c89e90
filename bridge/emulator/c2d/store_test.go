package c2d_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
)

// clock is a time that only the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

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

func newStore(t *testing.T, o c2d.Options, devices ...string) (*c2d.Store, *clock) {
	t.Helper()
	c := newClock()
	o.Now = c.now
	s := c2d.New(o)
	for _, id := range devices {
		_, err := s.Create(c2d.Device{ID: id})
		require.NoError(t, err)
	}
	return s, c
}

func to(id string) string { return "/devices/" + id + "/messages/devicebound" }

func send(t *testing.T, s *c2d.Store, device string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, s.Enqueue(c2d.Message{To: to(device), MessageID: id, Body: []byte(id)}))
	}
}

func attach(t *testing.T, s *c2d.Store, device string, o c2d.SessionOptions) *c2d.Session {
	t.Helper()
	x, err := s.Attach(device, o)
	require.NoError(t, err)
	x.Start(0)
	return x
}

// take empties the queue into the session and returns the message IDs.
func take(x *c2d.Session) (ids []string) {
	for d, ok := x.Take(); ok; d, ok = x.Take() {
		ids = append(ids, d.Message.MessageID)
	}
	return ids
}

func states(s *c2d.Store, device string) (out []string) {
	for _, p := range s.Queue(device) {
		out = append(out, p.Message.MessageID+" "+p.State.String())
	}
	return out
}

func refusal(t *testing.T, err error, condition string, code int) {
	t.Helper()
	var r *c2d.Refusal
	require.ErrorAs(t, err, &r)
	require.Equal(t, condition, r.Condition)
	require.Equal(t, code, r.Code)
}

const (
	badArgument = "com.microsoft:argument-error"
	hour        = time.Hour
)

func TestRegistry(t *testing.T) {
	s, clock := newStore(t, c2d.Options{}, "d1")
	_, err := s.Create(c2d.Device{ID: "d1"})
	refusal(t, err, "com.microsoft:device-already-exists", 409001)
	_, err = s.Create(c2d.Device{ID: "a/b"})
	refusal(t, err, badArgument, 400004)
	first, err := s.Get("d1")
	require.NoError(t, err)
	_, err = s.Update(c2d.Device{ID: "d1"}, "other")
	refusal(t, err, "com.microsoft:precondition-failed", 412001)
	_, err = s.Update(c2d.Device{ID: "ghost"}, "*")
	refusal(t, err, "amqp:not-found", 404001)
	second, err := s.Update(c2d.Device{ID: "d1", Disabled: true, Primary: []byte("k")}, first.ETag)
	require.NoError(t, err)
	require.NotEqual(t, first.ETag, second.ETag)
	require.Equal(t, clock.now(), second.StatusUpdated)
	refusal(t, s.Delete("d1", first.ETag), "com.microsoft:precondition-failed", 412001)
	require.NoError(t, s.Delete("d1", second.ETag))
	refusal(t, s.Delete("d1", "*"), "amqp:not-found", 404001)
	again, err := s.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	require.NotEqual(t, first.GenerationID, again.GenerationID)
	require.NotEqual(t, first.ETag, again.ETag)

	_, err = s.Create(c2d.Device{ID: "d0", Disabled: true})
	require.NoError(t, err)
	attach(t, s, "d1", c2d.SessionOptions{})
	total, disabled, connected := s.Statistics()
	require.Equal(t, [3]int{2, 1, 1}, [3]int{total, disabled, connected})
	require.Equal(t, []string{"d0", "d1"}, s.IDs())
}

func TestPurge(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	send(t, s, "d1", "1", "2")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	_, ok := x.Take()
	require.True(t, ok)
	n, err := s.Purge("d1")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.False(t, x.Complete(1))
	require.Equal(t, uint64(2), s.Counts("d1").Purged)
	_, err = s.Purge("ghost")
	require.Error(t, err)
}

func TestLogIsBoundedAndTallies(t *testing.T) {
	s, _ := newStore(t, c2d.Options{History: 3}, "d1", "d2")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	send(t, s, "d1", "a", "b", "b")
	take(x)
	x.Complete(3)
	require.Equal(t, map[string]c2d.Tally{"a": {1, 1, 0}, "b": {2, 2, 1}}, s.Tally("d1"))
	send(t, s, "d2", "c")
	require.Len(t, s.Log(""), 3)
	require.Equal(t, map[string]c2d.Tally{"b": {2, 2, 1}}, s.Tally("d1"))
	require.Equal(t, "c", s.Log("")[2].MessageID, "oldest first")
}

func TestHundredThousandDevices(t *testing.T) {
	const n = 100_000
	s, clock := newStore(t, c2d.Options{AnyDevice: true})
	for i := range n {
		require.NoError(t, s.Enqueue(c2d.Message{To: to(fmt.Sprint("d", i))}))
	}
	require.Len(t, s.IDs(), n)
	clock.pass(hour)
	s.Sweep()
	require.Empty(t, s.Queue("d7"))
	require.True(t, slices.IsSorted(s.IDs()))
	require.Equal(t, uint64(1), s.Counts("d99999").Expired)
}

func BenchmarkEnqueueTakeComplete(b *testing.B) {
	s := c2d.New(c2d.Options{})
	_, _ = s.Create(c2d.Device{ID: "d1"})
	x, _ := s.Attach("d1", c2d.SessionOptions{})
	x.Start(0)
	m := c2d.Message{To: to("d1"), MessageID: "m", Body: make([]byte, 100)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Enqueue(m); err != nil {
			b.Fatal(err)
		}
		d, _ := x.Take()
		x.Complete(d.Sequence)
	}
}
