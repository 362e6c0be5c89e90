package mqttd

import (
	"slices"
	"sync"
)

// window is the messages of one connection that wait for their PUBACK, in the
// order in which they were sent. Safe for concurrent use.
type window struct {
	mu   sync.Mutex
	size int
	last uint16 // packet identifier
	sent []inFlight
}

type inFlight struct {
	id       uint16
	sequence uint64
}

func (w *window) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}

func (w *window) full() bool { return w.len() >= w.size }

// add gives a message a packet identifier that is not in flight.
func (w *window) add(sequence uint64) uint16 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.last++; w.last != 0 && !slices.ContainsFunc(w.sent, func(f inFlight) bool { return f.id == w.last }) {
			w.sent = append(w.sent, inFlight{w.last, sequence})
			return w.last
		}
	}
}

// ack takes out the oldest message if id is its identifier. A PUBACK for any
// other is not in order and has no effect: that message stays pending, as in
// Microsoft's own gateway (MQTT 3.1.1 [MQTT-4.6.0-2]).
func (w *window) ack(id uint16) (sequence uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sent) == 0 || w.sent[0].id != id {
		return 0, false
	}
	sequence = w.sent[0].sequence
	w.sent = slices.Delete(w.sent, 0, 1)
	return sequence, true
}

// prune forgets what the session no longer holds.
func (w *window) prune(holds func(sequence uint64) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = slices.DeleteFunc(w.sent, func(f inFlight) bool { return !holds(f.sequence) })
}
