// Package fault makes the embedded hub misbehave on request: release a message,
// refuse it, cut the connection, answer late or never. A fault is scripted at a
// Point, for all devices or some, a number of times or until it is cancelled.
// The package knows no protocol; each endpoint asks the Injector at its points
// and carries the Action out in its protocol's terms.
package fault

import "time"

// Point is a place in the hub where a fault can be injected.
type Point string

// The points. Open, PutToken and the two of links concern no device: there Next is asked with an empty one.
const (
	Open           Point = "open"            // an AMQP connection's OPEN, before it is answered
	PutToken       Point = "put-token"       // a put-token request on $cbs
	AttachSender   Point = "attach-sender"   // a sender link to /messages/devicebound
	AttachReceiver Point = "attach-receiver" // a receiver link from the feedback queue
	Transfer       Point = "transfer"        // one C2D message from a service
	MQTTConnect    Point = "mqtt-connect"    // a device's CONNECT, before CONNACK
	MQTTPublish    Point = "mqtt-publish"    // one C2D message on its way to a device
	Puback         Point = "puback"          // a device's PUBACK, before it completes the message
	Telemetry      Point = "telemetry"       // one device-to-cloud message, before it is stored
	Request        Point = "request"         // an HTTPS request that may be served
)

// Points are all points.
func Points() []Point {
	return []Point{Open, PutToken, AttachSender, AttachReceiver, Transfer, MQTTConnect, MQTTPublish, Puback, Telemetry, Request}
}

func (p Point) String() string { return string(p) }

// Kind is what to do instead of the ordinary answer.
type Kind int

const (
	// Release answers released: the hub did not take the message. Where the protocol
	// has no such answer, it acts like Reject.
	Release Kind = iota + 1
	// Modify answers modified with delivery-failed. Where the protocol has no such
	// answer, it acts like Reject.
	Modify
	// Reject refuses with Condition and Text.
	Reject
	// Drop cuts the connection without a word.
	Drop
	// Withhold never answers; the connection stays up.
	Withhold
	// Delay answers as usual, Delay later. Nothing else on the connection waits for it.
	Delay
	// Expire answers as usual, and the token that was just taken expires Delay later.
	Expire
)

// Kinds are all kinds.
func Kinds() []Kind { return []Kind{Release, Modify, Reject, Drop, Withhold, Delay, Expire} }

func (k Kind) String() string {
	switch k {
	case Release:
		return "release"
	case Modify:
		return "modify"
	case Reject:
		return "reject"
	case Drop:
		return "drop"
	case Withhold:
		return "withhold"
	case Delay:
		return "delay"
	case Expire:
		return "expire"
	default:
		return "unknown"
	}
}

// Action is one fault.
type Action struct {
	Kind Kind
	// Condition and Text are the error that Reject answers with. An empty Condition is amqp:internal-error.
	Condition, Text string
	// Delay is how late Delay answers, or after how long Expire's token expires.
	Delay time.Duration
	// After lets the hub do its part first (store the message, complete it), so that only the answer is
	// lost, late or untrue. By default a fault other than Delay keeps the hub from doing it.
	After bool
}
