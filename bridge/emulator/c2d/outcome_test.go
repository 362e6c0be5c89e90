package c2d_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
)

// told collects outcomes as "message status".
func told(o *c2d.Options) *[]string {
	var out []string
	o.Outcome = func(x c2d.Outcome) { out = append(out, x.MessageID+" "+x.Status) }
	return &out
}

// Each end of a message, and who is told of it: positive and full of success, negative and full of all else.
func TestOutcomes(t *testing.T) {
	for status, end := range map[string]func(s *c2d.Store, c *clock, x *c2d.Session){
		c2d.Success: func(_ *c2d.Store, _ *clock, x *c2d.Session) {
			for d, ok := x.Take(); ok; d, ok = x.Take() {
				x.Complete(d.Sequence)
			}
		},
		c2d.Rejected: func(_ *c2d.Store, _ *clock, x *c2d.Session) {
			for d, ok := x.Take(); ok; d, ok = x.Take() {
				x.Reject(d.Sequence)
			}
		},
		c2d.DeliveryCountExceeded: func(_ *c2d.Store, _ *clock, x *c2d.Session) {
			for d, ok := x.Take(); ok; d, ok = x.Take() {
				x.Abandon(d.Sequence)
			}
		},
		c2d.Expired: func(s *c2d.Store, c *clock, _ *c2d.Session) { c.pass(hour); s.Sweep() },
		c2d.Purged:  func(s *c2d.Store, _ *clock, _ *c2d.Session) { s.Purge("d1") },
		c2d.Deleted: func(s *c2d.Store, _ *clock, _ *c2d.Session) { s.Delete("d1", "*") },
	} {
		t.Run(status, func(t *testing.T) {
			var o c2d.Options
			out := told(&o)
			s, clock := newStore(t, o, "d1")
			for _, ack := range []string{"", "none", "positive", "negative", "full", "FULL", "Positive"} {
				require.NoError(t, s.Enqueue(c2d.Message{To: to("d1"), MessageID: "ack." + ack, Ack: ack}))
			}
			end(s, clock, attach(t, s, "d1", c2d.SessionOptions{}))
			var want []string
			switch status {
			case c2d.Success:
				want = []string{"positive", "full", "FULL", "Positive"}
			case c2d.Deleted:
			default:
				want = []string{"negative", "full", "FULL"}
			}
			for i, ack := range want {
				want[i] = "ack." + ack + " " + status
			}
			require.ElementsMatch(t, want, *out)
			for _, r := range s.Log("d1") {
				require.Equal(t, status, r.Outcome, r.MessageID)
			}
		})
	}
}

func TestOutcomeTellsWhichDeviceAndWhen(t *testing.T) {
	var got []c2d.Outcome
	s, clock := newStore(t, c2d.Options{Outcome: func(o c2d.Outcome) { got = append(got, o) }}, "d1")
	d, err := s.Get("d1")
	require.NoError(t, err)
	require.True(t, s.Alive("d1", d.GenerationID))
	expires := clock.now().Add(time.Minute)
	require.NoError(t, s.Enqueue(c2d.Message{To: to("d1"), MessageID: "m", Ack: "full", ExpiresAt: expires}))
	clock.pass(hour)
	s.Sweep()
	require.Equal(t, []c2d.Outcome{{Device: "d1", Generation: d.GenerationID, MessageID: "m", Sequence: 1, Status: "Expired", At: expires}}, got,
		"the time is the expiry's, not the sweep's")
	require.NoError(t, s.Delete("d1", "*"))
	require.False(t, s.Alive("d1", d.GenerationID))
	_, err = s.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	require.False(t, s.Alive("d1", d.GenerationID), "another device of that name")
}

// What a session does to a message whose time is over comes too late.
func TestTooLateToRejectOrAbandon(t *testing.T) {
	var o c2d.Options
	out := told(&o)
	s, clock := newStore(t, o, "d1")
	for i := range 2 {
		require.NoError(t, s.Enqueue(c2d.Message{To: to("d1"), MessageID: fmt.Sprint(i + 1), Ack: "full", ExpiresAt: clock.now().Add(time.Second)}))
	}
	x := attach(t, s, "d1", c2d.SessionOptions{})
	require.Equal(t, []string{"1", "2"}, take(x))
	clock.pass(time.Second)
	require.False(t, x.Reject(1))
	require.False(t, x.Abandon(2))
	require.Equal(t, []string{"1 Expired", "2 Expired"}, *out)
}

func TestDisabledDeviceMayRefuse(t *testing.T) {
	s, _ := newStore(t, c2d.Options{Rules: c2d.Rules{RefuseDisabled: true}}, "d1")
	send(t, s, "d1", "1")
	_, err := s.Update(c2d.Device{ID: "d1", Disabled: true}, "*")
	require.NoError(t, err)
	refusal(t, s.Enqueue(c2d.Message{To: to("d1")}), "amqp:not-allowed", 400003)
	require.Equal(t, []string{"1 Enqueued"}, states(s, "d1"))
	require.Equal(t, uint64(1), s.Counts("d1").Refused)
	_, err = s.Update(c2d.Device{ID: "d1"}, "*")
	require.NoError(t, err)
	send(t, s, "d1", "2")
}

func TestPendingMessageIDMayCountAsARepeat(t *testing.T) {
	s, _ := newStore(t, c2d.Options{Rules: c2d.Rules{Deduplicate: true}}, "d1")
	twice := c2d.Message{To: to("d1"), MessageID: "m"}
	require.NoError(t, s.Enqueue(twice))
	require.NoError(t, s.Enqueue(twice))
	require.NoError(t, s.Enqueue(c2d.Message{To: to("d1")}), "no ID: never a repeat")
	require.NoError(t, s.Enqueue(c2d.Message{To: to("d1")}))
	require.Len(t, s.Queue("d1"), 3)
	require.Equal(t, uint64(1), s.Counts("d1").Duplicates)

	s, _ = newStore(t, c2d.Options{}, "d1")
	require.NoError(t, s.Enqueue(twice))
	require.NoError(t, s.Enqueue(twice))
	require.Len(t, s.Queue("d1"), 2, "by default there is no such thing")
}
