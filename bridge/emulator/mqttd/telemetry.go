package mqttd

import (
	"strings"

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
	if kind != "" {
		m.Properties = append(m.Properties, telemetry.Property{Name: "iothub-MessageType", Value: kind})
	}
	if retain {
		m.Properties = append(m.Properties, telemetry.Property{Name: "mqtt-retain", Value: "true"})
	}
	c.session.Telemetry()
	c.server.telemetry.Add(m)
	c.log.Debug("received telemetry", "message_id", m.Lookup("message-id"))
	return nil
}
