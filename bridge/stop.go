package bridge

import "context"

// How a hub ends: for a source that is lost, at a drain, and for good.

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
