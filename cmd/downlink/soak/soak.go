// Package soak runs a bridge, two relays, a hub and two NATS servers as processes,
// makes mischief with them, and then checks from what is durable that every
// promise was kept: no message lost, order, content, one fate each, receipts as
// the fates, repeats recognisable and bounded. docs/soak.md says what that proves.
package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Options are a run's. All but Sabotage and Progress are required.
type Options struct {
	Program string // the downlink binary
	Dir     string // where everything of the run goes; it exists and is empty
	Seed    uint64 // of what is published, and of the faults
	For     time.Duration
	Settle  time.Duration // how long everything may take to come to rest afterwards
	Rate    float64       // messages a second
	Devices int           // at least MinDevices
	Faults  []string      // some of FaultKinds; none: a calm run
	// Sabotage has the bridge break a promise, by name; "": none.
	Sabotage string
	// Progress is told of each step, in one line.
	Progress func(line string)
}

// MinDevices is how many devices a run needs for each part to be played.
const MinDevices = minDevices

// Run makes a run and reports on it. An error means that the run itself failed, or
// that ctx ended; broken promises are in the report. When it returns, no process of it is left.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	began := time.Now()
	say := func(format string, args ...any) {
		o.Progress(fmt.Sprintf("%6.1fs  ", time.Since(began).Seconds()) + fmt.Sprintf(format, args...))
	}
	s := &stage{o: o, dir: o.Dir, devices: cast(o.Devices), http: &http.Client{Transport: &http.Transport{}}}
	defer s.fall()
	if err := s.raise(ctx); err != nil {
		return nil, err
	}
	published := s.devices[:len(s.devices)-1] // all but the monitor
	t, closeTraffic, err := newTraffic(o, published, "nats://"+s.links["publisher-nats"].Addr(), s.file("published.jsonl"))
	if err != nil {
		return nil, err
	}
	defer closeTraffic()
	if err := t.createStreams(ctx); err != nil {
		return nil, err
	}
	for _, name := range []string{actorBridge, actorRelay, actorAway} {
		if err := s.start(ctx, name); err != nil {
			return nil, err
		}
	}
	say("all processes run; %d devices, %.0f messages a second, seed %d", o.Devices, o.Rate, o.Seed)

	m := &mischief{s: s, rand: rand.New(rand.NewPCG(o.Seed, 1)), say: say, busy: make(map[string]bool)}
	for _, f := range faultKinds {
		if slices.Contains(o.Faults, f.kind) {
			m.kinds = append(m.kinds, f)
		}
	}
	r := &Report{Seed: o.Seed, Sabotage: o.Sabotage, Devices: o.Devices, Rate: o.Rate}
	trafficBegan := time.Now()
	if err := disturb(ctx, o.For, t, m); err != nil {
		return nil, err
	}
	r.Duration = time.Since(trafficBegan) // a little longer than o.For, if something must be ended first
	say("%d messages published; settling", len(t.published()))

	settling := time.Now()
	unsettled := s.settle(ctx, o.Settle, say)
	r.Settled = time.Since(settling)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	surprise := errors.Join(s.surprise(), s.drain(ctx))
	reading, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	e, err := s.gather(reading)
	if err != nil {
		return nil, fmt.Errorf("checker: %w", err)
	}
	e.published, e.disturbances = t.published(), m.disturbances()
	say("read %d messages at the edge and %d of the hub's; checking", len(e.edge), len(e.copies))
	c := check(o.Seed, s.devices, e)
	if unsettled != nil {
		c.violate(ruleSettle, nil, "not at rest after %v: %v", o.Settle, unsettled)
	}
	if surprise != nil {
		c.violate(ruleProcess, nil, "%v", surprise)
	}
	s.mu.Lock()
	lives := slices.Clone(s.lives)
	s.mu.Unlock()
	r.fill(c, t.tries, lives)
	return r, nil
}

// disturb publishes and makes mischief for a while.
func disturb(ctx context.Context, long time.Duration, t *traffic, m *mischief) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	more, enough := context.WithTimeout(ctx, long)
	defer enough()
	mischiefEnded := make(chan error, 1)
	go func() {
		err := m.run(ctx, more)
		if err != nil {
			cancel() // the traffic may wait for what does not come back
		}
		mischiefEnded <- err
	}()
	err := t.run(ctx, more)
	if err != nil {
		cancel()
	}
	if other := <-mischiefEnded; other != nil {
		return other
	}
	return err
}

// rest is what settle looks at: nothing moves when it stays as it is.
type rest struct {
	AtSource, InMailbox, AtHub   int
	Dead, Edge, Mailbox, Receipt uint64
}

func (r rest) over() bool { return r.AtSource+r.InMailbox+r.AtHub == 0 }

const (
	// quiet is how long nothing may have moved: feedback is gathered for a second, receipts follow.
	quiet = 4 * time.Second
	// stuck is after how long without a movement the devices' connections are made new once more: a PUBACK
	// that was lost comes again only then, as at a real hub.
	stuck = 20 * time.Second
)

// settle ends all faults and waits until nothing moves and nothing is on the way.
func (s *stage) settle(ctx context.Context, limit time.Duration, say func(string, ...any)) error {
	deadline := time.Now().Add(limit)
	for _, l := range s.links {
		l.Up()
		l.Flow()
	}
	for name := range s.actors {
		if err := s.start(ctx, name); err != nil {
			return err
		}
	}
	if err := s.heal(ctx); err != nil {
		return err
	}
	s.reconnectDevices(ctx)
	cloud, done, err := connect(s.url(actorNATS))
	if err != nil {
		return err
	}
	defer done()
	edge, done, err := connect(s.url(actorEdge))
	if err != nil {
		return err
	}
	defer done()
	var last rest
	moved, nudged, told := time.Now(), time.Now(), time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := s.look(ctx, cloud, edge)
		if err == nil && now == last && now.over() && time.Since(moved) >= quiet {
			return nil
		}
		if err == nil && now != last {
			last, moved = now, time.Now()
		}
		if time.Since(told) > 10*time.Second {
			say("settling: %d at the source, %d in the mailbox, %d at the hub", last.AtSource, last.InMailbox, last.AtHub)
			told = time.Now()
		}
		if last.AtHub > 0 && time.Since(moved) > stuck && time.Since(nudged) > stuck {
			s.reconnectDevices(ctx)
			nudged = time.Now()
		}
		if crash := s.surprise(); crash != nil {
			return errors.New("a process has ended")
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("%d messages at the source, %d in the mailbox, %d at the hub", last.AtSource, last.InMailbox, last.AtHub))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reconnectDevices cuts each device's connection once.
func (s *stage) reconnectDevices(ctx context.Context) {
	for _, d := range s.devices {
		if d.atEdge() {
			_ = s.disconnect(ctx, d.id) // one that is not connected needs none
		}
	}
}

func (s *stage) look(ctx context.Context, cloud, edge jetstream.JetStream) (r rest, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for _, stream := range []string{streamCommands, streamAlerts} {
		n, err := progressOf(ctx, cloud, stream)
		if err != nil {
			return r, err
		}
		r.AtSource += n
	}
	var inMailbox uint64
	if inMailbox, r.Mailbox, err = stored(ctx, cloud, streamMailbox); err != nil {
		return r, err
	}
	r.InMailbox = int(inMailbox)
	if _, r.Dead, err = stored(ctx, cloud, streamDead); err != nil {
		return r, err
	}
	if _, r.Receipt, err = stored(ctx, cloud, streamReceipts); err != nil {
		return r, err
	}
	if _, r.Edge, err = stored(ctx, edge, streamEdge); err != nil {
		return r, err
	}
	r.AtHub, err = s.pending(ctx)
	return r, err
}

// drain ends bridge and relays in good order, so that nobody writes while the checker reads.
func (s *stage) drain(ctx context.Context) error {
	errs := make([]error, 3)
	var ending sync.WaitGroup
	for i, name := range []string{actorBridge, actorRelay, actorAway} {
		ending.Go(func() { errs[i] = s.end(ctx, name) })
	}
	ending.Wait()
	return errors.Join(errs...)
}
