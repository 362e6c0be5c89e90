package bridge

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// fakeSource is a Source fed by the test, and the log of what became of its deliveries.
type fakeSource struct {
	in chan Delivery

	mu     sync.Mutex
	acked  []string
	termed map[string]string
}

func newFakeSource() *fakeSource {
	return &fakeSource{in: make(chan Delivery, 100_000), termed: map[string]string{}}
}

func (s *fakeSource) Name() string { return "COMMANDS" }

func (s *fakeSource) Receive(ctx context.Context) (Delivery, error) {
	select {
	case d := <-s.in:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// publish queues a message; its payload is its name. Without a stream it is from core NATS.
func (s *fakeSource) publish(stream, subject, name string) *fakeDelivery {
	d := &fakeDelivery{source: s, in: mapping.Input{Subject: subject, Payload: []byte(name), Stream: stream, Sequence: 1, Time: time.Now()}}
	s.in <- d
	return d
}

func (s *fakeSource) acks() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.acked...)
}

func (s *fakeSource) terms() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.termed)
}

type fakeDelivery struct {
	source *fakeSource
	in     mapping.Input
}

func (d *fakeDelivery) Message() *mapping.Input { return &d.in }

func (d *fakeDelivery) Ack(context.Context) error {
	d.source.mu.Lock()
	defer d.source.mu.Unlock()
	d.source.acked = append(d.source.acked, string(d.in.Payload))
	return nil
}

func (d *fakeDelivery) Term(_ context.Context, reason string) error {
	d.source.mu.Lock()
	defer d.source.mu.Unlock()
	d.source.termed[string(d.in.Payload)] = reason
	return nil
}

// requestDelivery is a delivery whose publisher waits for the outcome.
type requestDelivery struct {
	fakeDelivery
	replies chan []Receipt
}

func (d *requestDelivery) Reply(_ context.Context, r []Receipt) error {
	d.replies <- r
	return nil
}

// sent is one send that a fakeSender was asked for.
type sent struct {
	device, name string
	at           time.Time
}

// fakeSender answers by a script; it notes overlapping sends to a device.
type fakeSender struct {
	answer func(n int, e *mapping.Envelope) error // n: how many times this message was sent, from 1
	takes  time.Duration

	mu       sync.Mutex
	sends    []sent
	tries    map[string]int
	inFlight map[string]int
	overlap  bool
	maxAll   int
	all      int
}

func newFakeSender(answer func(n int, e *mapping.Envelope) error) *fakeSender {
	return &fakeSender{answer: answer, takes: time.Millisecond, tries: map[string]int{}, inFlight: map[string]int{}}
}

func (f *fakeSender) Send(ctx context.Context, e *mapping.Envelope) error {
	f.mu.Lock()
	f.sends = append(f.sends, sent{e.Device, string(e.Body), time.Now()})
	f.tries[string(e.Body)]++
	n := f.tries[string(e.Body)]
	f.inFlight[e.Device]++
	f.all++
	f.maxAll = max(f.maxAll, f.all)
	f.overlap = f.overlap || f.inFlight[e.Device] > 1
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight[e.Device]--
		f.all--
		f.mu.Unlock()
	}()
	select {
	case <-time.After(f.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.answer == nil {
		return nil
	}
	return f.answer(n, e)
}

func (f *fakeSender) log() []sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sent(nil), f.sends...)
}

type fakeDeadLetters struct {
	mu      sync.Mutex
	letters []DeadLetter
	fail    error
}

func (f *fakeDeadLetters) Store(_ context.Context, d DeadLetter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.letters = append(f.letters, d)
	return nil
}

func (f *fakeDeadLetters) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fakeDeadLetters) all() []DeadLetter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]DeadLetter(nil), f.letters...)
}

// bySubject maps "cmd.<device>.…" to that device; other subjects have no route,
// "drop.>" is dropped, "both.>" goes to two devices, "bad.>" cannot be mapped.
type bySubject struct{ ttl time.Duration }

func (m bySubject) Map(in *mapping.Input) []mapping.Result {
	to := func(device string) mapping.Result {
		e := &mapping.Envelope{Route: "r", Hub: "main", Device: device, MessageID: string(in.Payload), Body: in.Payload}
		if m.ttl > 0 {
			e.ExpiresAt = in.Time.Add(m.ttl)
		}
		return mapping.Result{Route: "r", Envelope: e}
	}
	tokens := strings.Split(in.Subject, ".")
	switch tokens[0] {
	case "cmd":
		return []mapping.Result{to(tokens[1])}
	case "both":
		return []mapping.Result{to("a"), to("b")}
	case "drop":
		return []mapping.Result{{Route: "d", Drop: "test traffic"}}
	case "bad":
		return []mapping.Result{{Route: "r", Err: &mapping.RouteError{Route: "r", Field: "device", Reason: mapping.ReasonAbsent, Err: errors.New("no value")}}}
	}
	return nil
}

// rig is a running engine among fakes.
type rig struct {
	*Bridge
	source *fakeSource
	sender *fakeSender
	dead   *fakeDeadLetters
	stop   func()
}

func start(t *testing.T, sender *fakeSender, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{source: newFakeSource(), sender: sender, dead: &fakeDeadLetters{}}
	o := Options{
		Sources: []Source{r.source}, Mapper: bySubject{}, DeadLetters: r.dead,
		Hubs: []HubOptions{{Name: "main", Sender: sender, Window: 64}},
	}
	for _, c := range change {
		c(&o)
	}
	b, err := New(o)
	require.NoError(t, err)
	r.Bridge = b
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	r.stop = func() {
		cancel()
		require.NoError(t, <-done)
	}
	return r
}

// balance is the promise's equation.
func (r *rig) balance(t *testing.T) {
	t.Helper()
	s := r.Status()
	require.Equal(t, s.Received+s.Expanded+s.Restored, s.Accepted+s.Dead+s.Dropped+s.Replaced+s.Parked+s.Returned+s.Waiting)
}

func amqpErr(c Class, condition string) error {
	return &Error{Class: c, Op: "send", Condition: condition, Err: errors.New("said the hub")}
}
