package bridge

import "time"

// Which lane has its turn: the order of the questions is that of pick. A lane is in
// one list at most; whoever takes it off finds out anew whether it can start anything.

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
func (h *hub) dispatch() { h.dispatchAt(time.Now()) }

func (h *hub) dispatchAt(now time.Time) {
	for j, ok := h.next(now); ok; j, ok = h.next(now) {
		h.sends.Add(1)
		go h.run(j)
	}
}

// next takes what is to be done now. The caller holds mu.
func (h *hub) next(now time.Time) (job, bool) {
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
	if h.closed || h.down || h.alone || h.inFlight >= h.window {
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
