package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
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

// mostLast is how many messages a server gives for MultiLast at most (ADR-31).
const mostLast = 1024

// directGet calls each with what the stream answers, in the stream's order, and blocks until that
// was all, five seconds at most without a message, and not beyond the loss of the connection. Nothing
// found is no error; no such stream is nats.ErrNoResponders.
func (c *Conn) directGet(ctx context.Context, stream string, request directRequest, each func(*nats.Msg)) error {
	if err := c.usable(); err != nil {
		return err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	inbox := c.nc.NewInbox()
	// Room for all that is asked for, and the end: a SubscribeSync would have half a megabyte for each question.
	room := request.Batch
	if len(request.MultiLast) > 0 {
		room = max(room, mostLast)
	}
	answers := make(chan *nats.Msg, room+2)
	sub, err := c.nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return oneLine{err}
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.nc.PublishRequest(c.api+"DIRECT.GET."+stream, inbox, body); err != nil {
		return oneLine{err}
	}
	for {
		m, err := nextAnswer(ctx, session, answers)
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

func nextAnswer(ctx, session context.Context, answers <-chan *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	select {
	case m := <-answers:
		return m, nil
	case <-session.Done():
		return nil, errSessionOver
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// leaderGet asks the stream's leader for the first message of a subject, wildcards allowed; nil if there is
// none. A direct get may be answered by a replica that is behind, so that what was
// written a moment ago seems not to be there.
func (c *Conn) leaderGet(ctx context.Context, stream, subject string) (*nats.Msg, error) {
	m, err := c.askLeader(ctx, stream, directRequest{Seq: 1, Next: subject})
	if m == nil || err != nil {
		return nil, err
	}
	found := &nats.Msg{Data: m.Data, Header: nats.Header{}}
	if len(m.Header) > 0 {
		if found.Header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			return nil, fmt.Errorf("get a message: %w", err)
		}
	}
	found.Header.Set(jetstream.SubjectHeader, m.Subject)
	return found, nil
}

// leaderMessage is a message as the leader gives it.
type leaderMessage struct {
	Subject  string    `json:"subject"`
	Sequence uint64    `json:"seq"`
	Header   []byte    `json:"hdrs"` // as it is stored, not read yet
	Data     []byte    `json:"data"`
	Time     time.Time `json:"time"`
}

// askLeader asks the stream's leader for one message; nil if it is not there.
func (c *Conn) askLeader(ctx context.Context, stream string, r directRequest) (*leaderMessage, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Message leaderMessage `json:"message"`
	}
	err = c.apiRequest(ctx, apiTimeout, "STREAM.MSG.GET."+stream, body, &answer)
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &answer.Message, nil
}
