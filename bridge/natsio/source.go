package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"downlink/bridge"
	"downlink/mapping"
)

// timing is how long things take. Tests shorten it.
type timing struct {
	ackWait   time.Duration // the server gives a message away after so long without a word
	progress  time.Duration // between words
	pinnedTTL time.Duration // the server unpins a client after so long without a pull
	expires   time.Duration // of a pull, below pinnedTTL: each one with the pin renews it
	heartbeat time.Duration // of the server, while a pull waits
	silence   time.Duration // no message, no heartbeat: the pull is lost
	ask       time.Duration // between questions for the position, while the barrier is on
	refresh   time.Duration // the same, while nothing arrives

	leaseTTL   time.Duration // the server drops a lease so long after its last renewal
	leaseValid time.Duration // its holder counts on it so long from the start of the renewal; below leaseTTL
	leaseRenew time.Duration // between renewals
	leasePoll  time.Duration // between tries: for a lease that somebody holds, and after a failed renewal
}

func realTiming() timing {
	return timing{
		ackWait: 10 * time.Second, progress: 3 * time.Second, pinnedTTL: 10 * time.Second,
		expires: 5 * time.Second, heartbeat: time.Second, silence: 3 * time.Second,
		ask: 250 * time.Millisecond, refresh: 5 * time.Second,
		leaseTTL: 10 * time.Second, leaseValid: 8 * time.Second, leaseRenew: 3 * time.Second, leasePoll: 400 * time.Millisecond,
	}
}

// pinnedGroup is the priority group of our consumers.
const pinnedGroup = "downlink"

// SourceOptions configures a JetStreamSource. Conn, Stream and Consumer are required.
type SourceOptions struct {
	Conn   *Conn
	Stream string
	// Consumer names the durable. All owners of one bridge share it; one at a time gets messages.
	Consumer string
	// Filters are the subjects to consume, none a subset of another. Empty: all of the stream.
	Filters []string
	// Routes are named when something is missing that they need.
	Routes []string
	// Start is new (default), all or an RFC 3339 time: where the durable begins when it is
	// first created. Streams with work-queue retention begin at all.
	Start string
	// Create makes the stream, holding Subjects (default: Filters), if it does not exist.
	Create   bool
	Subjects []string
	// MaxAckPending bounds what is held in memory. Default 2048.
	MaxAckPending int
	// Lease makes one process at a time the owner: the source pulls only from Own until the lease
	// is lost. The source runs it, and nobody else may use it. Without one Own is not needed, and only
	// the consumer's pinned-client policy keeps two processes apart.
	Lease  *Lease
	Logger *slog.Logger
}

// JetStreamSource yields the messages of one stream in stream order, each until
// it is settled, across crashes, reconnects and take-overs; see barrier.go. It
// implements bridge.Source, and bridge.Owned. Run must be running for Receive and Own to return.
type JetStreamSource struct {
	o     SourceOptions
	start startPolicy
	time  timing
	log   *slog.Logger

	arrived chan struct{} // there is something in queue
	drained chan struct{} // closed by Drain
	drain   sync.Once

	mu       sync.Mutex
	barrier  *barrier
	queue    []*held          // let out, not yet received
	unsent   map[*held]string // settled while the server could not be told: the ack's text
	draining bool
	attached bool  // the consumer is known to be there, of the stream that we know
	err      error // why it is not

	// With a lease.
	own      chan struct{} // tells the puller of a new tenure
	tenure   *tenure       // nil: not ours
	disowned bool          // Receive has to say so
	resume   uint64        // where the consumer would have gone on in an earlier tenure

	seen uint64 // as of the latest attach: up to here the stream was handed out before, to anybody
}

// NewJetStreamSource checks the options. It does no I/O.
func NewJetStreamSource(o SourceOptions) (*JetStreamSource, error) {
	if err := errors.Join(checkToken("stream", o.Stream), checkToken("consumer", o.Consumer)); err != nil {
		return nil, err
	}
	start, err := parseStart(o.Start)
	if err != nil {
		return nil, fmt.Errorf("nats: stream %s: %w", o.Stream, err)
	}
	if o.MaxAckPending <= 0 {
		o.MaxAckPending = 2048
	}
	if len(o.Subjects) == 0 {
		o.Subjects = o.Filters
	}
	t := realTiming()
	return &JetStreamSource{
		time: t, o: o, start: start, log: logger(o.Logger).With("stream", o.Stream),
		arrived: make(chan struct{}, 1), drained: make(chan struct{}),
		barrier: newBarrier(t, 2*o.MaxAckPending),
		unsent:  map[*held]string{},
		err:     errors.New("stream " + o.Stream + ": not consuming yet"),
		own:     make(chan struct{}, 1),
	}, nil
}

// Name is the stream's name.
func (s *JetStreamSource) Name() string { return s.o.Stream }

// Ready is nil while the durable is there and being pulled from. Otherwise it is one line that
// says what is missing, and for which routes.
func (s *JetStreamSource) Ready() error {
	denied := s.o.Conn.deniedOf(func(op, subject string) bool {
		return op == "publish" && strings.HasPrefix(subject, "$") && hasToken(subject, s.o.Stream)
	})
	if denied != "" {
		return errors.New("missing NATS permission: " + denied + forRoutes(s.o.Routes))
	}
	if err := s.o.Conn.Ready(); err != nil {
		return err
	}
	if s.o.Lease != nil {
		if err := s.o.Lease.Ready(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.o.Lease != nil && s.o.Lease.Held() && !s.holds() {
		return s.notYet() // Own, which has the lease, is about to say so
	}
	return s.err
}

func (s *JetStreamSource) notYet() error {
	return errors.New("stream " + s.o.Stream + ": not consuming yet")
}

// Receive blocks for the next delivery. It fails only when ctx is done, or with
// bridge.ErrDisowned, once, when the lease is lost.
func (s *JetStreamSource) Receive(ctx context.Context) (bridge.Delivery, error) {
	for {
		s.mu.Lock()
		if s.tenure != nil && !s.holds() {
			s.disown(s.tenure) // before the puller notices
		}
		if s.disowned {
			s.disowned = false
			s.mu.Unlock()
			return nil, bridge.ErrDisowned
		}
		for len(s.queue) > 0 {
			h := s.queue[0]
			s.queue[0] = nil
			s.queue = s.queue[1:]
			if h.gone || h.done {
				continue
			}
			h.received = true
			if len(s.queue) > 0 {
				signal(s.arrived)
			}
			s.mu.Unlock()
			return &delivery{source: s, held: h}, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.arrived:
		}
	}
}

// Drain stops pulling. What was received is kept alive until Run ends; what was not received yet
// is let go. It returns at once.
func (s *JetStreamSource) Drain() {
	s.drain.Do(func() {
		close(s.drained)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.draining, s.queue = true, nil
		if s.o.Lease == nil {
			s.barrier.letGo()
		} // else the next owner gets it with the lease; see giveBack
	})
}

// Run consumes until ctx is done, then lets go of what is held. Without a lease it does so without a nak, which
// would put it behind newer messages; with one the next owner begins behind its barrier, and gets
// at once what is given back. It fails only if the connection was closed.
func (s *JetStreamSource) Run(ctx context.Context) error {
	p, err := newPuller(s)
	if err != nil {
		return fmt.Errorf("stream %s: %w", s.o.Stream, err)
	}
	// The lease outlives all that relies on it.
	leaseCtx, endLease := context.WithCancel(context.WithoutCancel(ctx))
	defer endLease()
	var lease sync.WaitGroup
	if s.o.Lease != nil {
		lease.Go(func() { s.o.Lease.Run(leaseCtx) })
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { p.run(ctx); return nil })
	g.Go(func() error { s.keepAlive(ctx); return nil })
	err = g.Wait()
	s.Drain()
	s.giveBack()
	endLease()
	lease.Wait()
	s.mu.Lock()
	s.err = errors.New("stream " + s.o.Stream + ": stopped")
	s.mu.Unlock()
	return err
}

// keepAlive tells the server again and again that what we hold is being worked on, whether it waits
// behind the barrier, in a lane or in flight: a message that runs out its AckWait would be given away.
func (s *JetStreamSource) keepAlive(ctx context.Context) {
	t := time.NewTicker(s.time.progress)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !s.o.Conn.nc.IsConnected() {
			continue // an old progress ack says nothing
		}
		s.mu.Lock()
		var replies []string
		if s.holds() {
			replies = s.barrier.progress()
		}
		s.mu.Unlock()
		for _, r := range replies {
			_ = s.o.Conn.nc.Publish(r, []byte("+WPI")) // without it the message comes again, and is recognised
		}
	}
}

// take handles one delivery. started: the barrier began, or began again, with it.
func (s *JetStreamSource) take(a arrival, now time.Time) (started bool, epoch uint64) {
	s.mu.Lock()
	if s.draining && s.o.Lease == nil || !s.holds() {
		s.mu.Unlock()
		return false, 0
	}
	before := s.barrier.epoch
	a.again = a.again || a.seq <= s.seen
	h, what := s.barrier.arrive(a, now)
	epoch, behind := s.barrier.asking()
	if what == emit {
		s.release([]*held{h})
	}
	s.mu.Unlock()
	if what == again {
		_ = s.o.Conn.nc.Publish(h.reply, []byte("+ACK"))
	}
	if started = behind && epoch != before; started {
		s.log.Debug("holding messages until all pending ones are here", "seq", a.seq)
	}
	return started, epoch
}

// release lets messages out to Receive. s.mu is held.
func (s *JetStreamSource) release(out []*held) {
	if len(out) > 0 && !s.draining {
		s.queue = append(s.queue, out...)
		signal(s.arrived)
	}
}

// settle tells the server about a message whose fate is durable. A plain ack is enough for at
// least once: an ack that gets lost brings the message again, and the barrier recognises it.
func (s *JetStreamSource) settle(h *held, text string) error {
	s.mu.Lock()
	if !h.gone && !s.holds() {
		s.disown(s.tenure)
		h.gone = true // the next owner may have it by now
	}
	if !s.barrier.settle(h) {
		s.mu.Unlock()
		return nil
	}
	reply := h.reply
	if !s.attached || !s.o.Conn.nc.IsConnected() {
		// Not sent blindly: if the stream was made anew meanwhile, the same subject acks another
		// message, which nobody has seen yet.
		s.unsent[h] = text
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if err := s.o.Conn.nc.Publish(reply, []byte(text)); err != nil {
		return fmt.Errorf("stream %s: message %d: %w", s.o.Stream, h.seq, oneLine{err})
	}
	return nil
}

// delivery is one message of a JetStreamSource.
type delivery struct {
	source *JetStreamSource
	held   *held
}

func (d *delivery) Message() *mapping.Input { return d.held.in }

// Redelivered implements bridge.Redelivered.
func (d *delivery) Redelivered() bool { return d.held.again }

// Ack settles the message. It does not wait for the server.
func (d *delivery) Ack(context.Context) error { return d.source.settle(d.held, "+ACK") }

// Term settles the message and gives the server the reason, for its advisory.
func (d *delivery) Term(_ context.Context, reason string) error {
	return d.source.settle(d.held, strings.TrimSpace("+TERM "+strings.Join(strings.Fields(reason), " ")))
}

// newInput is what a delivery says, without what the server added to it on the way.
func newInput(m *nats.Msg, meta *nats.MsgMetadata) *mapping.Input {
	in := &mapping.Input{
		Subject: m.Subject, Header: m.Header, Payload: m.Data,
		Stream: meta.Stream, Sequence: meta.Sequence.Stream, Time: meta.Timestamp, BadHeader: badHeader(m),
	}
	// The server appends its pin behind a header of that name which a publisher may have sent.
	if pins := m.Header[pinHeader]; len(pins) > 1 {
		m.Header[pinHeader] = pins[:len(pins)-1]
	} else {
		delete(m.Header, pinHeader)
	}
	if len(m.Header) == 0 {
		in.Header = nil
	}
	return in
}

// badHeader reports whether a received message has headers that nats.go could not read. It hands
// such a message on as one without headers; only the size on the wire tells.
func badHeader(m *nats.Msg) bool {
	return m.Header == nil && m.Size() > len(m.Subject)+len(m.Reply)+len(m.Data)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// forRoutes is " (route a)" or " (routes a, b)".
func forRoutes(routes []string) string {
	switch len(routes) {
	case 0:
		return ""
	case 1:
		return " (route " + routes[0] + ")"
	}
	return " (routes " + strings.Join(routes, ", ") + ")"
}
