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
	draining bool
	drained  chan struct{} // closed when draining and no lane is left
	closed   bool          // nothing starts any more
}

func newHub(o HubOptions, b *Bridge) *hub {
	window := o.Window
	if window <= 0 {
		window = defaultWindow
	}
	return &hub{
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
	h.room.enter()
	h.mu.Lock()
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

// list puts the lane among the ready ones if there is something it could start. The caller holds mu.
func (h *hub) list(l *lane) {
	if l.listed || l.orphan.Load() {
		return
	}
	if l.parked && l.stored == 0 && l.flying == 0 && len(l.heads) == 0 && !l.looking && !h.closed {
		l.looking = true
		h.sends.Add(1)
		go h.lookForMore(l)
	}
	if _, _, ok := l.next(); !ok {
		return
	}
	l.listed = true
	if it := l.kept(); it != nil && it.linkBreaks >= soloAfter {
		h.solo.push(l)
		return
	}
	h.ready.push(l)
}

// dispatch starts what may start. The caller holds mu.
func (h *hub) dispatch() {
	for j, ok := h.next(); ok; j, ok = h.next() {
		h.sends.Add(1)
		go h.run(j)
	}
}

// next takes what is to be done now. The caller holds mu.
func (h *hub) next() (job, bool) {
	now := time.Now()
	l := h.pick(now)
	if l == nil {
		return job{}, false
	}
	if !l.key.unordered {
		h.busy[l.key.device] = nil
	}
	j := job{lane: l, item: l.take(), epoch: h.gate.started(now), begun: now}
	h.list(l) // it may start more if its route needs no order
	h.inFlight++
	return j, true
}

// landed ends what l had under way. The caller holds mu.
func (h *hub) landed(l *lane) {
	l.flying--
	h.inFlight--
	h.alone = false
	if l.key.unordered {
		return
	}
	waiting := h.busy[l.key.device]
	delete(h.busy, l.key.device)
	for _, other := range waiting {
		other.listed = false
		h.list(other)
	}
}

// pick takes the lane whose turn it is off its list, or returns nil and sees to it
// that dispatch is called when there may be one. The caller holds mu.
func (h *hub) pick(now time.Time) *lane {
	if h.closed || h.alone || h.inFlight >= h.window {
		return nil
	}
	solo := h.solo.len() > 0 && (h.between <= 0 || h.ready.len() == 0)
	if solo && h.inFlight > 0 {
		return nil // the link must empty first; nothing new starts meanwhile
	}
	if ok, wait := h.gate.admits(now); !ok {
		h.wakeIn(now, wait)
		if ok, wait := h.gate.doubts(now); !ok {
			if h.ready.len() > 0 {
				h.wakeIn(now, wait)
			}
			return nil
		}
		return h.turn(&h.ready, func(l *lane) bool { return !h.gate.suspects(l.key.device) })
	}
	if solo { // before the probes, each of which would make the link wait until it is empty again
		if l := h.pickSolo(now); l != nil || h.solo.len() > 0 {
			return l
		}
	}
	if l := h.probe(now); l != nil {
		return l
	}
	l := h.turn(&h.ready, nil)
	if l != nil && !h.pays(now) {
		l.listed = true
		h.ready.putBack(l)
		return nil
	}
	h.between--
	return l
}

// pickSolo takes a lane whose head must be alone on the link. Then those that wait
// behind it have a turn each: many may be suspected at once.
func (h *hub) pickSolo(now time.Time) *lane {
	l := h.turn(&h.solo, nil)
	if l == nil {
		return nil
	}
	if !h.pays(now) {
		l.listed = true
		h.solo.putBack(l)
		return nil
	}
	h.alone, h.between = true, h.ready.len()
	return l
}

// queue is a list of lanes that are ready.
type queue interface {
	pop() *lane                         // nil: none
	take(wanted func(*lane) bool) *lane // the first one wanted
}

// turn takes the first lane off a list that can start something; those that cannot
// leave it: what made them ready is gone, or their device has a message of another
// stream in flight.
func (h *hub) turn(q queue, wanted func(*lane) bool) *lane {
	for {
		var l *lane
		if wanted == nil {
			l = q.pop()
		} else {
			l = q.take(wanted)
		}
		if l == nil {
			return nil
		}
		if !l.key.unordered {
			if waiting, busy := h.busy[l.key.device]; busy {
				h.busy[l.key.device] = append(waiting, l) // still listed
				continue
			}
		}
		l.listed = false
		if it := l.kept(); it != nil && it.linkBreaks >= soloAfter && q != queue(&h.solo) {
			h.list(l) // listed before the link broke again
			continue
		}
		if _, _, ok := l.next(); ok {
			return l
		}
	}
}

// probe takes a lane that waits for room and is due, if the budget has a probe.
func (h *hub) probe(now time.Time) *lane {
	for {
		due, woken, wait := h.probes.due(now)
		if !due {
			h.wakeIn(now, wait)
			return nil
		}
		ask := h.budget.probe
		if woken {
			ask = h.budget.take
		}
		ok, wait := ask(now)
		if !ok {
			h.wakeIn(now, wait)
			return nil
		}
		l := h.probes.pop()
		l.waits = false
		if _, _, ok := l.next(); !ok {
			continue // all of it was replaced, has expired, or was given back
		}
		_, busy := h.busy[l.key.device]
		if it := l.kept(); busy && !l.key.unordered || it != nil && it.linkBreaks >= soloAfter {
			h.list(l) // its other lane is about to find out, or it must be alone
			continue
		}
		return l
	}
}

// pays takes one send's token from the budget.
func (h *hub) pays(now time.Time) bool {
	ok, wait := h.budget.take(now)
	if !ok {
		h.wakeIn(now, wait)
	}
	return ok
}

// wakeIn has dispatch called after d; 0: something else will.
func (h *hub) wakeIn(now time.Time, d time.Duration) {
	at := now.Add(d)
	if d <= 0 || h.timer != nil && !at.Before(h.wakeAt) {
		return
	}
	if h.timer != nil {
		h.timer.Stop()
	}
	h.wakeAt, h.timer = at, time.AfterFunc(d, h.wake)
}

func (h *hub) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = nil
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
	if it.expired(time.Now()) {
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
	h.bridge.metrics.sends(h.name, err)
	// Settle before the lane goes on, so that acks leave in the lane's order.
	switch v.step {
	case stepAccepted:
		h.end(it, StatusAccepted, nil)
	case stepDead:
		h.end(it, "", it.letter(v.reason, err, h.name))
	}

	h.mu.Lock()
	it.flying = false
	h.landed(l)
	h.learn(done, err)
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
	j, ok := h.next()
	h.dispatch()
	h.mu.Unlock()
	if replaced {
		h.replace(l, it)
	}
	return j, ok
}

// learn has gate and budget draw their conclusions from a send's end. The caller holds mu.
func (h *hub) learn(j job, err error) {
	now := time.Now()
	if h.gate.outcome(j.lane.key.device, j.epoch, err, now) {
		h.logGate()
	}
	e, failed := errors.AsType[*Error](err)
	switch {
	case err == nil:
		h.budget.accepted(now, j.item.envelope.Size())
	case !failed:
	case e.Class == Throttled:
		h.budget.throttled(j.begun, now)
		if now.Sub(h.slowed) > time.Minute {
			h.slowed = now
			h.slowedBy = e.Error()
			h.log.Warn("the hub throttles; sending slower", "pace", h.budget.status(now).String(), "err", err)
		}
	case e.Class == QueueFull, e.Class == NoDevice, e.Class == Refused && e.Condition != "":
		h.budget.answered(now)
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

// hold keeps the lane out of the ready list for a while. The caller holds mu.
func (h *hub) hold(l *lane, it *item, wait time.Duration, err error) {
	h.waiting(l, it, err)
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(wait, func() { h.resume(l) })
}

// await keeps the lane out of the ready list until it is probed: what it waits for
// is its device's matter. The caller holds mu.
func (h *hub) await(l *lane, it *item, err error) {
	h.waiting(l, it, err)
	h.probes.wait(l, l.key.device, time.Now())
	h.putBack(l, it)
}

// waiting notes that a lane waits. The caller holds mu.
func (h *hub) waiting(l *lane, it *item, err error) {
	e, ok := errors.AsType[*Error](err)
	if !l.warned && !(ok && e.Class == Unrecorded) { // that is about NATS, and told once
		l.warned = true
		h.log.Warn("device waits", "device_id", l.key.device, "route", it.envelope.Route, "message_id", it.envelope.MessageID, "err", err)
	}
	l.waits = true
	if h.room.crowded() && h.bridge.parker.mailbox != nil && l.key.stream != "" && !l.key.unordered {
		h.spill(l) // what waits must not hold the places of what could go
	}
}

// putBack takes a head that is in the mailbox out of memory, which many devices
// without room would fill with their heads. The caller holds mu.
func (h *hub) putBack(l *lane, it *item) {
	entry := it.entry.Load()
	if entry == 0 || l.key.unordered {
		return
	}
	l.drop(it)
	l.stored++
	l.parked = true
	l.above = entry - 1
	kept := it.tries // a copy: a pointer into the item would keep all of it
	l.tries, l.triesOf = &kept, entry
	h.bridge.metrics.fate(it.parked())
}

// resume ends a lane's wait.
func (h *hub) resume(l *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.waits, l.timer = false, nil
	h.list(l)
	h.dispatch()
}

// freed is the hub's word, by feedback, that a device's queue has room for one more.
func (h *hub) freed(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.probes.wake(device) {
		h.dispatch()
	}
}

func (h *hub) logGate() {
	if h.gate.closed {
		h.log.Warn("hub waits", "class", h.gate.class.String(), "err", h.gate.cause, "until", h.gate.until)
		return
	}
	h.log.Info("hub serves again")
}

// disown lets go of all that came from a stream that another process may own by now.
func (h *hub) disown(stream string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, l := range h.lanes {
		if key.stream != stream {
			continue
		}
		l.orphan.Store(true)
		if l.parking {
			h.orphans++
		}
		h.probes.forget(l)
		h.release(l)
		delete(h.lanes, key)
	}
	h.dispatch()
}

// drain lets go of all that is not in flight and can come again, and waits for
// the rest until ctx is done.
func (h *hub) drain(ctx context.Context) {
	h.mu.Lock()
	h.draining = true
	h.ready, h.solo = levels{}, fifo{}
	for _, l := range h.lanes {
		l.listed = false
		h.release(l)
		h.tidy(l)
		h.list(l)
	}
	if len(h.lanes) == 0 {
		h.finished()
	}
	h.dispatch()
	h.mu.Unlock()
	select {
	case <-h.drained:
	case <-ctx.Done():
	}
}

// release gives back the lane's durable items, but not those in flight. The caller holds mu.
func (h *hub) release(l *lane) {
	l.stored, l.parked = 0, false // they stay in the mailbox
	for _, list := range []*[]*item{&l.heads, &l.tail} {
		kept := (*list)[:0]
		for _, it := range *list {
			if it.durable() && !it.flying {
				it.letGo(h)
				l.bytes -= it.size
				continue
			}
			kept = append(kept, it)
		}
		clear((*list)[len(kept):])
		*list = kept
	}
}

// close waits for the sends to end (their context is done) and gives back what is left.
func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.sends.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	for _, l := range h.lanes {
		if l.timer != nil {
			l.timer.Stop()
		}
		for _, it := range l.heads {
			it.letGo(h)
		}
		for _, it := range l.tail {
			it.letGo(h)
		}
	}
	clear(h.lanes)
	h.ready, h.solo = levels{}, fifo{}
}
