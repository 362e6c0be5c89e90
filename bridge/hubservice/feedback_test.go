package hubservice_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/hubservice"
	"downlink/mapping"
)

// reader is a FeedbackHandler that a test directs.
type reader struct {
	mu      sync.Mutex
	unable  error
	asked   int
	handle  func(ctx context.Context, n int) error // n counts the calls from 1; nil: well
	calls   int
	records []bridge.Record // of the calls that succeeded
}

func (r *reader) Able() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	return r.unable
}

func (r *reader) set(unable error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unable, r.asked = unable, 0
}

func (r *reader) askedSince() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func (r *reader) Handle(ctx context.Context, records []bridge.Record) error {
	r.mu.Lock()
	r.calls++
	n := r.calls
	r.mu.Unlock()
	if r.handle != nil {
		if err := r.handle(ctx, n); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, records...)
	return nil
}

// told is "message status" of what was handled, sorted.
func (r *reader) told() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.records {
		list = append(list, rec.MessageID+" "+rec.Status)
	}
	slices.Sort(list)
	return list
}

func (r *reader) callsSoFar() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

func read(t *testing.T, c *hubservice.Client, r *reader) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Feedback(ctx, r) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, soon, time.Millisecond, what)
}

func feedbackHub(t *testing.T, o emulator.Options) *bridgetest.Hub {
	t.Helper()
	o.Feedback.Every = 10 * time.Millisecond
	if o.Virtual == nil {
		o.Virtual = []virtual.Rule{{Pattern: "good"}}
	}
	o.Devices = append(o.Devices, "good")
	return bridgetest.RunHubWith(t, o)
}

func send(t *testing.T, c *hubservice.Client, device, id string, change ...func(*mapping.Envelope)) {
	t.Helper()
	e := &mapping.Envelope{Device: device, MessageID: id, Ack: mapping.AckFull}
	for _, f := range change {
		f(e)
	}
	require.NoError(t, c.Send(within(t, soon), e))
}

func TestFeedbackOfEachStatus(t *testing.T) {
	rule := func(pattern string, kind virtual.Kind) virtual.Rule {
		return virtual.Rule{Pattern: pattern, Behaviour: virtual.Behaviour{Kind: kind}}
	}
	h := feedbackHub(t, emulator.Options{
		Devices: []string{"bad", "weak", "late", "purged"}, Rules: c2d.Rules{MaxDeliveries: 1, Counting: c2d.CountDeliveries},
		Virtual: []virtual.Rule{rule("good", virtual.Complete), rule("bad", virtual.Reject), rule("weak", virtual.Abandon), rule("late", virtual.Offline), rule("purged", virtual.Offline)},
	})
	c := run(t, options(h))
	r := &reader{}
	read(t, c, r)
	for _, device := range []string{"good", "bad", "weak", "purged"} {
		send(t, c, device, "to-"+device)
	}
	send(t, c, "late", "to-late", func(e *mapping.Envelope) { e.ExpiresAt = time.Now().Add(2 * time.Second) })
	_, err := h.PurgeDevice("purged")
	require.NoError(t, err)
	eventually(t, "all five", func() bool { return len(r.told()) == 5 })
	require.Equal(t, []string{
		"to-bad rejected", "to-good completed", "to-late expired", "to-purged purged", "to-weak delivery-count-exceeded",
	}, r.told())
	for _, rec := range r.records {
		require.Equal(t, "to-"+rec.Device, rec.MessageID)
		require.WithinDuration(t, time.Now(), rec.At, time.Minute)
	}
	eventually(t, "settled", func() bool { s := h.Feedback().Status(); return s.Locked == 0 && s.Batches == 0 })
	require.Zero(t, h.Feedback().Status().Lost)
	require.NoError(t, c.Ready())
	require.True(t, c.Stats().Feedback.Attached)
}

// While the handler cannot store, the hub is not asked: before the first batch, and when that
// begins while the hub has nothing to tell.
func TestNoCreditWhileUnable(t *testing.T) {
	t.Parallel()
	h := feedbackHub(t, emulator.Options{})
	c := run(t, options(h))
	r := &reader{unable: errors.New("NATS is away")}
	read(t, c, r)
	send(t, c, "good", "m1")
	eventually(t, "asked", func() bool { return r.askedSince() > 2 })
	eventually(t, "there is a batch", func() bool { return h.Feedback().Status().Batches == 1 })
	require.Zero(t, h.Feedback().Status().Received)
	require.NoError(t, c.Ready(), "NATS says so itself")

	r.set(nil)
	eventually(t, "handled", func() bool { return len(r.told()) == 1 })
	eventually(t, "asked for the next one", func() bool { return r.askedSince() > 3 })
	r.set(errors.New("NATS is away"))
	eventually(t, "credit taken back, and looked again", func() bool { return r.askedSince() > 2 })
	send(t, c, "good", "m2")
	eventually(t, "there is a batch", func() bool { return h.Feedback().Status().Batches == 1 })
	require.EqualValues(t, 1, h.Feedback().Status().Received)

	r.set(nil)
	eventually(t, "handled", func() bool { return len(r.told()) == 2 })
	require.Zero(t, c.Stats().Reconnects)
}

// A batch that cannot be stored stays in hand, and costs the hub's deliveries nothing.
func TestFeedbackIsHandledAgain(t *testing.T) {
	h := feedbackHub(t, emulator.Options{Feedback: feedback.Rules{MaxDeliveries: 2}})
	c := run(t, options(h))
	r := &reader{handle: func(_ context.Context, n int) error {
		if s := h.Feedback().Status(); s.Completed != 0 || s.Locked != 1 {
			t.Errorf("settled before it was stored: %+v", s)
		}
		if n < 5 {
			return errors.New("the stream is full")
		}
		return nil
	}}
	read(t, c, r)
	send(t, c, "good", "m1")
	eventually(t, "handled", func() bool { return len(r.told()) == 1 })
	eventually(t, "settled", func() bool { return h.Feedback().Status().Completed == 1 })
	require.EqualValues(t, 1, h.Feedback().Status().Received)
	require.Equal(t, 5, r.callsSoFar())
}

// The connection breaks with a batch in hand: the hub delivers it on the next one.
func TestFeedbackAfterACut(t *testing.T) {
	h := feedbackHub(t, emulator.Options{})
	link := bridgetest.RunLink(t, h.AMQPAddr())
	o := options(h)
	o.Address = link.Addr()
	c := run(t, o)
	inHand := make(chan struct{})
	r := &reader{handle: func(ctx context.Context, n int) error {
		if n == 1 {
			close(inHand)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	read(t, c, r)
	send(t, c, "good", "m1")
	<-inHand
	link.Cut()
	eventually(t, "handled on the next connection", func() bool { return len(r.told()) == 1 })
	eventually(t, "settled", func() bool { return h.Feedback().Status().Completed == 1 })
	require.Equal(t, 1, c.Stats().Reconnects)
	eventually(t, "ready", func() bool { return c.Ready() == nil })
}

// Who stops with a batch in hand gives it back at once.
func TestFeedbackIsReleasedAtTheEnd(t *testing.T) {
	h := feedbackHub(t, emulator.Options{})
	c := run(t, options(h))
	inHand := make(chan struct{})
	r := &reader{handle: func(ctx context.Context, n int) error {
		close(inHand)
		<-ctx.Done()
		return ctx.Err()
	}}
	stop := read(t, c, r)
	send(t, c, "good", "m1")
	<-inHand
	stop()
	eventually(t, "given back", func() bool { s := h.Feedback().Status(); return s.Batches == 1 && s.Locked == 0 })
	require.NoError(t, c.Ready(), "nobody wants it any more")
	send(t, c, "good", "m2") // the connection is as it was
	require.Zero(t, c.Stats().Reconnects)
}

// A feedback link that the hub refuses, or ends, is the feedback's trouble alone.
func TestFeedbackLinkRefused(t *testing.T) {
	h := feedbackHub(t, emulator.Options{})
	cancel := h.Faults().Add(fault.AttachReceiver, 0, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:not-allowed", Text: "no"})
	logged := &bridgetest.Log{}
	o := options(h)
	o.Logger = slog.New(slog.NewTextHandler(logged, nil))
	c := run(t, o)
	r := &reader{}
	stop := read(t, c, r)
	eventually(t, "told", func() bool { err := c.Ready(); return err != nil && strings.Contains(err.Error(), "amqp:not-allowed") })
	require.ErrorContains(t, c.Ready(), "hub main: feedback: not read: attach to /messages/servicebound/feedback")
	for range 50 {
		send(t, c, "good", "m1")
	}
	require.False(t, c.Stats().Feedback.Attached)
	cancel()
	eventually(t, "read in the end", func() bool { return len(r.told()) == 50 })
	require.NoError(t, c.Ready())
	require.Zero(t, c.Stats().Reconnects)
	stop()
	require.Equal(t, 1, strings.Count(logged.String(), "feedback is not read"), logged.String())
}

// The hub detaches what has no valid token any more, the sender's link too, and keeps the connection: the
// client replaces it, and feedback is read on the new one.
func TestFeedbackLinkDetached(t *testing.T) {
	h := feedbackHub(t, emulator.Options{AMQP: amqpd.Behaviour{DetachExpired: true}})
	c := run(t, options(h))
	r := &reader{}
	read(t, c, r)
	d, err := h.Device("good")
	require.NoError(t, err)
	eventually(t, "attached", func() bool { return c.Ready() == nil })
	for i := range 3 {
		id := fmt.Sprint("m", i)
		eventually(t, "there is a new token to expire", func() bool { return h.ExpireServiceTokens() == 1 })
		h.Feedback().Add(feedback.Record{MessageID: id, Device: "good", Generation: d.GenerationID, Status: "Success", At: time.Now()})
		// What came just before the detach may come twice.
		eventually(t, "read again", func() bool { return slices.Contains(r.told(), id+" completed") })
	}
	eventually(t, "ready", func() bool { return c.Ready() == nil })
}

// What nobody can read is counted and settled, without a word of it in the log.
func TestFeedbackThatCannotBeRead(t *testing.T) {
	h := feedbackHub(t, emulator.Options{})
	logged := &bridgetest.Log{}
	o := options(h)
	o.Logger = slog.New(slog.NewTextHandler(logged, nil))
	c := run(t, o)
	r := &reader{}
	d, err := h.Device("good")
	require.NoError(t, err)
	h.Feedback().Add(feedback.Record{MessageID: strings.Repeat("secret", 100), Device: "good", Generation: d.GenerationID, Status: "Success", At: time.Now()})
	stop := read(t, c, r)
	eventually(t, "settled", func() bool { return h.Feedback().Status().Completed == 1 })
	eventually(t, "counted", func() bool { return c.Stats().Feedback.Unreadable == 1 && c.Stats().Feedback.Batches == 1 })
	stop()
	require.Zero(t, r.callsSoFar())
	require.Contains(t, logged.String(), "cannot be read")
	require.NotContains(t, logged.String(), "secret")
	require.Error(t, c.Feedback(t.Context(), r), "called twice")
}
