// Package telemetry is what devices told the embedded hub: their
// device-to-cloud messages, decoded from the property bag of the MQTT topic and
// kept in a bounded log, newest last. It stands in for the Event Hubs endpoint
// that a real hub has.
package telemetry

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Property is one name and value of a message. Null says that the bag had the
// name alone, without "=".
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Null  bool   `json:"null,omitempty"`
}

// Message is one device-to-cloud message.
type Message struct {
	Sequence   uint64 // of the whole hub, from 1; set by Log.Add
	Device     string
	Generation string // the device's generation ID
	Enqueued   time.Time
	// System are the system properties under the names that a backend reads, such
	// as message-id and content-type (developer guide, "Create and read messages"),
	// in the order of the bag.
	System []Property
	// Properties are the application properties in the order of the bag.
	Properties []Property
	Body       []byte
}

// Lookup returns the value of a system property, "" if there is none.
func (m *Message) Lookup(system string) string {
	for _, p := range m.System {
		if p.Name == system {
			return p.Value
		}
	}
	return ""
}

// Size is what the message counts against the limit of 256 KB and against the
// log's: the body, the values of the system properties, and the names and values
// of the application properties (developer guide, "Create and read messages").
func (m *Message) Size() int {
	n := len(m.Body)
	for _, p := range m.System {
		n += len(p.Value)
	}
	for _, p := range m.Properties {
		n += len(p.Name) + len(p.Value)
	}
	return n
}

// MarshalJSON writes the message for people and tests: the properties as
// objects (of a repeated name the last value stands, as for a backend), the body
// as text where it is text, else as base64 in bodyBase64.
func (m Message) MarshalJSON() ([]byte, error) {
	out := struct {
		Sequence   uint64             `json:"sequence"`
		Device     string             `json:"deviceId"`
		Generation string             `json:"generationId,omitempty"`
		Enqueued   time.Time          `json:"enqueuedTime"`
		System     map[string]*string `json:"systemProperties"`
		Properties map[string]*string `json:"properties"`
		Body       *string            `json:"body,omitempty"`
		BodyBase64 []byte             `json:"bodyBase64,omitempty"`
	}{m.Sequence, m.Device, m.Generation, m.Enqueued.UTC(), object(m.System), object(m.Properties), nil, nil}
	if utf8.Valid(m.Body) {
		text := string(m.Body)
		out.Body = &text
	} else {
		out.BodyBase64 = m.Body
	}
	return json.Marshal(out)
}

func object(properties []Property) map[string]*string {
	o := make(map[string]*string, len(properties))
	for _, p := range properties {
		if p.Null {
			o[p.Name] = nil
		} else {
			o[p.Name] = &p.Value
		}
	}
	return o
}
