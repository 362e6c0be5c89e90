package mapping

import (
	"strings"
	"time"
)

// Input is one NATS message as the cloud side received it.
// The mapping never modifies it and keeps no reference to it after Map returns,
// except that an Envelope's Body aliases Payload.
type Input struct {
	Subject  string
	Header   map[string][]string // nats.Header's underlying type; may be nil
	Payload  []byte
	Stream   string    // "" for core NATS
	Sequence uint64    // in Stream; 0 for core NATS
	Time     time.Time // stored time (JetStream) or time of receipt (core NATS)
	Reply    string    // where the publisher of a core NATS request waits for the answer; else ""
	// BadHeader marks a message whose headers cannot be read, such as one with a line end in a value. Header is empty
	// then, which does not mean that the publisher set none.
	BadHeader bool
}

// Ack is the feedback a C2D message asks of the hub, as the text of the
// iothub-ack property (IoT Hub developer guide, "Send cloud-to-device messages").
// The zero value asks for none.
type Ack string

// The feedback requests that the hub knows.
const (
	AckNone     Ack = ""
	AckPositive Ack = "positive"
	AckNegative Ack = "negative"
	AckFull     Ack = "full"
)

// Property is one application property. Order is kept as configured or received.
type Property struct {
	Name  string
	Value string
	// Null marks a property that has a name and no value at all, which only the
	// device side meets (a bag entry without "="). Value is then empty.
	Null bool
}

// Envelope is one C2D message, ready for the hub: every value is legal there.
// A system property that is empty is not sent.
type Envelope struct {
	Route           string
	Hub             string // name of the hub in the configuration
	Device          string // device ID, not encoded
	MessageID       string
	CorrelationID   string
	UserID          string
	ContentType     string
	ContentEncoding string
	ExpiresAt       time.Time // zero: the hub's default
	Ack             Ack
	Properties      []Property // application properties, names unique; the envelopes of a group may share them: read only
	Body            []byte

	// The rest is for the delivery and does not travel.

	SendBy    time.Time // max_age: not to be sent later than this; zero: no bound but ExpiresAt
	Priority  int       // the route's; higher goes first
	Unordered bool      // order: none
	Coalesce  string    // the key of coalesce, with the route's name before it: a newer message of the same device and key replaces this one while it waits; "": none
	Receipts  bool      // receipts were asked for: by the route, by Ack, or by ReplyTo
	ReplyTo   string    // where the outcome is answered; "": nowhere
	Wait      string    // which outcome is answered: accepted ("" too) or completed
}

// Deadline is when it is too late to send; zero: never.
func (e *Envelope) Deadline() time.Time {
	if by := e.SendBy; !by.IsZero() && (e.ExpiresAt.IsZero() || by.Before(e.ExpiresAt)) {
		return by
	}
	return e.ExpiresAt
}

// MaxMessageSize is the largest C2D message in bytes, by Size's way of counting
// (IoT Hub developer guide, "Quotas and throttling").
const MaxMessageSize = 64 << 10

// Size is the message's size as the hub counts it: body, values of the system
// properties, names and values of the application properties (IoT Hub developer
// guide, "Create and read IoT Hub messages").
func (e *Envelope) Size() int {
	n := len(e.Body) + len("/devices//messages/devicebound") + escapedLen(e.Device) +
		len(e.MessageID) + len(e.CorrelationID) + len(e.UserID) +
		len(e.ContentType) + len(e.ContentEncoding) + len(e.Ack)
	if !e.ExpiresAt.IsZero() {
		n += 8 // an AMQP timestamp
	}
	for i := range e.Properties {
		n += len(e.Properties[i].Name) + len(e.Properties[i].Value)
	}
	return n
}

// MaxTopic is the longest topic of MQTT in bytes (MQTT 3.1.1 §1.5.3). The hub writes all
// properties of a message into the topic, percent-encoded.
const MaxTopic = 65535

// TopicSize is the length of the topic under which a device on MQTT receives the
// message (IoT Hub, "Communicate with an IoT hub using the MQTT protocol"): one over
// MaxTopic can never get there, although its Size may do.
func (e *Envelope) TopicSize() int {
	n := len("devices/"+"/messages/devicebound/") + len(e.Device) +
		len("%24.to=%2Fdevices%2F%2Fmessages%2Fdevicebound") + escapedLen(percentEncode(e.Device, classURL))
	system := func(name, value string) {
		if value != "" {
			n += len("&"+"=") + len(name) + escapedLen(value)
		}
	}
	if !e.ExpiresAt.IsZero() {
		system("%24.exp", "2006-01-02T15:04:05.0000000Z")
	}
	system("%24.mid", e.MessageID)
	system("%24.cid", e.CorrelationID)
	system("%24.uid", e.UserID)
	system("%24.ct", e.ContentType)
	system("%24.ce", e.ContentEncoding)
	system("iothub-ack", string(e.Ack))
	for i := range e.Properties {
		n += len("&"+"=") + escapedLen(e.Properties[i].Name) + escapedLen(e.Properties[i].Value)
	}
	return n
}

// Reason is why a message becomes a dead letter or is dropped. Reasons appear in subjects,
// headers and metrics, so they are lower case words joined by "-".
type Reason string

// The reasons that mapping itself gives.
const (
	ReasonAbsent       Reason = "absent"         // a value that must be there is nil
	ReasonExpression   Reason = "bad-expression" // an expression failed on this message
	ReasonNotAllowed   Reason = "not-allowed"    // device not among those that the route allows, or subject not in allow_subjects
	ReasonBadDevice    Reason = "bad-device"     // not a legal device ID
	ReasonBadProperty  Reason = "bad-property"   // a property the hub cannot carry
	ReasonBadMessageID Reason = "bad-message-id" // a system property the hub cannot carry
	ReasonBadSubject   Reason = "bad-subject"    // the relay's template yields no legal subject
	ReasonTooLarge     Reason = "too-large"      // over 64 KB by the hub's way of counting
	ReasonLoop         Reason = "loop"           // already came through this bridge
	ReasonBadHeader    Reason = "bad-header"     // a Downlink-TTL or Downlink-Wait that cannot be read, or not be kept; or headers that cannot be read at all
	ReasonUnknownHub   Reason = "unknown-hub"    // the route's hub expression names none of the hubs
	ReasonManyDevices  Reason = "too-many-devices"
	ReasonNoDevices    Reason = "no-devices" // why a message to an empty group is dropped
)

// RouteError says why one message cannot be mapped by one route. Error reads
// "route NAME: FIELD: cause" and never contains payload.
type RouteError struct {
	Route  string
	Field  string // such as "device", "properties[1].value"
	Reason Reason
	Err    error
}

func (e *RouteError) Error() string {
	return "route " + e.Route + ": " + e.Field + ": " + e.Err.Error()
}

func (e *RouteError) Unwrap() error { return e.Err }

// Entry is the field if that is one entry of the route's devices, such as "devices[2]"; else "".
func (e *RouteError) Entry() string {
	if strings.HasPrefix(e.Field, "devices[") {
		return e.Field
	}
	return ""
}

// Result is what one matching route makes of one Input for one device: exactly
// one of Envelope, Drop and Err is set.
type Result struct {
	Route    string
	Device   string // as far as known; what makes one result of a group unlike the others
	Envelope *Envelope
	// Drop is the reason given in the route; "loop" for a message that came through this bridge before, "no-devices" for one
	// to an empty group.
	Drop string
	Err  *RouteError
	// Asked says, with Drop and Err, who wants to know of it; nil: nobody. With Envelope it is nil: that says it itself.
	Asked *Asked
}

// Asked is who wants to know what became of a message that no envelope is made of:
// its route, by receipts or ack, or its publisher.
type Asked struct {
	// ReplyTo is where the publisher waits for an answer; "": nowhere.
	ReplyTo string
}

// C2D is one cloud-to-device message as the device received it, decoded from the
// MQTT topic's property bag and the payload.
type C2D struct {
	Device          string
	Topic           string // as on the wire; part of the message's identity
	MessageID       string
	CorrelationID   string
	UserID          string
	ContentType     string
	ContentEncoding string
	To              string
	Expires         string // $.exp as on the wire, .NET round-trip format
	Ack             string // iothub-ack as on the wire
	Properties      []Property
	Body            []byte
}

// Publication is one message to publish on the device side's NATS.
type Publication struct {
	Subject string
	Header  map[string][]string
	Data    []byte
	// ID identifies a repeat: the same device, message ID and digest of topic and
	// payload. Empty when the message has no message ID: then it is never a repeat.
	ID string
}
