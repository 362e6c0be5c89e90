package feedback

import (
	"container/list"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"
	"time"
)

// Rules are what a hub's owner may set, and the batching, which tests may
// speed up. The zero value is the hub's defaults.
type Rules struct {
	Lock          time.Duration // how long a received batch is one reader's; 0: 60 s
	TTL           time.Duration // how long a batch waits to be received; 0: 1 h
	MaxDeliveries int           // a batch given back after so many is dropped; 0: 10
	// A batch is closed by BatchSize records, or once Every has passed since the last one. 0: 64 and 15 s.
	BatchSize int
	Every     time.Duration
	// MaxBatches bounds what waits when nobody reads: beyond it the oldest batch is dropped. 0: 16384, about a
	// million records.
	MaxBatches int
}

func (r Rules) withDefaults() Rules {
	def := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&r.Lock, time.Minute)
	def(&r.TTL, time.Hour)
	def(&r.Every, 15*time.Second)
	if r.MaxDeliveries <= 0 {
		r.MaxDeliveries = 10
	}
	if r.BatchSize <= 0 {
		r.BatchSize = 64
	}
	if r.MaxBatches <= 0 {
		r.MaxBatches = 16384
	}
	return r
}

// Options make a Queue.
type Options struct {
	Rules   Rules
	HubName string // the user-id of every batch
	// Alive reports whether a device still exists in that generation: the
	// feedback of a deleted device is dropped. Called without the queue's lock; nil: always.
	Alive func(device, generation string) bool
	// Done is told of records that nobody needs to be told of any more: their batch was completed, or is
	// lost. Called with the queue's lock: it must not call the queue. nil: nobody.
	Done func([]Record)
	Now  func() time.Time // nil: time.Now
}

// Batch is one received batch, locked for whoever received it until it is
// completed, abandoned or rejected, or the lock lapses.
type Batch struct {
	LockToken  string   // a GUID
	Tag        [16]byte // the same, in the byte order of .NET's Guid
	Body       []byte   // a JSON array of records
	Records    int
	Enqueued   time.Time
	Sequence   uint64
	Deliveries int    // 1 for the first time
	HubName    string // the message's user-id
}

// Status is a snapshot of a queue: what is there now, and what happened so far.
type Status struct {
	Records  int // in no batch yet
	Batches  int // that wait to be received
	Locked   int // received and not settled
	Received uint64
	// What became of batches; Lost is for those that nobody read in time: by TTL, delivery count or MaxBatches.
	Completed, Rejected, Lost uint64
}

// Queue is the feedback queue. Safe for concurrent use. It starts no
// goroutine: whoever owns it calls Sweep now and then.
type Queue struct {
	rules Rules
	o     Options

	mu       sync.Mutex
	open     []Record  // the batch being gathered
	closed   time.Time // when the last batch was
	sequence uint64
	ready    list.List // of *batch, by sequence number
	locked   map[string]*batch
	watchers map[chan struct{}]struct{}
	status   Status
}

type batch struct {
	sequence    uint64
	records     []Record
	enqueued    time.Time
	deliveries  int
	lockedUntil time.Time
}

// New makes an empty queue.
func New(o Options) *Queue {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Alive == nil {
		o.Alive = func(string, string) bool { return true }
	}
	if o.Done == nil {
		o.Done = func([]Record) {}
	}
	return &Queue{
		rules: o.Rules.withDefaults(), o: o, closed: o.Now(),
		locked: map[string]*batch{}, watchers: map[chan struct{}]struct{}{},
	}
}

// Every is how often a batch is closed at least, when there is something to tell.
func (q *Queue) Every() time.Duration { return q.rules.Every }

// Add takes a record over. It does not block.
func (q *Queue) Add(r Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = append(q.open, r)
	if now := q.o.Now(); len(q.open) >= q.rules.BatchSize || q.due(now) {
		q.seal(now)
	}
}

func (q *Queue) due(now time.Time) bool {
	return len(q.open) > 0 && now.Sub(q.closed) >= q.rules.Every
}

// seal closes the batch being gathered.
func (q *Queue) seal(now time.Time) {
	q.sequence++
	q.ready.PushBack(&batch{sequence: q.sequence, records: q.open, enqueued: now})
	q.open, q.closed = nil, now
	if q.ready.Len() > q.rules.MaxBatches {
		q.lose(q.ready.Remove(q.ready.Front()).(*batch))
	}
	q.wake()
}

// Sweep closes the batch whose time has come, drops what has expired and
// gives back what was not settled in time.
func (q *Queue) Sweep() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.o.Now()
	if q.due(now) {
		q.seal(now)
	}
	q.expire(now)
	for token, b := range q.locked {
		if !b.lockedUntil.After(now) {
			delete(q.locked, token)
			q.giveBack(b, now)
		}
	}
}

// lose drops a batch that nobody read in time.
func (q *Queue) lose(b *batch) {
	q.status.Lost++
	q.o.Done(b.records)
}

func (q *Queue) expire(now time.Time) {
	for e := q.ready.Front(); e != nil && now.Sub(e.Value.(*batch).enqueued) >= q.rules.TTL; e = q.ready.Front() {
		q.lose(q.ready.Remove(e).(*batch))
	}
}

// giveBack makes a batch ready again, in its old place, unless its deliveries or its time are used up.
func (q *Queue) giveBack(b *batch, now time.Time) {
	if b.deliveries >= q.rules.MaxDeliveries || now.Sub(b.enqueued) >= q.rules.TTL {
		q.lose(b)
		return
	}
	e := q.ready.Front()
	for e != nil && e.Value.(*batch).sequence < b.sequence {
		e = e.Next()
	}
	if e == nil {
		q.ready.PushBack(b)
	} else {
		q.ready.InsertBefore(b, e)
	}
	q.wake()
}

// Receive locks the oldest batch for the caller; false: there is none.
func (q *Queue) Receive() (Batch, bool) {
	for {
		b, out, ok := q.lock()
		if !ok {
			return Batch{}, false
		}
		records := slices.DeleteFunc(slices.Clone(b.records), func(r Record) bool { return !q.o.Alive(r.Device, r.Generation) })
		if len(records) == 0 {
			q.discard(out.LockToken)
			continue
		}
		out.Body, out.Records = encode(records), len(records)
		return out, true
	}
}

func (q *Queue) lock() (*batch, Batch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.o.Now()
	if q.due(now) {
		q.seal(now)
	}
	q.expire(now)
	e := q.ready.Front()
	if e == nil {
		return nil, Batch{}, false
	}
	b := q.ready.Remove(e).(*batch)
	b.deliveries++
	b.lockedUntil = now.Add(q.rules.Lock)
	token, tag := newLockToken()
	q.locked[token] = b
	q.status.Received++
	return b, Batch{
		LockToken: token, Tag: tag, Enqueued: b.enqueued, Sequence: b.sequence, Deliveries: b.deliveries, HubName: q.o.HubName,
	}, true
}

// discard forgets a batch that was locked and has nothing left to tell.
func (q *Queue) discard(token string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b := q.locked[token]; b != nil {
		q.o.Done(b.records)
	}
	delete(q.locked, token)
	q.status.Received--
}

// Complete ends a batch well. False: nothing is locked with this token (any
// longer), as for Abandon and Reject.
func (q *Queue) Complete(token string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.unlock(token)
	if b != nil {
		q.status.Completed++
		q.o.Done(b.records)
	}
	return b != nil
}

// Reject drops a batch that its reader cannot use.
func (q *Queue) Reject(token string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.unlock(token)
	if b != nil {
		q.status.Rejected++
		q.o.Done(b.records)
	}
	return b != nil
}

// Abandon gives a batch back to be received again at once.
func (q *Queue) Abandon(token string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.unlock(token)
	if b != nil {
		q.giveBack(b, q.o.Now())
	}
	return b != nil
}

// unlock takes a batch from its reader; nil if it is nobody's, or the lock has lapsed.
func (q *Queue) unlock(token string) *batch {
	b := q.locked[token]
	if b == nil {
		return nil
	}
	delete(q.locked, token)
	if now := q.o.Now(); !b.lockedUntil.After(now) {
		q.giveBack(b, now)
		return nil
	}
	return b
}

// Watch returns a channel that is signalled when Receive may have something:
// it is a hint, and one signal may stand for several batches. stop ends it.
func (q *Queue) Watch() (ready <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.watchers[c] = struct{}{}
	if q.ready.Len() > 0 {
		c <- struct{}{}
	}
	return c, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.watchers, c)
	}
}

func (q *Queue) wake() {
	for c := range q.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Status returns what is in the queue and what happened so far.
func (q *Queue) Status() Status {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.status
	s.Records, s.Batches, s.Locked = len(q.open), q.ready.Len(), len(q.locked)
	return s
}

// newLockToken makes a GUID and its bytes as .NET writes them: the C# SDK
// reads the lock token from the delivery's tag.
func newLockToken() (token string, tag [16]byte) {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	tag = u
	slices.Reverse(tag[0:4])
	slices.Reverse(tag[4:6])
	slices.Reverse(tag[6:8])
	b := make([]byte, 0, 36)
	for i, n := range []int{4, 2, 2, 2, 6} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, u[:n])
		copy(u[:], u[n:])
	}
	return string(b), tag
}
