package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"downlink/bridge"
	"downlink/bridge/app"
	"downlink/mapping"
)

// sabotages break the bridge on purpose, each in its own way, to prove that a soak
// would notice. They stand between the engine and its parts in the bridge that a soak
// starts, and nowhere else; the engine knows nothing of them.
var sabotages = map[string]func(*app.Options){
	"ack-early": func(o *app.Options) { o.Source = ackEarly },
	"swap":      func(o *app.Options) { o.Sender = func(s bridge.Sender) bridge.Sender { return &swapper{Sender: s} } },
	"drop":      func(o *app.Options) { o.Sender = func(s bridge.Sender) bridge.Sender { return &dropper{Sender: s} } },
	"repeat-silently": func(o *app.Options) {
		o.Sender = func(s bridge.Sender) bridge.Sender { return &repeater{Sender: s} }
	},
}

// sabotageEvery is how many messages go well between two that do not.
const sabotageEvery = 25

func sabotageNames() string {
	var names []string
	for name := range sabotages {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// ackEarly acks each message at its source before the hub's answer: what a kill finds in the bridge's hands is lost.
func ackEarly(s bridge.Source) bridge.Source {
	early := earlySource{s}
	if owned, ok := s.(bridge.Owned); ok {
		return ownedEarlySource{early, owned}
	}
	return early
}

type earlySource struct{ bridge.Source }

type ownedEarlySource struct {
	earlySource
	bridge.Owned
}

func (s earlySource) Receive(ctx context.Context) (bridge.Delivery, error) {
	d, err := s.Source.Receive(ctx)
	if err != nil {
		return nil, err
	}
	_ = d.Ack(ctx)
	return earlyDelivery{d}, nil
}

type earlyDelivery struct{ bridge.Delivery }

func (earlyDelivery) Ack(context.Context) error          { return nil }
func (earlyDelivery) Term(context.Context, string) error { return nil }

// swapper sends a message of a device after the one that follows it.
type swapper struct {
	bridge.Sender
	mu   sync.Mutex
	n    int
	late map[string]*mapping.Envelope // by device
}

func (s *swapper) Send(ctx context.Context, e *mapping.Envelope) error {
	s.mu.Lock()
	late := s.late[e.Device]
	if late == nil {
		if s.n++; s.n%sabotageEvery == 0 {
			if s.late == nil {
				s.late = make(map[string]*mapping.Envelope)
			}
			s.late[e.Device] = e
			s.mu.Unlock()
			return nil
		}
	}
	s.mu.Unlock()
	err := s.Sender.Send(ctx, e)
	if err != nil || late == nil {
		return err
	}
	s.mu.Lock()
	delete(s.late, e.Device)
	s.mu.Unlock()
	for range 3 {
		if s.Sender.Send(ctx, late) == nil {
			break
		}
	}
	return nil
}

// dropper tells the engine that the hub accepted a message which it never got.
type dropper struct {
	bridge.Sender
	n atomic.Int64
}

func (s *dropper) Send(ctx context.Context, e *mapping.Envelope) error {
	if s.n.Add(1)%sabotageEvery == 0 {
		return nil
	}
	return s.Sender.Send(ctx, e)
}

// repeater sends a message again under another message ID, so that nothing at the edge recognises it.
type repeater struct {
	bridge.Sender
	n atomic.Int64
}

func (s *repeater) Send(ctx context.Context, e *mapping.Envelope) error {
	if err := s.Sender.Send(ctx, e); err != nil {
		return err
	}
	if s.n.Add(1)%sabotageEvery == 0 {
		again := *e
		again.MessageID += "-again"
		_ = s.Sender.Send(ctx, &again)
	}
	return nil
}
