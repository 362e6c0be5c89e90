package natsio

import (
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"downlink/bridge"
)

// reply is the message that tells a publisher what became of its message: the receipt as a JSON
// object, several as an array. The headers are those of the only or the worst one.
func reply(subject string, receipts []bridge.Receipt) (*nats.Msg, error) {
	var body []byte
	var err error
	if len(receipts) == 1 {
		body, err = json.Marshal(receipts[0])
	} else {
		body, err = json.Marshal(receipts)
	}
	if err != nil {
		return nil, fmt.Errorf("reply: %w", err)
	}
	worst := receipts[0]
	for _, c := range receipts[1:] {
		if worst.Status == bridge.StatusAccepted || worst.Status == bridge.StatusCompleted {
			worst = c
		}
	}
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}
	for _, h := range []struct{ name, value string }{
		{"Downlink-Status", worst.Status},
		{"Downlink-Device", worst.Device},
		{"Downlink-Message-Id", worst.ID},
		{"Downlink-At", stamp(worst.At)},
		{"Downlink-Reason", worst.Reason},
		{"Downlink-Condition", worst.Condition},
	} {
		if h.value != "" {
			m.Header[h.name] = []string{oneText(h.value)}
		}
	}
	return m, nil
}

// answers reports whether a receipt is what the publisher waits for. What happened at the bridge
// instead of the send ends every wait; what happens at the device, only that of who waits for it:
// the others had their answer when the hub accepted.
func answers(status string, c bridge.Correlation) bool {
	if c.ReplyTo == "" {
		return false
	}
	switch status {
	case bridge.StatusDead, bridge.StatusDropped, bridge.StatusReplaced:
		return true
	case bridge.StatusAccepted:
		return c.Wait != bridge.StatusCompleted
	default:
		return c.Wait == bridge.StatusCompleted
	}
}
