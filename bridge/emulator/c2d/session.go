package c2d

import "errors"

// Why a session ended.
var (
	ErrReplaced = errors.New("another connection of the same device took over") // 400027 ConnectionForcefullyClosedOnNewConnection
	ErrDeleted  = errors.New("the device was deleted")
	ErrDisabled = errors.New("the device was disabled")
	ErrDetached = errors.New("detached")
)

// SessionOptions are a device connection's wishes.
type SessionOptions struct {
	// Resend hands a message whose lock lapsed to this same session again;
	// otherwise it waits for the next one, and a late Complete still counts.
	Resend bool
	// Closed is called once when the hub ends the session, with one of the
	// errors above; not when Detach does. It must not block; nil: nothing is called.
	Closed func(cause error)
	// Wake is called when Take may have something, in place of a signal on Ready,
	// so that an idle session needs no goroutine. It is called with the device
	// locked: it must not block nor call the store or the session. nil: Ready is signalled.
	Wake func()
}

// Session is one device's connection, as the queue sees it. It is the only one
// of its device: attaching another ends it. Safe for concurrent use.
type Session struct {
	device *device
	resend bool
	closed func(error)
	ready  chan struct{} // nil with wake
	wake   func()

	// Guarded by device.mu.
	started bool
	after   uint64
	ended   error
}

// Delivery is one message handed to a session, which has it locked.
type Delivery struct {
	Message    *Message // shared: read only
	Sequence   uint64
	Deliveries int // 1 for the first time
}

// Attach connects a device, ending its earlier session, whose locked messages
// go back to the queue. It fails with a *Refusal if the device is unknown (and
// AnyDevice is off) and with ErrDisabled.
func (s *Store) Attach(id string, o SessionOptions) (*Session, error) {
	d, err := s.use(id)
	if err != nil {
		return nil, err
	}
	x := &Session{device: d, resend: o.Resend, closed: o.Closed, wake: o.Wake}
	if x.wake == nil {
		x.ready = make(chan struct{}, 1)
	}
	if x.closed == nil {
		x.closed = func(error) {}
	}
	now := s.now()
	d.mu.Lock()
	switch {
	case d.deleted:
		d.mu.Unlock()
		return nil, notFound(id)
	case d.info.Disabled:
		d.mu.Unlock()
		return nil, ErrDisabled
	}
	after := d.drop(ErrReplaced, now)
	d.session = x
	d.info.ConnectionUpdated, d.info.LastActivity = now, now
	d.mu.Unlock()
	after()
	return x, nil
}

// Ready is signalled when Take may have something: it is a hint, and one signal
// may stand for many messages. With SessionOptions.Wake it is nil.
func (x *Session) Ready() <-chan struct{} { return x.ready }

// Start lets messages with a sequence number above after be taken; 0 means all.
func (x *Session) Start(after uint64) {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	x.started, x.after = true, after
	if x.ended == nil {
		x.device.wake()
	}
}

// Stop lets no more messages be taken. What is locked stays locked.
func (x *Session) Stop() {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	x.started = false
}

// Last is the sequence number of the device's newest message.
func (x *Session) Last() uint64 {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	return x.device.sequence
}

// Generation is the device's generation ID: a device deleted and created again has another.
func (x *Session) Generation() string {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	return x.device.info.GenerationID
}

// Take locks the oldest enqueued message for this session and returns it. It
// reports false when there is none, or the session has not started or has ended.
func (x *Session) Take() (Delivery, bool) {
	d := x.device
	now := d.store.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if x.ended != nil || !x.started {
		return Delivery{}, false
	}
	d.sweep(now)
	for _, e := range d.queue {
		if e.State != Enqueued || e.holder != nil || e.Sequence <= x.after {
			continue
		}
		e.State, e.holder = Invisible, x
		e.lockedUntil = now.Add(d.store.rules.Lock)
		e.Deliveries++
		if d.store.rules.Counting == CountDeliveries {
			e.count++
		}
		d.counts.Delivered++
		if e.Deliveries > 1 {
			d.counts.Redelivered++
		}
		d.store.log.deliver(e.record)
		if d.store.journal != nil {
			d.store.journal.Delivered(d.id, e.Sequence, now)
		}
		d.store.schedule(d, e.lockedUntil)
		return Delivery{Message: e.Message, Sequence: e.Sequence, Deliveries: e.Deliveries}, true
	}
	return Delivery{}, false
}

// Holds reports whether the session may still complete the message.
func (x *Session) Holds(sequence uint64) bool {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	for _, e := range x.device.queue {
		if e.Sequence == sequence {
			return e.holder == x
		}
	}
	return false
}

// Complete ends a message well. It reports false if the session no longer holds
// it: it expired, was purged, or went to another session.
func (x *Session) Complete(sequence uint64) bool { return x.end(sequence, Success) }

// Reject dead letters a message that the device refuses or cannot be given. It
// reports false as Complete does.
func (x *Session) Reject(sequence uint64) bool { return x.end(sequence, Rejected) }

func (x *Session) end(sequence uint64, status string) bool {
	d := x.device
	now := d.store.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info.LastActivity = now
	d.sweep(now)
	e := d.remove(sequence, x.holds)
	if e == nil {
		return false
	}
	d.end(e, status, now)
	return true
}

// Abandon gives a message back, which counts against its delivery count. It
// reports false as Complete does.
func (x *Session) Abandon(sequence uint64) bool {
	d := x.device
	now := d.store.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info.LastActivity = now
	d.sweep(now)
	for _, e := range d.queue {
		if e.Sequence != sequence || !x.holds(e) {
			continue
		}
		if d.store.rules.Counting == CountAbandons {
			e.count++
		}
		e.holder = nil
		if !d.giveBack(e, now) {
			d.remove(sequence, func(*entry) bool { return true })
		}
		d.wake()
		return true
	}
	return false
}

func (x *Session) holds(e *entry) bool { return e.holder == x }

// Telemetry counts one device-to-cloud message.
func (x *Session) Telemetry() {
	now := x.device.store.now()
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	x.device.counts.Telemetry++
	x.device.info.LastActivity = now
}

// Detach ends the session; what it holds goes back to the queue in its old
// order. Calling it again, or after the hub ended the session, does nothing.
func (x *Session) Detach() {
	d := x.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == x {
		d.drop(ErrDetached, d.store.now())
	}
}

// Live reports whether the session is still the device's.
func (x *Session) Live() bool {
	x.device.mu.Lock()
	defer x.device.mu.Unlock()
	return x.ended == nil
}
