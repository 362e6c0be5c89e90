// Package feedback is the hub's one feedback queue: what became of
// cloud-to-device messages, gathered into batches that back ends receive, lock
// and settle (IoT Hub developer guide, "Send cloud-to-device messages", section
// "Message feedback"). It knows no protocol.
package feedback

import (
	"encoding/json"
	"time"
)

// ContentType is the content type of a batch's body.
const ContentType = "application/vnd.microsoft.iothub.feedback.json"

// Record is what became of one message.
type Record struct {
	MessageID  string // the message-id of the cloud-to-device message
	Device     string
	Sequence   uint64    // of the message in its device's queue; it does not travel
	Generation string    // the device's generation ID
	Status     string    // Success, Expired, DeliveryCountExceeded, Rejected or Purged
	At         time.Time // when it happened
}

// wire is a record in a batch's body. The description is the status again: the C SDK reads the
// status from it.
type wire struct {
	OriginalMessageID  string `json:"originalMessageId"`
	Description        string `json:"description"`
	DeviceGenerationID string `json:"deviceGenerationId"`
	DeviceID           string `json:"deviceId"`
	EnqueuedTimeUTC    string `json:"enqueuedTimeUtc"`
	StatusCode         string `json:"statusCode"`
}

// timeFormat has at most the seven digits of .NET's clock.
const timeFormat = "2006-01-02T15:04:05.9999999Z07:00"

func encode(records []Record) []byte {
	out := make([]wire, len(records))
	for i, r := range records {
		out[i] = wire{r.MessageID, r.Status, r.Generation, r.Device, r.At.UTC().Format(timeFormat), r.Status}
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err) // texts alone
	}
	return b
}
