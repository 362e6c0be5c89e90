//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func deviceID(d int) string { return "berlin-" + pump(d) }
func pump(d int) string     { return fmt.Sprintf("pump%02d", d) }

// content makes message n of device d: headers that are awkward and legal, and a body.
func content(d, n int) *nats.Msg {
	r := rand.New(rand.NewPCG(uint64(d), uint64(n)))
	m := &nats.Msg{Subject: "cmd.berlin." + pump(d) + ".set", Header: nats.Header{
		"X-Number":             {strconv.Itoa(n)},
		"X-Percent":            {"100% %41 %zz %25 50%"},
		"X-Unicode":            {"Grüße, 世界 ñ e\u0301 \U0001F680 " + strconv.Itoa(r.IntN(1e6))},
		"X-Marks":              {`a=b&c=d;e/f?g#h+i,"j"'k'\l|m<n>:~ $.x`},
		"X-Tab":                {"a\tb  c"},
		"X-Empty":              {""},
		"X-case":               {"lower"},
		"X-CASE":               {"upper"},
		"X-%41!#$&'*+.^_`|~-7": {"a name"},
	}}
	if n%5 == 0 {
		alphabet := []rune("abc XYZ%+&=/ äß世\U0001F680")
		var long strings.Builder
		for range 500 + r.IntN(1500) {
			long.WriteRune(alphabet[r.IntN(len(alphabet))])
		}
		m.Header["X-Long"] = []string{strings.Trim(long.String(), " ")}
	}
	size := r.IntN(500)
	switch n % 20 {
	case 3, 13:
		size = 0
	case 7:
		size = 40_000 + r.IntN(2_000)
	}
	m.Data = make([]byte, size)
	if n%10 == 5 {
		return m // all of it 0
	}
	for i := range m.Data {
		m.Data[i] = byte(r.Uint32())
	}
	return m
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
