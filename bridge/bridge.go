// Package bridge is the delivery engine: it takes messages from sources, has
// them mapped, keeps one lane per device, sends through a hub's sender, and
// settles each message at its source once its fate is durable. It knows no
// wire: natsio and hubservice speak the protocols and classify their errors.
//
// DESIGN.md beside this file states the promise.
package bridge

import (
	"context"
	"errors"
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
	// Receive blocks for the next delivery. It fails only when ctx is done, or with ErrDisowned.
	Receive(ctx context.Context) (Delivery, error)
}

// Redelivered is a Delivery that its source may have given to this or another process before.
type Redelivered interface {
	Redelivered() bool
}

// Owned is a Source that one process at a time delivers from, as a JetStream
// stream is. Its owner also has the stream's part of the mailbox.
type Owned interface {
	// Own blocks until the source is this process's. It fails only when ctx is done.
	Own(ctx context.Context) error
	// Held reports whether the source is surely still ours. It is cheap, never
	// blocks, and is false in time also when this process was frozen meanwhile. Once it
	// was false the tenure is over: it stays so until the next Own.
	Held() bool
}

// ErrDisowned is what Receive of an Owned source returns, once, when another
// process may own it now. Whatever it delivered is not ours to settle any more and
// comes again to its owner; the next call is Own.
var ErrDisowned = errors.New("another process may own the source now")

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
	// cannot be reached it waits for the connection instead of failing, but not beyond
	// the envelope's Deadline: then it fails as Refused, for ReasonExpired. Any
	// failure is an *Error, except ctx's own. Safe for concurrent use.
	Send(ctx context.Context, e *mapping.Envelope) error
}

// Linked is a Sender that tells whether there is a way to its hub. While there is none no send begins: what waits can
// still be replaced, expire, be parked or be given back.
type Linked interface {
	Sender
	// Link reports whether there is one, and returns a channel that is closed when that changes.
	// Safe for concurrent use; it does not block.
	Link() (up bool, changed <-chan struct{})
}

// DeadLetters stores what can never be delivered.
type DeadLetters interface {
	// Store blocks until the dead letter is durable.
	Store(ctx context.Context, d DeadLetter) error
}

// Mailbox keeps, in JetStream, what waits beyond a lane's bound: the mapped
// envelope with the original message. What a device has there of one source stream
// is a box: its own queue, which only the owner of that stream reads and fills.
// Safe for concurrent use; the order within a box is that of the calls of Append,
// which the engine makes one after the other for one box.
type Mailbox interface {
	// Boxes lists the boxes of a source stream that hold anything, of all hubs.
	Boxes(ctx context.Context, stream string) ([]Box, error)
	// Append stores p behind all else in its box and sets p.Entry. It blocks until
	// that is durable. repeat: this message was stored there before, lately, and may
	// have had its fate since; nothing was stored, and p.Entry is 0. An error may be
	// tried again without storing it twice; one that wraps ErrUnstorable is for good.
	Append(ctx context.Context, p *Parcel) (repeat bool, err error)
	// Next returns the first entry of a box above a sequence of the mailbox, or nil
	// if there is none. An error that is about the entry comes with it: its Message is what is
	// stored, and its Envelope nil. One that wraps ErrFormat is for a newer version to read; any other is for good.
	Next(ctx context.Context, b Box, above uint64) (*Parcel, error)
	// Waiting lists the entries of a box with this coalescing key below a sequence of the mailbox.
	Waiting(ctx context.Context, b Box, key string, below uint64) ([]*Parcel, error)
	// Delete removes an entry whose fate is durable. It blocks until it is gone; one that is gone already is no error.
	Delete(ctx context.Context, entry uint64) error
}

// Box names one device's part of the mailbox.
type Box struct {
	Hub, Device, Stream string
	Entries             uint64 // as listed; else 0
}

// Parcel is one entry of the mailbox.
type Parcel struct {
	Entry    uint64            // its sequence in the mailbox; 0 before it is stored
	Envelope *mapping.Envelope // ready to be sent
	Message  *mapping.Input    // the original, for a dead letter; its Payload is the envelope's Body
	Attempts int               // sends before it was stored
	At       time.Time         // when it was stored first
}

var (
	// ErrUnstorable is for a parcel that the mailbox can never hold, such as one larger than the server takes.
	ErrUnstorable = errors.New("the mailbox can never hold it")
	// ErrFormat is for an entry of a newer version of Downlink; it is left alone.
	ErrFormat = errors.New("stored by a newer version of downlink")
)

// Receipts tells publishers what became of their messages. Safe for concurrent use.
type Receipts interface {
	// Record notes, before the send, what the hub's later feedback is to be matched
	// with. It blocks until that is durable. The same envelope may be recorded again.
	Record(ctx context.Context, c Correlation) error
	// Store publishes a receipt and, where the correlation says that its publisher
	// waits for this status, the reply. It blocks until the receipt is durable. The
	// same receipt stored again soon is stored once.
	Store(ctx context.Context, r Receipt, c Correlation) error
}

// Correlation is what is known of a message that asked for receipts, from before
// its send until its last receipt.
type Correlation struct {
	ID, Device, Hub, Route string
	Subject                string // the original
	Stream                 string
	Sequence               uint64
	Trace                  string    // the W3C traceparent, if there was one
	ReplyTo                string    // where an answer goes; "": nowhere
	Wait                   string    // the status that the answer waits for: accepted (or ""), completed
	Feedback               bool      // the hub will tell the outcome at the device (ack was asked)
	Expires                time.Time // of the message at the hub; zero: the hub's default
	SentAt                 time.Time

	Ack mapping.Ack // which outcomes the hub will tell, for the wording of StatusUnknown
}

// DeadLetter is a whole message with the reason why it was not delivered.
type DeadLetter struct {
	Message   *mapping.Input
	Route     string
	Hub       string
	Device    string // as far as known
	Target    string // without Device: which entry of the route's devices; "": there is no such list
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
	// ReasonUnreadable is for an entry of the mailbox that nobody can read; its message is what is stored there.
	ReasonUnreadable mapping.Reason = "unreadable"
	// ReasonOverflow is for a message from core NATS beyond the bound of its device's lane.
	ReasonOverflow mapping.Reason = "overflow"
	// ReasonShutdown is why a message from core NATS was dropped: the process ended
	// before the hub answered, and nobody keeps it. Whether the hub has it is not known.
	ReasonShutdown mapping.Reason = "shutdown"
)

// The statuses of receipts. Accepted, dead, dropped and replaced are fates at the
// bridge; the others are the outcome at the device, by the hub's feedback.
const (
	StatusAccepted  = "accepted"
	StatusDead      = "dead"
	StatusDropped   = "dropped"
	StatusReplaced  = "replaced"
	StatusCompleted = "completed"
	StatusRejected  = "rejected"
	StatusExpired   = "expired"
	StatusExceeded  = "delivery-count-exceeded"
	StatusPurged    = "purged"
	statusParked    = "parked"  // in the mailbox; not a receipt's
	StatusUnknown   = "unknown" // no feedback by the message's expiry plus an hour; see Sweeper
)

// Receipt is what became of one target of one message: the documented JSON body
// of receipts and replies.
type Receipt struct {
	ID        string    `json:"id,omitempty"`
	Device    string    `json:"device,omitempty"`
	Hub       string    `json:"hub,omitempty"`
	Route     string    `json:"route,omitempty"`
	Status    string    `json:"status"` // one of the Status constants
	Reason    string    `json:"reason,omitempty"`
	Condition string    `json:"condition,omitempty"`
	Text      string    `json:"text,omitempty"`
	Subject   string    `json:"subject"`
	Stream    string    `json:"stream,omitempty"`
	Sequence  uint64    `json:"seq,omitempty"`
	Attempts  int       `json:"attempts"`
	At        time.Time `json:"at"`
	// Target is the DeadLetter's; it tells receipts apart, and is not told.
	Target string `json:"-"`
}
