package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"downlink/bridge"
	"downlink/mapping"
)

// answerTimeout is how long a publish may stay without an answer before the connection is given up.
const answerTimeout = 5 * time.Second

// PublisherOptions configures an OrderedPublisher or a CorePublisher.
type PublisherOptions struct {
	// Conn says where to connect; each publisher has a connection of its own.
	Conn Options
	// Window is how many publications may wait for their answer. Default 256.
	Window int
	// Stream is the JetStream stream that stores the publications. Empty: not checked. Not for core.
	Stream string
	// Create makes the stream, holding Subjects, if it does not exist.
	Create   bool
	Subjects []string
	// MaxAge and MaxBytes bound a stream that is created; with MaxBytes it refuses what does not fit
	// (discard: new). Zero: unbounded.
	MaxAge   time.Duration
	MaxBytes int64
	Logger   *slog.Logger
}

// outbox is what both publishers share: a bounded queue of publications in order, and a connection
// without automatic reconnect under it. nats.go's own reconnect sends what was buffered meanwhile
// before anyone can repeat what was lost, so messages change places. Here any failure ends the
// connection, and the next one starts with the first publication that has no answer.
type outbox struct {
	o    PublisherOptions
	log  *slog.Logger
	work chan struct{} // there is something to send
	room chan struct{} // there is room in the queue
	over chan struct{} // Run has ended

	mu     sync.Mutex
	queue  []*outgoing
	base   uint64 // number of queue[0]
	sent   int    // how many of queue went out on this connection
	flying int    // how many of those have no answer
	err    error  // why nothing gets through
	ended  error  // ctx's, once Run has ended
}

// outgoing is one publication.
type outgoing struct {
	msg      *nats.Msg
	done     func(error)
	sentAt   time.Time
	flying   bool // sent on this connection, without an answer
	answered bool
	err      error // of the answer
}

func newOutbox(o PublisherOptions) *outbox {
	if o.Window <= 0 {
		o.Window = 256
	}
	log := logger(o.Logger)
	if o.Stream != "" {
		log = log.With("stream", o.Stream)
	}
	b := &outbox{o: o, log: log, work: make(chan struct{}, 1), room: make(chan struct{}, 1), over: make(chan struct{})}
	b.err = connError(o.Conn.shown(), nil)
	return b
}

// publish queues a publication.
func (b *outbox) publish(ctx context.Context, p *mapping.Publication, done func(error)) error {
	e := &outgoing{msg: &nats.Msg{Subject: p.Subject, Data: p.Data}, done: done}
	if err := checkSubject(p.Subject); err != nil {
		e.answered, e.err = true, refused(mapping.ReasonBadSubject, err)
	}
	if len(p.Header) > 0 || p.ID != "" {
		e.msg.Header = make(nats.Header, len(p.Header)+1)
		for k, v := range p.Header {
			e.msg.Header[k] = v
		}
		if p.ID != "" {
			e.msg.Header.Set(nats.MsgIdHdr, p.ID)
		}
	}
	for {
		b.mu.Lock()
		if err := errors.Join(b.ended, ctx.Err()); err != nil {
			b.mu.Unlock()
			return err
		}
		if len(b.queue) < b.o.Window {
			b.queue = append(b.queue, e)
			if len(b.queue) < b.o.Window {
				signal(b.room) // for the next caller
			}
			b.mu.Unlock()
			signal(b.work)
			return nil
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.room:
		case <-b.over:
		}
	}
}

// run connects and holds sessions until ctx is done, then answers what is left with ctx's error.
func (b *outbox) run(ctx context.Context, session func(context.Context, *link) error) error {
	retry := newBackOff()
	for {
		progress, err := b.connect(ctx, session)
		if ctx.Err() != nil {
			break
		}
		if progress {
			retry.Reset()
		}
		b.fail(err)
		if sleep(ctx, retry.NextBackOff()) != nil {
			break
		}
	}
	b.mu.Lock()
	b.ended, b.err = ctx.Err(), errors.New(b.o.Conn.shown()+": stopped")
	left := b.queue
	b.queue = nil
	b.mu.Unlock()
	close(b.over)
	for _, e := range left {
		if !e.answered {
			e.err = ctx.Err()
		}
		e.done(e.err)
	}
	return nil
}

// link is one connection of an outbox.
type link struct {
	nc     *nats.Conn
	at     dialSettings
	closed chan struct{} // the connection is gone
	errs   chan error    // permissions that are missing; the server does not name the message
}

func (b *outbox) connect(ctx context.Context, session func(context.Context, *link) error) (progress bool, _ error) {
	l := &link{closed: make(chan struct{}), errs: make(chan error, 1)}
	var fileErr error
	nc, settings, err := b.o.Conn.dial(func(err error) { fileErr = err },
		nats.NoReconnect(),
		nats.ClosedHandler(func(*nats.Conn) { close(l.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if !errors.Is(err, nats.ErrPermissionViolation) {
				return // what ends the connection is told by its end
			}
			select {
			case l.errs <- errors.New("missing NATS permission: " + deniedOperation(err)):
			default:
			}
		}),
	)
	if err != nil {
		if fileErr != nil {
			err = fileErr
		}
		return false, err
	}
	l.nc, l.at = nc, settings
	defer func() {
		nc.Close()
		<-l.closed // nothing of this connection is alive when the next one begins
	}()
	if v := nc.ConnectedServerVersion(); tooOld(v) {
		return false, tooOldError(settings.servers, v)
	}
	b.mu.Lock()
	b.sent, b.flying = 0, 0
	for _, e := range b.queue {
		e.flying = false
	}
	before := b.base
	b.mu.Unlock()
	err = session(ctx, l)
	select {
	case denied := <-l.errs:
		err = denied // a request without an answer, most likely: this is why
	default:
	}
	if err == nil {
		err = connError(settings.servers, cmpErr(nc.LastError(), nats.ErrConnectionClosed))
	}
	b.mu.Lock()
	progress = b.base != before
	b.mu.Unlock()
	return progress, err
}

func (b *outbox) fail(err error) {
	b.mu.Lock()
	first := b.err == nil || b.err.Error() != err.Error()
	b.err = err
	b.mu.Unlock()
	if first {
		b.log.Warn("publishing has stopped, trying again", "err", err)
	}
}

// well clears what Ready says, once something got through.
func (b *outbox) well() {
	b.mu.Lock()
	was := b.err
	b.err = nil
	b.mu.Unlock()
	if was != nil {
		b.log.Info("publishing", "server", b.o.Conn.shown())
	}
}

// idle reports whether nothing waits.
func (b *outbox) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) == 0
}

func (b *outbox) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// send writes what is queued and not yet sent on this connection, up to limit publications
// without an answer. A publication that can never be sent is answered at once.
func (b *outbox) send(l *link, limit int, prepare func(number uint64, m *nats.Msg)) error {
	for {
		b.mu.Lock()
		for b.sent < len(b.queue) && b.queue[b.sent].answered {
			b.sent++
		}
		if b.sent >= len(b.queue) || b.flying >= limit {
			b.mu.Unlock()
			return nil
		}
		e, number := b.queue[b.sent], b.base+uint64(b.sent)
		b.sent++
		b.flying++
		e.flying, e.sentAt = true, time.Now()
		b.mu.Unlock()
		prepare(number, e.msg)
		err := l.nc.PublishMsg(e.msg)
		switch {
		case err == nil:
		case errors.Is(err, nats.ErrMaxPayload):
			b.answer(number, refused(mapping.ReasonTooLarge, fmt.Errorf("larger than the server's max_payload of %d bytes", l.nc.MaxPayload())))
		case errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrBadHeaderMsg):
			b.answer(number, refused(bridge.ReasonRefused, oneLine{err}))
		default:
			return connError(l.at.servers, err)
		}
	}
}

// oldest is when the first publication without an answer was sent. ok: there is one.
func (b *outbox) oldest() (at time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.queue[:b.sent] {
		if e.flying {
			return e.sentAt, true
		}
	}
	return time.Time{}, false
}

// answer records what became of one publication; report passes it on.
func (b *outbox) answer(number uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if number < b.base || number-b.base >= uint64(len(b.queue)) {
		return
	}
	b.settle(b.queue[number-b.base], err)
}

// settle is answer under b.mu.
func (b *outbox) settle(e *outgoing, err error) {
	b.land(e)
	e.answered, e.err = true, err
}

// land is for a publication that is under way no more, whether or not it got through. b.mu is held.
func (b *outbox) land(e *outgoing) {
	if e.flying {
		e.flying = false
		b.flying--
	}
}

// report calls done for the answered ones at the head of the queue. Only run's goroutine calls
// it, so the calls are in order.
func (b *outbox) report() {
	for {
		b.mu.Lock()
		if len(b.queue) == 0 || !b.queue[0].answered {
			b.mu.Unlock()
			return
		}
		e := b.queue[0]
		b.queue[0] = nil
		b.queue = b.queue[1:]
		b.base++
		b.sent = max(b.sent-1, 0)
		b.mu.Unlock()
		signal(b.room)
		e.done(e.err)
	}
}

// refused is an error for which trying again is no use.
func refused(reason mapping.Reason, err error) error {
	return &bridge.Error{Class: bridge.Refused, Op: "publish", Reason: reason, Err: err}
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}
