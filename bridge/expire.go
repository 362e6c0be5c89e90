package bridge

import (
	"context"
	"time"
)

const (
	sweepEvery = 5 * time.Second
	sweepReads = 200 // entries of the mailbox looked at in one sweep of a hub
)

// expire gives messages that wait past their time their fate, also while nothing is
// sent: a device without room, a hub that is away. In memory it sees all; of what
// is in the mailbox it sees the first entry of each box, some boxes at a time: what
// expires behind that one is told when it is its turn.
func (b *Bridge) expire(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, h := range b.hubs {
			h.sweep(ctx, time.Now())
		}
	}
}

func (h *hub) sweep(ctx context.Context, now time.Time) {
	var over []*item
	var boxes []*lane
	h.mu.Lock()
	for _, l := range h.lanes {
		from := len(over)
		for _, list := range [...][]*item{l.heads, l.tail} {
			for _, it := range list {
				if !it.flying && !it.storing.Load() && it.expired(now) {
					over = append(over, it)
				}
			}
		}
		for _, it := range over[from:] {
			h.remove(l, it)
		}
		if l.parked && l.flying == 0 && len(l.heads) == 0 && !now.Before(l.due) && len(boxes) < sweepReads {
			boxes = append(boxes, l)
		}
	}
	h.mu.Unlock()
	for _, it := range over {
		h.end(it, "", it.letter(ReasonExpired, errExpired, h.name))
	}
	for _, l := range boxes {
		if h.look(ctx, l) != nil {
			return // each would wait for NATS, and what is in memory for all of them
		}
	}
}

// look reads the first entries of a lane's box and ends those that are expired.
func (h *hub) look(ctx context.Context, l *lane) (err error) {
	h.mu.Lock()
	if !l.parked || l.flying > 0 || len(l.heads) > 0 || l.orphan.Load() || h.draining {
		h.mu.Unlock()
		return nil
	}
	l.flying++ // nobody else takes it up meanwhile
	above := l.above
	h.mu.Unlock()
	var due time.Time
	var q *Parcel
	for {
		q, err = h.bridge.parker.mailbox.Next(ctx, l.box(h.name), above)
		if err != nil || q == nil {
			due = time.Now().Add(time.Minute)
			break
		}
		it := restored(q)
		if !it.expired(time.Now()) {
			if due = it.deadline(); due.IsZero() {
				due = time.Now().Add(24 * time.Hour) // never; but another one may be the first by then
			}
			break
		}
		above = q.Entry
		h.mu.Lock()
		fresh, copied := h.takeUp(l, q)
		h.mu.Unlock()
		if copied != nil {
			h.stored(copied)
		}
		if fresh {
			h.end(it, "", it.letter(ReasonExpired, errExpired, h.name))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l.flying--
	l.due = due
	h.tidy(l)
	h.list(l)
	h.dispatch()
	if q != nil {
		return nil // about this entry alone, if anything
	}
	return err
}
