package hubdevice

import (
	"sync"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"downlink/mapping"
)

// maxUnacked is how many messages one connection may have delivered without their
// PUBACK. The hub keeps at most 50 for a device; a peer that sends far more is
// none, and the connection is given up rather than the memory.
const maxUnacked = 1024

// Message is one C2D message as one connection delivered it.
type Message struct {
	c2d    *mapping.C2D
	packet mqtt.Message
	from   *inbox
	acked  bool // guarded by from.mu
}

// C2D is the decoded message. The caller owns it.
func (m *Message) C2D() *mapping.C2D { return m.c2d }

// Ack completes the message: the hub never sends it again. The PUBACK leaves in
// arrival order (MQTT 3.1.1 §4.6), that is, once all earlier messages of the
// connection are acked as well. It does not block. After the loss of the
// connection that delivered the message it does nothing: the hub sends the message
// again. Further calls do nothing. Safe for concurrent use.
func (m *Message) Ack() { m.from.ack(m) }

// inbox holds what one connection delivered, from arrival to PUBACK.
type inbox struct {
	arrived func() // called after a message arrived, without mu
	stop    chan struct{}
	wake    chan struct{} // tells pubacks that a prefix may be ready

	mu       sync.Mutex
	messages []*Message // in arrival order, not yet PUBACKed
	taken    int        // the first so many were handed to the caller
	sending  bool       // pubacks is writing a batch that left messages
	paused   bool       // hand out nothing more
	closed   bool
	idle     chan struct{} // closed and replaced whenever nothing taken is unacked
}

func newInbox(arrived func()) *inbox {
	return &inbox{arrived: arrived, stop: make(chan struct{}), wake: make(chan struct{}, 1), idle: make(chan struct{})}
}

// add takes a message off paho's router and never blocks it: a blocked handler
// stops paho from reading, PINGRESP included. False: the connection must go.
func (b *inbox) add(c2d *mapping.C2D, packet mqtt.Message) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return true
	}
	if len(b.messages) >= maxUnacked {
		b.mu.Unlock()
		return false
	}
	b.messages = append(b.messages, &Message{c2d: c2d, packet: packet, from: b})
	b.mu.Unlock()
	b.arrived()
	return true
}

// take returns the next message in arrival order, nil if there is none to hand out.
func (b *inbox) take() *Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.paused || b.taken == len(b.messages) {
		return nil
	}
	m := b.messages[b.taken]
	b.taken++
	if m.packet.Qos() == 0 {
		m.acked = true // nothing to PUBACK; it only must not hold up the others
		b.signal()
	}
	return m
}

func (b *inbox) ack(m *Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || m.acked {
		return
	}
	m.acked = true
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// pubacks writes PUBACKs in arrival order until the inbox is closed. A goroutine
// of its own, because paho's Ack waits for the writer.
func (b *inbox) pubacks(acked func(int)) {
	for {
		select {
		case <-b.wake:
		case <-b.stop:
			return
		}
		for batch := b.ready(); len(batch) > 0; batch = b.ready() {
			for _, m := range batch {
				m.packet.Ack() // paho drops it by itself once the connection is over
			}
			acked(len(batch))
		}
	}
}

// ready removes the acked prefix. An empty result means that all before was written.
func (b *inbox) ready() []*Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < b.taken && b.messages[n].acked {
		n++
	}
	batch := b.messages[:n:n]
	b.messages = b.messages[n:]
	b.taken -= n
	b.sending = n > 0
	if !b.sending && b.taken == 0 {
		close(b.idle)
		b.idle = make(chan struct{})
	}
	return batch
}

// pause stops handing out; the hub sends what was not taken on the next connection.
func (b *inbox) pause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paused = true
}

// settled returns nil when every message handed out has its PUBACK written, or
// else a channel to wait on before asking again.
func (b *inbox) settled() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.taken == 0 && !b.sending {
		return nil
	}
	return b.idle
}

// close forgets all messages; their Ack does nothing from now on.
func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	b.messages, b.taken = nil, 0
	close(b.stop)
	close(b.idle)
	b.idle = make(chan struct{})
}

// unacked counts the messages that wait for their PUBACK.
func (b *inbox) unacked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.messages)
}
