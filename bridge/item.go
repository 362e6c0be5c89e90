package bridge

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"downlink/mapping"
)

// item is one target of one message: an envelope on its way. Its home, from where
// it comes again if the process ends, is the source's message, or, once it is
// parked, an entry of the mailbox.
type item struct {
	envelope *mapping.Envelope
	message  *mapping.Input
	size     int
	since    time.Time // when it was first taken in

	of *held // the source's message; nil if it was restored from the mailbox
	// left says who took the item away from its source's message. Only the first one
	// settles it there.
	left  atomic.Int32
	entry atomic.Uint64 // in the mailbox; set before left is
	// twin is an entry that is not the item's home, or unknownTwin after an append that
	// failed and may have stored it all the same. Once the item's fate is durable, which
	// settled says, whoever takes twin deletes it.
	twin    atomic.Uint64
	settled atomic.Bool

	// The hub's mutex guards these.
	flying     bool        // in flight
	superseded bool        // a newer one with its coalescing key is here: not to be tried again
	group      bool        // one of several targets: sent from the mailbox alone, so that no crash sends it to the others again
	storing    atomic.Bool // being put into the mailbox: it may be there before it has another fate, and stay there after a crash
	unstorable bool        // the mailbox can never hold it

	tries
}

// tries is what is remembered of an item's sends. Only the goroutine that sends it touches it.
type tries struct {
	attempts     int
	linkBreaks   int
	unknowns     int
	recorded     bool // its correlation is
	backoff      *backoff.ExponentialBackOff
	backoffClass Class
}

func newItem(of *held, e *mapping.Envelope) *item {
	return &item{envelope: e, message: of.delivery.Message(), of: of, size: weigh(e), since: time.Now()}
}

// restored is the item of an entry of the mailbox.
func restored(p *Parcel) *item {
	it := &item{envelope: p.Envelope, message: p.Message, tries: tries{attempts: p.Attempts}, size: weigh(p.Envelope), since: p.At}
	it.entry.Store(p.Entry)
	it.left.Store(leftParked)
	return it
}

// parcel is what the mailbox stores of it. The caller holds the hub's mutex.
func (it *item) parcel() *Parcel {
	p := &Parcel{Envelope: it.envelope, Message: it.message, At: it.since}
	if !it.flying { // else its sender counts just now
		p.Attempts = it.attempts
	}
	return p
}

// How an item leaves its source's message.
const (
	leftEnded  int32 = iota + 1 // it has a fate
	leftParked                  // the mailbox has it
	leftLetGo                   // it comes again
)

const unknownTwin = math.MaxUint64

// leave takes the item away from its source's message. False: somebody else has.
func (it *item) leave(how int32) bool { return it.of != nil && it.left.CompareAndSwap(0, how) }

// durable reports whether the message comes again when we let go of it.
func (it *item) durable() bool { return it.message.Stream != "" }

// deadline is when it is too late to send; zero: never.
func (it *item) deadline() time.Time { return it.envelope.Deadline() }

// expired reports whether it is too late to send.
func (it *item) expired(now time.Time) bool {
	at := it.deadline()
	return !at.IsZero() && !now.Before(at)
}

// weigh is about what an envelope takes up in memory.
func weigh(e *mapping.Envelope) int {
	const fixed = 512
	n := fixed + len(e.Body)
	for i := range e.Properties {
		n += len(e.Properties[i].Name) + len(e.Properties[i].Value)
	}
	return n
}

// correlation is what later feedback about the item is matched with.
func (it *item) correlation(hub string) Correlation {
	e, in := it.envelope, it.message
	c := Correlation{
		ID: e.MessageID, Device: e.Device, Hub: hub, Route: e.Route, Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence,
		ReplyTo: e.ReplyTo, Wait: e.Wait, Feedback: e.Ack != mapping.AckNone, Ack: e.Ack, Expires: e.ExpiresAt, Trace: traceOf(in), SentAt: time.Now().UTC(),
	}
	if it.of != nil && it.of.replies() {
		c.ReplyTo = "" // the delivery itself answers
	}
	return c
}

// traceOf is the message's W3C traceparent, or "".
func traceOf(in *mapping.Input) string {
	if v := in.Header["traceparent"]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// receipt is what became of the item.
func (it *item) receipt(status string, reason mapping.Reason, hubName string) Receipt {
	in, e := it.message, it.envelope
	return Receipt{
		ID: e.MessageID, Device: e.Device, Hub: hubName, Route: e.Route, Status: status, Reason: string(reason),
		Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence, Attempts: it.attempts, At: time.Now().UTC(),
	}
}

// letter is the item's dead letter.
func (it *item) letter(reason mapping.Reason, err error, hubName string) *DeadLetter {
	e := it.envelope
	l := &DeadLetter{
		Message: it.message, Route: e.Route, Hub: hubName, Device: e.Device, MessageID: e.MessageID,
		Reason: reason, Attempts: it.attempts, At: time.Now().UTC(),
	}
	l.Condition, l.Text = explain(err)
	return l
}

// parked counts the item as put into the mailbox; nobody gets such a receipt.
func (it *item) parked() Receipt { return Receipt{Route: it.envelope.Route, Status: statusParked} }
