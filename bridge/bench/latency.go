package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge/spread"
)

// LatencyRound is one run of each at the fixed rate. A message's latency is
// from its publication to the ack that follows the hub's answer.
type LatencyRound struct {
	Minimal Quantiles `json:"minimal"`
	Bridge  Quantiles `json:"bridge"`
}

// Quantiles are in milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
}

// Latency sums up the rounds.
type Latency struct {
	Rate       int            `json:"per_second"`
	Rounds     []LatencyRound `json:"rounds"`
	MinimalP50 spread.Spread  `json:"minimal_p50_ms"`
	MinimalP99 spread.Spread  `json:"minimal_p99_ms"`
	BridgeP50  spread.Spread  `json:"bridge_p50_ms"`
	BridgeP99  spread.Spread  `json:"bridge_p99_ms"`
	// Of each round: how much more the bridge took.
	MoreP50 spread.Spread `json:"more_p50_ms"`
	MoreP99 spread.Spread `json:"more_p99_ms"`
}

func (s *speed) latency(ctx context.Context) (*Latency, error) {
	l := &Latency{Rate: s.Rate}
	for i := range s.Pairs {
		var r LatencyRound
		var err error
		order := []string{"minimal", "bridge"}
		if i%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, part := range order {
			into := &r.Minimal
			if part == "bridge" {
				into = &r.Bridge
			}
			if *into, err = s.quantiles(ctx, part); err != nil {
				return nil, err
			}
		}
		l.Rounds = append(l.Rounds, r)
	}
	each := func(f func(LatencyRound) float64) spread.Spread { return spread.Each(l.Rounds, f) }
	l.MinimalP50 = each(func(r LatencyRound) float64 { return r.Minimal.P50 })
	l.MinimalP99 = each(func(r LatencyRound) float64 { return r.Minimal.P99 })
	l.BridgeP50 = each(func(r LatencyRound) float64 { return r.Bridge.P50 })
	l.BridgeP99 = each(func(r LatencyRound) float64 { return r.Bridge.P99 })
	l.MoreP50 = each(func(r LatencyRound) float64 { return r.Bridge.P50 - r.Minimal.P50 })
	l.MoreP99 = each(func(r LatencyRound) float64 { return r.Bridge.P99 - r.Minimal.P99 })
	return l, nil
}

// quantiles runs one process with messages that come at the fixed rate.
func (s *speed) quantiles(ctx context.Context, part string) (q Quantiles, err error) {
	w := s.world
	stream, err := w.stream(ctx, jetstream.MemoryStorage)
	if err != nil {
		return q, err
	}
	defer w.js.DeleteStream(context.WithoutCancel(ctx), stream) //nolint:errcheck // it goes with its server
	const first = 20                                            // they open what is opened on first use, and are not counted
	n := first + max(1, int(float64(s.Rate)*s.RateFor.Seconds()))
	acks, err := watchAcks(w.nc, stream, n)
	if err != nil {
		return q, err
	}
	defer acks.stop()
	spec, consumer := s.spec(part, stream)
	p, err := w.command.start(ctx, spec)
	if err != nil {
		return q, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()

	body, device := bytes.Repeat([]byte("x"), s.Body), inTurn(s.Devices)
	published := make([]time.Time, n)
	publish := func(i int) error {
		published[i] = time.Now()
		_, err := w.js.PublishMsgAsync(newCommand(stream, device(i), body), jetstream.WithStallWait(time.Minute))
		return err
	}
	for i := range first {
		if err := publish(i); err != nil {
			return q, err
		}
	}
	if err := acks.wait(ctx, first); err != nil {
		return q, err
	}
	if err := pace(ctx, s.Rate, n-first, func(i int) error { return publish(first + i) }); err != nil {
		return q, err
	}
	if err := acks.wait(ctx, n); err != nil {
		return q, err
	}
	if err := w.settled(ctx, stream, consumer); err != nil {
		return q, err
	}
	times := acks.since(published)[first:]
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	return Quantiles{P50: ms(spread.Quantile(times, 0.5)), P99: ms(spread.Quantile(times, 0.99))}, nil
}

// pace calls do n times, rate times a second on average from now on. What could not be
// done in time is made up for at once.
func pace(ctx context.Context, rate, n int, do func(i int) error) error {
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; i < n; {
		for ; i < n && float64(i) <= time.Since(begin).Seconds()*float64(rate); i++ {
			if err := do(i); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// acks are when the messages of a stream were acked first, seen by listening to
// the subjects that acks go to: it takes no part in the delivery.
type acks struct {
	sub *nats.Subscription

	mu    sync.Mutex
	at    []time.Time // by stream sequence - 1
	count int
}

// watchAcks watches the first n messages of a new stream.
func watchAcks(nc *nats.Conn, stream string, n int) (*acks, error) {
	a := &acks{at: make([]time.Time, n)}
	var err error
	// $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, as ADR-15 of NATS has it.
	a.sub, err = nc.Subscribe("$JS.ACK."+stream+".>", func(m *nats.Msg) {
		now := time.Now()
		tokens := strings.Split(m.Subject, ".")
		if len(tokens) != 9 || !bytes.HasPrefix(m.Data, []byte("+ACK")) && len(m.Data) > 0 {
			return
		}
		seq, err := strconv.Atoi(tokens[5])
		if err != nil || seq < 1 || seq > n {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.at[seq-1].IsZero() {
			a.at[seq-1] = now
			a.count++
		}
	})
	if err == nil {
		err = nc.Flush()
	}
	return a, err
}

func (a *acks) stop() { _ = a.sub.Unsubscribe() }

// wait waits for n acks.
func (a *acks) wait(ctx context.Context, n int) error {
	have := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.count
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not acked within a minute"))
	defer cancel()
	if err := poll(ctx, time.Millisecond, func() (bool, error) { return have() >= n, nil }); err != nil {
		return fmt.Errorf("%d of %d messages are acked: %w", have(), n, err)
	}
	return nil
}

// since is how long each took since it was published.
func (a *acks) since(published []time.Time) []time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]time.Duration, len(published))
	for i, p := range published {
		out[i] = a.at[i].Sub(p)
	}
	return out
}
