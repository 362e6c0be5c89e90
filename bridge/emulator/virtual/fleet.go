package virtual

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"downlink/bridge/emulator/c2d"
)

// Options make a Fleet.
type Options struct {
	Store  *c2d.Store // required
	Rules  []Rule     // of a device the first that matches counts
	Logger *slog.Logger
}

// Fleet is all virtual devices of a hub. One goroutine, in Run, serves them all.
// Safe for concurrent use.
//
// A virtual device gives way to a real one: if that connects, the virtual one
// stays away until its pattern has it connect again.
type Fleet struct {
	store *c2d.Store
	rules []Rule
	log   *slog.Logger
	kick  chan struct{}

	// mu is locked inside of the store's locks (wake), so nobody who holds it calls the store.
	mu      sync.Mutex
	devices map[string]*device
	ready   []*device // that may have messages to take
	timers  timers
}

// New makes a fleet without devices. Consider adds them.
func New(o Options) (*Fleet, error) {
	for _, r := range o.Rules {
		if err := r.Behaviour.check(); err != nil {
			return nil, fmt.Errorf("virtual devices %s: %w", r.Pattern, err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Fleet{
		store: o.Store, rules: slices.Clone(o.Rules), log: o.Logger.With("component", "virtual"),
		kick: make(chan struct{}, 1), devices: map[string]*device{},
	}, nil
}

// device is one virtual device.
type device struct {
	fleet      *Fleet
	id         string
	generation string
	rule       *Rule
	queued     bool // in ready; guarded by fleet.mu

	// serving is held by who takes messages for the device, so that Run and Help do not settle them in another
	// order than that in which they came. It is locked before mu.
	serving sync.Mutex

	// mu is held while the session comes and goes, and locked before the store's locks.
	mu      sync.Mutex
	session *c2d.Session // nil: away
	since   time.Time
	up      bool // its pattern has it connected now
	yielded bool // to a real device
}

// Consider connects a device that was registered, or that changed, if it is
// virtual and its pattern wants it connected. The store's Changed calls it.
func (f *Fleet) Consider(id string) {
	rule := match(f.rules, id)
	if rule == nil || rule.Behaviour.Kind == Offline {
		return
	}
	info, err := f.store.Get(id)
	if err != nil {
		return // deleted meanwhile
	}
	f.mu.Lock()
	d := f.devices[id]
	fresh := d == nil || d.generation != info.GenerationID
	if fresh {
		d = &device{fleet: f, id: id, generation: info.GenerationID, rule: rule, up: !rule.Behaviour.DownFirst}
		f.devices[id] = d
	}
	f.mu.Unlock()
	d.connect()
	if fresh {
		d.plan()
	}
}

// connect attaches the device if it should be and is not.
func (d *device) connect() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.up || d.yielded || d.session != nil {
		return
	}
	var own *c2d.Session
	session, err := d.fleet.store.Attach(d.id, c2d.SessionOptions{
		Wake: d.wake,
		Closed: func(cause error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.session == own {
				d.session, d.yielded = nil, errors.Is(cause, c2d.ErrReplaced)
			}
			if errors.Is(cause, c2d.ErrDeleted) {
				d.forget()
			}
		},
	})
	if err != nil {
		d.fleet.log.Debug("a virtual device cannot connect", "device_id", d.id, "err", err)
		if !errors.Is(err, c2d.ErrDisabled) {
			d.forget()
		}
		return
	}
	own = session // Closed waits for mu
	d.session, d.since = session, time.Now()
	session.Start(0)
}

func (d *device) forget() {
	f := d.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.devices[d.id] == d {
		delete(f.devices, d.id)
	}
}

// plan sets the timer for the end of the phase that the device is in.
func (d *device) plan() {
	d.mu.Lock()
	b := d.rule.Behaviour
	lasts := b.Down
	if d.up {
		lasts = b.Up
	}
	d.mu.Unlock()
	if lasts > 0 {
		d.fleet.schedule(timer{at: time.Now().Add(lasts), device: d})
	}
}

// turn begins the next phase of the device's pattern.
func (d *device) turn() {
	f := d.fleet
	f.mu.Lock()
	known := f.devices[d.id] == d
	f.mu.Unlock()
	if !known {
		return
	}
	d.mu.Lock()
	d.up = !d.up
	session := d.session
	if d.up {
		d.yielded = false
		session = nil
	} else {
		d.session = nil
	}
	d.mu.Unlock()
	if session != nil {
		session.Detach()
	}
	d.connect()
	d.plan()
}

// wake is called with the store's lock on the device held.
func (d *device) wake() {
	f := d.fleet
	f.mu.Lock()
	if !d.queued {
		d.queued = true
		f.ready = append(f.ready, d)
	}
	f.mu.Unlock()
	f.signal()
}

func (f *Fleet) signal() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// next takes a device that may have messages; nil: there is none.
func (f *Fleet) next() *device {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.ready) == 0 {
		return nil
	}
	d := f.ready[0]
	f.ready[0] = nil
	if f.ready = f.ready[1:]; len(f.ready) == 0 {
		f.ready = nil
	}
	d.queued = false
	return d
}

// Help does some of Run's work in the caller's goroutine. Whoever has queued a
// message calls it, so that a device that completes at once has done so, as a
// rule, before the sender sees the answer, and a fast sender does not outrun it.
func (f *Fleet) Help() {
	for range 4 {
		d := f.next()
		if d == nil {
			return
		}
		d.serve()
	}
}

// serve takes all there is for a device and deals with it.
func (d *device) serve() {
	d.serving.Lock()
	defer d.serving.Unlock()
	d.mu.Lock()
	session := d.session
	d.mu.Unlock()
	if session == nil {
		return
	}
	b := d.rule.Behaviour
	for {
		m, ok := session.Take()
		if !ok {
			return
		}
		switch {
		case b.Kind == Never:
		case b.Delay > 0:
			d.fleet.schedule(timer{at: time.Now().Add(b.Delay), device: d, session: session, sequence: m.Sequence})
		default:
			settle(session, b.Kind, m.Sequence)
		}
	}
}

func settle(session *c2d.Session, k Kind, sequence uint64) {
	switch k {
	case Complete:
		session.Complete(sequence)
	case Reject:
		session.Reject(sequence)
	case Abandon:
		session.Abandon(sequence)
	}
}

// Run serves the devices until ctx ends. They stay connected after it.
func (f *Fleet) Run(ctx context.Context) {
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		for d := f.next(); d != nil && ctx.Err() == nil; d = f.next() {
			d.serve()
		}
		due, left := f.due()
		for _, t := range due {
			if t.session == nil {
				t.device.turn()
			} else {
				settle(t.session, t.device.rule.Behaviour.Kind, t.sequence)
			}
		}
		if len(due) > 0 {
			continue
		}
		wait.Reset(left)
		select {
		case <-f.kick:
		case <-wait.C:
		case <-ctx.Done():
			return
		}
	}
}

// timer is something to do later: to settle a message or, without a session, to turn to the next phase.
type timer struct {
	at       time.Time
	device   *device
	session  *c2d.Session
	sequence uint64
}

func (f *Fleet) schedule(t timer) {
	f.mu.Lock()
	heap.Push(&f.timers, t)
	first := f.timers[0].at.Equal(t.at)
	f.mu.Unlock()
	if first {
		f.signal()
	}
}

// due takes the timers whose time has come, and says how long there is until the next.
func (f *Fleet) due() (out []timer, left time.Duration) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.timers) > 0 {
		if left = f.timers[0].at.Sub(now); left > 0 {
			return out, left
		}
		out = append(out, heap.Pop(&f.timers).(timer))
	}
	return out, time.Hour
}

// timers is a heap by time.
type timers []timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timers) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

func (h *timers) Push(x any) { *h = append(*h, x.(timer)) }

func (h *timers) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = timer{}
	*h = old[:len(old)-1]
	return t
}

// Connection is a snapshot of a virtual device that is connected.
type Connection struct {
	Device    string
	Since     time.Time
	Behaviour Behaviour
}

// Connections returns the virtual devices that are connected, sorted by ID.
func (f *Fleet) Connections() []Connection {
	f.mu.Lock()
	all := make([]*device, 0, len(f.devices))
	for _, d := range f.devices {
		all = append(all, d)
	}
	f.mu.Unlock()
	out := make([]Connection, 0, len(all))
	for _, d := range all {
		d.mu.Lock()
		if d.session != nil {
			out = append(out, Connection{d.id, d.since, d.rule.Behaviour})
		}
		d.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Connection) int { return strings.Compare(a.Device, b.Device) })
	return out
}

// Behaviour is what a device does by the rules; false: it is not virtual.
func (f *Fleet) Behaviour(id string) (Behaviour, bool) {
	r := match(f.rules, id)
	if r == nil {
		return Behaviour{}, false
	}
	return r.Behaviour, true
}
