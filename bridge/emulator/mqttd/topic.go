package mqttd

import (
	"slices"
	"strings"

	"downlink/bridge/emulator/c2d"
)

// maxTopic is the longest MQTT string (MQTT 3.1.1 §1.5.3).
const maxTopic = 65535

// expiryFormat is .NET's round-trip format, which the C# SDK parses exactly.
const expiryFormat = "2006-01-02T15:04:05.0000000Z"

// Topic is the topic under which a device receives a C2D message: the system
// properties in the order seen from the service, `to` always among them and as
// the sender typed it, then the application properties.
func Topic(device string, m *c2d.Message) string {
	var b strings.Builder
	b.WriteString("devices/" + device + "/messages/devicebound/")
	bag := bag{b: &b}
	if !m.ExpiresAt.IsZero() {
		bag.add("$.exp", m.ExpiresAt.UTC().Format(expiryFormat))
	}
	bag.optional("$.mid", m.MessageID)
	bag.add("$.to", m.To)
	bag.optional("$.cid", m.CorrelationID)
	bag.optional("$.uid", m.UserID)
	bag.optional("$.ct", m.ContentType)
	bag.optional("$.ce", m.ContentEncoding)
	bag.optional("iothub-ack", m.Ack)
	for _, p := range m.Properties {
		// What AMQP carries as application properties under these names is a
		// system property on MQTT.
		name := p.Name
		switch name {
		case "iothub-creation-time-utc":
			name = "$.ctime"
		case "iothub-message-schema":
			name = "$.schema"
		}
		if p.Null {
			bag.name(name)
		} else {
			bag.add(name, p.Value)
		}
	}
	return b.String()
}

// reversed is a topic with its property bag in the opposite order.
func reversed(topic string) string {
	i := strings.LastIndexByte(topic, '/') + 1 // no name or value has one, escaped as they are
	pairs := strings.Split(topic[i:], "&")
	slices.Reverse(pairs)
	return topic[:i] + strings.Join(pairs, "&")
}

// bag writes a property bag: name=value pairs joined by "&". A null value is the
// name alone, an empty one ends with "=" (IoT Hub, "Communicate with an IoT hub
// using the MQTT protocol").
type bag struct {
	b    *strings.Builder
	some bool
}

func (g *bag) optional(name, value string) {
	if value != "" {
		g.add(name, value)
	}
}

func (g *bag) add(name, value string) {
	g.name(name)
	g.b.WriteByte('=')
	g.escape(value)
}

func (g *bag) name(name string) {
	if g.some {
		g.b.WriteByte('&')
	}
	g.some = true
	g.escape(name)
}

// escape percent-encodes all but RFC 3986's unreserved characters: "$" must be
// %24, a space %20, and "/" %2F, or the SDKs cut the bag at the wrong place.
func (g *bag) escape(s string) {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || strings.IndexByte("-._~", c) >= 0 {
			g.b.WriteByte(c)
			continue
		}
		g.b.WriteByte('%')
		g.b.WriteByte(hex[c>>4])
		g.b.WriteByte(hex[c&15])
	}
}
