package natsio

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

// getRequest is JetStream's JSApiMsgGetRequest.
type getRequest struct {
	Seq  uint64 `json:"seq,omitempty"`
	Next string `json:"next_by_subj,omitempty"`
}

// get returns the first entry whose subject matches, from a sequence on; nil if there is none. With "" it
// is the entry of just that sequence.
func (m *Mailbox) get(ctx context.Context, subject string, from uint64) (*jetstream.RawStreamMsg, error) {
	body, err := json.Marshal(getRequest{from, subject})
	if err != nil {
		panic(err) // plain fields
	}
	raw, err := m.direct(ctx, body)
	if raw == nil && err == nil {
		// A replica that lags behind may have answered, and to take a box for empty would break its order.
		raw, err = m.leader(ctx, body)
	}
	if err != nil {
		return nil, fmt.Errorf("mailbox: stream %s: %w", m.Stream(), apiError(err))
	}
	return raw, nil
}

// direct asks any replica. It returns nil also if the stream does not allow that.
func (m *Mailbox) direct(ctx context.Context, body []byte) (*jetstream.RawStreamMsg, error) {
	if err := m.o.Conn.usable(); err != nil {
		return nil, err
	}
	var r *nats.Msg
	err := m.o.Conn.request(ctx, apiTimeout, func(ctx context.Context) (err error) {
		r, err = m.o.Conn.nc.RequestWithContext(ctx, m.o.Conn.api+"DIRECT.GET."+m.Stream(), body)
		return err
	})
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	subject := r.Header.Get(jetstream.SubjectHeader)
	if status := r.Header.Get("Status"); subject == "" && status != "" {
		if status == "404" {
			return nil, nil
		}
		return nil, fmt.Errorf("status %s: %s", status, strings.ToLower(r.Header.Get("Description")))
	}
	seq, err := strconv.ParseUint(r.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil || subject == "" {
		return nil, errors.New("the answer to a direct get names no message")
	}
	stored, err := time.Parse(time.RFC3339Nano, r.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return nil, errors.New("the answer to a direct get names no time")
	}
	for _, name := range []string{jetstream.StreamHeader, jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer} {
		r.Header.Del(name)
	}
	return &jetstream.RawStreamMsg{Subject: subject, Sequence: seq, Header: r.Header, Data: r.Data, Time: stored}, nil
}

// leader asks the one replica that knows.
func (m *Mailbox) leader(ctx context.Context, body []byte) (*jetstream.RawStreamMsg, error) {
	var answer struct {
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Hdrs    []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err := m.request(ctx, apiTimeout, "STREAM.MSG.GET.", body, &answer)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeMessageNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if answer.Message == nil {
		return nil, errors.New("the answer has no message")
	}
	raw := &jetstream.RawStreamMsg{Subject: answer.Message.Subject, Sequence: answer.Message.Seq, Data: answer.Message.Data, Time: answer.Message.Time}
	if len(answer.Message.Hdrs) > 0 {
		if raw.Header, err = nats.DecodeHeadersMsg(answer.Message.Hdrs); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

// request asks JetStream's API about our stream, limit at most. A stream that is missing is made, if it may be.
func (m *Mailbox) request(ctx context.Context, limit time.Duration, what string, body []byte, answer any) error {
	err := m.o.Conn.apiRequest(ctx, limit, what+m.Stream(), body, answer)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamNotFound {
		if err := m.stream.ensure(ctx); err != nil {
			return err
		}
		err = m.o.Conn.apiRequest(ctx, limit, what+m.Stream(), body, answer)
	}
	return err
}

// apiRequest asks JetStream's API, limit at most. An error it answers is a *jetstream.APIError.
func (c *Conn) apiRequest(ctx context.Context, limit time.Duration, subject string, body []byte, answer any) error {
	if err := c.usable(); err != nil {
		return err
	}
	var r *nats.Msg
	err := c.request(ctx, limit, func(ctx context.Context) (err error) {
		r, err = c.nc.RequestWithContext(ctx, c.api+subject, body)
		return err
	})
	if err != nil {
		return err
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(r.Data, &failed); err != nil {
		return fmt.Errorf("the answer is not JetStream's: %w", err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	return json.Unmarshal(r.Data, answer)
}

// Boxes lists the boxes of a source stream that hold anything, by hub and device. While it runs nobody
// but the caller, or somebody who purges, may change them.
func (m *Mailbox) Boxes(ctx context.Context, stream string) ([]bridge.Box, error) {
	subjects, err := m.subjects(ctx, mailboxPrefix(m.o.Name)+"*.*."+mapping.SubjectToken(stream)+".>")
	if err != nil {
		return nil, fmt.Errorf("mailbox: stream %s: list what waits: %w", m.Stream(), apiError(err))
	}
	boxes := make([]bridge.Box, 0, len(subjects))
	at := make(map[string]int, len(subjects))
	for _, s := range subjects {
		b, box, ok := parseBox(m.o.Name, s.subject)
		if !ok {
			m.stream.log.Warn("the mailbox holds what is no entry", "subject", s.subject)
			continue
		}
		i, known := at[box]
		if !known {
			i = len(boxes)
			at[box] = i
			b.Stream = stream
			boxes = append(boxes, b)
		}
		boxes[i].Entries += s.messages
	}
	slices.SortFunc(boxes, func(a, b bridge.Box) int { return cmp.Or(cmp.Compare(a.Hub, b.Hub), cmp.Compare(a.Device, b.Device)) })
	return boxes, nil
}

type subjectCount struct {
	subject  string
	messages uint64
}

// subjects counts the messages of each subject that matches, in the order of their subjects.
func (m *Mailbox) subjects(ctx context.Context, filter string) ([]subjectCount, error) {
	return allPages(func(offset int) (map[string]uint64, int, error) {
		body, err := json.Marshal(struct {
			Filter string `json:"subjects_filter"`
			Offset int    `json:"offset,omitempty"`
		}{filter, offset})
		if err != nil {
			panic(err) // plain fields
		}
		var page struct {
			Total int `json:"total"`
			State struct {
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		err = m.request(ctx, pageTimeout, "STREAM.INFO.", body, &page)
		return page.State.Subjects, page.Total, err
	})
}

// allPages puts a paged list together: the server gives at most 100,000 subjects at a time, of their sorted
// list. If one that was listed already is deleted between two pages, the rest moves up, and the next page
// would miss one, which would be a box that nobody knows of. So each page begins with the
// last subject of the one before, and if it is not there the list begins again.
func allPages(page func(offset int) (map[string]uint64, int, error)) ([]subjectCount, error) {
	const tries = 10
	for range tries {
		list, whole, err := tryPages(page)
		if err != nil || whole {
			return list, err
		}
	}
	return nil, errors.New("it changes all the time")
}

func tryPages(page func(offset int) (map[string]uint64, int, error)) (list []subjectCount, whole bool, _ error) {
	for {
		offset := max(len(list)-1, 0)
		got, total, err := page(offset)
		if err != nil {
			return nil, false, err
		}
		part := make([]subjectCount, 0, len(got))
		for subject, n := range got {
			part = append(part, subjectCount{subject, n})
		}
		slices.SortFunc(part, func(a, b subjectCount) int { return cmp.Compare(a.subject, b.subject) })
		if len(list) > 0 {
			last := list[len(list)-1]
			i, found := slices.BinarySearchFunc(part, last, func(a, b subjectCount) int { return cmp.Compare(a.subject, b.subject) })
			if !found {
				return nil, false, nil
			}
			part = part[i+1:]
		}
		list = append(list, part...)
		if len(list) >= total {
			return list, true, nil
		}
		if len(part) == 0 {
			return nil, false, nil
		}
	}
}
