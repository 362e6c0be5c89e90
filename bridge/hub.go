package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// hub schedules the lanes of one hub. Nothing in it waits: every event (a new
// item, the end of a send, a timer) ends with dispatch, which starts as many
// sends as the gate admits, one goroutine each. The goroutine of a send that
// ended takes the next one itself.
type hub struct {
	name   string
	sender Sender
	bridge *Bridge
	log    *slog.Logger
	sends  sync.WaitGroup
	room   intake

	outcomes outcomes

	mu       sync.Mutex // guards all below, the lanes and their items
	lanes    map[laneKey]*lane
	busy     map[string][]*lane // by device with a message in flight: its lanes, of other streams, that wait for that
	ready    levels
	ended    endings
	orphans  int  // lanes of a lost source that are being parked
	solo     fifo // lanes whose head must be alone on the link
	alone    bool // such a head is in flight
	inFlight int
	window   int
	gate     gate
	budget   budget
	probes   *probeQueue[*lane] // lanes whose device has no room, or is not known yet
	timer    *time.Timer        // wakes dispatch when something may start
	wakeAt   time.Time          // when it does
	slowed   time.Time          // when the log told last that the hub throttles
	slowedBy string             // its words
	unread   time.Time          // when the log told last that the mailbox cannot be read
	between  int                // sends that others have before the next one that must be alone
	down     bool               // the sender has no link
	draining bool
	drained  chan struct{} // closed when draining and no lane is left
	closed   bool          // nothing starts any more
}

func newHub(o HubOptions, b *Bridge) *hub {
	window := o.Window
	if window <= 0 {
		window = defaultWindow
	}
	down := false
	if s, ok := o.Sender.(Linked); ok {
		up, _ := s.Link()
		down = !up
	}
	return &hub{
		down:    down,
		name:    o.Name,
		sender:  o.Sender,
		bridge:  b,
		log:     b.log.With("hub", o.Name),
		lanes:   make(map[laneKey]*lane),
		busy:    make(map[string][]*lane),
		window:  window,
		gate:    newGate(),
		budget:  newBudget(o.Pace),
		probes:  newProbeQueue[*lane](),
		room:    newIntake(b.options.MaxHeld * 3 / 4 / len(b.options.Hubs)),
		drained: make(chan struct{}),
	}
}

// follow starts nothing while the sender has no link, until ctx is done.
func (h *hub) follow(ctx context.Context, s Linked) {
	for {
		up, changed := s.Link()
		h.mu.Lock()
		h.down = !up
		h.dispatch()
		h.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// job is a lane's turn: a send, or, without an item, a load from the mailbox and its send.
type job struct {
	lane  *lane
	item  *item
	epoch uint64    // the gate's
	begun time.Time // when it was its turn
}

// enqueue puts it at the end of its device's lane. crowded: the hub holds its
// share already, and does not keep up.
func (h *hub) enqueue(it *item, crowded bool) {
	h.mu.Lock()
	if it.of.again() && h.bridge.recent.has(identityOf(it.message, it.envelope)) {
		h.mu.Unlock()
		it.of.resolve(it.parked()) // the mailbox has it, or its fate is durable
		return
	}
	h.room.enter()
	l := h.laneFor(it, crowded)
	l.priority = it.envelope.Priority
	l.tail = append(l.tail, it)
	l.bytes += it.size
	var stale []*item
	if key := it.envelope.Coalesce; key != "" {
		stale = l.stale(key, it)
		l.replaced += len(stale)
	}
	overflow := false
	switch {
	case h.bridge.parker.mailbox == nil:
		it.group = false
	case !it.durable():
		it.group = false
		if overflow = l.full() && l.tail[0] != it; overflow {
			l.drop(it)
		}
	case !l.key.unordered && (crowded || it.group || l.parked || l.full() || l.spills):
		h.spill(l)
	}
	h.list(l)
	h.dispatch()
	h.mu.Unlock()
	for _, old := range stale {
		h.replace(l, old)
	}
	if overflow {
		h.end(it, "", it.letter(ReasonOverflow, errOverflow, h.name))
	}
}

// laneFor is the lane for a new item. What needs no order has a lane of its own
// as long as it fits there; the mailbox keeps an order in any case. The caller holds mu.
func (h *hub) laneFor(it *item, crowded bool) *lane {
	key := keyOf(it)
	if key.unordered && h.bridge.parker.mailbox != nil && it.durable() {
		ordered := laneKey{device: key.device, stream: key.stream}
		own, other := h.lanes[key], h.lanes[ordered]
		if crowded || it.group || own != nil && own.full() || other != nil && (other.parked || other.spills) {
			key = ordered
		}
	}
	return h.lane(key)
}

// lane is the lane of this key, a new one if there is none. The caller holds mu.
func (h *hub) lane(key laneKey) *lane {
	l := h.lanes[key]
	if l == nil {
		l = &lane{key: key}
		h.lanes[key] = l
	}
	return l
}

// adopt takes over a box of the mailbox.
func (h *hub) adopt(b Box) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lane(laneKey{device: b.Device, stream: b.Stream})
	l.stored, l.parked, l.inherited = b.Entries, true, true
	h.list(l)
	h.dispatch()
}

// run sends until there is nothing that may go.
func (h *hub) run(j job) {
	defer h.sends.Done()
	for ok := true; ok; {
		if j.item == nil {
			var err error
			if j.item, err = h.load(j.lane); j.item == nil {
				j, ok = h.unloaded(j.lane, err)
				continue
			}
		}
		j, ok = h.finish(j, h.send(j.lane, j.item))
	}
}

// owns reports whether what the lane has may still be sent. The source may be ours again
// by now, but not for a lane of the time before: its messages come again.
func (h *hub) owns(l *lane) bool { return h.bridge.owns(l.key.stream) && !l.orphan.Load() }

// send tries the item once. An expired one never reaches the wire.
func (h *hub) send(l *lane, it *item) error {
	if !h.owns(l) {
		return ErrDisowned
	}
	if !it.deadline().IsZero() && it.expired(time.Now()) {
		return &Error{Class: Refused, Op: "send", Reason: ReasonExpired, Err: errExpired}
	}
	if err := h.bridge.record(it, h.name); err != nil {
		return err
	}
	it.attempts++
	return h.sender.Send(h.bridge.sendCtx, it.envelope)
}

// finish acts on the outcome of a send and returns what to go on with.
func (h *hub) finish(done job, err error) (job, bool) {
	l, it := done.lane, done.item
	v := judge(it, err, h.bridge.retryNoDevice[it.envelope.Route])
	h.outcomes.add(err)
	// Settle before the lane goes on, so that acks leave in the lane's order.
	switch v.step {
	case stepAccepted:
		h.end(it, StatusAccepted, nil)
	case stepDead:
		h.end(it, "", it.letter(v.reason, err, h.name))
	}

	h.mu.Lock()
	now := time.Now() // asked once: a look at the clock costs as much as taking the lock
	it.flying = false
	h.landed(l)
	h.learn(done, err, now)
	replaced := false
	switch {
	case v.step == stepAccepted, v.step == stepDead:
		h.remove(l, it)
	case v.step == stepReturn, l.orphan.Load(), h.draining && it.durable():
		it.letGo(h)
		h.remove(l, it)
	case it.superseded:
		replaced = true
		l.replaced++
		h.remove(l, it)
	case v.step == stepProbe:
		h.await(l, it, err)
	case v.step == stepWait:
		h.hold(l, it, v.wait, err)
	case v.step == stepDisowned:
		l.waits = true // until Receive says so too
	}
	h.list(l)
	j, ok := h.next(now)
	h.dispatchAt(now)
	h.mu.Unlock()
	if replaced {
		h.replace(l, it)
	}
	return j, ok
}

// learn has gate and budget draw their conclusions from a send's end. The caller holds mu.
func (h *hub) learn(j job, err error, now time.Time) {
	if h.gate.outcome(j.lane.key.device, j.epoch, err, now) {
		h.logGate()
	}
	e, failed := errors.AsType[*Error](err)
	switch {
	case err == nil:
		h.budget.accepted(j.begun, now, j.item.envelope.Size())
	case !failed:
	case e.Class == Throttled:
		h.budget.throttled(j.begun, now)
		if now.Sub(h.slowed) > time.Minute {
			h.slowed = now
			h.slowedBy = e.Error()
			h.log.Warn("the hub throttles; sending slower", "pace", h.budget.status(now).String(), "err", err)
		}
	case e.Class == QueueFull, e.Class == NoDevice, e.Class == Refused && e.Condition != "":
		h.budget.answered(j.begun, now)
	}
}

// remove drops an item that has its fate, and the lane with its last one. The caller holds mu.
func (h *hub) remove(l *lane, it *item) {
	l.drop(it)
	if !l.waits && l.warned { // else it still waits, and must stay among the probes
		l.warned = false
		h.probes.forget(l)
	}
	h.tidy(l)
	if it.unstorable && l.spills {
		h.spill(l) // what was behind it may be stored now
	}
}

// tidy forgets a lane that has nothing any more. The caller holds mu.
func (h *hub) tidy(l *lane) {
	if !l.parked && len(l.tail) == 0 {
		l.spills = false
	}
	if !l.empty() || l.parking || l.looking {
		return
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	h.probes.forget(l)
	if h.lanes[l.key] == l {
		delete(h.lanes, l.key)
		h.gate.forget(l.key.device)
	}
	if h.draining && len(h.lanes) == 0 {
		h.finished()
	}
}

func (h *hub) finished() {
	select {
	case <-h.drained:
	default:
		close(h.drained)
	}
}

func (h *hub) logGate() {
	if h.gate.closed {
		h.log.Warn("hub waits", "class", h.gate.class.String(), "err", h.gate.cause, "until", h.gate.until)
		return
	}
	h.log.Info("hub serves again")
}
