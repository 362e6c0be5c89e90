package hubservice

import (
	"context"
	"fmt"

	"github.com/Azure/go-amqp"
)

// Check tries what Run would do: it reaches the hub over TLS, authorizes, attaches as a sender and, if feedback is
// set, to the feedback queue, and calls step after each with what was tried and how it ended. It sends nothing, gives no
// credit, so that it takes nothing, and closes all of it. It ends with the first failure. It takes 30 s a
// step at most and needs no Run; it does not disturb one in another process.
func (c *Client) Check(ctx context.Context, feedback bool, step func(what, detail string, err error)) {
	socket, err := c.dial(ctx)
	if err == nil {
		_ = socket.Close()
	}
	step("TLS to "+c.options.Address, "", explainTLS(err))
	if err != nil {
		return
	}
	l, err := c.connect(ctx)
	if err != nil {
		step("authorize and attach to send", "", err)
		return
	}
	defer l.close()
	step("authorize and attach to send", l.grant.way.who+", "+l.grant.way.role, nil)
	if feedback {
		step("attach to the feedback", "", l.attachFeedback(ctx))
	}
}

// attachFeedback attaches to the feedback queue and leaves it again.
func (l *link) attachFeedback(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	session, err := l.conn.NewSession(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin the AMQP session: %w", orContext(ctx, err))
	}
	defer func() { _ = session.Close(ctx) }()
	if _, err := session.NewReceiver(ctx, feedbackAddress, &amqp.ReceiverOptions{Credit: -1}); err != nil {
		return readable(fmt.Errorf("attach to %s: %w", feedbackAddress, orContext(ctx, err)))
	}
	return nil
}
