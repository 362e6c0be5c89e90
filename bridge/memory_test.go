package bridge

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// boxful is a mailbox in which every device of one stream has entries of 1 KB, made when they are read.
type boxful struct {
	devices int
	reads   atomic.Uint64
}

func (m *boxful) Boxes(context.Context, string) ([]Box, error) {
	boxes := make([]Box, m.devices)
	for i := range boxes {
		boxes[i] = Box{Hub: "main", Device: fmt.Sprintf("device-%09d", i), Stream: "COMMANDS", Entries: 10}
	}
	return boxes, nil
}

func (m *boxful) Next(_ context.Context, b Box, above uint64) (*Parcel, error) {
	n := m.reads.Add(1)
	body := make([]byte, 1024)
	return &Parcel{
		Entry: above + 1 + n, At: time.Now(),
		Envelope: &mapping.Envelope{Device: b.Device, Hub: b.Hub, Route: "r", MessageID: fmt.Sprint(n), Body: body},
		Message:  &mapping.Input{Stream: b.Stream, Sequence: n, Payload: body},
	}, nil
}

func (*boxful) Append(context.Context, *Parcel) (bool, error) { panic("nothing is appended") }
func (*boxful) Delete(context.Context, uint64) error          { panic("nothing is deleted") }
func (*boxful) Waiting(context.Context, Box, string, uint64) ([]*Parcel, error) {
	return nil, nil
}

type fullHub struct{ tries sync.Map }

func (f *fullHub) Send(_ context.Context, e *mapping.Envelope) error {
	f.tries.LoadOrStore(e.Device, true)
	return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
}

// ownedSource is a source that is ours and has nothing new.
type ownedSource struct{ *fakeSource }

func (ownedSource) Own(ctx context.Context) error { return ctx.Err() }
func (ownedSource) Held() bool                    { return true }

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A hundred thousand devices with messages in the mailbox, none of which has room: each costs less than 1 KB.
func TestMemoryOfAWaitingDevice(t *testing.T) {
	const devices = 100_000
	before := heapBytes()
	hub := &fullHub{}
	b, err := New(Options{
		Sources: []Source{ownedSource{newFakeSource()}}, Mapper: bySubject{}, DeadLetters: &fakeDeadLetters{}, Mailbox: &boxful{devices: devices},
		Hubs: []HubOptions{{Name: "main", Sender: hub}},
	})
	require.NoError(t, err)
	h := b.hubs["main"]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	// The guess at a used up quota would let the devices be tried one by one; each of them is known to be full here.
	require.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.gate.open()
		clear(h.gate.streak)
		h.gate.fresh = false
		h.dispatch()
		return len(h.lanes) == devices && len(h.probes.lanes) == devices && h.inFlight == 0
	}, 5*time.Minute, time.Millisecond)
	hub.tries.Clear()
	each := (float64(heapBytes()) - float64(before)) / devices // what others leave behind may make it less than before
	t.Logf("%.0f bytes a device", each)
	require.Less(t, each, 1024.)
	cancel()
	require.NoError(t, <-done)
}
