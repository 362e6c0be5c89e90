package bridge

import (
	"math"
	"sync"
	"time"

	"downlink/mapping"
)

// recent remembers the latest messages of a kind: those that are known to be in the mailbox,
// or to have had their fate there, for sources that deliver them again because the acks of the process
// that stored them got lost; and those that have a fate, and that the mailbox may have besides.
type recent struct {
	mu   sync.Mutex
	at   map[identity]uint64 // a stray's entry, once it was read
	ring []identity
	pos  int
}

type identity struct {
	stream, route, device string
	sequence              uint64
	stored                time.Time
}

func identityOf(in *mapping.Input, e *mapping.Envelope) identity {
	return identity{in.Stream, e.Route, e.Device, in.Sequence, in.Time.UTC()}
}

func newRecent(n int) *recent {
	return &recent{at: make(map[identity]uint64), ring: make([]identity, n)}
}

func (r *recent) add(id identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.at[id]; ok {
		return
	}
	delete(r.at, r.ring[r.pos])
	r.ring[r.pos], r.at[id] = id, 0
	r.pos = (r.pos + 1) % len(r.ring)
}

func (r *recent) has(id identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.at[id]
	return ok
}

// strays are messages that got their fate while they were being put into the mailbox: whoever reads
// their entries must not send them again. Not all of those entries are known: the append's answer may
// have got lost, and the search for it fails if the server stores it later, or where it breaks the box's order (a message
// that comes again from its source may). What is read of them is told here.
type strays struct{ *recent }

// sought is instead of the entry of a stray that was looked for in vain.
const sought = math.MaxUint64

func newStrays(n int) *strays { return &strays{newRecent(n)} }

// take reports whether an entry that was read is a stray's, and whether the reader has to delete it,
// as nobody looks for it any more. One that cannot be read is none.
func (s *strays) take(q *Parcel) (stray, orphan bool) {
	if q.Message == nil || q.Envelope == nil {
		return false, false
	}
	id := identityOf(q.Message, q.Envelope)
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, stray := s.at[id]
	if stray && entry != sought {
		s.at[id] = q.Entry
	}
	return stray, entry == sought
}

// missed is for one that was looked for and not found, and whose fate is durable. It returns the entry
// if that was read meanwhile, and else 0.
func (s *strays) missed(id identity) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	entry, ok := s.at[id]
	if ok && entry == 0 {
		s.at[id] = sought
	}
	if entry == sought {
		return 0
	}
	return entry
}

// endings remembers the latest entries of the mailbox that got their fate: one that
// was read just before it was deleted must not be taken up. The hub's mutex guards it.
type endings struct {
	set  map[uint64]struct{}
	ring []uint64
	pos  int
}

const endingsKept = 1 << 14

func (e *endings) add(entry uint64) {
	if e.set == nil {
		e.set = make(map[uint64]struct{})
	}
	if _, ok := e.set[entry]; ok {
		return
	}
	e.set[entry] = struct{}{}
	if len(e.ring) < endingsKept {
		e.ring = append(e.ring, entry)
		return
	}
	delete(e.set, e.ring[e.pos])
	e.ring[e.pos] = entry
	e.pos = (e.pos + 1) % endingsKept
}

func (e *endings) has(entry uint64) bool {
	_, ok := e.set[entry]
	return ok
}
