package c2d

import (
	"strings"
	"time"
)

// The ends of a message: the status codes of feedback (IoT Hub developer guide,
// "Send cloud-to-device messages"), and Deleted, of which nobody is told.
const (
	Success               = "Success"
	Expired               = "Expired"
	DeliveryCountExceeded = "DeliveryCountExceeded"
	Rejected              = "Rejected"
	Purged                = "Purged"
	Deleted               = "Deleted" // with its device
)

// Outcome is the end of one message whose sender asked to be told.
type Outcome struct {
	Device     string
	Generation string // the device's generation ID
	MessageID  string
	Sequence   uint64
	Status     string // any but Deleted
	At         time.Time
}

// end writes down what became of an entry, which the caller takes out of the queue.
func (d *device) end(e *entry, status string, at time.Time) {
	switch status {
	case Success:
		d.counts.Completed++
	case Expired:
		d.counts.Expired++
	case DeliveryCountExceeded:
		d.counts.Exceeded++
	case Rejected:
		d.counts.Rejected++
	case Purged:
		d.counts.Purged++
	}
	d.store.log.end(e.record, status)
	if d.store.journal != nil {
		d.store.journal.Ended(d.id, e.Sequence, status, at)
	}
	if d.store.outcome != nil && Wanted(e.Message.Ack, status) {
		d.store.outcome(Outcome{Device: d.id, Generation: d.generation, MessageID: e.Message.MessageID, Sequence: e.Sequence, Status: status, At: at})
	}
}

// Wanted reports whether a message with this iothub-ack has feedback about this end.
func Wanted(ack, status string) bool {
	switch {
	case ack == "" || status == Deleted:
		return false
	case strings.EqualFold(ack, "full"):
		return true
	case strings.EqualFold(ack, "positive"):
		return status == Success
	case strings.EqualFold(ack, "negative"):
		return status != Success
	}
	return false
}
