package hubservice

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/Azure/go-amqp"
)

// The put-token operation of the $cbs node, with the names that the hub's SDKs
// use (AMQP claims-based security, working draft; Azure/azure-iot-hub-node,
// amqp_cbs.ts). The answer is told apart by its correlation-id, since one to a
// request that timed out may still come.
const (
	cbsAddress = "$cbs"
	cbsReplyTo = "cbs"
)

// tokenError is the hub's no to a token.
type tokenError struct {
	status int
	text   string
}

func (e *tokenError) Error() string { return fmt.Sprintf("put-token: %d %s", e.status, e.text) }

// cbs is the pair of links to $cbs. Not safe for concurrent use.
type cbs struct {
	sender   *amqp.Sender
	receiver *amqp.Receiver
	requests uint64
}

func openCBS(ctx context.Context, session *amqp.Session) (*cbs, error) {
	sender, err := session.NewSender(ctx, cbsAddress, nil)
	if err != nil {
		return nil, fmt.Errorf("open $cbs: %w", err)
	}
	receiver, err := session.NewReceiver(ctx, cbsAddress, &amqp.ReceiverOptions{Credit: 10})
	if err != nil {
		return nil, fmt.Errorf("open $cbs: %w", err)
	}
	return &cbs{sender: sender, receiver: receiver}, nil
}

// put authorizes the connection with t. A refusal is a *tokenError.
func (c *cbs) put(ctx context.Context, t token) error {
	c.requests++
	id := strconv.FormatUint(c.requests, 10)
	to, replyTo := cbsAddress, cbsReplyTo
	err := c.sender.Send(ctx, &amqp.Message{
		Properties: &amqp.MessageProperties{MessageID: id, To: &to, ReplyTo: &replyTo},
		ApplicationProperties: map[string]any{
			"operation": "put-token",
			"type":      t.kind,
			"name":      t.audience,
		},
		Value: t.text,
	}, nil)
	if err != nil {
		return fmt.Errorf("put-token: %w", orContext(ctx, err))
	}
	for {
		m, err := c.receiver.Receive(ctx, nil)
		if err != nil {
			return fmt.Errorf("put-token: %w", orContext(ctx, err))
		}
		if err := c.receiver.AcceptMessage(ctx, m); err != nil {
			return fmt.Errorf("put-token: %w", orContext(ctx, err))
		}
		if m.Properties == nil || m.Properties.CorrelationID != any(id) {
			continue
		}
		return cbsAnswer(m)
	}
}

// orContext prefers the context's error: go-amqp reports a context that ended
// while it waited for credit as an exceeded transfer limit.
func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func cbsAnswer(m *amqp.Message) error {
	status, ok := cbsStatus(m.ApplicationProperties["status-code"])
	if !ok {
		return errors.New("put-token: the answer has no status-code")
	}
	if status >= 200 && status < 300 {
		return nil
	}
	text, _ := m.ApplicationProperties["status-description"].(string)
	return &tokenError{status: status, text: oneLine(text)}
}

func cbsStatus(v any) (int, bool) {
	switch n := v.(type) {
	case int32:
		return int(n), true
	case int64:
		return int(n), true
	case uint32:
		return int(n), true
	case uint64:
		return int(n), true
	default:
		return 0, false
	}
}
