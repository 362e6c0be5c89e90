// Package bridge is the delivery engine: it takes messages from sources, has
// them mapped, keeps one lane per device, sends through a hub's sender, and
// settles each message at its source once its fate is durable. It knows no
// wire: natsio and hubservice speak the protocols and classify their errors.
//
// DESIGN.md beside this file states the promise.
package bridge

import (
	"context"
	"time"

	"downlink/mapping"
)

// Delivery is one message the bridge holds until exactly one of Ack or Term is
// called, or the process lets go of it at shutdown (it comes again to the next
// owner). Its source keeps it alive meanwhile (progress acks) and drops
// redeliveries of what is still held. Methods are safe for concurrent use.
type Delivery interface {
	// Message is the message; read only.
	Message() *mapping.Input
	// Ack settles the message: its fate is durable, it never comes again. From
	// core NATS it does nothing. An error means it may come again.
	Ack(ctx context.Context) error
	// Term settles a message whose dead letter is stored. As Ack otherwise.
	Term(ctx context.Context, reason string) error
}

// Replier is a Delivery whose publisher waits for an answer.
type Replier interface {
	// Reply sends the outcome, one receipt per target. Called at most once, before Ack or Term.
	Reply(ctx context.Context, receipts []Receipt) error
}

// Source yields deliveries in the order in which each device must see them.
type Source interface {
	// Name is the stream's name, or "core".
	Name() string
	// Receive blocks for the next delivery. It fails only when ctx is done.
	Receive(ctx context.Context) (Delivery, error)
}

// Finisher is a Source whose messages nobody keeps for a next owner, such as core NATS.
type Finisher interface {
	// Finish takes in no more messages and returns, in order, those that have
	// arrived and were not received. The engine calls it at shutdown, after its last
	// Receive; it ends with ctx.
	Finish(ctx context.Context) []Delivery
}

// Sender hands envelopes to one hub.
type Sender interface {
	// Send blocks until the hub has decided; nil means accepted. While the hub
	// cannot be reached it waits for the connection instead of failing. Any
	// failure is an *Error, except ctx's own. Safe for concurrent use.
	Send(ctx context.Context, e *mapping.Envelope) error
}

// DeadLetters stores what can never be delivered.
type DeadLetters interface {
	// Store blocks until the dead letter is durable.
	Store(ctx context.Context, d DeadLetter) error
}

// DeadLetter is a whole message with the reason why it was not delivered.
type DeadLetter struct {
	Message   *mapping.Input
	Route     string
	Hub       string
	Device    string // as far as known
	MessageID string
	Reason    mapping.Reason
	Condition string // the hub's AMQP condition, if it gave one
	Text      string // one line for humans, no payload
	Attempts  int
	At        time.Time
}

// The reasons for fates that the engine gives, beside those of mapping.
const (
	ReasonDeviceNotFound   mapping.Reason = "device-not-found"
	ReasonExpired          mapping.Reason = "expired"
	ReasonBreaksLink       mapping.Reason = "breaks-link"
	ReasonRefused          mapping.Reason = "refused"           // the hub says that this message can never succeed
	ReasonUnknownCondition mapping.Reason = "unknown-condition" // bounded tries used up
	ReasonNoRoute          mapping.Reason = "no-route"
	// ReasonShutdown is why a message from core NATS was dropped: the process ended
	// before the hub answered, and nobody keeps it. Whether the hub has it is not known.
	ReasonShutdown mapping.Reason = "shutdown"
)

// Receipt is what became of one target of one message: the documented JSON body
// of receipts and replies.
type Receipt struct {
	ID        string    `json:"id,omitempty"`
	Device    string    `json:"device,omitempty"`
	Hub       string    `json:"hub,omitempty"`
	Route     string    `json:"route,omitempty"`
	Status    string    `json:"status"` // accepted, dead, dropped
	Reason    string    `json:"reason,omitempty"`
	Condition string    `json:"condition,omitempty"`
	Text      string    `json:"text,omitempty"`
	Subject   string    `json:"subject"`
	Stream    string    `json:"stream,omitempty"`
	Sequence  uint64    `json:"seq,omitempty"`
	Attempts  int       `json:"attempts"`
	At        time.Time `json:"at"`
}
