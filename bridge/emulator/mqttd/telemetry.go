package mqttd

import (
	"errors"
	"strings"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/telemetry"
)

// maxTelemetry is the largest device-to-cloud message (developer guide, "Quotas
// and throttling").
const maxTelemetry = 256 * 1024

// eventsBag returns the property bag of a topic to which a device sends
// telemetry, and whether it is one.
func eventsBag(device, topic string) (bag string, ok bool) {
	rest, ok := strings.CutPrefix(topic, "devices/"+device+"/messages/events")
	if !ok || rest == "" {
		return "", ok
	}
	return strings.CutPrefix(rest, "/")
}

func isTelemetry(device, topic string) bool {
	_, ok := eventsBag(device, topic)
	return ok
}

// errUnacknowledged takes a message, but its device is not told.
var errUnacknowledged = errors.New("no PUBACK")

// telemetry takes one device-to-cloud message. Of a will, kind says so to the
// backend; a message with the retain flag says so, and nothing is retained
// (developer guide, "Communicate using the MQTT protocol").
func (c *conn) telemetry(topic string, body []byte, retain bool, kind string) error {
	bag, _ := eventsBag(c.device, topic)
	m := telemetry.Message{Device: c.device, Generation: c.generation, Enqueued: c.server.now(), Body: body}
	var err error
	if m.System, m.Properties, err = telemetry.ParseBag(bag); err != nil {
		return violation("%v", err)
	}
	if n := m.Size(); n > maxTelemetry {
		return violation("device-to-cloud message of %d bytes", n)
	}
	if err := c.server.throttle.Telemetry(m.Size()); err != nil {
		return err // without a PUBACK: MQTT has no word for it
	}
	injected, faulty := c.fault(fault.Telemetry, c.device)
	if faulty && !injected.After {
		if err := c.misreceive(injected); err != nil {
			return err
		}
	}
	if kind != "" {
		m.Properties = append(m.Properties, telemetry.Property{Name: "iothub-MessageType", Value: kind})
	}
	if retain {
		m.Properties = append(m.Properties, telemetry.Property{Name: "mqtt-retain", Value: "true"})
	}
	c.session.Telemetry()
	c.server.telemetry.Add(m)
	c.log.Debug("received telemetry", "message_id", m.Lookup("message-id"))
	if faulty && injected.After {
		return c.misreceive(injected)
	}
	return c.obey(&m)
}

// misreceive carries out a fault at a device-to-cloud message; nil means to go
// on. MQTT cannot refuse one: whatever is no wait drops the connection.
func (c *conn) misreceive(a fault.Action) error {
	switch a.Kind {
	case fault.Delay:
		if !c.pause(a.Delay) {
			return errFault
		}
		return nil
	case fault.Withhold:
		return errUnacknowledged
	default:
		return errFault
	}
}

// obey passes on what the message orders, if it does.
func (c *conn) obey(m *telemetry.Message) error {
	order, ok, err := fault.ParseOrder(func(name string) (string, bool) {
		for _, p := range m.Properties {
			if p.Name == name {
				return p.Value, true
			}
		}
		return "", false
	})
	if !ok {
		return nil
	}
	if err != nil {
		c.log.Warn("a device orders a fault, and it is not understood", "err", err)
		return nil
	}
	c.server.order(c.device, order)
	if c.server.behaviour.OrderUnacknowledged {
		return errUnacknowledged
	}
	return nil
}
