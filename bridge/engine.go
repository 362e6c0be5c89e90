package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"downlink/mapping"
)

const (
	defaultWindow = 512
	defaultHeld   = 2048
	defaultGrace  = 10 * time.Second
)

// Mapper turns a message into what its routes make of it; *mapping.Table is one.
type Mapper interface {
	Map(*mapping.Input) []mapping.Result
}

// Options is what New needs: Sources, Mapper, Hubs and DeadLetters are required.
type Options struct {
	Sources     []Source
	Mapper      Mapper
	Hubs        []HubOptions // the first is the default
	DeadLetters DeadLetters
	// Mailbox keeps what waits beyond a lane's bound. Nil: nothing is parked, and all that waits is held.
	Mailbox Mailbox
	// Receipts tells publishers what became of their messages. Nil: nobody is told.
	Receipts Receipts
	// RetryNoDevice names the routes whose messages wait for an unknown device instead of becoming dead letters.
	RetryNoDevice []string
	// DeadUnmatched keeps messages that no route takes as dead letters; otherwise they are dropped and counted.
	DeadUnmatched bool
	// MaxHeld bounds what is held of one source at a time. Default 2048.
	MaxHeld int
	// ShutdownGrace is how long Run lets sends in flight finish. Default 10s.
	ShutdownGrace time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
	// Registerer for the metrics; nil registers none.
	Registerer prometheus.Registerer
}

// HubOptions is one hub to send to.
type HubOptions struct {
	Name   string
	Sender Sender
	// Window is how many messages may be in flight at once. Default 512.
	Window int
	// Pace is how fast the hub may be sent to. The zero value is learned from its answers.
	Pace PaceOptions
}

// Bridge is the delivery engine. Make one with New, run it once.
type Bridge struct {
	options       Options
	log           *slog.Logger
	hubs          map[string]*hub
	owned         map[string]Owned // sources of which there is one owner at a time
	ledger        *ledger
	parker        *parker
	metrics       *metrics
	recent        *recent // in the mailbox, until their fate is durable
	strays        *strays
	retryNoDevice map[string]bool

	// sendCtx ends sends and dead letters at the end of the grace period; Run
	// sets it before anything is received.
	sendCtx context.Context
}

// New checks the options. It starts nothing.
func New(o Options) (*Bridge, error) {
	if o.Mapper == nil || o.DeadLetters == nil || len(o.Sources) == 0 || len(o.Hubs) == 0 {
		return nil, errors.New("bridge: needs at least a source, a mapper, a hub and a place for dead letters")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.MaxHeld <= 0 {
		o.MaxHeld = defaultHeld
	}
	if o.ShutdownGrace <= 0 {
		o.ShutdownGrace = defaultGrace
	}
	b := &Bridge{
		options:       o,
		log:           o.Logger.With("component", "bridge"),
		hubs:          make(map[string]*hub),
		owned:         make(map[string]Owned),
		metrics:       &metrics{},
		recent:        newRecent(2 * o.MaxHeld),
		strays:        newStrays(2 * o.MaxHeld),
		retryNoDevice: make(map[string]bool),
	}
	b.ledger = newLedger(o, b.metrics, b.log)
	b.parker = newParker(o.Mailbox, b.log)
	b.ledger.find = b.parker.find
	for _, s := range o.Sources {
		if own, ok := s.(Owned); ok {
			b.owned[s.Name()] = own
		}
	}
	for _, h := range o.Hubs {
		if b.hubs[h.Name] != nil {
			return nil, fmt.Errorf("bridge: two hubs are named %q", h.Name)
		}
		if err := h.Pace.check(); err != nil {
			return nil, fmt.Errorf("bridge: hub %s: %w", h.Name, err)
		}
		b.hubs[h.Name] = newHub(h, b)
	}
	for _, r := range o.RetryNoDevice {
		b.retryNoDevice[r] = true
	}
	if o.Registerer != nil {
		if err := o.Registerer.Register(collector{b}); err != nil {
			return nil, fmt.Errorf("bridge: metrics: %w", err)
		}
	}
	return b, nil
}

// Run delivers until ctx is done. Then it stops receiving, lets what is in
// flight, or kept by nobody else, finish within the grace period, gives the rest
// back to its sources and returns nil. Every goroutine it started has ended by then; the sources,
// senders and stores must outlive it.
func (b *Bridge) Run(ctx context.Context) error {
	sendCtx, stopSends := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSends()
	b.sendCtx = sendCtx

	var links sync.WaitGroup
	for _, h := range b.hubs {
		if s, ok := h.sender.(Linked); ok {
			links.Go(func() { h.follow(sendCtx, s) })
		}
	}
	var intakes sync.WaitGroup
	for _, s := range b.options.Sources {
		intakes.Go(func() { b.receive(ctx, s) })
	}
	intakes.Go(func() { b.expire(ctx) })
	intakes.Wait()

	grace, cancel := context.WithTimeout(sendCtx, b.options.ShutdownGrace)
	defer cancel()
	b.log.Info("draining", "grace", b.options.ShutdownGrace)
	for _, s := range b.options.Sources {
		if f, ok := s.(Finisher); ok {
			for _, d := range f.Finish(grace) {
				b.accept(grace, d, func() {})
			}
		}
	}
	var draining sync.WaitGroup
	for _, h := range b.hubs {
		draining.Go(func() { h.drain(grace) })
	}
	draining.Wait()
	b.parker.crew.drain(grace)
	b.ledger.crew.drain(grace)
	stopSends()
	links.Wait()
	b.parker.crew.running.Wait()
	for _, h := range b.hubs {
		h.close()
	}
	b.ledger.crew.running.Wait()
	b.log.Info("drained", "returned", b.metrics.totals.returned.Load())
	return nil
}

// receive delivers from one source until ctx is done, while it is ours.
func (b *Bridge) receive(ctx context.Context, s Source) {
	places := make(chan struct{}, b.options.MaxHeld)
	for ctx.Err() == nil {
		if own, ok := s.(Owned); ok {
			if own.Own(ctx) != nil || !b.restore(ctx, own, s.Name()) {
				continue
			}
		}
		err := b.deliver(ctx, s, places)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrDisowned):
			b.log.Warn("another process may own the source now; waiting for it", "source", s.Name())
			for _, h := range b.hubs {
				h.disown(s.Name())
			}
		default:
			b.log.Error("source ended", "source", s.Name(), "err", err)
			return
		}
	}
}

// restore finds what the mailbox holds of a source that is ours now, before
// anything of it is sent. False: it was not ours for long enough.
func (b *Bridge) restore(ctx context.Context, own Owned, stream string) bool {
	if b.parker.mailbox == nil {
		return true
	}
	for b.parkingOrphans() { // what is on its way into the mailbox must be listed, too
		if !sleep(ctx, orphanPoll) {
			return false
		}
	}
	pause := newBackoff(retryFirst, retryMax)
	for warned := false; ; {
		boxes, err := b.parker.mailbox.Boxes(ctx, stream)
		if err == nil {
			b.adopt(stream, boxes)
			return true
		}
		if !warned && ctx.Err() == nil {
			b.log.Warn("cannot list the mailbox; nothing is sent before that", "source", stream, "err", err)
			warned = true
		}
		if !sleep(ctx, pause.NextBackOff()) {
			return false
		}
		if !own.Held() {
			return true // Receive says so
		}
	}
}

const orphanPoll = 20 * time.Millisecond

// parkingOrphans reports whether a message of a source that we lost is still being parked.
func (b *Bridge) parkingOrphans() bool {
	for _, h := range b.hubs {
		h.mu.Lock()
		n := h.orphans
		h.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

func (b *Bridge) adopt(stream string, boxes []Box) {
	orphans := make(map[string]uint64)
	for _, box := range boxes {
		if h := b.hubs[box.Hub]; h != nil {
			h.adopt(box)
		} else {
			orphans[box.Hub] += box.Entries
		}
	}
	for name, n := range orphans {
		b.log.Error("the mailbox holds messages for a hub that is not configured; they stay there", "hub", name, "entries", n)
	}
}

// deliver takes deliveries from one source, never more than MaxHeld at a time:
// JetStream keeps the rest, core NATS drops what overflows. It returns why it ended.
func (b *Bridge) deliver(ctx context.Context, s Source, places chan struct{}) error {
	release := func() { <-places }
	for {
		if err := b.place(ctx, s, places); err != nil {
			return err
		}
		d, err := s.Receive(ctx)
		if err != nil {
			release()
			return err
		}
		b.accept(ctx, d, release)
	}
}

// place waits for a place for one more delivery. While all are taken nobody is in
// Receive to hear of a loss of the source, and what waits for that word keeps its place.
func (b *Bridge) place(ctx context.Context, s Source, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case places <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if !b.owns(s.Name()) {
				return ErrDisowned
			}
		}
	}
}

// accept maps one delivery and hands each target to its lane. It waits for a
// hub that holds its share and keeps up.
func (b *Bridge) accept(ctx context.Context, d Delivery, release func()) {
	in := d.Message()
	results := b.options.Mapper.Map(in)
	if len(results) == 0 {
		results = []mapping.Result{b.unmatched(in)}
	}
	b.metrics.received(len(results))
	m := &held{delivery: d, bridge: b, release: release, open: len(results)}
	targets := 0
	for _, r := range results {
		if r.Envelope != nil {
			targets++
			// Of several targets one answer tells what became of all of them at the bridge.
			m.waits = len(results) == 1 && r.Envelope.Wait == StatusCompleted && b.ledger.receipts != nil
		}
	}
	for _, r := range results {
		switch {
		case r.Envelope != nil && b.hubs[r.Envelope.Hub] != nil:
			h := b.hubs[r.Envelope.Hub]
			it := newItem(m, r.Envelope)
			it.group = targets > 1
			h.enqueue(it, !h.room.admit(ctx))
		case r.Envelope != nil:
			b.ledger.conclude(b.sendCtx, m.unmapped(DeadLetter{Route: r.Route, Device: r.Envelope.Device, MessageID: r.Envelope.MessageID,
				Reason: ReasonRefused, Text: fmt.Sprintf("no hub is named %q", r.Envelope.Hub)}))
		case r.Err != nil:
			l := DeadLetter{Route: r.Route, Device: r.Device, Reason: r.Err.Reason, Text: r.Err.Error()}
			if l.Device == "" {
				l.Target = r.Err.Entry()
			}
			b.ledger.conclude(b.sendCtx, m.unmapped(l).tells(r.Asked))
		default:
			b.ledger.conclude(b.sendCtx, closing{of: m, receipt: m.dropped(r.Route, r.Drop)}.tells(r.Asked))
		}
	}
}

// unmatched is the result of a message that no route takes.
func (b *Bridge) unmatched(in *mapping.Input) mapping.Result {
	if b.options.DeadUnmatched {
		return mapping.Result{Err: &mapping.RouteError{Field: "subject", Reason: ReasonNoRoute, Err: fmt.Errorf("no route takes %q", in.Subject)}}
	}
	return mapping.Result{Drop: string(ReasonNoRoute)}
}

// owns reports whether what came from a stream may still be sent by us.
func (b *Bridge) owns(stream string) bool {
	own := b.owned[stream]
	return own == nil || own.Held()
}

// record notes what later feedback about the item is matched with, if it asked for receipts.
func (b *Bridge) record(it *item, hub string) error {
	e := it.envelope
	if b.ledger.receipts == nil || !e.Receipts || it.recorded || e.Ack == mapping.AckNone && e.Wait != StatusCompleted {
		return nil
	}
	if err := b.ledger.receipts.Record(b.sendCtx, it.correlation(hub)); err != nil {
		if b.sendCtx.Err() != nil {
			return b.sendCtx.Err()
		}
		return &Error{Class: Unrecorded, Op: "record", Err: err}
	}
	it.recorded = true
	return nil
}

// Freed tells the engine that a device's queue at a hub has room again, so that
// what waits for it is tried at once. Safe for concurrent use; it never blocks.
func (b *Bridge) Freed(hub, device string) {
	if h := b.hubs[hub]; h != nil {
		h.freed(device)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Ready reports nil when nothing keeps messages from flowing, as far as the
// engine knows; otherwise it names each hub that waits, and a dead-letter store that fails.
func (b *Bridge) Ready() error {
	var errs []error
	for _, h := range b.options.Hubs {
		s := b.hubs[h.Name].status()
		if s.State != stateOpen && s.State != stateDisconnected { // the sender itself says more about the latter
			errs = append(errs, fmt.Errorf("hub %s: %s until %s: %s", s.Name, s.State, s.Until.UTC().Format(time.RFC3339), s.Cause))
		}
		if s.newer > 0 {
			errs = append(errs, fmt.Errorf("hub %s: devices whose next message in the mailbox only a newer version of downlink can read: %d; run that one", s.Name, s.newer))
		}
	}
	if err := b.ledger.crew.ready(); err != nil {
		errs = append(errs, fmt.Errorf("what became of messages cannot be stored: %w", err))
	}
	if err := b.parker.crew.ready(); err != nil {
		errs = append(errs, fmt.Errorf("the mailbox cannot be written: %w", err))
	}
	return errors.Join(errs...)
}
