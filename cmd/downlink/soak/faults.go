package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// disturbance is one fault as it happened.
type disturbance struct {
	Kind   string    `json:"kind"`
	What   string    `json:"what"`
	Begin  time.Time `json:"begin"`
	End    time.Time `json:"end,omitzero"` // zero: when the hub met the occasion that was scripted, whenever that was
	Times  int       `json:"-"`            // how often it may make the hub get a message again; 0: it does not
	Device string    `json:"-"`            // the only device that it is about; "": all
	// shows is how long after its end it may still make the hub get a message again.
	shows time.Duration
}

// fault is a kind of disturbance.
type fault struct {
	kind   string
	weight int
	// draw decides everything that chance decides, in the order of the seed. needs are
	// the actors that no other fault touches meanwhile.
	draw func(r *rand.Rand, s *stage) act
}

type act struct {
	what   string
	needs  []string
	times  int
	lasts  bool // until it is met
	device string
	shows  time.Duration
	// do makes the fault. What lasts a while ends early with more; ctx ends with the run.
	do func(ctx, more context.Context) error
}

var faultKinds = []fault{
	{"kill-bridge", 5, func(r *rand.Rand, s *stage) act { return drawKill(r, s, actorBridge) }},
	{"kill-relay", 4, func(r *rand.Rand, s *stage) act { return drawKill(r, s, actorRelay) }},
	{"kill-hub", 3, func(r *rand.Rand, s *stage) act { return drawKill(r, s, actorHub) }},
	{"kill-nats", 3, func(r *rand.Rand, s *stage) act { return drawKill(r, s, actorNATS) }},
	{"kill-edge", 3, func(r *rand.Rand, s *stage) act { return drawKill(r, s, actorEdge) }},
	{"kill-in-flight", 4, drawInFlight},
	{"restart", 3, drawRestart},
	{"freeze", 6, drawFreeze},
	{"cut", 8, func(r *rand.Rand, s *stage) act { return drawLink(r, s, "cut", 0) }},
	{"down", 4, func(r *rand.Rand, s *stage) act { return drawLink(r, s, "down", 5*time.Second) }},
	{"stall", 5, func(r *rand.Rand, s *stage) act { return drawLink(r, s, "stall", 15*time.Second) }},
	{"full-queues", 5, drawAway},
	{"throttle", 4, drawThrottle},
	{"reject", 4, drawTransfer("reject:amqp:internal-error", false)},
	{"release", 5, drawTransfer("release", true)},
	{"modify", 3, drawTransfer("modify", true)},
	{"close-link", 4, drawCloseLink},
	{"lose-puback", 6, drawPuback},
	{"expire-tokens", 2, drawExpire},
}

// FaultKinds are the names that Options.Faults may hold.
func FaultKinds() []string {
	var names []string
	for _, f := range faultKinds {
		names = append(names, f.kind)
	}
	return names
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// some is mostly short, now and then up to most.
func some(r *rand.Rand, most time.Duration) time.Duration {
	x := r.Float64()
	return time.Duration(float64(most) * x * x * x)
}

// cloudSide is how often a fault of an actor or a link can make the hub get a message again: what happens
// between the hub and the edge does not.
func cloudSide(name string) int {
	switch name {
	case actorNATS, actorHub, actorBridge, "bridge-nats", "bridge-hub":
		return 1
	}
	return 0
}

// What is in flight at a clean break comes again, or not, as soon as it is over; where acks are lost or
// late, AckWait and reconnects come on top.
const (
	atOnceOver = 3 * time.Second
	recovery   = 12 * time.Second
)

func showsFor(name, how string) time.Duration {
	switch {
	case cloudSide(name) == 0:
		return 0
	case how == "kill" && name != actorNATS, how == "cut" && name == "bridge-hub":
		return atOnceOver
	}
	return recovery
}

// drawKill: kill -9, and start again after a while.
func drawKill(r *rand.Rand, s *stage, actor string) act {
	pause := some(r, 4*time.Second)
	return act{what: fmt.Sprintf("%s, away for %v", actor, pause.Round(time.Millisecond)), needs: []string{actor}, times: cloudSide(actor), shows: showsFor(actor, "kill"), do: func(ctx, more context.Context) error {
		s.kill(actor)
		sleep(more, pause)
		return s.start(ctx, actor)
	}}
}

// drawInFlight kills the bridge or a relay while what comes after it is frozen, so that it has messages in its hands.
func drawInFlight(r *rand.Rand, s *stage) act {
	victim, frozen := actorBridge, actorHub
	if r.IntN(3) == 0 {
		victim, frozen = actorRelay, actorEdge
	}
	hold := between(r, time.Second, 3*time.Second)
	return act{what: fmt.Sprintf("%s, while %s is frozen", victim, frozen), needs: []string{victim, frozen}, times: cloudSide(victim), shows: showsFor(victim, "kill"), do: func(ctx, more context.Context) error {
		p := s.running(frozen)
		if p == nil {
			return nil
		}
		if err := p.Freeze(); err != nil {
			return err
		}
		sleep(more, hold)
		s.kill(victim)
		if err := p.Wake(); err != nil {
			return err
		}
		return s.start(ctx, victim)
	}}
}

// drawRestart ends bridge or relay in good order, and starts it again, as an upgrade does.
func drawRestart(r *rand.Rand, s *stage) act {
	actor := []string{actorBridge, actorRelay, actorAway}[r.IntN(3)]
	return act{what: actor, needs: []string{actor}, times: cloudSide(actor), shows: showsFor(actor, "kill"), do: func(ctx, _ context.Context) error {
		if err := s.end(ctx, actor); err != nil {
			return err
		}
		return s.start(ctx, actor)
	}}
}

func drawFreeze(r *rand.Rand, s *stage) act {
	actor := []string{actorNATS, actorEdge, actorHub, actorBridge, actorRelay, actorAway}[r.IntN(6)]
	hold := 300*time.Millisecond + some(r, 15*time.Second-300*time.Millisecond)
	return act{what: fmt.Sprintf("%s for %v", actor, hold.Round(time.Millisecond)), needs: []string{actor}, times: cloudSide(actor), shows: showsFor(actor, "freeze"), do: func(ctx, more context.Context) error {
		p := s.running(actor)
		if p == nil {
			return nil
		}
		if err := p.Freeze(); err != nil {
			return err
		}
		sleep(more, hold)
		return p.Wake()
	}}
}

func drawLink(r *rand.Rand, s *stage, how string, longest time.Duration) act {
	name := linkNames[r.IntN(len(linkNames)-1)] // not the publisher's
	hold := some(r, longest)
	a := act{what: name, needs: []string{name}, times: cloudSide(name), shows: showsFor(name, how)}
	if longest > 0 {
		a.what += fmt.Sprintf(" for %v", hold.Round(time.Millisecond))
	}
	a.do = func(ctx, more context.Context) error {
		l := s.links[name]
		switch how {
		case "cut":
			l.Cut()
		case "down":
			l.Down()
			sleep(more, hold)
			l.Up()
		case "stall":
			l.Stall()
			sleep(more, hold)
			l.Flow()
		}
		return nil
	}
	return a
}

// drawAway kills the relay of some devices for longer than the hub's queues last.
func drawAway(r *rand.Rand, s *stage) act {
	hold := between(r, 8*time.Second, 25*time.Second)
	return act{what: fmt.Sprintf("the relay of two busy devices away for %v", hold.Round(time.Millisecond)), needs: []string{actorAway}, do: func(ctx, more context.Context) error {
		s.kill(actorAway)
		sleep(more, hold)
		return s.start(ctx, actorAway)
	}}
}

func drawThrottle(r *rand.Rand, s *stage) act {
	hold := between(r, 500*time.Millisecond, 4*time.Second)
	return act{what: fmt.Sprintf("the hub for %v", hold.Round(time.Millisecond)), needs: []string{actorHub}, do: func(ctx, more context.Context) error {
		err := s.script(ctx, fmt.Sprintf("transfer=throttle,for=%v", hold))
		sleep(more, hold)
		return err
	}}
}

// drawTransfer has the hub answer sends to a device with something else than accepted, and now
// and then take the message all the same.
func drawTransfer(kind string, after bool) func(*rand.Rand, *stage) act {
	return func(r *rand.Rand, s *stage) act {
		d := s.devices[r.IntN(len(s.devices))]
		times := 1 + r.IntN(3)
		a := act{device: d.id, what: fmt.Sprintf("%d of %s", times, d.id), needs: []string{actorHub}, lasts: true}
		rule := fmt.Sprintf("transfer=%s,times=%d,device=%s", kind, times, d.id)
		if after && r.IntN(3) == 0 {
			rule += ",after"
			a.what += ", taken all the same"
			a.times = times
		}
		a.do = func(ctx, _ context.Context) error { return s.script(ctx, rule) }
		return a
	}
}

// drawCloseLink cuts the service's connection at a send, with or without having
// taken the message, and may refuse the next link.
func drawCloseLink(r *rand.Rand, s *stage) act {
	a := act{what: "the bridge's, at a send", needs: []string{actorHub}, times: 1, lasts: true}
	rules := []string{"transfer=drop"}
	if r.IntN(2) == 0 {
		rules[0] += ",after"
		a.what += " that was taken"
	}
	if r.IntN(2) == 0 {
		rules = append(rules, "attach-sender=reject:amqp:internal-error")
		a.what += ", and the next one refused"
	}
	a.do = func(ctx, more context.Context) error {
		for _, rule := range rules {
			if err := s.script(ctx, rule); err != nil {
				return err
			}
		}
		return nil
	}
	return a
}

func drawExpire(_ *rand.Rand, s *stage) act {
	return act{what: "all tokens", needs: []string{actorHub}, times: 1, shows: atOnceOver, do: func(ctx, _ context.Context) error { return s.expire(ctx) }}
}

// drawPuback loses PUBACKs of a device, and then its connection: that is what loses them in the field.
func drawPuback(r *rand.Rand, s *stage) act {
	var at []device
	for _, d := range s.devices {
		if d.atEdge() {
			at = append(at, d)
		}
	}
	d, times := at[r.IntN(len(at))], 1+r.IntN(5)
	kind := []string{"withhold", "drop"}[r.IntN(2)]
	hold := between(r, time.Second, 4*time.Second)
	return act{device: d.id, what: fmt.Sprintf("%d of %s (%s)", times, d.id, kind), needs: []string{actorHub}, do: func(ctx, more context.Context) error {
		if err := s.script(ctx, fmt.Sprintf("puback=%s,times=%d,device=%s", kind, times, d.id)); err != nil {
			return err
		}
		sleep(more, hold)
		return s.disconnect(ctx, d.id)
	}}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// mischief is the faults of a run.
type mischief struct {
	s     *stage
	kinds []fault
	rand  *rand.Rand
	say   func(format string, args ...any)

	mu   sync.Mutex
	busy map[string]bool
	done []disturbance
	err  error // a process that could not be started again
}

// atOnce is how many faults may overlap.
const atOnce = 3

// run makes mischief until more is done; when it returns, every fault has ended.
func (m *mischief) run(ctx, more context.Context) error {
	var acts sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	first := true
	for len(m.kinds) > 0 && more.Err() == nil {
		wait := between(m.rand, 200*time.Millisecond, 2500*time.Millisecond)
		if first { // some traffic must be under way
			wait = 2 * time.Second
		}
		first = false
		f := m.pick()
		a := f.draw(m.rand, m.s)
		sleep(more, wait)
		if more.Err() != nil || !m.claim(a.needs) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-more.Done():
			m.free(a.needs)
			continue
		}
		acts.Go(func() {
			defer func() { <-slots; m.free(a.needs) }()
			m.act(ctx, more, f, a)
		})
	}
	acts.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *mischief) act(ctx, more context.Context, f fault, a act) {
	d := disturbance{Kind: f.kind, What: a.what, Times: a.times, Device: a.device, shows: a.shows, Begin: time.Now()}
	m.say("%s: %s", f.kind, a.what)
	err := a.do(ctx, more)
	if !a.lasts {
		d.End = time.Now()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = append(m.done, d)
	// A hub that is frozen or away takes no orders; that is no failure of the run.
	if err != nil && ctx.Err() == nil && (strings.HasPrefix(f.kind, "kill") || f.kind == "full-queues" || f.kind == "restart" || errors.Is(err, errBadOrder)) {
		m.err = fmt.Errorf("%s: %w", f.kind, err)
	}
}

func (m *mischief) pick() fault {
	sum := 0
	for _, f := range m.kinds {
		sum += f.weight
	}
	n := m.rand.IntN(sum)
	for _, f := range m.kinds {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("unreachable: the weights were summed up")
}

func (m *mischief) claim(names []string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(names, func(n string) bool { return m.busy[n] }) {
		return false
	}
	for _, n := range names {
		m.busy[n] = true
	}
	return true
}

func (m *mischief) free(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		delete(m.busy, n)
	}
}

// disturbances is what has happened, in order of its begin.
func (m *mischief) disturbances() []disturbance {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Clone(m.done)
	slices.SortFunc(list, func(a, b disturbance) int { return a.Begin.Compare(b.Begin) })
	return list
}
