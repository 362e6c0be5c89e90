package mqttd

import (
	"bytes"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
)

// receive starts delivering C2D messages, or goes on with another QoS.
func (c *conn) receive() {
	c.session.Start(c.after)
	if !c.delivering {
		c.delivering = true
		c.wg.Go(c.deliver)
	}
}

// deliver sends messages while the window has room, in the queue's order, and
// flushes when it must wait.
func (c *conn) deliver() {
	for {
		if c.server.behaviour.Resend {
			c.window.prune(c.session.Holds)
		}
		var sent []uint64 // QoS 0: complete once flushed
		for !c.window.full() && len(sent) < c.window.size {
			d, ok := c.session.Take()
			if !ok {
				break
			}
			qos, err := c.send(d)
			if err != nil {
				c.log.Debug("delivery stopped", "err", err)
				c.abort()
				return
			}
			if qos == 0 {
				sent = append(sent, d.Sequence)
			}
		}
		if err := c.write(nil, true); err != nil {
			c.log.Debug("delivery stopped", "err", err)
			c.abort()
			return
		}
		for _, sequence := range sent {
			c.session.Complete(sequence)
		}
		if len(sent) > 0 {
			continue
		}
		select {
		case <-c.session.Ready():
		case <-c.slot:
		case <-c.done:
			return
		}
	}
}

// send writes one message and returns the QoS it went with.
func (c *conn) send(d c2d.Delivery) (qos byte, err error) {
	qos, subscribed := c.granted().qos(deviceBound)
	if !subscribed {
		qos = 1 // unsubscribed since it was taken: it is not complete before its PUBACK
	}
	topic := Topic(c.device, d.Message)
	if c.server.behaviour.ReverseProperties {
		topic = reversed(topic)
	}
	if len(topic) > maxTopic {
		c.log.Warn("a message cannot be delivered over MQTT: its properties make a topic of over 65535 bytes; it is rejected", "message_id", d.Message.MessageID)
		c.session.Reject(d.Sequence)
		return 1, nil
	}
	injected, faulty := c.fault(fault.MQTTPublish, c.device)
	if faulty && !injected.After {
		switch injected.Kind {
		case fault.Drop:
			return qos, errFault
		case fault.Delay:
			// The device's later messages wait too: MQTT keeps their order.
			if err := c.write(nil, true); err != nil {
				return qos, err
			}
			if !c.pause(injected.Delay) {
				return qos, errFault
			}
		case fault.Withhold:
			return 1, nil // stays locked until the connection ends
		case fault.Reject:
			c.session.Reject(d.Sequence)
			return 1, nil
		default:
			c.session.Abandon(d.Sequence)
			return 1, nil
		}
	}
	var id uint16
	if qos > 0 {
		id = c.window.add(d.Sequence) // before it is written: its PUBACK may be quick
	}
	var b bytes.Buffer
	encodePublish(&b, topic, d.Message.Body, qos, id, c.server.behaviour.Dup && qos > 0 && d.Deliveries > 1)
	if err := c.write(b.Bytes(), false); err != nil {
		return qos, err
	}
	c.log.Debug("sent", "message_id", d.Message.MessageID, "attempt", d.Deliveries)
	if faulty && injected.After && injected.Kind == fault.Drop {
		if err := c.write(nil, true); err != nil {
			return qos, err
		}
		return qos, errFault
	}
	return qos, nil
}

// acknowledged handles a PUBACK: it completes the oldest message in flight.
func (c *conn) acknowledged(id uint16) error {
	sequence, ok := c.window.ack(id)
	if !ok {
		c.log.Debug("ignored a PUBACK that is not for the oldest message in flight")
		return nil
	}
	injected, faulty := c.fault(fault.Puback, c.device)
	if faulty && !injected.After {
		switch injected.Kind {
		case fault.Drop:
			return errFault
		case fault.Delay:
			c.wg.Go(func() {
				if c.pause(injected.Delay) {
					c.complete(sequence)
				}
			})
			return nil
		case fault.Withhold: // as if it had not come: the message stays locked until the connection ends
		case fault.Reject:
			c.session.Reject(sequence)
		default:
			c.session.Abandon(sequence)
		}
		c.signal()
		return nil
	}
	c.complete(sequence)
	if faulty && injected.Kind == fault.Drop {
		return errFault
	}
	return nil
}

func (c *conn) complete(sequence uint64) {
	if !c.session.Complete(sequence) {
		c.log.Debug("a PUBACK came too late: the message has expired or went elsewhere")
	}
	c.signal()
}

// signal tells deliver that the window may have room.
func (c *conn) signal() {
	select {
	case c.slot <- struct{}{}:
	default:
	}
}

// publish sends the device something that is no C2D message, at QoS 0.
func (c *conn) publish(topic string, body []byte) error {
	if len(topic) > maxTopic {
		return violation("request identifier of %d bytes", len(topic))
	}
	var b bytes.Buffer
	encodePublish(&b, topic, body, 0, 0, false)
	return c.write(b.Bytes(), true)
}
