package c2d

import (
	"slices"
	"sync"
	"time"
)

// Device is a snapshot of one entry of the identity registry.
type Device struct {
	ID           string
	GenerationID string
	ETag         string // without quotes
	Disabled     bool
	StatusReason string
	Edge         bool // capabilities.iotEdge as it was set; it changes nothing here
	// Primary and Secondary are the keys that were set for this device; nil
	// means the keys that the hub derives.
	Primary, Secondary []byte
	Connected          bool
	StatusUpdated      time.Time // zero: never changed
	ConnectionUpdated  time.Time
	LastActivity       time.Time
	Pending            int // messages enqueued and invisible
}

// Counts are what happened to one device's messages since the device was created.
type Counts struct {
	Sends       uint64 // messages sent to it, refused ones included
	Accepted    uint64
	Duplicates  uint64 // accepted and not queued (Rules.Deduplicate)
	Refused     uint64
	Delivered   uint64 // handed to a session, repeats included
	Redelivered uint64 // the repeats alone
	Completed   uint64
	Expired     uint64 // dead lettered by TTL
	Exceeded    uint64 // dead lettered by delivery count
	Rejected    uint64 // dead lettered by the device or because it cannot be delivered
	Purged      uint64
	Telemetry   uint64 // device-to-cloud messages received
}

// State is where a message is in its life (IoT Hub developer guide, "The
// cloud-to-device message life cycle").
type State int

// The states; the last two are terminal.
const (
	Enqueued State = iota
	Invisible
	Completed
	DeadLettered
)

func (s State) String() string {
	return [...]string{"Enqueued", "Invisible", "Completed", "Dead lettered"}[s]
}

// Pending is a snapshot of one message in a device's queue. Message is shared: read only.
type Pending struct {
	Message    *Message
	Sequence   uint64
	State      State
	Enqueued   time.Time
	Expires    time.Time
	Deliveries int // times handed to a session
}

// entry is one pending message; guarded by its device's mutex.
type entry struct {
	Pending
	count       int      // the delivery count, by the rule in force
	holder      *Session // who may complete it; kept after a lapsed lock unless the session wants it again
	lockedUntil time.Time
	record      *Record
}

// device is one registered device and its queue. An idle one costs this struct
// and no goroutine.
type device struct {
	store          *Store
	id, generation string

	mu       sync.Mutex
	deleted  bool
	info     Device // ID, generation, etag, status, keys, times
	version  uint64 // behind the etag
	sequence uint64
	queue    []*entry // by sequence number
	counts   Counts
	session  *Session // at most one connection a device

	due   time.Time // of the earliest expiry or lapse, zero: none; guarded by store.dueMu
	index int       // in store.due, -1: not in it; guarded by store.dueMu
}

// enqueue appends a checked message.
func (d *device) enqueue(m Message, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleted {
		return notFound(d.id)
	}
	d.counts.Sends++
	if d.info.Disabled && d.store.rules.RefuseDisabled {
		d.counts.Refused++
		return &Refusal{Condition: "amqp:not-allowed", Code: 400003, Text: "device " + d.id + " is disabled"}
	}
	d.sweep(now)
	if d.store.rules.Deduplicate && d.pending(m.MessageID) {
		d.counts.Accepted++
		d.counts.Duplicates++
		return nil
	}
	if len(d.queue) >= QueueDepth {
		d.counts.Refused++
		return &Refusal{Condition: "amqp:resource-limit-exceeded", Code: 403004, Text: "the queue of device " + d.id + " is full: 50 messages are pending"}
	}
	e := &entry{Pending: Pending{Message: &m, Sequence: d.sequence + 1, Enqueued: now, Expires: m.ExpiresAt}}
	if e.Expires.IsZero() {
		e.Expires = now.Add(d.store.rules.DefaultTTL)
	}
	if d.store.journal != nil {
		if err := d.store.journal.Accepted(d.id, e.Pending); err != nil {
			d.counts.Refused++
			return &Refusal{Condition: "amqp:internal-error", Code: 500001, Text: err.Error()}
		}
	}
	d.counts.Accepted++
	d.sequence++
	e.record = d.store.log.accept(d.id, m.MessageID, d.sequence, now)
	d.queue = append(d.queue, e)
	d.store.schedule(d, e.Expires)
	d.wake()
	return nil
}

// pending reports whether a message of this ID is in the queue.
func (d *device) pending(id string) bool {
	return id != "" && slices.ContainsFunc(d.queue, func(e *entry) bool { return e.Message.MessageID == id })
}

func (d *device) refuse() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts.Sends++
	d.counts.Refused++
}

// sweep dead letters what has expired and returns what has lapsed to the queue.
func (d *device) sweep(now time.Time) {
	kept := d.queue[:0]
	woken := false
	for _, e := range d.queue {
		if !e.Expires.After(now) {
			d.end(e, Expired, e.Expires)
			continue
		}
		if e.State == Invisible && !e.lockedUntil.After(now) {
			if !d.giveBack(e, now) {
				continue
			}
			woken = true
			if e.holder.resend {
				e.holder = nil
			}
		}
		kept = append(kept, e)
	}
	clear(d.queue[len(kept):])
	if d.queue = kept; len(kept) == 0 {
		d.queue = nil // an idle device keeps no backing array
	}
	if woken {
		d.wake()
	}
}

// giveBack makes an invisible entry enqueued again, or reports false when its
// delivery count is used up: then it is dead lettered, and the caller drops it from the queue.
func (d *device) giveBack(e *entry, now time.Time) bool {
	if e.count >= d.store.rules.MaxDeliveries {
		d.end(e, DeliveryCountExceeded, now)
		return false
	}
	e.State = Enqueued
	return true
}

// next is the earliest moment at which sweep has work, zero for never.
func (d *device) next() (t time.Time) {
	for _, e := range d.queue {
		if t.IsZero() || e.Expires.Before(t) {
			t = e.Expires
		}
		if e.State == Invisible && e.lockedUntil.Before(t) {
			t = e.lockedUntil
		}
	}
	return t
}

func (d *device) wake() {
	if s := d.session; s != nil {
		if s.wake != nil {
			s.wake()
			return
		}
		select {
		case s.ready <- struct{}{}:
		default:
		}
	}
}

// remove takes the entry with this sequence number out of the queue if ok
// agrees, and returns it.
func (d *device) remove(sequence uint64, ok func(*entry) bool) *entry {
	i := slices.IndexFunc(d.queue, func(e *entry) bool { return e.Sequence == sequence })
	if i < 0 || !ok(d.queue[i]) {
		return nil
	}
	e := d.queue[i]
	if d.queue = slices.Delete(d.queue, i, i+1); len(d.queue) == 0 {
		d.queue = nil
	}
	return e
}

// drop ends the session, if any: its locks lapse at once. It returns what the
// caller must call after unlocking.
func (d *device) drop(cause error, now time.Time) (after func()) {
	s := d.session
	if s == nil {
		return func() {}
	}
	d.session = nil
	d.info.ConnectionUpdated = now
	s.ended = cause
	kept := d.queue[:0]
	for _, e := range d.queue {
		if e.holder == s {
			e.holder = nil
			if e.State == Invisible && !d.giveBack(e, now) {
				continue
			}
		}
		kept = append(kept, e)
	}
	clear(d.queue[len(kept):])
	d.queue = kept
	return func() { s.closed(cause) }
}

func (d *device) snapshot() Device {
	out := d.info
	out.Connected = d.session != nil
	out.Pending = len(d.queue)
	return out
}
