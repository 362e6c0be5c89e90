package soak

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Stored is what JetStream said of a publication.
type Stored struct {
	Stream   string    `json:"stream"`
	Sequence uint64    `json:"seq"`
	At       time.Time `json:"at"`    // when its ack came
	Tries    int       `json:"tries"` // publications until then
}

// traffic publishes each device's messages one after the other, and writes down
// what JetStream has acknowledged: that is the truth a run is checked against.
type traffic struct {
	seed    uint64
	devices []device // those that get messages
	rate    float64  // messages a second, all together
	js      jetstream.JetStream
	file    *os.File // a line of JSON for each

	mu    sync.Mutex
	all   []publication
	tries int
	err   error
}

// newTraffic connects through a link, whose address stays. The caller closes it.
func newTraffic(o Options, devices []device, url, file string) (*traffic, func(), error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(3), nats.RetryOnFailedConnect(true))
	if err != nil {
		return nil, nil, fmt.Errorf("publisher: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("publisher: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("publisher: %w", err)
	}
	t := &traffic{seed: o.Seed, devices: devices, rate: o.Rate, js: js, file: f}
	return t, func() { nc.Close(); _ = f.Close() }, nil
}

// createStreams makes the streams that are published to.
func (t *traffic) createStreams(ctx context.Context) error {
	for name, subject := range map[string]string{streamCommands: "cmd.>", streamAlerts: "alert.>"} {
		if _, err := t.js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{subject}, Duplicates: 10 * time.Minute}); err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
	}
	return nil
}

// run publishes until more is done, then waits until JetStream has what was begun. It
// fails only if ctx ends before that.
func (t *traffic) run(ctx, more context.Context) error {
	var publishers sync.WaitGroup
	shares := 0
	for _, d := range t.devices {
		shares += d.share()
	}
	for i, d := range t.devices {
		every := time.Duration(float64(time.Second) * float64(shares) / (t.rate * float64(d.share())))
		publishers.Go(func() { t.publish(ctx, more, d, rand.New(rand.NewPCG(t.seed, uint64(i))), every) })
	}
	publishers.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// share is a device's part of the traffic: more for those that are to fill their queue.
func (d device) share() int {
	if d.role == away {
		return 3
	}
	return 1
}

func (t *traffic) publish(ctx, more context.Context, d device, r *rand.Rand, every time.Duration) {
	next := time.Now().Add(time.Duration(r.Int64N(int64(every) + 1)))
	for n := 0; ; n++ {
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-more.Done():
			timer.Stop()
			return
		}
		// What could not be published in time is not caught up with: the rate is a rate.
		next = time.Now().Add(time.Duration(float64(every) * (0.5 + r.Float64())))
		p := publication{Key: fmt.Sprintf("%s/%d", d.name, n), Device: d.name, Number: n, Verb: pick(r).verb}
		if err := t.store(ctx, &p); err != nil {
			t.fail(err)
			return
		}
	}
}

func pick(r *rand.Rand) kind {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	n := r.IntN(sum)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	panic("unreachable: the weights were summed up")
}

// store publishes a message until JetStream has it, each time under the same ID.
func (t *traffic) store(ctx context.Context, p *publication) error {
	m := p.message(t.seed)
	for {
		trying, cancel := context.WithTimeout(ctx, 2*time.Second)
		ack, err := t.js.PublishMsg(trying, m, jetstream.WithMsgID(p.Key))
		cancel()
		p.Tries++
		if err == nil {
			p.Stream, p.Sequence, p.At = ack.Stream, ack.Sequence, time.Now()
			t.note(*p)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("publisher: %s: %w", p.Key, err)
		}
		pause := time.NewTimer(20 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

func (t *traffic) note(p publication) {
	line, err := json.Marshal(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries += p.Tries
	t.all = append(t.all, p)
	if err == nil {
		_, err = t.file.Write(append(line, '\n'))
	}
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("publisher: %w", err)
	}
}

func (t *traffic) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// published is what JetStream has acknowledged so far.
func (t *traffic) published() []publication {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[:len(t.all):len(t.all)]
}
