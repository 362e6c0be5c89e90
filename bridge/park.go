package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"downlink/mapping"
)

// Parking. A lane that holds more than it may (or whose hub does) is put into the
// mailbox as a whole, in its order, its head included, even one that is in flight:
// then nothing that is in the mailbox is older than something that is not, so
// that whoever takes over finds the right order. Each message is acked at its
// source once it is stored. What waited in memory is dropped from it; the lane reads it back
// entry by entry. An entry is deleted after its fate.
//
// Every step may be the last one before a crash. Before the append: the source has
// the message. Between append and ack: both have; the source brings it again, and
// the mailbox knows its ID. Between fate and delete: the entry is sent again, under
// the same message ID.

const parkers = 32 // appends at once; one at a time for each lane

// parker puts lanes into the mailbox.
type parker struct {
	mailbox Mailbox
	crew    *crew[parking]
}

type parking struct {
	hub  *hub
	lane *lane
}

func newParker(m Mailbox, log *slog.Logger) *parker {
	p := &parker{mailbox: m}
	p.crew = &crew[parking]{news: make(chan struct{}, 1), workers: parkers, work: p.park, log: log, what: "the mailbox cannot be written; what exceeds its bound stays at the source"}
	return p
}

// spill has the whole lane put into the mailbox. The caller holds mu.
func (h *hub) spill(l *lane) {
	l.spills = true
	if l.parking || l.orphan.Load() || h.draining || l.unparked() == nil {
		return
	}
	l.parking = true
	h.bridge.parker.crew.add(h.bridge.sendCtx, parking{h, l})
}

// park stores one message of the lane. again: there is more to store.
func (p *parker) park(ctx context.Context, job parking) (again bool, err error) {
	h, l := job.hub, job.lane
	h.mu.Lock()
	it := l.unparked()
	if it == nil || h.draining || l.orphan.Load() || ctx.Err() != nil {
		l.parking = false
		if l.orphan.Load() {
			h.orphans--
		}
		h.list(l)
		h.tidy(l)
		h.dispatch()
		h.mu.Unlock()
		return false, nil
	}
	parcel := it.parcel()
	it.storing.Store(true)
	if it.left.Load() == leftEnded { // it has just got its fate, which may not have seen that
		it.storing.Store(false)
		h.mu.Unlock()
		return true, nil
	}
	h.mu.Unlock()

	gone, err := p.append(ctx, h, l, it, parcel)
	switch {
	case errors.Is(err, ErrUnstorable):
		h.mu.Lock()
		it.unstorable = true
		it.storing.Store(false)
		h.mu.Unlock()
		h.log.Warn("a message that waits is too large for the mailbox and stays at its source", "device_id", l.key.device, "route", it.envelope.Route, "err", err)
		return true, nil
	case err != nil:
		it.twin.Store(unknownTwin)
		h.endTwin(it)
		h.mu.Lock()
		defer h.mu.Unlock()
		it.storing.Store(false)
		if l.orphan.Load() {
			l.parking = false
			h.orphans--
		}
		return l.parking, fmt.Errorf("park: %w", err)
	}

	it.twin.CompareAndSwap(unknownTwin, 0)
	h.mu.Lock()
	// It leaves its source and its place in the lane in one step: whoever finds it there still, while its ack is on
	// its way, would send it beside its entry, or put it back, and then its entry would be passed over.
	it.entry.Store(parcel.Entry)
	won := it.leave(leftParked)
	it.storing.Store(false)
	switch {
	case won:
		p.parked(h, l, it, gone)
	case parcel.Entry > 0 && it.left.Load() == leftEnded:
		// It has got its fate meanwhile, and when that is durable the entry goes. One that
		// was let go keeps it: its source brings it again, and the mailbox knows it.
		h.ended.add(parcel.Entry)
		it.twin.Store(parcel.Entry)
	}
	h.list(l)
	h.dispatch()
	h.mu.Unlock()
	if won {
		h.stored(it)
	}
	h.endTwin(it)
	if key := it.envelope.Coalesce; key != "" && won && !gone {
		return true, p.replace(ctx, h, l, key, parcel.Entry)
	}
	return true, nil
}

// stored settles an item that left its source for the mailbox. An ack may take its time: the caller does not hold mu.
func (h *hub) stored(it *item) {
	h.room.leave()
	it.of.resolve(it.parked())
}

// parked notes that the item's home is the mailbox, or (gone) that it has had its
// fate there. The caller holds mu.
func (p *parker) parked(h *hub, l *lane, it *item, gone bool) {
	if len(l.tail) > 0 && l.tail[0] == it {
		l.drop(it)
		if !gone {
			l.stored++
			l.parked = true
			l.puts++
			l.above = min(l.above, it.entry.Load()-1)
		}
		return
	}
	h.bridge.metrics.restored()             // it stays in memory, a head,
	l.above = max(l.above, it.entry.Load()) // and is not to be read again before it is deleted
}

// append stores the parcel and sets its entry. What was stored before, by an append
// whose answer got lost or by another process, is looked for; gone: it was there and
// has had its fate.
func (p *parker) append(ctx context.Context, h *hub, l *lane, it *item, parcel *Parcel) (gone bool, err error) {
	box := l.box(h.name)
	if it.of.again() && l.inherited {
		if parcel.Entry, err = p.find(ctx, box, it); parcel.Entry > 0 || err != nil {
			return false, err
		}
		if it.left.Load() == leftParked { // its entry was read and deleted meanwhile; a new one would be out of the box's order
			return true, nil
		}
	}
	repeat, err := p.mailbox.Append(ctx, parcel)
	if !repeat || err != nil {
		return false, err
	}
	parcel.Entry, err = p.find(ctx, box, it)
	return parcel.Entry == 0, err
}

// unreadable reports whether what Next returned is an entry that nobody can read, ever.
func unreadable(q *Parcel, err error) bool {
	return q != nil && err != nil && !errors.Is(err, ErrFormat)
}

// readable is the mailbox's Next without what cannot be read: that gets its fate when it is its turn.
func (p *parker) readable(ctx context.Context, b Box, above uint64) (*Parcel, error) {
	for {
		q, err := p.mailbox.Next(ctx, b, above)
		if !unreadable(q, err) {
			return q, err
		}
		above = q.Entry
	}
}

// find returns the entry of the item's message in the box; 0: it is not there. A box is
// in the order of its stream, so halving the range finds it in few reads.
func (p *parker) find(ctx context.Context, b Box, it *item) (uint64, error) {
	seq := it.message.Sequence
	low, high := uint64(0), uint64(1) // of the mailbox: what stands at low or before it is older
	for {
		q, err := p.readable(ctx, b, high)
		if err != nil {
			return 0, err
		}
		if q == nil || q.Message.Sequence >= seq {
			break
		}
		low, high = q.Entry, q.Entry*2
	}
	for low < high {
		middle := low + (high-low)/2
		q, err := p.readable(ctx, b, middle)
		switch {
		case err != nil:
			return 0, err
		case q == nil || q.Message.Sequence >= seq:
			high = middle
		default:
			low = q.Entry
		}
	}
	// Several routes of one message stand side by side.
	for {
		q, err := p.readable(ctx, b, low)
		if err != nil || q == nil || q.Message.Sequence != seq {
			return 0, err
		}
		if q.Envelope.Route == it.envelope.Route && q.Message.Time.Equal(it.message.Time) {
			return q.Entry, nil
		}
		low = q.Entry
	}
}

// replace gives what a newer entry replaces its fate.
func (p *parker) replace(ctx context.Context, h *hub, l *lane, key string, entry uint64) error {
	older, err := p.mailbox.Waiting(ctx, l.box(h.name), key, entry)
	if err != nil {
		return nil // it is sent before the newer one then, which is no harm
	}
	var stale []*item
	h.mu.Lock()
	for _, q := range older {
		if it := l.head(q.Entry); it != nil {
			if it.flying {
				it.superseded = true
			} else {
				l.drop(it)
				stale = append(stale, it)
			}
			continue
		}
		if h.ended.has(q.Entry) || q.Entry <= l.above || !l.parked {
			continue
		}
		h.ended.add(q.Entry)
		l.stored = max(l.stored, 1) - 1
		h.bridge.metrics.restored()
		stale = append(stale, restored(q))
	}
	l.replaced += len(stale)
	h.mu.Unlock()
	for _, it := range stale {
		h.replace(l, it)
	}
	return nil
}

// head is the head that is this entry of the mailbox.
func (l *lane) head(entry uint64) *item {
	for _, it := range l.heads {
		if it.entry.Load() == entry {
			return it
		}
	}
	return nil
}

// load reads the lane's next entry; nil: there is none.
func (h *hub) load(l *lane) (*item, error) {
	for {
		h.mu.Lock()
		above := l.above
		h.mu.Unlock()
		if !h.owns(l) {
			return nil, ErrDisowned
		}
		if h.bridge.ledger.crew.waiting() > h.bridge.options.MaxHeld {
			return nil, errBehind
		}
		q, err := h.bridge.parker.mailbox.Next(h.bridge.sendCtx, l.box(h.name), above)
		if unreadable(q, err) {
			h.bury(l, q, err)
			continue
		}
		if err != nil || q == nil {
			return nil, err
		}
		h.mu.Lock()
		l.newer = false
		if l.replaced > 0 {
			h.mu.Unlock()
			return nil, errReplacing
		}
		fresh, copied := h.takeUp(l, q)
		if copied != nil {
			defer h.stored(copied)
		}
		if !fresh {
			h.mu.Unlock()
			continue
		}
		it := restored(q)
		if l.tries != nil && l.triesOf == q.Entry {
			it.tries = *l.tries
		}
		l.tries = nil
		if it.expired(time.Now()) { // the turn is for the first one that can be sent
			h.mu.Unlock()
			h.end(it, "", it.letter(ReasonExpired, errExpired, h.name))
			continue
		}
		it.flying = true
		l.heads = append(l.heads, it)
		l.bytes += it.size
		l.priority = it.envelope.Priority
		h.mu.Unlock()
		return it, nil
	}
}

// bury gives the lane's next entry, which nobody can read, its fate: a dead letter with what is stored. Otherwise
// its device would wait for ever.
func (h *hub) bury(l *lane, q *Parcel, err error) {
	h.mu.Lock()
	fresh, _ := h.takeUp(l, q)
	h.mu.Unlock()
	if !fresh {
		return
	}
	h.log.Error("an entry of the mailbox cannot be read; it becomes a dead letter as it is stored", "device_id", l.key.device, "err", err)
	it := restored(&Parcel{Entry: q.Entry, At: q.At, Message: q.Message, Envelope: &mapping.Envelope{Hub: h.name, Device: l.key.device}})
	h.end(it, "", it.letter(ReasonUnreadable, err, h.name))
}

// errBehind is why nothing is taken out of the mailbox: what became of more than enough of it is not durable yet.
var errBehind = errors.New("what became of messages before it cannot be stored")

// errReplacing is why a lane loads nothing now; it goes on when what was replaced has its fate.
var errReplacing = errors.New("what a newer message replaced has no durable fate yet")

// takeUp notes that the lane's next entry is taken out of the mailbox's order. Not fresh:
// it has its fate, as it was replaced, or is being deleted. copied is the same message, come again from its
// source, or its append not answered yet: now it is known to be stored, and the caller, who holds mu, settles it.
func (h *hub) takeUp(l *lane, q *Parcel) (fresh bool, copied *item) {
	entry := q.Entry
	l.above, l.due = entry, time.Time{}
	if h.ended.has(entry) {
		return false, nil
	}
	if stray, orphan := h.bridge.strays.take(q); stray {
		if orphan {
			h.ended.add(entry)
			h.bridge.ledger.add(h.bridge.sendCtx, closing{entry: entry, hub: h})
		}
		return false, nil
	}
	l.stored = max(l.stored, 1) - 1
	h.bridge.metrics.restored()
	if q.Message == nil || q.Envelope == nil {
		return true, nil
	}
	id := identityOf(q.Message, q.Envelope)
	h.bridge.recent.add(id) // what comes from now on
	for _, it := range l.tail {
		if identityOf(it.message, it.envelope) == id && it.leave(leftParked) {
			l.drop(it)
			return true, it
		}
	}
	return true, nil
}

// lookForMore finds out whether a box holds more than was counted: an append whose
// answer got lost may have stored something. No send waits for it, and no token is spent.
func (h *hub) lookForMore(l *lane) {
	defer h.sends.Done()
	h.mu.Lock()
	above, puts := l.above, l.puts
	h.mu.Unlock()
	q, err := h.bridge.parker.mailbox.Next(h.bridge.sendCtx, l.box(h.name), above)
	h.mu.Lock()
	defer h.mu.Unlock()
	l.looking = false
	switch {
	case q != nil: // also what cannot be read: load sees to it
		l.stored = max(l.stored, 1)
	case h.closed || l.orphan.Load():
	case err != nil:
		l.waits = true
		l.timer = time.AfterFunc(time.Second, func() { h.resume(l) })
	case l.puts == puts:
		l.parked = false
	}
	h.tidy(l)
	h.list(l)
	h.dispatch()
}

// unloaded is for a load that gave nothing: the entries are gone, or cannot be read now.
func (h *hub) unloaded(l *lane, err error) (job, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.landed(l)
	h.gate.unused()
	l.newer = errors.Is(err, ErrFormat)
	switch {
	case err == nil:
		l.stored = 0 // somebody purged them, or more came meanwhile: it is looked up
	case errors.Is(err, errReplacing):
	case h.draining || l.orphan.Load() || errors.Is(err, ErrDisowned):
		l.stored, l.parked = 0, false
		h.tidy(l)
	default:
		wait := retryMax
		if !errors.Is(err, ErrFormat) { // with many lanes it is the store, and they must not keep us busy
			wait = min(time.Second+time.Duration(len(h.lanes))*time.Millisecond, retryMax)
		}
		// A store that is away is told once a minute, not by each of its lanes.
		if now := time.Now(); !l.warned && (errors.Is(err, ErrFormat) || now.Sub(h.unread) > time.Minute) {
			l.warned, h.unread = true, now
			h.log.Warn("device waits: its next message cannot be read from the mailbox", "device_id", l.key.device, "err", err)
		}
		l.waits = true
		l.timer = time.AfterFunc(wait, func() { h.resume(l) })
	}
	h.list(l)
	j, ok := h.next(time.Now())
	h.dispatch()
	return j, ok
}
