package journal

import (
	"cmp"
	"io"
	"slices"
	"time"

	"downlink/bridge/emulator/c2d"
)

// State is what a hub had not finished when its journal ends.
type State struct {
	// Queues has every device that ever got a message.
	Queues map[string]*Queue
	// Untold are the ends of messages whose feedback was not read, in the order of their ends; whether
	// their senders asked for it is in Ack.
	Untold []Untold
}

// Queue is a device's queue.
type Queue struct {
	Last    uint64        // sequence number of its newest message
	Pending []c2d.Pending // by sequence number
}

// Untold is an end that its sender may not know of.
type Untold struct {
	Device    string
	Sequence  uint64
	MessageID string
	Ack       string
	Outcome   string
	At        time.Time
}

type place struct {
	device   string
	sequence uint64
}

func readState(r io.Reader) (s *State, whole int64, err error) {
	s = &State{Queues: make(map[string]*Queue)}
	pending := make(map[place]*c2d.Pending)
	untold := make(map[place]*Untold)
	var order []place // of the ends
	whole, err = read(r, func(e Event, err error) bool {
		if err != nil {
			return false
		}
		at := place{e.Device, e.Sequence}
		switch e.Kind {
		case Accepted:
			q := s.Queues[e.Device]
			if q == nil {
				q = &Queue{}
				s.Queues[e.Device] = q
			}
			q.Last = max(q.Last, e.Sequence)
			pending[at] = &c2d.Pending{Message: e.Message.c2d(), Sequence: e.Sequence, Enqueued: e.At, Expires: e.Expires}
		case Delivered:
			if p := pending[at]; p != nil {
				p.Deliveries++
			}
		case Ended:
			if p := pending[at]; p != nil {
				untold[at] = &Untold{
					Device: e.Device, Sequence: e.Sequence, MessageID: p.Message.MessageID, Ack: p.Message.Ack, Outcome: e.Outcome, At: e.At,
				}
				order = append(order, at)
			}
			delete(pending, at)
		case Told:
			delete(untold, at)
		}
		return true
	})
	for at, p := range pending {
		q := s.Queues[at.device]
		q.Pending = append(q.Pending, *p)
	}
	for _, q := range s.Queues {
		slices.SortFunc(q.Pending, func(a, b c2d.Pending) int { return cmp.Compare(a.Sequence, b.Sequence) })
	}
	for _, at := range order {
		if u := untold[at]; u != nil {
			s.Untold = append(s.Untold, *u)
		}
	}
	return s, whole, err
}

// c2d is the message as the store keeps it; an event without one, which we never write, is an empty one.
func (m *Message) c2d() *c2d.Message {
	if m == nil {
		m = &Message{}
	}
	return &c2d.Message{
		To: m.To, MessageID: m.MessageID, CorrelationID: m.CorrelationID, UserID: m.UserID, ContentType: m.ContentType,
		ContentEncoding: m.ContentEncoding, ExpiresAt: m.ExpiresAt, Ack: m.Ack, Properties: m.Properties, Body: m.Body,
	}
}
