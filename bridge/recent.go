package bridge

import (
	"sync"
	"time"

	"downlink/mapping"
)

// recent remembers the latest messages of a kind: those that are known to be in the mailbox,
// or to have had their fate there, for sources that deliver them again because the acks of the process
// that stored them got lost; and those that have a fate, and that the mailbox may have besides.
type recent struct {
	mu   sync.Mutex
	at   map[identity]struct{}
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
	return &recent{at: make(map[identity]struct{}), ring: make([]identity, n)}
}

func (r *recent) add(id identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.at[id]; ok {
		return
	}
	delete(r.at, r.ring[r.pos])
	r.ring[r.pos], r.at[id] = id, struct{}{}
	r.pos = (r.pos + 1) % len(r.ring)
}

func (r *recent) has(id identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.at[id]
	return ok
}

// holds reports whether an entry's message has got its fate; one that cannot be read is not known.
func (r *recent) holds(q *Parcel) bool {
	return q.Message != nil && q.Envelope != nil && r.has(identityOf(q.Message, q.Envelope))
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
