package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// delays takes a third of what the engine waits for a while, before it has an effect or after.
type delays struct {
	mu   sync.Mutex
	rnd  *rand.Rand
	most time.Duration
}

func (d *delays) one(ctx context.Context) {
	d.mu.Lock()
	var wait time.Duration
	if d.rnd.IntN(3) == 0 {
		wait = time.Duration(d.rnd.Int64N(int64(d.most)))
	}
	d.mu.Unlock()
	if wait > 0 {
		sleep(ctx, wait)
	}
}

type delayedSource struct {
	*process
	*delays
}

func (s delayedSource) Receive(ctx context.Context) (Delivery, error) {
	d, err := s.process.Receive(ctx)
	if err != nil {
		return nil, err
	}
	return delayedAck{d.(*worldDelivery), s.delays}, nil
}

type delayedAck struct {
	*worldDelivery
	*delays
}

func (d delayedAck) Redelivered() bool { return false } // nobody was there before

func (d delayedAck) Ack(ctx context.Context) error {
	d.one(ctx)
	defer d.one(ctx)
	return d.worldDelivery.Ack(ctx)
}

func (d delayedAck) Term(ctx context.Context, _ string) error { return d.Ack(ctx) }

type delayedMailbox struct {
	Mailbox
	*delays
}

func (m delayedMailbox) Append(ctx context.Context, q *Parcel) (bool, error) {
	m.one(ctx)
	defer m.one(ctx)
	return m.Mailbox.Append(ctx, q)
}

func (m delayedMailbox) Next(ctx context.Context, b Box, above uint64) (*Parcel, error) {
	m.one(ctx)
	defer m.one(ctx)
	return m.Mailbox.Next(ctx, b, above)
}

func (m delayedMailbox) Delete(ctx context.Context, entry uint64) error {
	m.one(ctx)
	defer m.one(ctx)
	return m.Mailbox.Delete(ctx, entry)
}

type delayedHub struct {
	Sender
	*delays
}

func (h delayedHub) Send(ctx context.Context, e *mapping.Envelope) error {
	h.one(ctx)
	defer h.one(ctx)
	return h.Sender.Send(ctx, e)
}

// One process, whose link to the hub and whose source are never lost, sends nothing twice, however long each step takes
// and whether an append's answer gets lost: lanes spill, drain and spill again all the while. And the order is kept.
func TestNothingTwiceWithoutALoss(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) { nothingTwice(t, seed) })
	}
}

func nothingTwice(t *testing.T, seed uint64) {
	w, rnd, fault := newWorld(), rand.New(rand.NewPCG(seed, 5)), rand.New(rand.NewPCG(seed, 6))
	d := &delays{rnd: rand.New(rand.NewPCG(seed, 7)), most: []time.Duration{3, 30, 300}[seed%3] * time.Millisecond}
	w.flaky = func() bool { return seed%2 == 1 && fault.IntN(10) == 0 }
	w.huge = func(q *Parcel) bool { return strings.HasSuffix(q.Message.Subject, "huge") }
	p := w.run(t, func(o *Options) {
		o.MaxHeld = 120
		o.Mapper = by(func(in *mapping.Input, e *mapping.Envelope) {
			switch {
			case strings.HasSuffix(in.Subject, "coalesce"):
				e.Coalesce, e.Receipts = "key", true
			case strings.HasSuffix(in.Subject, "unordered"):
				e.Unordered = true
			case strings.HasSuffix(in.Subject, "ttl"):
				e.ExpiresAt = in.Time.Add(20 * time.Second)
			}
		})
		o.Sources[0] = delayedSource{o.Sources[0].(*process), d}
		o.Mailbox = delayedMailbox{o.Mailbox, d}
		o.Hubs[0].Sender = delayedHub{o.Hubs[0].Sender, d}
	})
	flags := []string{"plain", "plain", "plain", "plain", "coalesce", "unordered", "ttl", "huge"}
	if seed%4 < 2 {
		flags = flags[:1]
	}
	for i := range 600 {
		to := fmt.Sprintf("cmd.d%d", rnd.IntN(3))
		if rnd.IntN(12) == 0 {
			to = "both.x"
		}
		w.publish(to+"."+flags[rnd.IntN(len(flags))], fmt.Sprintf("%04d", i))
		if rnd.IntN(10) == 0 {
			device := []string{"d0", "d1", "d2", "a", "b"}[rnd.IntN(5)]
			w.set(func() { w.full[device] = rnd.IntN(2) == 0 })
			p.Freed("main", device)
		}
		if rnd.IntN(30) == 0 {
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		}
	}
	w.set(func() { clear(w.full) })
	w.quiet(t, fmt.Sprintf("seed %d", seed))
	seen, last := map[string]bool{}, map[string]string{}
	for _, s := range w.hub {
		require.False(t, seen[s.device+s.name], "seed %d: %s has %s twice", seed, s.device, s.name)
		seen[s.device+s.name] = true
		i, err := strconv.Atoi(s.name)
		require.NoError(t, err)
		if !strings.HasSuffix(w.log[i].Subject, "unordered") {
			require.Greater(t, s.name, last[s.device], "seed %d: %s", seed, s.device)
			last[s.device] = s.name
		}
	}
	if len(flags) == 1 {
		want := 0
		for _, in := range w.log {
			want += len(bySubject{}.Map(&in))
		}
		require.Len(t, seen, want, "seed %d", seed)
	}
	p.stop(t)
}
