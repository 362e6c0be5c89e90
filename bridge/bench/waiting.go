package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// WaitingOptions say what Waiting measures. Zero values have defaults, except that of Messages.
type WaitingOptions struct {
	Command  Command // how to start this binary as a Part
	Messages int
	Devices  int           // that they are for, in turn; default 1000
	Body     int           // bytes; default 256
	Window   int           // default 512
	Limit    time.Duration // until the bridge reads no more; default 10m
	Still    time.Duration // how long it must have done nothing to count as having read all it reads; default 5s
}

// WaitingResult is the bridge's memory while messages wait.
type WaitingResult struct {
	Messages int `json:"messages"`
	Devices  int `json:"devices"`
	Body     int `json:"body_bytes"`
	// Where the messages are: read and unacked; acked and in the mailbox; not read yet.
	Held   int `json:"held"`
	Parked int `json:"parked"`
	Unread int `json:"unread"`
	// WaitingDevices have a message that is held or parked: the bridge knows of them.
	WaitingDevices int   `json:"waiting_devices"`
	RSSBefore      int64 `json:"rss_before_bytes"` // with nothing to do
	RSS            int64 `json:"rss_bytes"`
	Peak           int64 `json:"peak_rss_bytes"`
	HeapBefore     int64 `json:"heap_before_bytes"`
	Heap           int64 `json:"heap_bytes"`
	// PerDevice is what RSS grew by, over WaitingDevices; PeakPerDevice the same of Peak.
	PerDevice     float64       `json:"bytes_per_waiting_device"`
	PeakPerDevice float64       `json:"peak_bytes_per_waiting_device"`
	Took          time.Duration `json:"took_ns"` // until the bridge read no more
}

// Check fills in defaults, and names the first option that is out of range.
func (o *WaitingOptions) Check() error {
	for _, f := range []struct {
		name         string
		value        *int
		normal, most int
	}{
		{"waiting", &o.Messages, 0, 100_000_000}, {"waiting-devices", &o.Devices, 1000, 1_000_000},
		{"body", &o.Body, 256, 60_000}, {"window", &o.Window, 512, 2000},
	} {
		if *f.value == 0 {
			*f.value = f.normal
		}
		if *f.value < 1 || *f.value > f.most {
			return fmt.Errorf("%s: %d is not from 1 to %d", f.name, *f.value, f.most)
		}
	}
	if o.Limit == 0 {
		o.Limit = 10 * time.Minute
	}
	if o.Still <= 0 {
		o.Still = 5 * time.Second
	}
	if o.Limit < 0 {
		return fmt.Errorf("waiting-limit: %v is below 0", o.Limit)
	}
	return nil
}

// Waiting fills a stream while the bridge runs and the hub throttles every send,
// and measures the bridge's memory once it has taken in all that it takes.
func Waiting(ctx context.Context, o WaitingOptions) (*WaitingResult, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	w, err := newWorld(ctx, o.Command)
	if err != nil {
		return nil, err
	}
	defer w.close()
	hub, err := o.Command.start(ctx, Spec{Part: "hub", Hub: &HubSpec{
		DataDir: filepath.Join(w.dir, "hub"), AnyDevice: true, Virtual: []string{"*=complete"}, Credit: 4 * o.Window,
		Faults: []string{"transfer=throttle,times=always"},
	}})
	if err != nil {
		return nil, err
	}
	defer hub.stop()
	stream, err := w.stream(ctx, jetstream.FileStorage)
	if err != nil {
		return nil, err
	}
	p, err := o.Command.start(ctx, Spec{Part: "bridge", Bridge: bridgeConfig(w.nats.ready.URL, hub.ready.Hub, o.Window, 0, stream, "")})
	if err != nil {
		return nil, err
	}
	defer p.stop()
	before, err := p.stat(ctx)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := w.fill(ctx, stream, o.Messages, o.Body, inTurn(o.Devices)); err != nil {
		return nil, err
	}
	r := &WaitingResult{Messages: o.Messages, Devices: o.Devices, Body: o.Body, RSSBefore: before.RSS, HeapBefore: before.Heap}
	if err := r.still(ctx, w, stream, o); err != nil {
		return nil, err
	}
	r.Took = max(0, time.Since(begin)-o.Still)
	after, err := p.stat(ctx)
	if err != nil {
		return nil, err
	}
	r.RSS, r.Peak, r.Heap = after.RSS, after.Peak, after.Heap
	r.WaitingDevices = min(o.Devices, r.Held+r.Parked)
	if n := float64(r.WaitingDevices); n > 0 {
		r.PerDevice, r.PeakPerDevice = float64(r.RSS-r.RSSBefore)/n, float64(r.Peak-r.RSSBefore)/n
	}
	return r, p.stop()
}

// still waits until the bridge has neither read nor parked anything for a while.
func (r *WaitingResult) still(ctx context.Context, w *world, stream string, o WaitingOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, errors.New("the bridge reads on for longer than it may"))
	defer cancel()
	since := time.Now()
	short := 0 // polls in a row
	return poll(ctx, 100*time.Millisecond, func() (bool, error) {
		c, err := w.js.Consumer(ctx, stream, bridgeConsumer)
		if err != nil {
			return false, err
		}
		i := c.CachedInfo()
		held, unread := i.NumAckPending, int(i.NumPending)
		if held != r.Held || unread != r.Unread {
			since = time.Now()
		}
		r.Held, r.Unread, r.Parked = held, unread, r.Messages-held-unread
		if r.Parked <= 0 {
			short = 0
		} else {
			// What is acked must be in the mailbox: the hub took nothing.
			kept, err := stored(ctx, w.js, strings.ToUpper(bridgeName)+"_MAILBOX")
			if err != nil {
				return false, fmt.Errorf("%d messages are acked: mailbox: %w", r.Parked, err)
			}
			// Held and unread messages are counts of a consumer under way, which need not fit each other at every moment: two seconds count.
			if kept >= r.Parked {
				short = 0
			} else if short++; short < 20 {
				return false, nil
			} else {
				return false, fmt.Errorf("%d messages are acked, and %d are in the mailbox", r.Parked, kept)
			}
		}
		return time.Since(since) > o.Still, nil
	})
}

// stored is how many messages a stream holds.
func stored(ctx context.Context, js jetstream.JetStream, stream string) (int, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return int(s.CachedInfo().State.Msgs), nil
}
