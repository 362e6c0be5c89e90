package amqpd

import (
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

// keptBuffer is how much of a reassembly buffer outlives its delivery.
const keptBuffer = 64 << 10

// transfer takes one frame of a delivery in.
func (s *session) transfer(p *amqpwire.Transfer, payload []byte) {
	s.nextIncoming++
	if s.window == 0 {
		s.end(problem(condWindow, "more frames than the incoming window of %d", incomingWindow))
		return
	}
	s.window--
	l := s.link(p.Handle)
	if l == nil {
		return
	}
	if !l.detaching && !l.silent {
		l.transfer(p, payload)
	}
	if s.window <= incomingWindow/2 && !s.ending {
		s.sendFlow(nil, false)
	}
}

func (l *link) transfer(p *amqpwire.Transfer, payload []byte) {
	if l.role == amqpwire.RoleReceiver {
		l.s.end(problem(condErrant, "transfer on a link whose sender is the hub"))
		return
	}
	if !l.active {
		// Delivery-ids are not checked to be consecutive: uamqp counts frames, so a delivery
		// of several leaves a gap.
		switch {
		case l.credit == 0:
			l.detach(problem(condCredit, "transfer without credit"))
			return
		case !p.DeliveryID.Set:
			l.detach(problem(condInvalidField, "the first transfer of a delivery has no delivery-id"))
			return
		}
		l.credit--
		l.deliveryCount++
		l.active, l.id, l.settled = true, p.DeliveryID.Value, false
	} else if p.DeliveryID.Set && p.DeliveryID.Value != l.id {
		l.detach(problem(condInvalidField, "delivery %d begins within delivery %d", p.DeliveryID.Value, l.id))
		return
	}
	l.settled = l.settled || p.Settled.Value // once is enough (§2.7.5)
	switch {
	case p.Aborted: // aborted is settled (§2.7.5)
		l.clear()
		l.topUp()
		return
	case len(l.buf)+len(payload) > maxMessageSize:
		l.detach(problem(condSize, "a message is larger than max-message-size %d", maxMessageSize))
		return
	case p.More || len(l.buf) > 0:
		if l.s.c.partial+len(payload) > maxReassembly {
			l.detach(problem(condLimit, "too many unfinished messages on the connection"))
			return
		}
		l.s.c.partial += len(payload)
		l.buf = append(l.buf, payload...)
		if p.More {
			return
		}
		payload = l.buf
	}
	id, settled := l.id, l.settled
	if l.node == cbsRequests {
		l.request(id, settled, payload)
	} else {
		l.deliver(id, settled, payload)
	}
	l.clear()
	l.topUp()
}

// clear forgets the delivery that was coming in. After a detach within it there is nothing left to forget.
func (l *link) clear() {
	l.s.c.partial -= len(l.buf)
	l.active = false
	if cap(l.buf) > keptBuffer {
		l.buf = nil
	} else {
		l.buf = l.buf[:0]
	}
}

// topUp renews the credit when half of it is used, unless too many answers are outstanding.
func (l *link) topUp() {
	full := l.s.c.srv.o.Behaviour.Credit
	if l.detaching || l.gone || l.credit > full/2 {
		return
	}
	if target := min(full, uint32(max(0, maxUnsettled-l.s.c.held))); target > l.credit {
		l.credit = target
		l.s.sendFlow(l, false)
	}
}

// topUp renews the credit of all links, after one has given room back.
func (c *conn) topUp() {
	for _, s := range c.sessions {
		if s == nil {
			continue
		}
		for _, l := range s.links {
			if l != nil && (l.node == deviceBound || l.node == cbsRequests) {
				l.topUp()
			}
		}
	}
}

// senderState takes the client's view of a link it sends on.
func (l *link) senderState(p *amqpwire.Flow) {
	if p.DeliveryCount.Set {
		// Ahead of ours after a drain or an abandoned send. Behind it, the client counts a delivery at its end and we at its beginning.
		if n := p.DeliveryCount.Value - l.deliveryCount; n > 0 && n <= l.credit {
			l.deliveryCount += n
			l.credit -= n
		}
	}
	if p.Echo {
		l.s.sendFlow(l, false)
		return
	}
	l.topUp()
}

// hold counts deliveries whose answer is outstanding.
func (l *link) hold(n int) {
	l.held += n
	l.s.c.held += n
}

// deliver hands one message to the hub and settles it.
func (l *link) deliver(id uint32, settled bool, payload []byte) {
	c := l.s.c
	m, err := c.message(payload)
	if err != nil {
		l.answer(id, settled, refused(err))
		return
	}
	if c.srv.o.Faults != nil {
		device, _ := c2d.ParseTo(m.To)
		if act, ok := c.srv.o.Faults.Next(fault.Transfer, device); ok {
			l.misbehave(act, id, settled, m)
			return
		}
	}
	if c.srv.o.Throttle != nil {
		l.throttled(id, settled, m)
		return
	}
	l.answer(id, settled, c.enqueue(m))
}

func (c *conn) enqueue(m c2d.Message) amqpwire.DeliveryState {
	if err := c.srv.o.Backend.Enqueue(m); err != nil {
		return refused(err)
	}
	return amqpwire.Accepted{}
}

func (l *link) misbehave(act fault.Action, id uint32, settled bool, m c2d.Message) {
	c := l.s.c
	var state amqpwire.DeliveryState
	if act.After {
		state = c.enqueue(m)
	}
	switch act.Kind {
	case fault.Drop:
		c.cut()
	case fault.Withhold:
		l.hold(1)
	case fault.Delay:
		l.hold(1)
		c.after(act.Delay, func() {
			if state == nil {
				state = c.enqueue(m) // the hub was slow to take it, and takes it even if nobody waits any more
			}
			if l.gone || l.detaching {
				return
			}
			l.hold(-1)
			l.answer(id, settled, state)
			c.topUp()
		})
	case fault.Release:
		l.answer(id, settled, amqpwire.Released{})
	case fault.Modify:
		l.answer(id, settled, &amqpwire.Modified{DeliveryFailed: true})
	default:
		e := scripted(act)
		l.answer(id, settled, refused(&c2d.Refusal{Condition: string(e.Condition), Code: codeOf(string(e.Condition)), Text: e.Description}))
	}
}

// answer settles a delivery, unless the client did so when it sent it.
func (l *link) answer(id uint32, settled bool, state amqpwire.DeliveryState) {
	if settled {
		return
	}
	if _, ok := state.(amqpwire.Accepted); ok {
		l.s.accepted(id)
		return
	}
	l.s.emit(&amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: id, Settled: true, State: state}, nil)
}
