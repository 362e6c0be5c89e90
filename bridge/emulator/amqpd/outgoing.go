package amqpd

import (
	"encoding/binary"
	"math"

	"downlink/bridge/internal/amqpwire"
)

// delivery is one message on its way to the client. It is on its link until it is settled.
type delivery struct {
	l       *link
	tag     []byte // nil: made from the delivery-id
	message []byte
	lock    string // of a feedback batch; "" for a reply of $cbs
}

// send queues a message for the client and sends it as soon as credit and window allow.
func (l *link) send(message []byte) {
	if l.detaching || l.gone {
		return
	}
	if len(l.queue) >= maxQueued {
		l.detach(problem(condLimit, "%d messages wait for credit", len(l.queue)))
		return
	}
	l.queue = append(l.queue, message)
	l.pump()
}

// sends says whether the hub is the link's sender.
func (l *link) sends() bool { return l.node == cbsReplies || l.node == feedbackBatches }

// next takes what is to be sent next, if the link may send anything.
func (l *link) next() *delivery {
	if l.credit == 0 || l.sendUnsettled && len(l.s.unsettled) >= maxUnsettled {
		return nil
	}
	d := &delivery{l: l}
	switch {
	case l.node == feedbackBatches:
		if !l.receiveFeedback(d) {
			return nil
		}
	case len(l.queue) > 0:
		d.message, l.queue = l.queue[0], l.queue[1:]
	default:
		return nil
	}
	return d
}

// pump sends what may be sent, in frames that the peer takes.
func (l *link) pump() {
	s := l.s
	if l.detaching || l.gone || s.ending {
		return
	}
	for s.peerWindow > 0 {
		if l.sending == nil {
			d := l.next()
			if d == nil {
				return
			}
			l.credit--
			l.deliveryCount++
			l.sending, l.sent, l.sendingID = d, 0, s.nextDelivery
			s.nextDelivery++
			if l.sendUnsettled {
				if s.unsettled == nil {
					s.unsettled = map[uint32]*delivery{}
				}
				s.unsettled[l.sendingID] = d
			}
		}
		tag := l.sending.tag
		if tag == nil {
			tag = binary.BigEndian.AppendUint32(nil, l.sendingID)
		}
		// Explicit in every frame: rhea takes an absent message-format for an error.
		t := amqpwire.Transfer{
			Handle: l.handle, DeliveryID: amqpwire.Some(l.sendingID), DeliveryTag: tag,
			MessageFormat: amqpwire.Some[uint32](0), Settled: amqpwire.Some(!l.sendUnsettled), More: true,
		}
		rest := l.sending.message[l.sent:]
		room := int(min(s.c.peerFrame, maxFrameSize)) - len(amqpwire.AppendFrame(nil, s.channel, &t, nil))
		t.More = len(rest) > room
		n := min(room, len(rest))
		s.emit(&t, rest[:n])
		s.nextOutgoing++
		s.peerWindow--
		l.sent += n
		if !t.More {
			d := l.sending
			l.sending = nil
			if !l.sendUnsettled {
				l.s.c.settled(d, amqpwire.Accepted{})
			}
		}
	}
}

// credited takes the credit that the client grants (§2.6.7).
func (l *link) credited(p *amqpwire.Flow) {
	if p.LinkCredit.Set {
		credit := int64(int32(p.DeliveryCount.Value-l.deliveryCount)) + int64(p.LinkCredit.Value)
		l.credit = uint32(min(max(credit, 0), math.MaxUint32))
	}
	l.pump()
	if p.Drain && l.sending == nil {
		l.deliveryCount += l.credit
		l.credit = 0
		l.s.sendFlow(l, true)
	} else if p.Echo {
		l.s.sendFlow(l, false)
	}
}
