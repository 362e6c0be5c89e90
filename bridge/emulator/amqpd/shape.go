package amqpd

import (
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/internal/amqpwire"
)

// shaped is a message that the hub takes later, because its sender is ahead of what the hub's
// tier allows.
type shaped struct {
	due     time.Time
	l       *link
	id      uint32
	settled bool
	m       c2d.Message
	size    int
}

// throttled hands a message to the hub when its throttle allows it, in the order of the calls.
func (l *link) throttled(id uint32, settled bool, m c2d.Message) {
	c := l.s.c
	size := m.Size()
	wait, err := c.srv.o.Throttle.Send(size)
	switch {
	case err != nil:
		l.answer(id, settled, refused(err))
	case wait == 0 && len(c.shaped) == 0:
		l.answer(id, settled, c.charged(m, size))
	default:
		l.hold(1)
		c.shaped = append(c.shaped, shaped{time.Now().Add(wait), l, id, settled, m, size})
		if len(c.shaped) == 1 {
			c.late.Go(c.drainShaped)
		}
	}
}

// charged is enqueue for a message that the throttle has charged.
func (c *conn) charged(m c2d.Message, size int) amqpwire.DeliveryState {
	state := c.enqueue(m)
	if _, ok := state.(amqpwire.Accepted); !ok {
		c.srv.o.Throttle.Refund(size)
	}
	return state
}

// drainShaped takes the delayed messages until there are none, or the connection ends: then those that
// remain were never taken, as when a link breaks before the answer.
func (c *conn) drainShaped() {
	defer c.recovered()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		c.mu.Lock()
		if len(c.shaped) == 0 {
			c.shaped = nil
			c.mu.Unlock()
			return
		}
		due := c.shaped[0].due
		c.mu.Unlock()
		t.Reset(time.Until(due))
		select {
		case <-t.C:
		case <-c.ctx.Done():
			c.refundShaped()
			return
		}
		more := c.takeShaped()
		c.flush()
		if !more {
			return
		}
	}
}

// takeShaped takes the first delayed message and says whether there are more. It decides that under the same lock
// under which throttled starts drainShaped, so that one runs whenever something waits.
func (c *conn) takeShaped() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.shaped[0]
	state := c.charged(x.m, x.size)
	c.shaped[0] = shaped{}
	c.shaped = c.shaped[1:]
	if !x.l.gone && !x.l.detaching {
		x.l.hold(-1)
		x.l.answer(x.id, x.settled, state)
		c.topUp()
	}
	return len(c.shaped) > 0
}

func (c *conn) refundShaped() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.shaped {
		c.srv.o.Throttle.Refund(x.size)
	}
	c.shaped = nil
}
