package hubservice

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"downlink/bridge"
)

// A batch is a JSON array of records (IoT Hub developer guide, "Send cloud-to-device messages",
// message feedback). Keys are compared without case, since older documentation has them in
// PascalCase, and a status code may be a name or the number that the C# SDK's enum gives it.
type wireRecord struct {
	OriginalMessageID string     `json:"originalMessageId"`
	EnqueuedTimeUTC   string     `json:"enqueuedTimeUtc"`
	StatusCode        statusCode `json:"statusCode"`
	Description       string     `json:"description"`
	DeviceID          string     `json:"deviceId"`
}

// statusCode is a name or a number, as text.
type statusCode string

// UnmarshalJSON implements json.Unmarshaler.
func (c *statusCode) UnmarshalJSON(b []byte) error {
	var name string
	if json.Unmarshal(b, &name) == nil {
		*c = statusCode(name)
		return nil
	}
	var number json.Number
	if err := json.Unmarshal(b, &number); err != nil {
		return errors.New("a status code is neither a name nor a number")
	}
	*c = statusCode(number)
	return nil
}

// statuses are by name in lower case, and by number (Azure/azure-iot-sdk-csharp, FeedbackStatusCode.cs).
var statuses = map[string]string{
	"success": bridge.StatusCompleted, "0": bridge.StatusCompleted,
	"expired": bridge.StatusExpired, "1": bridge.StatusExpired,
	"deliverycountexceeded": bridge.StatusExceeded, "2": bridge.StatusExceeded,
	"rejected": bridge.StatusRejected, "3": bridge.StatusRejected,
	"purged": bridge.StatusPurged, "4": bridge.StatusPurged,
}

// maxFeedbackID bounds what is taken for an ID: the hub's limit is 128 characters.
const maxFeedbackID = 256

// parseFeedback reads a batch. bad is how many records have no device, or are no records at all; the others
// count. The error contains nothing of the batch.
func parseFeedback(body []byte) (records []bridge.Record, bad int, _ error) {
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, 0, errors.New("the batch is no JSON array")
	}
	for _, raw := range list {
		var w wireRecord
		if json.Unmarshal(raw, &w) != nil || w.DeviceID == "" || len(w.DeviceID) > maxFeedbackID || len(w.OriginalMessageID) > maxFeedbackID {
			bad++
			continue
		}
		records = append(records, w.record())
	}
	return records, bad, nil
}

func (w *wireRecord) record() bridge.Record {
	code, text := oneLine(string(w.StatusCode)), oneLine(w.Description)
	status := statuses[strings.ToLower(code)]
	if code == "" {
		status = statuses[strings.ToLower(text)] // the C SDK reads this one alone
	}
	if status == "" {
		status = bridge.StatusUnknown
		text = strings.Join(strings.Fields("the hub says "+code+" "+text), " ")
	} else if strings.EqualFold(text, code) || strings.EqualFold(text, "success") {
		text = "" // says nothing more
	}
	return bridge.Record{MessageID: w.OriginalMessageID, Device: w.DeviceID, Status: status, Text: text, At: feedbackTime(w.EnqueuedTimeUTC)}
}

// feedbackTime is zero for what is no time: the record counts without.
func feedbackTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
