// Package fault makes the embedded hub misbehave on request: release a message,
// refuse it, cut the connection, answer late or never. A fault is scripted at a
// Point, for all devices or some, a number of times or until it is cancelled.
// The package knows no protocol; each endpoint asks the Injector at its points
// and carries the Action out in its protocol's terms.
package fault

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Point is a place in the hub where a fault can be injected.
type Point string

// The points. Open, PutToken and AttachSender concern no device: there Next is asked with an empty one.
const (
	Open         Point = "open"          // an AMQP connection's OPEN, before it is answered
	PutToken     Point = "put-token"     // a put-token request on $cbs
	AttachSender Point = "attach-sender" // a sender link to /messages/devicebound
	Transfer     Point = "transfer"      // one C2D message from a service
	MQTTConnect  Point = "mqtt-connect"  // a device's CONNECT, before CONNACK
	MQTTPublish  Point = "mqtt-publish"  // one C2D message on its way to a device
	Puback       Point = "puback"        // a device's PUBACK, before it completes the message
	Request      Point = "request"       // an HTTPS request that may be served
)

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
)

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
	default:
		return "unknown"
	}
}

// Action is one fault.
type Action struct {
	Kind Kind
	// Condition and Text are the error that Reject answers with. An empty Condition is amqp:internal-error.
	Condition, Text string
	// Delay is how late Delay answers.
	Delay time.Duration
	// After lets the hub do its part first (store the message, complete it), so that only the answer is
	// lost, late or untrue. By default a fault other than Delay keeps the hub from doing it.
	After bool
}

type rule struct {
	point  Point
	left   int // negative: until cancelled
	match  func(device string) bool
	action Action
}

// Injector holds the scripted faults. The zero value and a nil *Injector are ready
// to use; a nil one never acts. All methods are safe for concurrent use.
type Injector struct {
	armed atomic.Int64 // number of rules, so that the usual case takes no lock
	mu    sync.Mutex
	rules []*rule
}

// Add scripts a at p for the next times occasions whose device match accepts; times <= 0
// means until cancel is called, a nil match means every device. Rules are tried in
// the order they were added. cancel may be called more than once. On a nil Injector
// Add does nothing. match runs under the Injector's lock and must not call it.
func (i *Injector) Add(p Point, times int, match func(device string) bool, a Action) (cancel func()) {
	if i == nil {
		return func() {}
	}
	if times <= 0 {
		times = -1
	}
	r := &rule{point: p, left: times, match: match, action: a}
	i.mu.Lock()
	i.rules = append(i.rules, r)
	i.armed.Store(int64(len(i.rules)))
	i.mu.Unlock()
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.remove(r)
	}
}

// Next returns the action scripted for this occasion and uses it up; false is the usual case.
func (i *Injector) Next(p Point, device string) (Action, bool) {
	if i == nil || i.armed.Load() == 0 {
		return Action{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, r := range i.rules {
		if r.point != p || r.match != nil && !r.match(device) {
			continue
		}
		if r.left > 0 {
			if r.left--; r.left == 0 {
				i.remove(r)
			}
		}
		return r.action, true
	}
	return Action{}, false
}

func (i *Injector) remove(r *rule) {
	i.rules = slices.DeleteFunc(i.rules, func(x *rule) bool { return x == r })
	i.armed.Store(int64(len(i.rules)))
}
