package c2d_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
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

func TestParseTo(t *testing.T) {
	for in, want := range map[string]string{
		"/devices/d1/messages/devicebound":               "d1",
		"/devices/d1/messages/deviceBound":               "d1", // C#, C
		"/devices/d1/messages/DEVICEBOUND":               "d1",
		"/devices/a%3Ab%2B/messages/devicebound":         "a:b+", // Node encodes
		"/devices/a:b+/messages/devicebound":             "a:b+", // Python does not
		"/devices/50%25/messages/devicebound":            "50%",
		"/devices/50%/messages/devicebound":              "50%",  // no valid encoding: as it is
		"/devices/a%2541/messages/devicebound":           "a%41", // once, not twice
		"/devices/./messages/devicebound":                ".",
		"/devices/a?b#c/messages/devicebound":            "a?b#c",
		"":                                               "",
		"/":                                              "",
		"/devices/":                                      "",
		"/devices//messages/devicebound":                 "",
		"/devices/d1/messages/devicebound/":              "",
		"/devices/d1/messages":                           "",
		"devices/d1/messages/devicebound":                "",
		"/devices/d1/messages/events":                    "",
		"/devices/d 1/messages/devicebound":              "",
		"/devices/d%2F1/messages/devicebound":            "",
		"/devices/d%201/messages/devicebound":            "",
		"/devices/d1/modules/m1/messages/devicebound":    "",
		to(strings.Repeat("x", 128)):                     strings.Repeat("x", 128),
		to(strings.Repeat("x", 129)):                     "",
		"/devices/%00/messages/devicebound":              "",
		"/devices/d\xc3\xa9/messages/devicebound":        "",
		"/messages/serviceBound/feedback":                "",
		"amqps://h/devices/d1/messages/devicebound":      "",
		"/devices/d1/messages/devicebound?x=/devicebond": "",
	} {
		got, err := c2d.ParseTo(in)
		require.Equal(t, want, got, in)
		if want == "" {
			refusal(t, err, badArgument, 400004)
		} else {
			require.NoError(t, err, in)
		}
	}
}

func FuzzParseTo(f *testing.F) {
	for _, s := range []string{"/devices/d1/messages/devicebound", "/devices/a%3Ab/messages/deviceBound", "/devices/%/messages/devicebound", "/devices/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := c2d.ParseTo(s)
		if err != nil {
			require.Empty(t, id)
			return
		}
		require.True(t, c2d.ValidID(id))
		require.True(t, strings.HasPrefix(s, "/devices/"))
	})
}

func TestSendRules(t *testing.T) {
	s, clock := newStore(t, c2d.Options{}, "d1")
	now := clock.now()
	ok := c2d.Message{To: to("d1")}
	with := func(change func(*c2d.Message)) c2d.Message {
		m := ok
		change(&m)
		return m
	}
	for name, m := range map[string]c2d.Message{
		"nothing but to":   ok,
		"every ack":        with(func(m *c2d.Message) { m.Ack = "Full" }),
		"id charset":       with(func(m *c2d.Message) { m.MessageID = "aZ09-:.+%_#*?!(),=@;$'" }),
		"id of 128":        with(func(m *c2d.Message) { m.MessageID = strings.Repeat("m", 128) }),
		"expiry just left": with(func(m *c2d.Message) { m.ExpiresAt = now.Add(time.Millisecond) }),
		"expiry in 48 h":   with(func(m *c2d.Message) { m.ExpiresAt = now.Add(48 * hour) }),
		"utf8 property":    with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "grüße", Value: "a b/\n\x00"}} }),
		"empty value":      with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "p"}} }),
	} {
		require.NoError(t, s.Enqueue(m), name)
	}
	for name, m := range map[string]c2d.Message{
		"id charset":    with(func(m *c2d.Message) { m.MessageID = "a/b" }),
		"id of 129":     with(func(m *c2d.Message) { m.MessageID = strings.Repeat("m", 129) }),
		"id not ASCII":  with(func(m *c2d.Message) { m.MessageID = "ü" }),
		"expired":       with(func(m *c2d.Message) { m.ExpiresAt = now }),
		"expiry far":    with(func(m *c2d.Message) { m.ExpiresAt = now.Add(48*hour + 1) }),
		"ack":           with(func(m *c2d.Message) { m.Ack = "yes" }),
		"property name": with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Value: "x"}} }),
		"not UTF-8":     with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "p", Value: "\xff"}} }),
		"content type":  with(func(m *c2d.Message) { m.ContentType = "\xff" }),
	} {
		t.Run(name, func(t *testing.T) { refusal(t, s.Enqueue(m), badArgument, 400004) })
	}
	require.Len(t, s.Queue("d1"), 8)
	require.Equal(t, c2d.Counts{Sends: 17, Accepted: 8, Refused: 9}, s.Counts("d1"))
}

func TestDocumentedCharset(t *testing.T) {
	s, _ := newStore(t, c2d.Options{Rules: c2d.Rules{Charset: c2d.Documented}}, "d1")
	m := c2d.Message{To: to("d1"), Properties: []c2d.Property{{Name: "aZ09!#$%&'*+-.^_`|~", Value: "aZ09!#$%&'*+-.^_`|~"}}}
	require.NoError(t, s.Enqueue(m))
	for _, bad := range []string{"a b", "a/b", "ü", "a=b", "(", "\""} {
		m.Properties = []c2d.Property{{Name: "p", Value: bad}}
		refusal(t, s.Enqueue(m), badArgument, 400004)
		m.Properties = []c2d.Property{{Name: bad, Value: "v"}}
		refusal(t, s.Enqueue(m), badArgument, 400004)
	}
}

func TestSizeLimitCountsBodySystemValuesAndProperties(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	m := c2d.Message{
		To: to("d1"), MessageID: "12", CorrelationID: "34", UserID: "5", ContentType: "678", ContentEncoding: "9", Ack: "full",
		Properties: []c2d.Property{{Name: "ab", Value: "cde"}},
	}
	rest := 32 + 2 + 2 + 1 + 3 + 1 + 4 + 5
	m.Body = make([]byte, c2d.MaxMessageSize-rest)
	require.Equal(t, c2d.MaxMessageSize, m.Size())
	require.NoError(t, s.Enqueue(m))
	m.Body = make([]byte, c2d.MaxMessageSize-rest+1)
	refusal(t, s.Enqueue(m), "amqp:link:message-size-exceeded", 413001)
}

func TestQueueHoldsFiftyEnqueuedAndInvisible(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1", "d2")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	for i := range 50 {
		send(t, s, "d1", fmt.Sprint("m", i))
	}
	first, ok := x.Take()
	require.True(t, ok)
	refusal(t, s.Enqueue(c2d.Message{To: to("d1")}), "amqp:resource-limit-exceeded", 403004)
	send(t, s, "d2", "other") // a full queue is its own device's matter
	require.True(t, x.Complete(first.Sequence))
	send(t, s, "d1", "m50")
	require.Len(t, s.Queue("d1"), 50)
	require.Equal(t, uint64(51), s.Queue("d1")[49].Sequence)
}

func TestUnknownDevice(t *testing.T) {
	s, _ := newStore(t, c2d.Options{})
	refusal(t, s.Enqueue(c2d.Message{To: to("ghost")}), "amqp:not-found", 404001)
	_, err := s.Attach("ghost", c2d.SessionOptions{})
	refusal(t, err, "amqp:not-found", 404001)
	require.Equal(t, uint64(1), s.UnknownSends())
	require.Empty(t, s.IDs())
	require.Nil(t, s.Queue("ghost"))
	require.Zero(t, s.Counts("ghost"))
}

func TestAnyDeviceIsCreatedOnFirstUse(t *testing.T) {
	s, _ := newStore(t, c2d.Options{AnyDevice: true})
	refusal(t, s.Enqueue(c2d.Message{To: to("bad"), Ack: "?"}), badArgument, 400004)
	require.Empty(t, s.IDs(), "a message that cannot be queued creates nothing")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() { _ = s.Enqueue(c2d.Message{To: to("new"), MessageID: fmt.Sprint(i)}) })
	}
	wg.Wait()
	_, err := s.Attach("other", c2d.SessionOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"new", "other"}, s.IDs())
	require.Len(t, s.Queue("new"), 40)
}

func TestExpiry(t *testing.T) {
	s, clock := newStore(t, c2d.Options{}, "d1")
	require.NoError(t, s.Enqueue(c2d.Message{To: to("d1"), MessageID: "short", ExpiresAt: clock.now().Add(time.Minute)}))
	send(t, s, "d1", "default")
	require.NoError(t, s.Enqueue(c2d.Message{To: to("d1"), MessageID: "long", ExpiresAt: clock.now().Add(2 * hour)}))
	x := attach(t, s, "d1", c2d.SessionOptions{})
	short, ok := x.Take()
	require.True(t, ok)

	clock.pass(time.Minute)
	s.Sweep()
	require.Equal(t, uint64(1), s.Counts("d1").Expired, "locked or not")
	require.False(t, x.Complete(short.Sequence))
	clock.pass(59*time.Minute - 1)
	require.Equal(t, []string{"default Enqueued", "long Enqueued"}, states(s, "d1"))
	clock.pass(1) // the hour is over
	require.Equal(t, []string{"long"}, take(x), "an expired message is not delivered even if nobody swept")
	clock.pass(2 * hour)
	s.Sweep()
	require.Empty(t, s.Queue("d1"))
	var outcomes []string
	for _, r := range s.Log("d1") {
		outcomes = append(outcomes, r.MessageID+" "+r.Outcome)
	}
	require.Equal(t, []string{"short Expired", "default Expired", "long Expired"}, outcomes)
}

func TestExpiryFreesTheQueue(t *testing.T) {
	s, clock := newStore(t, c2d.Options{}, "d1")
	for i := range 50 {
		send(t, s, "d1", fmt.Sprint(i))
	}
	clock.pass(hour)
	send(t, s, "d1", "next")
	require.Equal(t, []string{"next Enqueued"}, states(s, "d1"))
}

func TestDetachGivesBackInOrder(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	send(t, s, "d1", "1", "2", "3", "4")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	require.Equal(t, []string{"1", "2", "3", "4"}, take(x))
	require.True(t, x.Complete(2))
	send(t, s, "d1", "5")
	x.Detach()
	x.Detach()
	require.False(t, x.Complete(1), "a detached session holds nothing")
	require.False(t, x.Holds(1))

	y := attach(t, s, "d1", c2d.SessionOptions{})
	require.Equal(t, []string{"1", "3", "4", "5"}, take(y))
	require.Equal(t, 2, s.Queue("d1")[0].Deliveries)
	c := s.Counts("d1")
	require.Equal(t, [3]uint64{8, 3, 1}, [3]uint64{c.Delivered, c.Redelivered, c.Completed})
}

func TestSecondSessionEndsTheFirst(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	send(t, s, "d1", "1", "2")
	var causes []error
	x := attach(t, s, "d1", c2d.SessionOptions{Closed: func(err error) { causes = append(causes, err) }})
	require.Equal(t, []string{"1", "2"}, take(x))
	y := attach(t, s, "d1", c2d.SessionOptions{Closed: func(error) { t.Error("detaching is not closing") }})
	require.Equal(t, []error{c2d.ErrReplaced}, causes)
	require.False(t, x.Live())
	require.False(t, x.Complete(1))
	require.Nil(t, take(x))
	require.Equal(t, []string{"1", "2"}, take(y))
	x.Detach() // does not disturb its successor
	require.True(t, y.Live())
	require.True(t, y.Complete(1))
	y.Detach()
}

func TestLockLapse(t *testing.T) {
	t.Run("stays for the next session", func(t *testing.T) {
		s, clock := newStore(t, c2d.Options{}, "d1")
		send(t, s, "d1", "1", "2")
		x := attach(t, s, "d1", c2d.SessionOptions{})
		require.Equal(t, []string{"1", "2"}, take(x))
		clock.pass(time.Minute)
		s.Sweep()
		require.Equal(t, []string{"1 Enqueued", "2 Enqueued"}, states(s, "d1"))
		require.Nil(t, take(x))
		require.True(t, x.Complete(1), "a late ack counts while nobody else has the message")
		x.Detach()
		require.Equal(t, []string{"2"}, take(attach(t, s, "d1", c2d.SessionOptions{})))
	})
	t.Run("comes again on the same session", func(t *testing.T) {
		s, clock := newStore(t, c2d.Options{Rules: c2d.Rules{Lock: 10 * time.Second}}, "d1")
		send(t, s, "d1", "1")
		x := attach(t, s, "d1", c2d.SessionOptions{Resend: true})
		<-x.Ready()
		require.Equal(t, []string{"1"}, take(x))
		clock.pass(10 * time.Second)
		s.Sweep()
		<-x.Ready()
		require.False(t, x.Complete(1))
		require.Equal(t, []string{"1"}, take(x))
		require.True(t, x.Complete(1))
	})
}

func TestDeliveryCount(t *testing.T) {
	deliver := func(t *testing.T, counting c2d.Counting, giveBack func(*c2d.Store, *clock, *c2d.Session, uint64)) (deliveries int, left int) {
		s, clock := newStore(t, c2d.Options{Rules: c2d.Rules{Counting: counting, MaxDeliveries: 3, DefaultTTL: 48 * hour}}, "d1")
		send(t, s, "d1", "1")
		for range 20 {
			x := attach(t, s, "d1", c2d.SessionOptions{Resend: true})
			d, ok := x.Take()
			if !ok {
				break
			}
			deliveries++
			giveBack(s, clock, x, d.Sequence)
			x.Detach()
		}
		if left = len(s.Queue("d1")); left == 0 {
			require.Equal(t, uint64(1), s.Counts("d1").Exceeded)
			require.Equal(t, "DeliveryCountExceeded", s.Log("d1")[0].Outcome)
		}
		return deliveries, left
	}
	abandon := func(_ *c2d.Store, _ *clock, x *c2d.Session, n uint64) { x.Abandon(n) }
	lapse := func(s *c2d.Store, c *clock, _ *c2d.Session, _ uint64) { c.pass(time.Minute); s.Sweep() }
	detach := func(*c2d.Store, *clock, *c2d.Session, uint64) {}

	for name, c := range map[string]struct {
		counting         c2d.Counting
		giveBack         func(*c2d.Store, *clock, *c2d.Session, uint64)
		deliveries, left int
	}{
		"newest text, abandon": {c2d.CountAbandons, abandon, 3, 0},
		"newest text, lapse":   {c2d.CountAbandons, lapse, 20, 1},
		"newest text, detach":  {c2d.CountAbandons, detach, 20, 1},
		"older text, abandon":  {c2d.CountDeliveries, abandon, 3, 0},
		"older text, lapse":    {c2d.CountDeliveries, lapse, 3, 0},
		"older text, detach":   {c2d.CountDeliveries, detach, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			deliveries, left := deliver(t, c.counting, c.giveBack)
			require.Equal(t, c.deliveries, deliveries)
			require.Equal(t, c.left, left)
		})
	}
}

func TestRejectAndAbandon(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	send(t, s, "d1", "1", "2")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	take(x)
	require.True(t, x.Reject(1))
	require.False(t, x.Reject(1))
	require.True(t, x.Abandon(2))
	require.False(t, x.Abandon(2))
	require.Equal(t, []string{"2"}, take(x))
	require.Equal(t, uint64(1), s.Counts("d1").Rejected)
}

func TestStartBoundsWhatIsTaken(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	send(t, s, "d1", "old")
	x, err := s.Attach("d1", c2d.SessionOptions{})
	require.NoError(t, err)
	require.Nil(t, take(x), "not started")
	x.Start(x.Last())
	require.Nil(t, take(x))
	send(t, s, "d1", "new")
	<-x.Ready()
	require.Equal(t, []string{"new"}, take(x))
	x.Stop()
	send(t, s, "d1", "newer")
	require.Nil(t, take(x))
	require.True(t, x.Complete(2), "what is locked stays so")
}

func TestDisabledAndDeletedDevice(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	causes := make(chan error, 1)
	attach(t, s, "d1", c2d.SessionOptions{Closed: func(err error) { causes <- err }})
	d, err := s.Update(c2d.Device{ID: "d1", Disabled: true, StatusReason: "broken"}, "*")
	require.NoError(t, err)
	require.True(t, d.Disabled)
	require.False(t, d.Connected)
	require.Equal(t, c2d.ErrDisabled, <-causes)
	_, err = s.Attach("d1", c2d.SessionOptions{})
	require.ErrorIs(t, err, c2d.ErrDisabled)
	send(t, s, "d1", "1") // the queue goes on accepting

	_, err = s.Update(c2d.Device{ID: "d1"}, "*")
	require.NoError(t, err)
	x := attach(t, s, "d1", c2d.SessionOptions{Closed: func(err error) { causes <- err }})
	require.Equal(t, []string{"1"}, take(x))
	require.NoError(t, s.Delete("d1", "*"))
	require.Equal(t, c2d.ErrDeleted, <-causes)
	require.False(t, x.Complete(1))
	refusal(t, s.Enqueue(c2d.Message{To: to("d1")}), "amqp:not-found", 404001)
	require.Equal(t, "Deleted", s.Log("d1")[0].Outcome)
	s.Sweep()
}

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

// Whatever happens at the same time, what was accepted is completed once or still there.
func TestNothingIsLostUnderConcurrency(t *testing.T) {
	s := c2d.New(c2d.Options{Rules: c2d.Rules{Lock: time.Millisecond}})
	for _, id := range []string{"a", "b"} {
		_, err := s.Create(c2d.Device{ID: id})
		require.NoError(t, err)
	}
	stop := make(chan struct{})
	var workers, senders sync.WaitGroup
	for _, id := range []string{"a", "b"} {
		senders.Go(func() {
			for i := range 500 {
				for {
					err := s.Enqueue(c2d.Message{To: to(id), MessageID: fmt.Sprint(i)})
					if err == nil {
						break
					}
					var r *c2d.Refusal
					if !errors.As(err, &r) || r.Code != 403004 {
						t.Errorf("send: %v", err)
						return
					}
				}
			}
		})
		for range 2 {
			workers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					x, err := s.Attach(id, c2d.SessionOptions{Resend: n%2 == 0})
					if err != nil {
						t.Errorf("attach: %v", err)
						return
					}
					x.Start(0)
					for i := range 20 {
						if d, ok := x.Take(); ok && i%5 != 4 {
							x.Complete(d.Sequence)
						}
					}
					if n%3 == 0 {
						x.Detach()
					}
					s.Sweep()
				}
			})
		}
	}
	senders.Wait()
	for _, id := range []string{"a", "b"} {
		require.Eventually(t, func() bool { return len(s.Queue(id)) == 0 }, 10*time.Second, time.Millisecond)
	}
	close(stop)
	workers.Wait()
	for _, id := range []string{"a", "b"} {
		c := s.Counts(id)
		require.Equal(t, uint64(500), c.Accepted)
		require.Equal(t, uint64(500), c.Completed)
		for _, r := range s.Log(id) {
			require.Equal(t, "Success", r.Outcome)
		}
	}
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
