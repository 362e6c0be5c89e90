package hubdevice

import (
	"strings"

	"downlink/mapping"
)

const devicebound = "/messages/devicebound"

// decodeTopic turns a devicebound topic and its property bag into a message; false
// if the topic is no devicebound one. The bag is pairs joined by "&", each name
// and value percent-encoded, "=" between; a name alone is a null value (IoT Hub
// developer guide, "Receiving cloud-to-device messages" over MQTT). It is split
// first and decoded once after, or %26 and %3D would cut values; "+" is a plus.
// Lenient where real senders and gateways differ: a leading "?", a trailing "/",
// broken percent sequences (kept as they are).
func decodeTopic(device, topic string, body []byte) (*mapping.C2D, bool) {
	// A device ID holds no "/", so the first match is the one of the topic's form.
	_, bag, found := strings.Cut(topic, devicebound+"/")
	if !found {
		if !strings.HasSuffix(topic, devicebound) {
			return nil, false
		}
		bag = ""
	}
	m := &mapping.C2D{Device: device, Topic: topic, Body: body}
	bag = strings.TrimPrefix(bag, "?")
	bag = strings.TrimSuffix(bag, "/")
	for pair := range strings.SplitSeq(bag, "&") {
		if pair == "" {
			continue
		}
		name, value, hasValue := strings.Cut(pair, "=")
		name, value = unescape(name), unescape(value)
		field := systemField(m, name)
		// A system property without a value is absent; a second one of a name is
		// nothing the hub sends, and stays visible as a property.
		switch {
		case field != nil && *field == "":
			*field = value
		default:
			m.Properties = append(m.Properties, mapping.Property{Name: name, Value: value, Null: !hasValue})
		}
	}
	return m, true
}

// systemField returns where a system property goes; nil for every other name, so
// that what the hub may add one day ($.ctime, $.schema) is passed on as a property.
func systemField(m *mapping.C2D, name string) *string {
	switch name {
	case "$.mid":
		return &m.MessageID
	case "$.cid":
		return &m.CorrelationID
	case "$.uid":
		return &m.UserID
	case "$.ct":
		return &m.ContentType
	case "$.ce":
		return &m.ContentEncoding
	case "$.to":
		return &m.To
	case "$.exp":
		return &m.Expires
	case "iothub-ack":
		return &m.Ack
	}
	return nil
}

// unescape decodes each %XX once and keeps everything else.
func unescape(s string) string {
	first := strings.IndexByte(s, '%')
	if first < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	b = append(b, s[:first]...)
	for i := first; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			high, low := unhex(s[i+1]), unhex(s[i+2])
			if high >= 0 && low >= 0 {
				b = append(b, byte(high<<4|low))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
