package telemetry

import (
	"context"
	"slices"
	"sync"
)

// Limits bound a Log. What comes beyond them pushes out the oldest.
type Limits struct {
	Messages int // 0: 10,000
	Bytes    int // of Message.Size, plus a fixed charge a message; 0: 64 MiB
}

// overhead is what a message costs besides its size.
const overhead = 256

// Log keeps the newest messages of all devices in memory. The zero value is
// ready, with the default limits. Safe for concurrent use.
type Log struct {
	mu       sync.Mutex
	limits   Limits
	messages []Message // by sequence number
	bytes    int
	last     uint64
	changed  chan struct{} // closed by the next Add; nil while nobody waits
}

// NewLog makes a log with these limits.
func NewLog(l Limits) *Log { return &Log{limits: l} }

func (l *Log) bounds() (messages, bytes int) {
	messages, bytes = l.limits.Messages, l.limits.Bytes
	if messages <= 0 {
		messages = 10_000
	}
	if bytes <= 0 {
		bytes = 64 << 20
	}
	return messages, bytes
}

// Add appends a message, giving it its sequence number, which it returns. The
// log keeps m's slices.
func (l *Log) Add(m Message) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	m.Sequence = l.last
	maxMessages, maxBytes := l.bounds()
	l.bytes += m.Size() + overhead
	l.messages = append(l.messages, m)
	drop := max(0, len(l.messages)-maxMessages)
	for i := range drop {
		l.bytes -= l.messages[i].Size() + overhead
	}
	for ; l.bytes > maxBytes && drop < len(l.messages); drop++ {
		l.bytes -= l.messages[drop].Size() + overhead
	}
	if drop > 0 {
		// The slots before are freed with the next growth; until then they hold nothing.
		clear(l.messages[:drop])
		l.messages = l.messages[drop:]
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return m.Sequence
}

// Query selects messages.
type Query struct {
	Device string // "": all
	After  uint64 // only those with a sequence number above
	Max    int    // at most so many, the oldest of them; 0: all
}

// Read returns the messages that match, oldest first. Their slices are shared: read only.
func (l *Log) Read(q Query) []Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read(q)
}

func (l *Log) read(q Query) []Message {
	from, _ := slices.BinarySearchFunc(l.messages, q.After+1, func(m Message, after uint64) int {
		if m.Sequence < after {
			return -1
		}
		return 1
	})
	if q.After == ^uint64(0) {
		from = len(l.messages)
	}
	out := []Message{}
	for _, m := range l.messages[from:] {
		if q.Max > 0 && len(out) == q.Max {
			break
		}
		if q.Device == "" || m.Device == q.Device {
			out = append(out, m)
		}
	}
	return out
}

// Wait returns what Read does, once that is not empty, or ctx's error.
func (l *Log) Wait(ctx context.Context, q Query) ([]Message, error) {
	for {
		l.mu.Lock()
		out := l.read(q)
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Last is the sequence number of the newest message, 0 before the first.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
