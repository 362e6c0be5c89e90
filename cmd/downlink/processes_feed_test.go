//go:build unix

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/cmd/downlink/soak"
)

func deviceID(d int) string { return "berlin-" + pump(d) }
func pump(d int) string     { return fmt.Sprintf("pump%02d", d) }

// content is message n of device d.
func content(d, n int) *nats.Msg {
	header, body := soak.Content(uint64(d), uint64(n))
	return &nats.Msg{Subject: "cmd.berlin." + pump(d) + ".set", Header: header, Data: body}
}

// feed publishes each device's messages in order, one after the other, as far as it
// is told, until JetStream has each of them.
type feed struct {
	l  *landscape
	mu sync.Mutex
	// changed wakes the publishers.
	changed *sync.Cond
	target  [pumps]int
	stored  [pumps][]uint64 // stream sequence of each message
	tries   int
}

func newFeed(l *landscape) *feed {
	f := &feed{l: l}
	f.changed = sync.NewCond(&f.mu)
	ctx, cancel := context.WithCancel(l.t.Context())
	var publishers sync.WaitGroup
	for d := range pumps {
		publishers.Go(func() { f.publish(ctx, d) })
	}
	l.t.Cleanup(func() {
		cancel()
		f.mu.Lock()
		f.changed.Broadcast()
		f.mu.Unlock()
		publishers.Wait()
	})
	return f
}

// to lets the devices from first to last, without last, have n messages.
func (f *feed) to(first, last, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for d := first; d < last; d++ {
		f.target[d] = n
	}
	f.changed.Broadcast()
}

// published is how many messages JetStream has acknowledged.
func (f *feed) published() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for d := range pumps {
		n += len(f.stored[d])
	}
	return n
}

func (f *feed) publish(ctx context.Context, d int) {
	for n := range perDevice {
		f.mu.Lock()
		for n >= f.target[d] && ctx.Err() == nil {
			f.changed.Wait()
		}
		f.mu.Unlock()
		// Tried again under the same ID until it is there: what was lost here would be the test's fault.
		for ctx.Err() == nil {
			sending, cancel := context.WithTimeout(ctx, 2*time.Second)
			ack, err := f.l.js.PublishMsg(sending, content(d, n), jetstream.WithMsgID(fmt.Sprintf("%d-%d", d, n)))
			cancel()
			f.mu.Lock()
			f.tries++
			if err == nil {
				f.stored[d] = append(f.stored[d], ack.Sequence)
			}
			f.mu.Unlock()
			if err == nil {
				break
			}
		}
	}
}
