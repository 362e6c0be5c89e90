package bridge

import (
	"strings"
	"time"

	"downlink/mapping"
)

// Class is what a failed send means for the message, its lane and the hub. Only
// the adapter that speaks the protocol classifies; the engine acts on the class
// alone (fate.go).
type Class int

// The classes, one a row of the table of fates.
const (
	Unknown      Class = iota // a condition we do not know: bounded tries
	QueueFull                 // this device's queue is full (or, many in a row, the quota is used up)
	NoDevice                  // the hub has no such device
	Refused                   // this message can never succeed
	Throttled                 // the whole hub says slow down
	Paused                    // quota used up, hub suspended
	Resend                    // released, modified: the hub did not take it
	LinkLost                  // the link broke while the message was in flight: outcome unknown
	Unauthorized              // the credential was refused
	Unrecorded                // the receipt that was asked for could not be prepared: it was not sent
	classes                   // their number
)

func (c Class) String() string {
	names := [...]string{"unknown", "queue-full", "no-device", "refused", "throttled", "paused", "resend", "link-lost", "unauthorized", "unrecorded"}
	if c < 0 || int(c) >= len(names) {
		return "unknown"
	}
	return names[c]
}

// Error is a failed operation with its class.
type Error struct {
	Class     Class
	Op        string         // such as "send"
	Condition string         // the peer's condition, such as "amqp:not-found"
	Reason    mapping.Reason // for Refused: the dead letter's reason; empty means "refused"
	After     time.Duration  // wait at least this long; 0: the engine's back-off decides
	Err       error
}

func (e *Error) Error() string {
	parts := []string{e.Op}
	if e.Condition != "" {
		parts = append(parts, e.Condition)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

func (e *Error) Unwrap() error { return e.Err }
