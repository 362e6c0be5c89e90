package amqpd

import (
	"sync"
	"time"

	"downlink/bridge/internal/amqpwire"
)

const (
	outboxWake = 32 << 10 // enough for the writer not to wait for the end of a batch
	outboxFull = 1 << 20  // the reader stops until the peer has read
)

// outbox gathers what is to be written. Frames are encoded into one buffer while the writer
// writes the other, so that one write carries all that came up during the last.
type outbox struct {
	mu     sync.Mutex
	room   sync.Cond
	buf    []byte
	spare  []byte
	last   bool // nothing may be added
	dead   bool // nobody will write it
	wake   chan struct{}
	timers timers
}

// timers are the writer's orders from the reader.
type timers struct {
	heartbeat time.Duration // 0: none
	expiry    time.Time     // of the token; zero: never
}

func newOutbox() *outbox {
	o := &outbox{wake: make(chan struct{}, 1)}
	o.room.L = &o.mu
	return o
}

// frame adds a frame; the writer sends it once it is woken or the outbox is well filled. False
// means that it was left out: it is larger than limit.
func (o *outbox) frame(channel uint16, p amqpwire.Performative, payload []byte, limit uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last {
		return true
	}
	n := len(o.buf)
	o.buf = amqpwire.AppendFrame(o.buf, channel, p, payload)
	if uint64(len(o.buf)-n) > uint64(limit) {
		o.buf = o.buf[:n]
		return false
	}
	if len(o.buf) >= outboxWake {
		o.signal()
	}
	return true
}

// raw adds bytes that are no AMQP frame.
func (o *outbox) raw(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.last {
		o.buf = append(o.buf, b...)
	}
}

// finish adds p, unless nil, as the last frame and wakes the writer, which ends after it. Only the first
// call says true.
func (o *outbox) finish(p amqpwire.Performative) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last {
		return false
	}
	if p != nil {
		o.buf = amqpwire.AppendFrame(o.buf, 0, p, nil)
	}
	o.last = true
	o.signal()
	return true
}

// kill drops what has not been written.
func (o *outbox) kill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.dead, o.buf = true, true, nil
	o.signal()
	o.room.Broadcast()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// flush wakes the writer if there is something to write.
func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.buf) > 0 {
		o.signal()
	}
}

// wait returns once there is room again; false means that the connection is cut.
func (o *outbox) wait() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) > outboxFull && !o.dead {
		o.signal()
		o.room.Wait()
	}
	return !o.dead
}

func (o *outbox) expiry() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.timers.expiry
}

// take hands the writer what to write, valid until its next call.
func (o *outbox) take() (b []byte, t timers, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b = o.buf
	o.buf = o.spare[:0]
	if cap(b) > outboxFull {
		o.spare = nil // a burst is over
	} else {
		o.spare = b
	}
	o.room.Broadcast()
	return b, o.timers, o.last
}

func (o *outbox) setTimers(change func(*timers)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change(&o.timers)
	o.signal()
}
