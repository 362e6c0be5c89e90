package bridge

import (
	"context"
	"sync"
	"time"
)

// settleTimeout bounds one answer. It outlives the cancellation of a drain: a message
// whose fate is durable is settled although we stop.
const settleTimeout = 5 * time.Second

// held is one delivery and what is known of its targets. It is settled at its
// source once, when every target has its fate.
type held struct {
	delivery Delivery
	bridge   *Bridge
	release  func() // frees its place at the source's intake
	waits    bool   // its publisher waits for the outcome at the device: whatever it is, its receipt brings the answer

	mu       sync.Mutex // guards all below
	open     int        // targets without a fate
	returned bool       // a target was let go: never settle
	alive    bool       // a target is not dead
	reason   string     // why the last one that is dead died
	receipts []Receipt  // for the answer; kept only if the delivery gives one
}

// again reports whether the source has delivered the message before.
func (m *held) again() bool {
	r, ok := m.delivery.(Redelivered)
	return ok && r.Redelivered()
}

// replies reports whether the delivery itself answers its publisher.
func (m *held) replies() bool {
	_, ok := m.delivery.(Replier)
	return ok && !m.waits
}

// durable reports whether the message comes again when we let go of it.
func (m *held) durable() bool { return m.delivery.Message().Stream != "" }

// resolve records one target's fate and settles the message with the last one.
func (m *held) resolve(r Receipt) {
	m.bridge.metrics.fate(r)
	m.mu.Lock()
	if r.Status == StatusDead {
		m.reason = r.Reason
	} else {
		m.alive = true
	}
	if m.replies() {
		m.receipts = append(m.receipts, r)
	}
	m.open--
	last, returned := m.open == 0, m.returned
	m.mu.Unlock()
	if !last {
		return
	}
	defer m.release()
	if !returned {
		m.settle()
	}
}

// letGo lets go, at shutdown, of one target that has no fate; r is about it. Its
// message comes again, whole, unless nobody keeps it: then this is its fate.
func (m *held) letGo(r Receipt) {
	if !m.durable() {
		r.Status, r.Reason = StatusDropped, string(ReasonShutdown)
		m.waits = false // nothing is stored any more that could answer
		m.resolve(r)
		return
	}
	m.bridge.metrics.returned(1)
	m.mu.Lock()
	m.returned = true
	m.open--
	last := m.open == 0
	m.mu.Unlock()
	if last {
		m.release()
	}
}

func (m *held) settle() {
	in := m.delivery.Message()
	ctx := context.Background() // an ack does not wait
	if r, ok := m.delivery.(Replier); ok && !m.waits {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		if err := r.Reply(ctx, m.receipts); err != nil {
			m.bridge.log.Warn("reply not sent", "subject", in.Subject, "err", err)
		}
	}
	var err error
	if m.alive {
		err = m.delivery.Ack(ctx)
	} else {
		err = m.delivery.Term(ctx, m.reason)
	}
	if err != nil {
		// Not lost: it comes again and is a repeat at the far end.
		m.bridge.log.Warn("ack not sent, the message will come again", "subject", in.Subject, "err", err)
	}
}

// dropped is the receipt of a message that a route, or no route, discards.
func (m *held) dropped(route, reason string) Receipt {
	in := m.delivery.Message()
	return Receipt{
		Route: route, Status: StatusDropped, Reason: reason,
		Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence, At: time.Now().UTC(),
	}
}
