package c2d

import (
	"container/heap"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Options make a Store.
type Options struct {
	Rules     Rules
	AnyDevice bool             // an unknown device is created when it is first used
	History   int              // how many messages Log remembers; 0: 65536
	Now       func() time.Time // nil: time.Now
	// Outcome is told of the end of each message whose sender asked for it. It
	// is called with a device's lock held: it must neither block nor call the Store. nil: nobody.
	Outcome func(Outcome)
	// Journal keeps what is accepted beyond this process; nil: nothing is kept.
	Journal Journal
	// Changed is called after a device was created or updated, without any lock
	// held, by the goroutine that did it; nil: nothing is called.
	Changed func(id string)
}

// Store is the registry of devices and their queues. Safe for concurrent use.
// It starts no goroutine: whoever owns it calls Sweep now and then, so that
// messages expire and locks lapse on devices that nobody touches.
type Store struct {
	rules     Rules
	anyDevice bool
	now       func() time.Time
	changed   func(id string)
	log       history
	outcome   func(Outcome)
	journal   Journal

	mu          sync.RWMutex
	devices     map[string]*device
	generation  int64
	unknownSend uint64 // sends refused because no device was named or known

	dueMu sync.Mutex
	due   dueHeap
}

// New makes an empty store.
func New(o Options) *Store {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Changed == nil {
		o.Changed = func(string) {}
	}
	if o.History <= 0 {
		o.History = 65536
	}
	return &Store{
		rules: o.Rules.withDefaults(), anyDevice: o.AnyDevice, now: o.Now, outcome: o.Outcome, journal: o.Journal, changed: o.Changed,
		log: history{limit: o.History}, devices: map[string]*device{},
	}
}

// Enqueue queues a message for the device that its To names; nil means
// accepted. Any failure is a *Refusal. The store keeps m's slices: the caller
// must not write to them afterwards.
func (s *Store) Enqueue(m Message) error {
	id, err := ParseTo(m.To)
	if err != nil {
		s.countUnknown()
		return err
	}
	now := s.now()
	bad := s.rules.check(&m, now)
	if bad != nil {
		// A bad message creates no device.
		if d := s.find(id); d != nil {
			d.refuse()
		} else {
			s.countUnknown()
		}
		return bad
	}
	d, err := s.use(id)
	if err != nil {
		s.countUnknown()
		return err
	}
	return d.enqueue(m, now)
}

func (s *Store) countUnknown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unknownSend++
}

// UnknownSends is how many messages were refused because they named no device, or an unknown one.
func (s *Store) UnknownSends() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.unknownSend
}

func (s *Store) find(id string) *device {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.devices[id]
}

// use finds a device, creating it if any device is welcome.
func (s *Store) use(id string) (*device, error) {
	if d := s.find(id); d != nil {
		return d, nil
	}
	if !s.anyDevice {
		return nil, notFound(id)
	}
	if _, err := s.Create(Device{ID: id}); err != nil {
		if r := (*Refusal)(nil); !errors.As(err, &r) || r.Code != 409001 {
			return nil, err
		}
	}
	if d := s.find(id); d != nil {
		return d, nil
	}
	return nil, notFound(id) // deleted in between
}

// Create registers a device with spec's ID, status and keys. A *Refusal says
// that the ID is not legal or already there.
func (s *Store) Create(spec Device) (Device, error) {
	if !ValidID(spec.ID) {
		return Device{}, badArgument("the device ID has illegal characters or is of illegal length")
	}
	out, err := s.create(spec)
	if err == nil {
		s.changed(spec.ID)
	}
	return out, err
}

func (s *Store) create(spec Device) (Device, error) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices[spec.ID] != nil {
		return Device{}, &Refusal{Condition: "com.microsoft:device-already-exists", Code: 409001, Text: "device " + spec.ID + " exists already"}
	}
	// A generation ID tells a device from an earlier one of the same name.
	s.generation = max(s.generation+1, now.UnixNano())
	d := &device{
		store: s, id: spec.ID, generation: strconv.FormatInt(s.generation, 10), version: uint64(s.generation), index: -1,
	}
	d.info = Device{
		ID: spec.ID, GenerationID: d.generation, ETag: etag(d.version),
		Disabled: spec.Disabled, StatusReason: spec.StatusReason, Edge: spec.Edge, Primary: spec.Primary, Secondary: spec.Secondary,
	}
	s.devices[spec.ID] = d
	return d.info, nil
}

func etag(version uint64) string {
	return base64.StdEncoding.EncodeToString([]byte(strconv.FormatUint(version, 10)))
}

// Get returns a device; with AnyDevice it does not create one.
func (s *Store) Get(id string) (Device, error) {
	d := s.find(id)
	if d == nil {
		return Device{}, notFound(id)
	}
	now := s.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now)
	return d.snapshot(), nil
}

// Update sets status and keys of a device whose ETag is etag, or "*" for any.
// Disabling ends its session; its queue stays and goes on accepting.
func (s *Store) Update(spec Device, tag string) (Device, error) {
	d := s.find(spec.ID)
	if d == nil {
		return Device{}, notFound(spec.ID)
	}
	now := s.now()
	d.mu.Lock()
	if tag != "*" && tag != d.info.ETag {
		d.mu.Unlock()
		return Device{}, preconditionFailed()
	}
	after := func() {}
	if d.info.Disabled != spec.Disabled {
		d.info.Disabled, d.info.StatusUpdated = spec.Disabled, now
		if spec.Disabled {
			after = d.drop(ErrDisabled, now)
		}
	}
	d.info.StatusReason, d.info.Edge = spec.StatusReason, spec.Edge
	d.info.Primary, d.info.Secondary = spec.Primary, spec.Secondary
	d.version++
	d.info.ETag = etag(d.version)
	out := d.snapshot()
	d.mu.Unlock()
	after()
	s.changed(spec.ID)
	return out, nil
}

// Delete removes a device whose ETag is etag, or "*" for any, with its queue,
// and ends its session.
func (s *Store) Delete(id, tag string) error {
	s.mu.Lock()
	d := s.devices[id]
	if d == nil {
		s.mu.Unlock()
		return notFound(id)
	}
	d.mu.Lock()
	if tag != "*" && tag != d.info.ETag {
		d.mu.Unlock()
		s.mu.Unlock()
		return preconditionFailed()
	}
	delete(s.devices, id)
	d.deleted = true
	now := s.now()
	after := d.drop(ErrDeleted, now)
	for _, e := range d.queue {
		d.end(e, Deleted, now)
	}
	d.queue = nil
	d.mu.Unlock()
	s.mu.Unlock()
	s.unschedule(d)
	after()
	return nil
}

func preconditionFailed() *Refusal {
	return &Refusal{Condition: "com.microsoft:precondition-failed", Code: 412001, Text: "the ETag does not match"}
}

// Alive reports whether the device exists in that generation: one that was
// deleted and created again has another.
func (s *Store) Alive(id, generation string) bool {
	d := s.find(id)
	return d != nil && d.generation == generation
}

// Purge empties a device's queue, locked messages included, and returns how many there were.
func (s *Store) Purge(id string) (int, error) {
	d := s.find(id)
	if d == nil {
		return 0, notFound(id)
	}
	now := s.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now)
	n := len(d.queue)
	for _, e := range d.queue {
		d.end(e, Purged, now)
	}
	d.queue = nil
	return n, nil
}

// IDs returns the IDs of all devices, sorted.
func (s *Store) IDs() []string {
	s.mu.RLock()
	ids := make([]string, 0, len(s.devices))
	for id := range s.devices {
		ids = append(ids, id)
	}
	s.mu.RUnlock()
	slices.Sort(ids)
	return ids
}

// Statistics counts the registered, the disabled and the connected devices.
func (s *Store) Statistics() (total, disabled, connected int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, d := range s.devices {
		d.mu.Lock()
		if d.info.Disabled {
			disabled++
		}
		if d.session != nil {
			connected++
		}
		d.mu.Unlock()
	}
	return len(s.devices), disabled, connected
}

// Queue returns a device's pending messages, oldest first.
func (s *Store) Queue(id string) []Pending {
	d := s.find(id)
	if d == nil {
		return nil
	}
	now := s.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now)
	out := make([]Pending, len(d.queue))
	for i, e := range d.queue {
		out[i] = e.Pending
	}
	return out
}

// Counts returns a device's counters; zero for an unknown device.
func (s *Store) Counts(id string) Counts {
	d := s.find(id)
	if d == nil {
		return Counts{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts
}

// Sweep expires messages and lapses locks whose time has come, on all devices.
// It costs time only for devices that have something due.
func (s *Store) Sweep() {
	now := s.now()
	for {
		s.dueMu.Lock()
		if len(s.due) == 0 || s.due[0].due.After(now) {
			s.dueMu.Unlock()
			return
		}
		d := heap.Pop(&s.due).(*device)
		s.dueMu.Unlock()

		d.mu.Lock()
		d.sweep(now)
		if t := d.next(); !t.IsZero() {
			s.schedule(d, t)
		}
		d.mu.Unlock()
	}
}

// schedule sees to it that Sweep visits the device at t or before. Called with
// the device's mutex held.
func (s *Store) schedule(d *device, t time.Time) {
	s.dueMu.Lock()
	defer s.dueMu.Unlock()
	switch {
	case d.index < 0:
		d.due = t
		heap.Push(&s.due, d)
	case t.Before(d.due):
		d.due = t
		heap.Fix(&s.due, d.index)
	}
}

func (s *Store) unschedule(d *device) {
	s.dueMu.Lock()
	defer s.dueMu.Unlock()
	if d.index >= 0 {
		heap.Remove(&s.due, d.index)
	}
}

// dueHeap orders devices by their next expiry or lapse.
type dueHeap []*device

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	d := x.(*device)
	d.index = len(*h)
	*h = append(*h, d)
}

func (h *dueHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	d.index, d.due = -1, time.Time{}
	return d
}
