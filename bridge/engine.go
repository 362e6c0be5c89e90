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
	defaultHeld   = 4096
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
	// Receipts tells publishers what became of their messages. Nil: nobody wants to know.
	Receipts Receipts
	// RetryNoDevice names the routes whose messages wait for an unknown device instead of becoming dead letters.
	RetryNoDevice []string
	// DeadUnmatched keeps messages that no route takes as dead letters; otherwise they are dropped and counted.
	DeadUnmatched bool
	// MaxHeld bounds what is held of one source at a time. Default 4096.
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
}

// Bridge is the delivery engine. Make one with New, run it once.
type Bridge struct {
	options       Options
	log           *slog.Logger
	hubs          map[string]*hub
	dead          cemetery
	metrics       *metrics
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
		metrics:       newMetrics(),
		retryNoDevice: make(map[string]bool),
	}
	b.dead = cemetery{store: o.DeadLetters, log: b.log}
	for _, h := range o.Hubs {
		if b.hubs[h.Name] != nil {
			return nil, fmt.Errorf("bridge: two hubs are named %q", h.Name)
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
// back to its sources and returns nil. Every goroutine it started has ended by then; the sources and
// senders must outlive it.
func (b *Bridge) Run(ctx context.Context) error {
	sendCtx, stopSends := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSends()
	b.sendCtx = sendCtx

	var intakes sync.WaitGroup
	for _, s := range b.options.Sources {
		intakes.Go(func() { b.receive(ctx, s) })
	}
	intakes.Wait()

	grace, cancel := context.WithTimeout(sendCtx, b.options.ShutdownGrace)
	defer cancel()
	b.log.Info("draining", "grace", b.options.ShutdownGrace)
	for _, s := range b.options.Sources {
		if f, ok := s.(Finisher); ok {
			for _, d := range f.Finish(grace) {
				b.accept(d, func() {})
			}
		}
	}
	var draining sync.WaitGroup
	for _, h := range b.hubs {
		draining.Go(func() { h.drain(grace) })
	}
	draining.Wait()
	b.dead.drain(grace)
	stopSends()
	for _, h := range b.hubs {
		h.close()
	}
	b.dead.workers.Wait()
	b.log.Info("drained", "returned", b.metrics.totals.returned.Load())
	return nil
}

// receive takes deliveries from one source until ctx is done, never more than
// MaxHeld at a time: JetStream keeps the rest, core NATS drops what overflows.
func (b *Bridge) receive(ctx context.Context, s Source) {
	places := make(chan struct{}, b.options.MaxHeld)
	release := func() { <-places }
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		d, err := s.Receive(ctx)
		if err != nil {
			if ctx.Err() == nil {
				b.log.Error("source ended", "source", s.Name(), "err", err)
			}
			return
		}
		b.accept(d, release)
	}
}

// accept maps one delivery and hands each target to its lane.
func (b *Bridge) accept(d Delivery, release func()) {
	in := d.Message()
	results := b.options.Mapper.Map(in)
	if len(results) == 0 {
		results = []mapping.Result{b.unmatched(in)}
	}
	b.metrics.received(len(results))
	m := &held{delivery: d, bridge: b, release: release, open: len(results)}
	for _, r := range results {
		switch {
		case r.Envelope != nil && b.hubs[r.Envelope.Hub] != nil:
			b.hubs[r.Envelope.Hub].enqueue(&item{of: m, envelope: r.Envelope})
		case r.Envelope != nil:
			b.dead.bury(m.unmapped(r.Route, r.Envelope.Device, ReasonRefused, fmt.Errorf("no hub is named %q", r.Envelope.Hub)))
		case r.Err != nil:
			b.dead.bury(m.unmapped(r.Route, "", r.Err.Reason, r.Err))
		default:
			m.resolve(m.dropped(r.Route, r.Drop))
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

func (m *held) unmapped(route, device string, reason mapping.Reason, err error) burial {
	return burial{of: m, letter: DeadLetter{
		Message: m.delivery.Message(), Route: route, Device: device, Reason: reason, Text: err.Error(), At: time.Now().UTC(),
	}}
}

// Ready reports nil when nothing keeps messages from flowing, as far as the
// engine knows; otherwise it names each hub that waits, and a dead-letter store that fails.
func (b *Bridge) Ready() error {
	var errs []error
	for _, h := range b.options.Hubs {
		if s := b.hubs[h.Name].status(); s.State != "open" {
			errs = append(errs, fmt.Errorf("hub %s: %s until %s: %s", s.Name, s.State, s.Until.UTC().Format(time.RFC3339), s.Cause))
		}
	}
	if err := b.dead.ready(); err != nil {
		errs = append(errs, fmt.Errorf("dead letters cannot be stored: %w", err))
	}
	return errors.Join(errs...)
}
