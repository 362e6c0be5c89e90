package amqpd

import (
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/internal/amqpwire"
)

// feed wakes the links to the feedback queue when there is something for them,
// as long as the connection lasts. Called with the lock held.
func (c *conn) feed() {
	if c.feeding {
		return
	}
	c.feeding = true
	ready, stop := c.srv.o.Feedback.Watch()
	c.late.Go(func() {
		defer stop()
		defer c.recovered()
		for {
			select {
			case <-ready:
			case <-c.ctx.Done():
				return
			}
			if !c.out.wait() {
				return
			}
			c.pumpFeedback()
			c.flush()
		}
	})
}

func (c *conn) pumpFeedback() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s == nil {
			continue
		}
		for _, l := range s.links {
			if l != nil && l.node == feedbackBatches {
				l.pump()
			}
		}
	}
}

// receiveFeedback takes the next batch from the hub's queue.
func (l *link) receiveFeedback(d *delivery) bool {
	c := l.s.c
	if c.muted || c.closing() {
		return false
	}
	b, ok := c.srv.o.Feedback.Receive()
	if !ok {
		return false
	}
	d.lock, d.tag, d.message = b.LockToken, b.Tag[:], encodeFeedback(&b)
	return true
}

// encodeFeedback makes the message of a batch. The C# SDK needs content type, user-id,
// enqueue time and a delivery-tag of 16 bytes.
func encodeFeedback(b *feedback.Batch) []byte {
	out, err := amqpwire.AppendMessageAnnotations(nil, amqpwire.Map{
		{Key: amqpwire.Symbol("iothub-enqueuedtime"), Value: amqpwire.Timestamp(b.Enqueued.UnixMilli())},
		{Key: amqpwire.Symbol("iothub-deliverycount"), Value: uint8(min(b.Deliveries-1, 255))},
		{Key: amqpwire.Symbol("x-opt-sequence-number"), Value: b.Sequence},
		{Key: amqpwire.Symbol("x-opt-lock-token"), Value: b.LockToken},
	})
	if err != nil {
		panic(err) // all of it is ours
	}
	out = (&amqpwire.Properties{UserID: []byte(b.HubName), ContentType: feedback.ContentType}).Append(out)
	return amqpwire.AppendBodyData(out, b.Body)
}

// settled does what the client's state for a delivery means: accepted completes a batch, rejected drops it, and all
// else gives it back. It returns the state in force.
func (c *conn) settled(d *delivery, state amqpwire.DeliveryState) amqpwire.DeliveryState {
	if d.lock == "" {
		return state
	}
	q, ok := c.srv.o.Feedback, false
	switch state.(type) {
	case amqpwire.Accepted:
		ok = q.Complete(d.lock)
	case *amqpwire.Rejected:
		ok = q.Reject(d.lock)
	default:
		ok = q.Abandon(d.lock)
	}
	if !ok {
		return &amqpwire.Rejected{Error: problem(condLockLost, "the lock on this batch has lapsed")}
	}
	return state
}

// release gives back what the client of a connection that is over has not settled.
func (c *conn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.sessions {
		if s != nil {
			s.release()
			c.sessions[i] = nil
		}
	}
}

// detachExpired detaches the links that need a token.
func (c *conn) detachExpired() {
	func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.sessions {
			if s == nil || s.ending {
				continue
			}
			for _, l := range s.links {
				if l != nil && !l.detaching && !l.silent && (l.node == deviceBound || l.node == feedbackBatches) {
					l.detach(problem(condUnauthorized, "the token has expired"))
				}
			}
		}
	}()
	c.flush()
}
