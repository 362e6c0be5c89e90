package natsio

import (
	"cmp"
	"slices"
	"time"

	"downlink/mapping"
)

// The take-over barrier. A durable consumer hands the unacked messages of a dead
// owner to its new owner only when their AckWait is over, and new messages at
// once. So whoever takes a consumer over gets 11, 12, 13 first and 7, 8, 9, 10
// seconds later. The barrier holds what arrives until everything that the server
// counts as pending is in our hands, and lets it out sorted by stream sequence.
//
// Why that is enough. Call P the messages pending at the server (delivered, not
// settled), H what we hold and S what we have settled.
//
//  1. When the barrier lifts, P ⊆ H ∪ S: the server's own count of P is not above
//     the number of our H that lies between its ack floor and its last delivery.
//  2. The server numbers its deliveries to all owners without a gap
//     (Sequence.Consumer). As long as none is missing, every delivery since then
//     has reached us, and P ⊆ H ∪ S stays true.
//  3. Then a delivery that is neither in H nor in S is new to the consumer, and
//     new ones come in stream order. So what we let out is in stream order.
//
// Any gap and any number that goes back ends 2, and the barrier is on again, before
// the message behind the gap is let out: nothing overtakes what was lost. So does a
// new pin, since a server that lost its latest notes in a crash uses numbers
// twice, maybe for somebody else first. A standby that joined while something was
// pending keeps its barrier until it is pinned.
//
// Redeliveries of H are not let out again, they only bring a new handle to
// settle with. Redeliveries of S (an ack that got lost) are settled again.
//
// The count cannot see two things. One is what the stream dropped while we hold
// it, which would make up for a delivery that is missing; see doubt. The other is
// who settled: if someone else was pinned between, H may hold messages that are
// not in P any more. So after a change of pin with a gap and a pause long enough
// for that, only what was delivered again counts; and an owner that is told that
// it is not pinned any more settles nothing of what it holds. What is left is a
// former owner that stalled for the whole pinnedTTL and settles in the moment
// between waking up and being told, while a delivery to the new one is lost.
//
// barrier is pure: no clock, no locks, no I/O.
type barrier struct {
	ackWait  time.Duration
	trustFor time.Duration // after our latest delivery no other client can have been pinned

	held    map[uint64]*held // by stream sequence
	settled settledSet

	on       bool
	epoch    uint64    // counts starts; an answer to an older question says nothing
	since    time.Time // of the first arrival behind this barrier; zero: none yet
	answered bool      // the server answered in this epoch
	others   bool      // it answered that somebody else is pinned

	pin      string
	next     uint64    // expected Sequence.Consumer; 0: not known yet
	owned    time.Time // latest arrival: proof that we were pinned
	lastSeen uint64    // highest stream sequence that arrived
	latest   position  // what the server said last
}

// held is one message the server has handed to us and we have not settled.
type held struct {
	seq    uint64
	stored int64 // with seq it identifies a message even across a stream that was made anew
	reply  string
	in     *mapping.Input

	again    bool // it was delivered before, to whomever
	emitted  bool // let out
	received bool // the engine has it
	ours     bool // pending for us at the server: settling it is ours to do
	counted  bool // surely still pending there; progress acks keep it so
	gone     bool // its stream does not exist any more: settling does nothing
	done     bool // settled
}

// arrival is one delivery as it came in.
type arrival struct {
	pin      string
	consumer uint64 // Sequence.Consumer
	seq      uint64 // Sequence.Stream
	stored   int64
	reply    string
	again    bool // the server has delivered it before
	in       *mapping.Input
}

// position is what the server says of the consumer.
type position struct {
	deliveredConsumer, deliveredStream uint64
	ackFloorStream                     uint64
	pending                            int    // NumAckPending
	pin                                string // who is pinned; "": nobody at the moment
}

// outcome is what to do with an arrival.
type outcome int

const (
	emit   outcome = iota // let it out now
	wait                  // held behind the barrier
	repeat                // held already: nothing to do
	again                 // settled already: settle it again
)

func newBarrier(t timing, remember int) *barrier {
	return &barrier{
		ackWait:  t.ackWait,
		trustFor: t.pinnedTTL / 2, // well below it: the TTL counts from our latest pull
		held:     map[uint64]*held{}, settled: newSettledSet(remember),
	}
}

// attach takes the position read before the first pull. Later reads change nothing: from then
// on the arrivals themselves tell.
func (b *barrier) attach(p position) {
	b.latest = p
	if b.next != 0 {
		return
	}
	b.next = p.deliveredConsumer + 1
	if p.pending > 0 {
		b.start(time.Time{})
	}
}

func (b *barrier) start(now time.Time) {
	b.on, b.since, b.answered, b.others = true, now, false, false
	b.epoch++
}

// arrive takes one delivery. For emit, wait and again the handle is the message's own.
func (b *barrier) arrive(a arrival, now time.Time) (*held, outcome) {
	contiguous := a.consumer == b.next
	// The first pin is no change if nothing was pending when we joined.
	if pinned := a.pin != b.pin && (b.pin != "" || b.on); pinned || !contiguous {
		if pinned {
			b.trust(contiguous || now.Sub(b.owned) < b.trustFor)
		}
		if !contiguous {
			b.doubt()
		}
		b.start(now)
	} else if b.on && b.since.IsZero() {
		b.since = now
	}
	b.pin, b.next, b.owned = a.pin, a.consumer+1, now
	b.lastSeen = max(b.lastSeen, a.seq)

	if h := b.held[a.seq]; h != nil {
		if h.stored == a.stored {
			h.reply, h.ours, h.counted = a.reply, true, true
			return h, repeat
		}
		h.gone = true
	}
	h := &held{seq: a.seq, stored: a.stored, reply: a.reply, again: a.again, in: a.in, ours: true, counted: true}
	if b.settled.has(a.seq, a.stored) {
		h.done = true
		return h, again
	}
	b.held[a.seq] = h
	if b.on {
		return h, wait
	}
	h.emitted = true
	return h, emit
}

// trust says whether what we hold still counts as pending for us.
func (b *barrier) trust(yes bool) {
	for _, h := range b.held {
		h.ours, h.counted = yes, yes
	}
}

// doubt is for a delivery that got lost. A stream that drops pending messages (max_msgs_per_subject,
// a purge by subject) takes them out of the server's count and not out of our hands, where
// they would make up for the lost one. So what we hold counts again when it is
// delivered again, which takes no longer than the lost one does.
func (b *barrier) doubt() {
	for _, h := range b.held {
		h.counted = false
	}
}

// disown is the server's word that another pin is valid: until we are pinned again, what we
// hold must be redelivered to its owner, so it gets no progress acks. What waits behind the
// barrier is let go: whatever is pending before it goes to somebody else, however long we wait.
func (b *barrier) disown() {
	b.owned, b.since = time.Time{}, time.Time{}
	b.trust(false)
	for seq, h := range b.held {
		if !h.emitted {
			delete(b.held, seq)
		}
	}
}

// postpone is for a server that did not talk for a while, or could not reach us. Nothing that is
// pending came meanwhile, and its AckWait may begin anew: a former owner's progress acks arrive
// with the end of the silence. So the time that we give it begins anew as well.
func (b *barrier) postpone(now time.Time) {
	if b.on && !b.since.IsZero() {
		b.since = now
	}
}

// asking returns the epoch to ask the server's position for, if that would help.
func (b *barrier) asking() (epoch uint64, ok bool) {
	return b.epoch, b.on && !b.since.IsZero()
}

// answer takes the server's position asked for in the given epoch and returns what is let out.
func (b *barrier) answer(epoch uint64, p position) []*held {
	if epoch != b.epoch {
		return nil
	}
	b.latest = p // also for a standby: where to begin if the consumer is deleted under it
	b.others = p.pin != "" && p.pin != b.pin
	if !b.on || b.others {
		return nil // somebody else's by now: we are about to be told so
	}
	b.answered = true
	n := 0
	for seq, h := range b.held {
		// Below the floor nothing is pending; above the last delivery it was delivered after the
		// server counted. Neither may make up for a message that is missing.
		if h.ours && h.counted && seq > p.ackFloorStream && seq <= p.deliveredStream {
			n++
		}
	}
	if p.pending > n {
		return nil
	}
	return b.lift()
}

// expire lifts a barrier that has waited long enough. Whatever was pending when it started has
// run out its AckWait by then and was redelivered. While the server answers it may wait as long again:
// a former owner may have stretched an AckWait just before it noticed.
func (b *barrier) expire(now time.Time) (out []*held, lifted bool) {
	if !b.on || b.since.IsZero() || b.others {
		return nil, false
	}
	limit := b.ackWait + 2*time.Second
	if b.answered {
		limit += b.ackWait
	}
	if now.Sub(b.since) < limit {
		return nil, false
	}
	return b.lift(), true
}

func (b *barrier) lift() []*held {
	b.on, b.since = false, time.Time{}
	var out []*held
	for _, h := range b.held {
		if !h.emitted {
			h.emitted = true
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(x, y *held) int { return cmp.Compare(x.seq, y.seq) })
	return out
}

// settle forgets a message whose fate is durable. It reports whether to tell the server: not if
// it was settled before or its stream is gone, and not if it is not ours any more. Then
// its new owner has it, and counts on it as rule 1 says; if it comes back to us, it is
// recognised and settled.
func (b *barrier) settle(h *held) bool {
	if h.done || h.gone {
		return false
	}
	h.done = true
	if b.held[h.seq] == h {
		delete(b.held, h.seq)
	}
	b.settled.add(h.seq, h.stored)
	return h.ours
}

// abandon is for a stream that was made anew: what was stored before is not in it, although its
// sequences are used again.
func (b *barrier) abandon(created time.Time) {
	b.lastSeen = 0
	for seq, h := range b.held {
		if h.stored < created.UnixNano() {
			h.gone = true
			delete(b.held, seq)
		} else {
			b.lastSeen = max(b.lastSeen, seq)
		}
	}
	b.start(time.Time{})
}

// letGo forgets what the engine has not received, so that the next owner gets it soon.
func (b *barrier) letGo() {
	for seq, h := range b.held {
		if !h.received {
			delete(b.held, seq)
		}
	}
}

// progress returns the handles of what we hold for the server.
func (b *barrier) progress() []string {
	replies := make([]string, 0, len(b.held))
	for _, h := range b.held {
		if h.ours && h.counted {
			replies = append(replies, h.reply)
		}
	}
	return replies
}

// resume is the stream sequence from which a consumer that was deleted under us must start
// again so that nothing is missed.
func (b *barrier) resume() uint64 {
	from := b.latest.deliveredStream + 1
	if b.lastSeen > 0 {
		from = b.lastSeen + 1
	}
	if b.on || b.lastSeen == 0 && b.latest.pending > 0 {
		// Something may be pending that never reached us.
		from = min(from, b.latest.ackFloorStream+1)
	}
	for seq := range b.held {
		from = min(from, seq)
	}
	return from
}

// settledSet remembers the latest settled messages, so that an ack lost with a connection is
// repeated instead of the message.
type settledSet struct {
	at   map[uint64]int64
	ring []uint64
	pos  int
}

func newSettledSet(n int) settledSet {
	return settledSet{at: make(map[uint64]int64), ring: make([]uint64, n)}
}

func (s *settledSet) has(seq uint64, stored int64) bool {
	t, ok := s.at[seq]
	return ok && t == stored
}

func (s *settledSet) add(seq uint64, stored int64) {
	if _, ok := s.at[seq]; !ok {
		if old := s.ring[s.pos]; old != 0 {
			delete(s.at, old)
		}
		s.ring[s.pos] = seq
		s.pos = (s.pos + 1) % len(s.ring)
	}
	s.at[seq] = stored
}
