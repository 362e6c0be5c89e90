package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

// CoreOptions configures a CoreSource. Conn, Queue and Subjects are required.
type CoreOptions struct {
	Conn *Conn
	// Queue is the queue group: of all bridges in it one gets each message.
	Queue string
	// Subjects are what to subscribe to, none a subset of another.
	Subjects []string
	// Pending bounds the messages that wait in memory. Default 8192.
	Pending int
	Logger  *slog.Logger
}

// CoreSource yields messages of core NATS, at most once, in the order in which the server gave them.
// A message whose publisher waits for an answer is a delivery that implements
// bridge.Replier. It implements bridge.Source. Run must be running for
// Receive to return anything.
type CoreSource struct {
	o    CoreOptions
	subs []string // to subscribe to; no message is one of two's
	log  *slog.Logger
	wait time.Duration // for a word of the server; tests have it longer

	msgs    chan *nats.Msg
	dropped atomic.Uint64

	mu      sync.Mutex
	err     error
	active  []*nats.Subscription
	drained bool
}

// NewCoreSource checks the options. It does no I/O.
func NewCoreSource(o CoreOptions) (*CoreSource, error) {
	if err := checkToken("queue group", o.Queue); err != nil {
		return nil, err
	}
	if len(o.Subjects) == 0 {
		return nil, errors.New("nats: a core source needs subjects")
	}
	if o.Pending <= 0 {
		o.Pending = 8192
	}
	s := &CoreSource{
		o: o, subs: disjoint(o.Subjects), log: logger(o.Logger), wait: finishTimeout,
		msgs: make(chan *nats.Msg, o.Pending), err: errors.New("core NATS: not subscribed yet"),
	}
	return s, nil
}

// Name is "core".
func (s *CoreSource) Name() string { return "core" }

// Dropped is the number of messages lost because the bridge did not keep up.
func (s *CoreSource) Dropped() uint64 { return s.dropped.Load() }

// Ready is nil while subscribed. Otherwise it is one line.
func (s *CoreSource) Ready() error {
	denied := s.o.Conn.deniedOf(func(op, subject string) bool { return op == "subscribe" && slices.Contains(s.subs, subject) })
	if denied != "" {
		return errors.New("missing NATS permission: " + denied)
	}
	if err := s.o.Conn.Ready(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Run subscribes until ctx is done. It fails only if the connection was closed.
func (s *CoreSource) Run(ctx context.Context) error {
	err := s.subscribe(ctx)
	if err == nil {
		s.watch(ctx)
	}
	s.Drain()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.New("core NATS: stopped")
	return err
}

// subscribe makes all subscriptions share one channel, so that the order in which the server wrote
// the messages is kept across subjects.
func (s *CoreSource) subscribe(ctx context.Context) error {
	if err := s.subscribeAll(); err != nil {
		return err
	}
	// Ready once the server knows, however long that takes. While it is away the reconnect tells it.
	for ctx.Err() == nil && s.o.Conn.nc.IsConnected() && !s.flushed(ctx) {
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = nil
	return nil
}

func (s *CoreSource) subscribeAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained {
		return nil // the process stops before it ever subscribed
	}
	for _, subject := range s.subs {
		sub, err := s.o.Conn.nc.ChanQueueSubscribe(subject, s.o.Queue, s.msgs)
		if err != nil {
			s.err = fmt.Errorf("core NATS: subject %s: %w", subject, oneLine{err})
			return s.err
		}
		s.active = append(s.active, sub)
	}
	return nil
}

// watch counts what nats.go drops.
func (s *CoreSource) watch(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	streak := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		before, now := s.dropped.Load(), s.countDropped()
		s.dropped.Store(now)
		switch {
		case now == before:
			streak = false
		case !streak:
			streak = true
			s.log.Warn("core NATS messages lost: they come faster than they can be sent, and nobody keeps them; a stream would", "lost", now)
		}
	}
}

func (s *CoreSource) countDropped() (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.active {
		if d, err := sub.Dropped(); err == nil {
			n += uint64(d)
		}
	}
	return n
}

// Drain unsubscribes; what has arrived, or is on its way from the server, can still be received. It
// returns at once.
func (s *CoreSource) Drain() {
	n := s.countDropped()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained {
		return
	}
	s.drained = true
	s.dropped.Store(max(n, s.dropped.Load()))
	for _, sub := range s.active {
		_ = sub.Drain()
	}
}

// flushed reports whether the server has handled what was sent to it, and all that it sent before is
// here. It waits for finishTimeout at most.
func (s *CoreSource) flushed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	return s.o.Conn.nc.FlushWithContext(ctx) == nil
}

// finishTimeout bounds waiting for a server that says nothing.
const finishTimeout = time.Second

// Finish implements bridge.Finisher: it drains and returns what was not received yet.
func (s *CoreSource) Finish(ctx context.Context) (left []bridge.Delivery) {
	s.Drain()
	// All that the server sent before it knew comes before its answer, which takes as long as that takes to come.
	for n := -1; n < len(s.msgs) && ctx.Err() == nil && s.o.Conn.nc.IsConnected(); {
		n = len(s.msgs)
		if s.flushed(ctx) {
			break
		}
	}
	for {
		select {
		case m := <-s.msgs:
			if d := s.delivery(m); d != nil {
				left = append(left, d)
			}
		default:
			return left
		}
	}
}

// Receive blocks for the next delivery. It fails only when ctx is done.
func (s *CoreSource) Receive(ctx context.Context) (bridge.Delivery, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case m := <-s.msgs:
			if d := s.delivery(m); d != nil {
				return d, nil
			}
		}
	}
}

// delivery is nil for a message that nobody asked for: a subscription may be wider; see disjoint.
func (s *CoreSource) delivery(m *nats.Msg) bridge.Delivery {
	if !slices.ContainsFunc(s.o.Subjects, func(p string) bool { return matches(p, m.Subject) }) {
		return nil
	}
	d := &coreDelivery{in: &mapping.Input{Subject: m.Subject, Header: m.Header, Payload: m.Data, Time: time.Now(), Reply: m.Reply, BadHeader: badHeader(m)}}
	if len(m.Header) == 0 {
		d.in.Header = nil
	}
	if m.Reply == "" || strings.HasPrefix(m.Reply, "$") {
		return d // what begins with $ is the server's own: an answer there would be an order to it
	}
	return &request{coreDelivery: d, nc: s.o.Conn.nc, reply: m.Reply}
}

// coreDelivery is one message of core NATS: nobody keeps it, settling does nothing.
type coreDelivery struct{ in *mapping.Input }

func (d *coreDelivery) Message() *mapping.Input            { return d.in }
func (d *coreDelivery) Ack(context.Context) error          { return nil }
func (d *coreDelivery) Term(context.Context, string) error { return nil }

// request is one whose publisher waits for the outcome.
type request struct {
	*coreDelivery
	nc    *nats.Conn
	reply string
}

// Reply sends the outcome; see reply.
func (r *request) Reply(_ context.Context, receipts []bridge.Receipt) error {
	if len(receipts) == 0 {
		return nil
	}
	m, err := reply(r.reply, receipts)
	if err != nil {
		return err
	}
	if err := r.nc.PublishMsg(m); err != nil {
		return fmt.Errorf("reply: %w", oneLine{err})
	}
	return nil
}

// disjoint widens patterns that overlap until none does. A server delivers a message once for each
// subscription that matches it, and in a queue group maybe to two different processes.
func disjoint(subjects []string) []string {
	out := slices.Clone(subjects)
	slices.Sort(out)
	out = slices.Compact(out)
	for {
		i, j := overlapping(out)
		if i < 0 {
			return out
		}
		out[i] = common(out[i], out[j])
		out = slices.Delete(out, j, j+1)
	}
}

func overlapping(subjects []string) (int, int) {
	for i := range subjects {
		for j := i + 1; j < len(subjects); j++ {
			if collide(subjects[i], subjects[j]) {
				return i, j
			}
		}
	}
	return -1, -1
}

// common is the narrowest pattern that has all subjects of a and b.
func common(a, b string) string {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	var out []string
	for i := 0; ; i++ {
		switch {
		case i == len(x) && i == len(y):
			return strings.Join(out, ".")
		case i == len(x), i == len(y), x[i] == ">", y[i] == ">":
			return strings.Join(append(out, ">"), ".")
		case x[i] == y[i]:
			out = append(out, x[i])
		default:
			out = append(out, "*")
		}
	}
}

// CoreConflict looks for a JetStream stream that stores a subject a core route takes: the route would
// consume at most once what the stream keeps, and a publisher's request would
// be answered by the stream as well. It returns the first stream found, or "".
// It sees the streams of the connection's own account and domain at this moment, no imported
// subjects and no streams made later. An account without JetStream has no conflict.
func CoreConflict(ctx context.Context, c *Conn, subjects []string) (stream string, _ error) {
	if err := c.usable(); err != nil {
		return "", err
	}
	for _, subject := range subjects {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		name, err := c.js.StreamNameBySubject(ctx, subject)
		cancel()
		switch {
		case err == nil:
			return name, nil
		case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrJetStreamNotEnabled),
			errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		default:
			return "", fmt.Errorf("looking for a stream that stores %s: %w", subject, apiError(err))
		}
	}
	return "", nil
}
