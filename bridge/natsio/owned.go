package natsio

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// The ownership of a source. The lease decides who pulls; the barrier and the pinned-client policy stay as they
// are, as the second line of defence: against a process that does not know of leases, and
// against what was delivered before a take-over.
//
// A tenure begins with everything anew: a subscription that nothing pulled before can reach, an
// empty barrier, and the consumer's position, read before the first pull. It ends at once and
// for all that is held: an owner that stalled must not settle what the next one has.

// tenure is one time of owning the source, from Own to the loss of the lease. Of one term of the lease
// there may be two: if the source thought for a moment that it had run out.
type tenure struct{ *term }

// Own blocks until the source is this process's, and lets it pull. It fails only when ctx is done. Without a
// lease it returns at once.
func (s *JetStreamSource) Own(ctx context.Context) error {
	if s.o.Lease == nil {
		return ctx.Err()
	}
	t, err := s.o.Lease.acquire(ctx, s.standBy)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenure != nil && s.tenure.term == t {
		return nil
	}
	s.disown(s.tenure)
	s.tenure, s.disowned = &tenure{t}, false
	s.err = errors.New("stream " + s.o.Stream + ": not consuming yet")
	signal(s.own)
	return nil
}

// standBy is for another process having the stream, which is well. As long as nobody is known to have it, it may be
// ours, and then we are not ready before we consume.
func (s *JetStreamSource) standBy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && s.tenure == nil && !s.draining {
		s.err = nil
	}
}

// Held reports whether the source is surely still ours. Without a lease it always is. Whoever was told
// that it is not waits for ErrDisowned, so the tenure ends with that, even if the lease is renewed at the very last moment.
func (s *JetStreamSource) Held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds() {
		return true
	}
	s.disown(s.tenure)
	return false
}

// holds is Held. s.mu is held.
func (s *JetStreamSource) holds() bool {
	return s.o.Lease == nil || s.tenure != nil && s.o.Lease.holds(s.tenure.term)
}

// disown ends a tenure, unless another one has begun: what is held is not ours any more. s.mu is held.
func (s *JetStreamSource) disown(t *tenure) {
	if t == nil || s.tenure != t {
		return
	}
	if s.barrier.next != 0 {
		s.resume = s.barrier.resume()
	}
	s.seen = max(s.seen, s.barrier.lastSeen)
	epoch := s.barrier.epoch
	for _, h := range s.barrier.held {
		h.gone = true
	}
	s.barrier = newBarrier(s.time, 2*s.o.MaxAckPending)
	s.barrier.epoch = epoch + 1 // what the server was asked before counts no more
	s.queue = nil
	clear(s.unsent)
	s.tenure, s.attached, s.disowned = nil, false, true
	s.err = nil
	signal(s.arrived)
}

// heldNow is how many messages we hold.
func (s *JetStreamSource) heldNow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.barrier.held)
}

// giveBack ends the tenure in order: the server hands out at once what we have not settled, to whoever pulls
// next. Its barrier sorts that.
func (s *JetStreamSource) giveBack() {
	if s.o.Lease == nil {
		return
	}
	s.mu.Lock()
	var ours []*held
	if s.holds() {
		for _, h := range s.barrier.held {
			if h.ours && h.counted {
				ours = append(ours, h)
			}
		}
	}
	s.disown(s.tenure)
	s.disowned = false
	s.mu.Unlock()
	slices.SortFunc(ours, func(a, b *held) int { return cmp.Compare(a.seq, b.seq) })
	for _, h := range ours {
		_ = s.o.Conn.nc.Publish(h.reply, []byte("-NAK")) // if it gets lost, the AckWait brings the message back
	}
}
