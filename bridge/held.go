package bridge

import (
	"context"
	"sync"
	"time"

	"downlink/mapping"
)

// settleTimeout bounds one settlement. It outlives the cancellation of a drain:
// a message whose fate is durable must not come again because we stop.
const settleTimeout = 5 * time.Second

// held is one delivery and what is known of its targets. It is settled at its
// source once, when every target has its fate.
type held struct {
	delivery Delivery
	bridge   *Bridge
	release  func() // frees its place at the source's intake

	mu       sync.Mutex // guards all below
	open     int        // targets without a fate
	returned bool       // a target was let go: never settle
	receipts []Receipt
}

// durable reports whether the message comes again when we let go of it.
func (m *held) durable() bool { return m.delivery.Message().Stream != "" }

// resolve records one target's fate and settles the message with the last one.
func (m *held) resolve(r Receipt) {
	m.bridge.metrics.fate(r)
	m.mu.Lock()
	m.receipts = append(m.receipts, r)
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
		r.Status, r.Reason = "dropped", string(ReasonShutdown)
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
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	in := m.delivery.Message()
	if r, ok := m.delivery.(Replier); ok {
		if err := r.Reply(ctx, m.receipts); err != nil {
			m.bridge.log.Warn("reply not sent", "subject", in.Subject, "err", err)
		}
	}
	settle := m.delivery.Ack
	if reason, dead := m.allDead(); dead {
		settle = func(ctx context.Context) error { return m.delivery.Term(ctx, reason) }
	}
	if err := settle(ctx); err != nil {
		// Not lost: it comes again and is a repeat at the far end.
		m.bridge.log.Warn("ack not sent, the message will come again", "subject", in.Subject, "err", err)
	}
}

func (m *held) allDead() (reason string, dead bool) {
	for _, r := range m.receipts {
		if r.Status != "dead" {
			return "", false
		}
		reason = r.Reason
	}
	return reason, len(m.receipts) > 0
}

// receipt is what became of the item.
func (it *item) receipt(status, hubName string) Receipt {
	in, e := it.of.delivery.Message(), it.envelope
	return Receipt{
		ID: e.MessageID, Device: e.Device, Hub: hubName, Route: e.Route, Status: status,
		Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence, Attempts: it.attempts, At: time.Now().UTC(),
	}
}

// dropped is the receipt of a message that a route, or no route, discards.
func (m *held) dropped(route, reason string) Receipt {
	in := m.delivery.Message()
	return Receipt{
		Route: route, Status: "dropped", Reason: reason,
		Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence, At: time.Now().UTC(),
	}
}

func (it *item) letGo(hubName string) { it.of.letGo(it.receipt("", hubName)) }

// burial is the item's dead letter.
func (it *item) burial(reason mapping.Reason, err error, hubName string) burial {
	e := it.envelope
	b := burial{of: it.of, letter: DeadLetter{
		Message: it.of.delivery.Message(), Route: e.Route, Hub: hubName, Device: e.Device, MessageID: e.MessageID,
		Reason: reason, Attempts: it.attempts, At: time.Now().UTC(),
	}}
	b.letter.Condition, b.letter.Text = explain(err)
	return b
}
