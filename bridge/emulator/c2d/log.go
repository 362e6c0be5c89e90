package c2d

import (
	"sync"
	"time"
)

// Record is what became of one accepted message. A message that was sent twice
// has two.
type Record struct {
	Device    string
	MessageID string
	Sequence  uint64
	Accepted  time.Time
	Delivered int    // times handed to the device
	Outcome   string // "" while pending, else an Outcome's status
}

// Tally sums up the records of one message ID.
type Tally struct{ Accepted, Delivered, Completed int }

// history keeps the records of the newest messages, so that a test or a soak
// run can count from the hub's own books.
type history struct {
	mu      sync.Mutex
	limit   int
	records []*Record // a ring once it is full
	oldest  int
}

func (h *history) accept(device, messageID string, sequence uint64, now time.Time) *Record {
	r := &Record{Device: device, MessageID: messageID, Sequence: sequence, Accepted: now}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.records) < h.limit {
		h.records = append(h.records, r)
		return r
	}
	h.records[h.oldest] = r
	h.oldest = (h.oldest + 1) % h.limit
	return r
}

func (h *history) deliver(r *Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Delivered++
}

func (h *history) end(r *Record, outcome string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Outcome = outcome
}

// Log returns the records of the device's messages in the order in which they
// were accepted, as far back as Options.History reaches; all devices' for "".
func (s *Store) Log(device string) []Record {
	h := &s.log
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Record
	for i := range h.records {
		if r := h.records[(h.oldest+i)%len(h.records)]; device == "" || r.Device == device {
			out = append(out, *r)
		}
	}
	return out
}

// Tally counts per message ID how often the device's messages were accepted, delivered and completed.
func (s *Store) Tally(device string) map[string]Tally {
	out := map[string]Tally{}
	for _, r := range s.Log(device) {
		t := out[r.MessageID]
		t.Accepted++
		t.Delivered += r.Delivered
		if r.Outcome == "Success" {
			t.Completed++
		}
		out[r.MessageID] = t
	}
	return out
}
