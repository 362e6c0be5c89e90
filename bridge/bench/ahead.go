package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Ahead is how long one message waits behind very many of another device. The
// bridge reads a stream in order, so it must read past those first, and put
// away what it cannot send: that is what the message may wait for, and no more.
type Ahead struct {
	Messages int  `json:"messages_ahead"`
	Arrived  bool `json:"arrived"` // within the limit
	// Delay is from the start of the bridge's process until the hub had the message; the limit if it did not arrive.
	Delay time.Duration `json:"delay_ns"`
	// ReadPast is until the bridge had read the message, and Spill the rate at which it read to there.
	ReadPast time.Duration `json:"read_past_ns"`
	Spill    float64       `json:"spill_per_second"`
	// More is what Delay has beyond ReadPast: nothing explains that.
	More time.Duration `json:"more_ns"`
	// Copy is how fast a loop copies the same messages from stream to stream here, each acked once it is stored.
	Copy float64 `json:"plain_copy_per_second"`
	// Sent is how many of the messages ahead the hub had by the end.
	Sent int `json:"sent_meanwhile"`
}

func (o *IsolationOptions) ahead(ctx context.Context) (a *Ahead, err error) {
	w, err := newWorld(ctx, o.Command)
	if err != nil {
		return nil, err
	}
	defer w.close()
	const heavy, light = "heavy", "light"
	spec := HubSpec{
		DataDir: filepath.Join(w.dir, "hub"), Devices: site([]string{heavy, light}), Credit: 1000, Units: hubUnits, Virtual: []string{"*=complete"},
	}
	hub, address, err := spec.open()
	if err != nil {
		return nil, err
	}
	defer hub.Close()
	stream, err := w.stream(ctx, jetstream.FileStorage)
	if err != nil {
		return nil, err
	}
	last := func(i int) string {
		if i == o.Ahead {
			return light
		}
		return heavy
	}
	if err := w.fill(ctx, stream, o.Ahead+1, 256, last); err != nil {
		return nil, err
	}
	a = &Ahead{Messages: o.Ahead}
	if a.Copy, err = w.copyRate(ctx, stream, min(o.Ahead, 100_000)); err != nil {
		return nil, err
	}

	begin := time.Now() // a bridge reads before it is ready in every respect
	p, err := o.Command.start(ctx, Spec{Part: "bridge", Bridge: bridgeConfig(w.nats.ready.URL, address, 512, hubRate, stream, "")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	limit := errors.New("not within the limit")
	waiting, cancel := context.WithTimeoutCause(ctx, o.AheadLimit, limit)
	defer cancel()
	var read uint64
	var asked time.Time
	err = poll(waiting, time.Millisecond, func() (bool, error) {
		there := hub.Counts("berlin-"+light).Accepted > 0
		if there {
			a.Arrived, a.Delay = true, time.Since(begin)
		}
		if now := time.Now(); a.ReadPast == 0 && (there || now.Sub(asked) > 20*time.Millisecond) {
			asked = now
			c, err := w.js.Consumer(waiting, stream, bridgeConsumer)
			if err != nil {
				return false, err
			}
			if read = c.CachedInfo().Delivered.Stream; read > uint64(o.Ahead) {
				a.ReadPast = time.Since(begin)
			}
		}
		return there, nil
	})
	if err != nil && (ctx.Err() != nil || context.Cause(waiting) == nil) {
		return nil, err
	}
	a.Sent = int(hub.Counts("berlin-" + heavy).Accepted)
	if !a.Arrived {
		a.Delay = time.Since(begin)
	}
	if a.ReadPast == 0 {
		a.ReadPast = a.Delay
	}
	a.ReadPast = min(a.ReadPast, a.Delay)
	a.Spill, a.More = float64(min(read, uint64(o.Ahead)))/a.ReadPast.Seconds(), a.Delay-a.ReadPast
	return a, nil
}

// copyRate copies the first n messages of a stream to another of this server.
func (w *world) copyRate(ctx context.Context, stream string, n int) (perSecond float64, err error) {
	to, err := w.stream(ctx, jetstream.FileStorage)
	if err != nil {
		return 0, err
	}
	from, err := w.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: "copy", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 4096})
	if err != nil {
		return 0, err
	}
	messages, err := from.Messages(jetstream.PullMaxMessages(1024))
	if err != nil {
		return 0, err
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	type copied struct {
		of     jetstream.Msg
		stored jetstream.PubAckFuture
	}
	way := make(chan copied, 1024)
	done := make(chan error, 1)
	go func() {
		var failed error
		for c := range way {
			select {
			case <-c.stored.Ok():
				failed = errors.Join(failed, c.of.Ack())
			case err := <-c.stored.Err():
				failed = errors.Join(failed, err)
			}
		}
		done <- failed
	}()
	begin := time.Now()
	subject := newCommand(to, "heavy", nil).Subject
	for range n {
		m, next := messages.Next()
		if err = next; err != nil {
			break
		}
		future, publish := w.js.PublishMsgAsync(&nats.Msg{Subject: subject, Header: m.Headers(), Data: bytes.Clone(m.Data())}, jetstream.WithStallWait(time.Minute))
		if err = publish; err != nil {
			break
		}
		way <- copied{m, future}
	}
	close(way)
	if err = errors.Join(err, <-done); err != nil {
		return 0, fmt.Errorf("copying from stream to stream: %w", err)
	}
	took := time.Since(begin)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return float64(n) / took.Seconds(), errors.Join(w.js.DeleteConsumer(ctx, stream, "copy"), w.js.DeleteStream(ctx, to))
}
