// Package c2d is the middle of the embedded hub: the device registry and the
// per-device queues of cloud-to-device messages with the rules of IoT Hub
// (developer guide, "Send cloud-to-device messages"). It knows no protocol; the
// packages beside it put one around it each.
package c2d

import (
	"strconv"
	"time"
)

// Property is one application property.
type Property struct {
	Name, Value string
	Null        bool // sent without a value, which is not an empty one; Value is empty then
}

// Message is one C2D message as a service sent it. Empty texts and a zero time are absent.
type Message struct {
	To              string // as the sender typed it, such as /devices/d1/messages/devicebound
	MessageID       string
	CorrelationID   string
	UserID          string
	ContentType     string
	ContentEncoding string
	ExpiresAt       time.Time
	Ack             string // iothub-ack as sent
	Properties      []Property
	Body            []byte
}

// Refusal is the hub's no to a message or request: the AMQP condition and the
// numeric code that the service documentation gives for it.
type Refusal struct {
	Condition string // such as amqp:not-found
	Code      int    // such as 404001
	Text      string
}

func (r *Refusal) Error() string { return r.Condition + " (" + strconv.Itoa(r.Code) + "): " + r.Text }
