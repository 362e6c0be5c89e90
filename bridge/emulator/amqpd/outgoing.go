package amqpd

import (
	"encoding/binary"
	"math"

	"downlink/bridge/internal/amqpwire"
)

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

// pump sends what may be sent, in frames that the peer takes.
func (l *link) pump() {
	s := l.s
	for len(l.queue) > 0 && s.peerWindow > 0 {
		if !l.sending {
			if l.credit == 0 {
				return
			}
			if l.sendUnsettled && len(s.unsettled) >= maxUnsettled {
				return
			}
			l.credit--
			l.deliveryCount++
			l.sending, l.sent, l.sendingID = true, 0, s.nextDelivery
			s.nextDelivery++
			if l.sendUnsettled {
				if s.unsettled == nil {
					s.unsettled = map[uint32]struct{}{}
				}
				s.unsettled[l.sendingID] = struct{}{}
			}
		}
		// Explicit in every frame: rhea takes an absent message-format for an error.
		t := amqpwire.Transfer{
			Handle: l.handle, DeliveryID: amqpwire.Some(l.sendingID), DeliveryTag: binary.BigEndian.AppendUint32(nil, l.sendingID),
			MessageFormat: amqpwire.Some[uint32](0), Settled: amqpwire.Some(!l.sendUnsettled), More: true,
		}
		rest := l.queue[0][l.sent:]
		room := int(min(s.c.peerFrame, maxFrameSize)) - len(amqpwire.AppendFrame(nil, s.channel, &t, nil))
		t.More = len(rest) > room
		n := min(room, len(rest))
		s.emit(&t, rest[:n])
		s.nextOutgoing++
		s.peerWindow--
		l.sent += n
		if !t.More {
			l.queue, l.sending = l.queue[1:], false
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
	if p.Drain && !l.sending {
		l.deliveryCount += l.credit
		l.credit = 0
		l.s.sendFlow(l, true)
	} else if p.Echo {
		l.s.sendFlow(l, false)
	}
}
