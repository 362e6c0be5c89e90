package c2d_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
)

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
		require.Eventually(t, func() bool { return len(s.Queue(id)) == 0 }, 30*time.Second, time.Millisecond)
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
