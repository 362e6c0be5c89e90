package bridge

import (
	"errors"
	"time"
)

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
