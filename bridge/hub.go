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

	mu       sync.Mutex // guards all below, the lanes and their queues
	lanes    map[string]*lane
	ready    fifo
	solo     fifo // lanes whose head must be alone on the link
	alone    bool // such a head is in flight
	inFlight int
	gate     gate
	timer    *time.Timer // wakes dispatch when the gate may be probed
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
		lanes:   make(map[string]*lane),
		gate:    newGate(window),
		drained: make(chan struct{}),
	}
}

// enqueue puts it at the end of its device's lane.
func (h *hub) enqueue(it *item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lanes[it.envelope.Device]
	if l == nil {
		l = &lane{device: it.envelope.Device}
		h.lanes[l.device] = l
		h.ready.push(l)
	}
	l.queue = append(l.queue, it)
	h.dispatch()
}

// dispatch starts what may start. The caller holds mu.
func (h *hub) dispatch() {
	for l := h.next(); l != nil; l = h.next() {
		h.sends.Add(1)
		go h.run(l)
	}
}

// next takes the lane whose head is to be sent now, or nil. The caller holds mu.
func (h *hub) next() *lane {
	if h.closed || h.alone || h.solo.len()+h.ready.len() == 0 {
		return nil
	}
	if h.solo.len() > 0 && h.inFlight > 0 {
		return nil // the link must empty first; nothing new starts meanwhile
	}
	ok, wait := h.gate.admits(h.inFlight, time.Now())
	var l *lane
	switch {
	case ok && h.solo.len() > 0:
		l, h.alone = h.solo.pop(), true
	case ok:
		l = h.ready.pop()
	default:
		if wait > 0 && h.timer == nil {
			h.timer = time.AfterFunc(wait, h.wake)
		}
		if !h.gate.doubts() {
			return nil
		}
		if l = h.ready.take(func(l *lane) bool { return !h.gate.suspects(l.device) }); l == nil {
			return nil
		}
	}
	l.state = laneSending
	h.inFlight++
	h.gate.started()
	return l
}

func (h *hub) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = nil
	h.dispatch()
}

// run sends heads until there is none that may go.
func (h *hub) run(l *lane) {
	defer h.sends.Done()
	for l != nil {
		h.mu.Lock()
		it := l.queue[0]
		h.mu.Unlock()
		l = h.finish(l, it, h.send(it))
	}
}

// send tries the item once. An expired one never reaches the wire.
func (h *hub) send(it *item) error {
	if e := it.envelope.ExpiresAt; !e.IsZero() && !time.Now().Before(e) {
		return &Error{Class: Refused, Op: "send", Reason: ReasonExpired, Err: errExpired}
	}
	it.attempts++
	return h.sender.Send(h.bridge.sendCtx, it.envelope)
}

// finish acts on the outcome of a send and returns the lane to go on with.
func (h *hub) finish(l *lane, it *item, err error) *lane {
	v := judge(it, err, h.bridge.retryNoDevice[it.envelope.Route])
	h.bridge.metrics.sends(h.name, err)
	// Settle before the lane goes on, so that acks leave in the lane's order.
	switch v.step {
	case stepAccepted:
		it.of.resolve(it.receipt("accepted", h.name))
	case stepDead:
		h.bridge.dead.bury(it.burial(v.reason, err, h.name))
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	h.inFlight--
	h.alone = false
	if h.gate.outcome(l.device, err, time.Now()) {
		h.logGate()
	}
	switch {
	case v.step == stepAccepted, v.step == stepDead:
		h.advance(l)
	case v.step == stepReturn, h.draining && it.of.durable():
		it.letGo(h.name)
		h.advance(l)
	case v.step == stepWait:
		if e, ok := errors.AsType[*Error](err); ok && e.Class == QueueFull {
			v.wait = max(v.wait, h.gate.pace())
		}
		h.hold(l, it, v.wait, err)
	default: // stepAgain
		h.again(l)
	}
	next := h.next()
	h.dispatch()
	return next
}

// advance drops the lane's head and makes it ready for its next. The caller holds mu.
func (h *hub) advance(l *lane) {
	l.queue[0] = nil
	l.queue = l.queue[1:]
	l.warned = false
	if len(l.queue) > 0 {
		l.state = laneReady
		h.ready.push(l)
		return
	}
	delete(h.lanes, l.device)
	h.gate.forget(l.device)
	if h.draining && len(h.lanes) == 0 {
		close(h.drained)
	}
}

// again puts the lane back for its head to be sent once more.
func (h *hub) again(l *lane) {
	l.state = laneReady
	if l.queue[0].linkBreaks >= soloAfter {
		h.solo.push(l)
		return
	}
	h.ready.push(l)
}

// hold keeps the lane out of the ready list for a while.
func (h *hub) hold(l *lane, it *item, wait time.Duration, err error) {
	if !l.warned {
		l.warned = true
		h.log.Warn("device waits", "device_id", l.device, "route", it.envelope.Route, "message_id", it.envelope.MessageID, "err", err)
	}
	l.state = laneWaiting
	l.timer = time.AfterFunc(wait, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		l.timer = nil
		if len(l.queue) == 0 {
			return // given back meanwhile
		}
		h.again(l)
		h.dispatch()
	})
}

func (h *hub) logGate() {
	if h.gate.closed {
		h.log.Warn("hub waits", "class", h.gate.class.String(), "err", h.gate.cause, "until", h.gate.until)
		return
	}
	h.log.Info("hub serves again")
}

// drain lets go of all that is not in flight and can come again, and waits for
// the rest until ctx is done.
func (h *hub) drain(ctx context.Context) {
	h.mu.Lock()
	h.draining = true
	h.ready, h.solo = fifo{}, fifo{}
	for _, l := range h.lanes {
		h.release(l)
	}
	if len(h.lanes) == 0 {
		close(h.drained)
	}
	h.dispatch()
	h.mu.Unlock()
	select {
	case <-h.drained:
	case <-ctx.Done():
	}
}

// release gives back the lane's durable items, but not one in flight, and lists
// the lane again if anything is left. The caller holds mu and has emptied the lists.
func (h *hub) release(l *lane) {
	kept := l.queue[:0]
	for i, it := range l.queue {
		if it.of.durable() && !(i == 0 && l.state == laneSending) {
			it.letGo(h.name)
			continue
		}
		kept = append(kept, it)
	}
	clear(l.queue[len(kept):])
	l.queue = kept
	switch {
	case len(kept) == 0:
		delete(h.lanes, l.device)
	case l.state == laneReady:
		h.again(l)
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
		for _, it := range l.queue {
			it.letGo(h.name)
		}
		l.queue = nil
	}
	clear(h.lanes)
	h.ready, h.solo = fifo{}, fifo{}
}

// status is a snapshot for humans.
func (h *hub) status() HubStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := HubStatus{Name: h.name, State: "open", InFlight: h.inFlight, Window: h.gate.limit, Lanes: len(h.lanes)}
	for _, l := range h.lanes {
		s.Waiting += len(l.queue)
		if l.state == laneWaiting {
			s.LanesWaiting++
		}
	}
	if h.gate.closed {
		s.State, s.Cause, s.Until = h.gate.class.String(), h.gate.cause, h.gate.until
	}
	return s
}
