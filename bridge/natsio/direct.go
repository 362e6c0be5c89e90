package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// directRequest asks a stream for several messages at once (ADR-31, "Direct Get", batch and multi
// requests: nats-server 2.11). nats.go has the single one only.
type directRequest struct {
	Seq       uint64     `json:"seq,omitempty"`
	Next      string     `json:"next_by_subj,omitempty"`
	Batch     int        `json:"batch,omitempty"`
	Start     *time.Time `json:"start_time,omitempty"`
	MultiLast []string   `json:"multi_last,omitempty"`
}

// directGet calls each with what the stream answers, in the stream's order, and blocks until that
// was all, five seconds at most without a message. Nothing found is no error; no such stream is
// nats.ErrNoResponders.
func (c *Conn) directGet(ctx context.Context, stream string, request directRequest, each func(*nats.Msg)) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	inbox := c.nc.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return oneLine{err}
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.nc.PublishRequest(c.api+"DIRECT.GET."+stream, inbox, body); err != nil {
		return oneLine{err}
	}
	for {
		m, err := c.nextAnswer(ctx, sub)
		if err != nil {
			return err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			each(m)
		case "204", "404": // end of batch, nothing found
			return nil
		case "503":
			return nats.ErrNoResponders
		default:
			return fmt.Errorf("direct get: %s %s", status, m.Header.Get("Description"))
		}
	}
}

func (c *Conn) nextAnswer(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	m, err := sub.NextMsgWithContext(ctx)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, nats.ErrNoResponders
	}
	return m, err
}
