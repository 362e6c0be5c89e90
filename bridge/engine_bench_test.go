package bridge

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// benchSource yields messages made before the clock starts, and counts the acks.
type benchSource struct {
	in    []*benchDelivery
	next  int
	acked atomic.Int64
	done  chan struct{}
}

type benchDelivery struct {
	source *benchSource
	in     mapping.Input
}

func (d *benchDelivery) Message() *mapping.Input { return &d.in }

func (d *benchDelivery) Ack(context.Context) error {
	if d.source.acked.Add(1) == int64(len(d.source.in)) {
		close(d.source.done)
	}
	return nil
}

func (d *benchDelivery) Term(ctx context.Context, _ string) error { return d.Ack(ctx) }

func (s *benchSource) Name() string { return "COMMANDS" }

func (s *benchSource) Receive(ctx context.Context) (Delivery, error) {
	if s.next < len(s.in) {
		s.next++
		return s.in[s.next-1], nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// benchMapper maps to the device that the subject is.
type benchMapper struct{}

type benchMapped struct {
	results  [1]mapping.Result
	envelope mapping.Envelope
}

func (benchMapper) Map(in *mapping.Input) []mapping.Result {
	m := &benchMapped{envelope: mapping.Envelope{Route: "r", Hub: "main", Device: in.Subject, Body: in.Payload}}
	m.results[0] = mapping.Result{Route: "r", Envelope: &m.envelope}
	return m.results[:]
}

type benchSender struct{}

func (benchSender) Send(context.Context, *mapping.Envelope) error { return nil }

// BenchmarkEngine is what the engine alone costs a message: from a source that has it to its ack, with a
// hub that accepts at once.
func BenchmarkEngine(b *testing.B) {
	s := &benchSource{done: make(chan struct{})}
	for i := range b.N {
		s.in = append(s.in, &benchDelivery{source: s, in: mapping.Input{
			Subject: fmt.Sprintf("d%d", i%1000), Payload: make([]byte, 0), Stream: "COMMANDS", Sequence: uint64(i + 1), Time: time.Now(),
		}})
	}
	e, err := New(Options{
		Sources: []Source{s}, Mapper: benchMapper{}, DeadLetters: &fakeDeadLetters{}, Mailbox: worldMailbox{},
		Hubs: []HubOptions{{Name: "main", Sender: benchSender{}}},
	})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ReportAllocs()
	b.ResetTimer()
	go func() { ended <- e.Run(ctx) }()
	<-s.done
	b.StopTimer()
	cancel()
	require.NoError(b, <-ended)
}
