package bridge

import (
	"context"
	"errors"
	"time"
)

const (
	sweepEvery = 5 * time.Second
	sweepReads = 200 // entries of the mailbox looked at in one sweep of a hub
)

// expire gives messages that wait past their time their fate, also while nothing is
// sent: a device without room, a hub that is away. In memory it sees all; of what
// is in the mailbox it sees the first entry of each box, some boxes at a time.
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
		for _, list := range [][]*item{l.heads, l.tail} {
			for _, it := range list {
				if !it.flying && !it.group && it.expired(now) {
					over = append(over, it)
				}
			}
		}
		if l.stored > 0 && l.flying == 0 && len(l.heads) == 0 && !now.Before(l.due) && len(boxes) < sweepReads {
			boxes = append(boxes, l)
		}
	}
	for _, it := range over {
		l := h.lanes[keyOf(it)]
		if l == nil {
			l = h.lanes[laneKey{it.envelope.Device, it.message.Stream, false}]
		}
		if l != nil {
			h.remove(l, it)
		}
	}
	h.mu.Unlock()
	for _, it := range over {
		h.end(it, "", it.letter(ReasonExpired, errExpired, h.name))
	}
	for _, l := range boxes {
		h.look(ctx, l)
	}
}

// look reads the first entries of a lane's box and ends those that are expired.
func (h *hub) look(ctx context.Context, l *lane) {
	h.mu.Lock()
	if l.stored == 0 || l.flying > 0 || len(l.heads) > 0 || l.orphan || h.draining {
		h.mu.Unlock()
		return
	}
	l.flying++ // nobody else takes it up meanwhile
	h.mu.Unlock()
	var next time.Time
	for ctx.Err() == nil {
		it, err := h.load(l)
		if err != nil && !errors.Is(err, ErrDisowned) {
			next = time.Now().Add(time.Minute)
		}
		if it == nil {
			break
		}
		h.mu.Lock()
		it.flying = false
		if !it.expired(time.Now()) {
			if next = it.deadline(); next.IsZero() {
				next = time.Now().Add(24 * time.Hour) // not by time; look again some day
			}
			h.putBack(l, it)
			h.mu.Unlock()
			break
		}
		h.remove(l, it)
		h.mu.Unlock()
		h.end(it, "", it.letter(ReasonExpired, errExpired, h.name))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l.flying--
	l.due = next
	h.tidy(l)
	h.list(l)
	h.dispatch()
}
