package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"downlink/bridge"
	"downlink/mapping"
)

// Receiver yields a device's messages; see From.
type Receiver interface {
	// Receive blocks for the next message, in arrival order. It fails only when ctx is done.
	Receive(ctx context.Context) (Message, error)
}

// Message is one message, held until Ack.
type Message interface {
	// C2D is the message.
	C2D() *mapping.C2D
	// Ack completes it at the hub. It does not block, keeps arrival order whatever
	// the order of calls, and may be called at any time from any goroutine.
	Ack()
}

// Mapper makes a publication of a message. An error, usually a *mapping.RouteError,
// means that it never will.
type Mapper interface {
	Map(*mapping.C2D) (mapping.Publication, error)
}

// Publisher publishes on the local NATS.
type Publisher interface {
	// Publish queues p and blocks while the window is full, at most until ctx is
	// done. Each accepted call (nil) has done called exactly once, in the order of
	// the calls: nil means that the server has the message; a *bridge.Error of class
	// bridge.Refused that it never will; any other error that it was given up, as at
	// shutdown. p must not be changed until then. Safe for concurrent use.
	Publish(ctx context.Context, p *mapping.Publication, done func(error)) error
}

// From makes a Receiver of a client whose Receive returns its own type of message.
func From[M Message](client interface {
	Receive(context.Context) (M, error)
}) Receiver {
	return receiverFunc(func(ctx context.Context) (Message, error) {
		m, err := client.Receive(ctx)
		if err != nil {
			return nil, err // not a Message that holds a nil M
		}
		return m, nil
	})
}

type receiverFunc func(context.Context) (Message, error)

func (f receiverFunc) Receive(ctx context.Context) (Message, error) { return f(ctx) }

// Options configures a Relay. Device, Receiver, Publisher and Map are required.
type Options struct {
	// Device is the device ID.
	Device    string
	Receiver  Receiver
	Publisher Publisher
	// DeadLetters publishes dead letters. Default: Publisher.
	DeadLetters Publisher
	Map         Mapper
	// Name prefixes the subjects of dead letters: NAME.dead.REASON.DEVICE. Default downlink.
	Name string
	// Grace is how long Run, once ctx is done, lets what is in flight finish. Default 10s.
	Grace time.Duration
	// Logger is for fates and failures. Default: none.
	Logger *slog.Logger
	// Registerer gets the metrics; relays may share one. Default: none.
	Registerer prometheus.Registerer
}

// Relay carries one device's messages to the local NATS.
type Relay struct {
	o       Options
	logger  *slog.Logger
	metrics *metrics

	mu       sync.Mutex
	stats    Stats
	repeats  repeats
	inFlight int
	idle     chan struct{} // set by drain; closed when inFlight reaches 0
	started  bool
	stopped  bool  // start no more workers
	failing  error // why dead letters cannot be stored
	workers  sync.WaitGroup
}

const (
	retryFirst = 100 * time.Millisecond
	retryMax   = time.Minute
	// holdDead is how long a message stays at the hub because its dead letter is
	// refused: the hub's own default time to live. Then it is given up, aloud, or
	// one message would end the device's flow: the hub holds 50 and sends no more.
	holdDead = time.Hour
)

// New checks the options. It starts nothing.
func New(o Options) (*Relay, error) {
	switch {
	case o.Device == "":
		return nil, errors.New("relay: device is empty")
	case o.Receiver == nil || o.Publisher == nil || o.Map == nil:
		return nil, errors.New("relay: receiver, publisher and map are required")
	case o.Grace < 0:
		return nil, fmt.Errorf("relay: grace %s is negative", o.Grace)
	}
	if o.Name == "" {
		o.Name = "downlink"
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.DeadLetters == nil {
		o.DeadLetters = o.Publisher
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("relay: metrics: %w", err)
	}
	return &Relay{o: o, logger: o.Logger.With("component", "relay", "device_id", o.Device), metrics: m}, nil
}

// Ready is nil unless dead letters cannot be stored.
func (r *Relay) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failing == nil {
		return nil
	}
	return fmt.Errorf("device %s: dead letters cannot be stored on %s.dead.>, their messages stay at the hub: %w", r.o.Device, r.o.Name, r.failing)
}

// Run relays until ctx is done. Then it receives nothing more, lets what is in
// flight finish within Grace, and returns nil; what did not finish is not
// completed, the hub sends it again. The receiver's client must outlive it, or the
// last PUBACKs are lost. Run may be called once.
func (r *Relay) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.started {
		r.mu.Unlock()
		return errors.New("relay: Run was called before")
	}
	r.started = true
	r.mu.Unlock()

	// What is in flight outlives receiving, by the grace period.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	receiving, end := context.WithCancel(ctx)
	defer end()
	r.spawn(func() {
		<-receiving.Done()
		sleep(work, r.o.Grace)
		stop()
	})

	var failure error
	for ctx.Err() == nil {
		m, err := r.o.Receiver.Receive(receiving)
		if err != nil {
			if ctx.Err() == nil {
				failure = fmt.Errorf("relay: receive: %w", err)
			}
			break
		}
		r.handle(work, m)
	}
	end()
	select {
	case <-r.drained():
	case <-work.Done():
	}
	stop()
	r.mu.Lock()
	r.stopped = true
	left := r.inFlight
	r.mu.Unlock()
	r.workers.Wait()
	if left > 0 {
		r.logger.Warn("stopped with messages in flight; the hub sends them again", "count", left)
	}
	return failure
}

// job is one message on its way.
type job struct {
	message     Message
	publication mapping.Publication
	also        []Message // repeats that came meanwhile; guarded by Relay.mu
}

func (r *Relay) handle(ctx context.Context, m Message) {
	c := m.C2D()
	r.count(resultReceived)
	j := &job{message: m}
	var cause error
	j.publication, cause = r.o.Map.Map(c)
	if cause != nil {
		j.publication = newLetter(r.o.Name, c, cause).publication(whole)
	}
	if !r.begin(j) {
		return
	}
	if cause == nil {
		r.publish(ctx, j)
	} else {
		r.spawn(func() { r.bury(ctx, j, cause) })
	}
}

// publish hands j over in arrival order; it blocks while the window is full.
func (r *Relay) publish(ctx context.Context, j *job) {
	wait := newBackoff()
	for {
		err := r.o.Publisher.Publish(ctx, &j.publication, func(err error) { r.published(ctx, j, err) })
		switch {
		case err == nil:
			return
		case ctx.Err() != nil || isRefused(err):
			r.published(ctx, j, err)
			return
		}
		r.logger.Warn("publish failed, trying again", "message_id", j.message.C2D().MessageID, "err", err)
		sleep(ctx, wait.NextBackOff())
	}
}

// published is the publisher's answer. It runs on the publisher's goroutine and
// must not publish itself: the window may be full.
func (r *Relay) published(ctx context.Context, j *job, err error) {
	id, subject := j.message.C2D().MessageID, j.publication.Subject
	switch {
	case err == nil:
		r.logger.Debug("published", "subject", subject, "message_id", id)
		r.finish(j, resultPublished)
	case ctx.Err() != nil:
		r.letGo(j)
	case isRefused(err):
		r.spawnFor(j, func() { r.bury(ctx, j, err) })
	default: // given up though nobody stops: not in order any more, but not lost either
		r.logger.Warn("publish given up, trying again", "subject", subject, "message_id", id, "err", err)
		r.spawnFor(j, func() { r.again(ctx, j) })
	}
}

// again publishes one message until it has a fate.
func (r *Relay) again(ctx context.Context, j *job) {
	wait := newBackoff()
	for {
		sleep(ctx, wait.NextBackOff())
		err := await(ctx, r.o.Publisher, &j.publication)
		switch {
		case err == nil:
			r.finish(j, resultPublished)
			return
		case ctx.Err() != nil:
			r.letGo(j)
			return
		case isRefused(err):
			r.bury(ctx, j, err)
			return
		}
	}
}

// bury stores the dead letter, cut if it must be, and then completes the message.
func (r *Relay) bury(ctx context.Context, j *job, cause error) {
	l := newLetter(r.o.Name, j.message.C2D(), cause)
	log := r.logger.With("subject", l.subject, "message_id", j.message.C2D().MessageID)
	wait := newBackoff()
	var since time.Time // of the first refusal: storing may have waited long for NATS before it
	for {
		err := r.store(ctx, l)
		if err == nil {
			r.note(nil)
			log.Warn("message became a dead letter", "reason", l.reason, "err", cause)
			r.finish(j, resultDead)
			return
		}
		if ctx.Err() != nil {
			r.letGo(j)
			return
		}
		r.note(err)
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) >= holdDead {
			log.Error("message lost: it cannot be published and neither can its dead letter", "reason", l.reason, "err", err)
			r.finish(j, resultLost)
			return
		}
		sleep(ctx, wait.NextBackOff())
	}
}

// store tries the letter whole, with its body cut, and bare.
func (r *Relay) store(ctx context.Context, l *letter) error {
	var err error
	for _, form := range []form{whole, cut, bare} {
		p := l.publication(form)
		if err = await(ctx, r.o.DeadLetters, &p); err == nil || !isTooLarge(err) {
			return err
		}
	}
	return err
}

// note keeps for Ready why dead letters cannot be stored; nil: they can.
func (r *Relay) note(err error) {
	r.mu.Lock()
	before := r.failing
	r.failing = err
	r.mu.Unlock()
	switch {
	case err != nil && before == nil:
		r.logger.Error("dead letters cannot be stored; their messages stay at the hub", "err", err)
	case err == nil && before != nil:
		r.logger.Info("dead letters are stored again")
	}
}

// begin takes j into flight, unless it repeats another.
func (r *Relay) begin(j *job) bool {
	r.mu.Lock()
	first, settled := r.repeats.add(j, time.Now())
	if first == j {
		r.inFlight++
		r.mu.Unlock()
		return true
	}
	if !settled {
		first.also = append(first.also, j.message)
	}
	r.mu.Unlock()
	r.count(resultRepeat)
	r.logger.Debug("repeat", "message_id", j.message.C2D().MessageID)
	if settled {
		r.ack(j.message)
	}
	return false
}

// finish completes j: it has its fate.
func (r *Relay) finish(j *job, fate result) {
	r.count(fate)
	r.mu.Lock()
	also := j.also
	j.also = nil
	r.repeats.settle(j, time.Now())
	r.mu.Unlock()
	r.ack(j.message)
	for _, m := range also {
		r.ack(m)
	}
	r.land()
}

// letGo leaves j without a fate: the hub sends it again.
func (r *Relay) letGo(j *job) {
	r.mu.Lock()
	r.repeats.forget(j)
	r.mu.Unlock()
	r.land()
}

func (r *Relay) ack(m Message) {
	m.Ack()
	r.count(resultAcked)
}

func (r *Relay) land() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight--
	if r.inFlight == 0 && r.idle != nil {
		close(r.idle)
		r.idle = nil
	}
}

// drained returns a channel that is closed once nothing is in flight.
func (r *Relay) drained() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	idle := make(chan struct{})
	if r.inFlight == 0 {
		close(idle)
	} else {
		r.idle = idle
	}
	return idle
}

// spawn starts f on a goroutine that Run waits for; false after Run's end.
func (r *Relay) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.workers.Go(f)
	return true
}

func (r *Relay) spawnFor(j *job, f func()) {
	if !r.spawn(f) {
		r.letGo(j)
	}
}

// await publishes and waits for the answer.
func await(ctx context.Context, p Publisher, publication *mapping.Publication) error {
	answer := make(chan error, 1)
	if err := p.Publish(ctx, publication, func(err error) { answer <- err }); err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func isRefused(err error) bool {
	var e *bridge.Error
	return errors.As(err, &e) && e.Class == bridge.Refused
}

// isTooLarge reports whether a smaller message might be taken: a publisher that
// gives another reason knows better.
func isTooLarge(err error) bool {
	var e *bridge.Error
	return errors.As(err, &e) && e.Class == bridge.Refused && (e.Reason == "" || e.Reason == mapping.ReasonTooLarge)
}

func newBackoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: retryFirst, MaxInterval: retryMax, Multiplier: 2, RandomizationFactor: 0.5}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
