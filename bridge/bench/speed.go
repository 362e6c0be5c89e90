package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge/spread"
	"downlink/bridge/tcplink"
)

// SpeedOptions say what Speed measures. Zero values have defaults, except those of Rate, HubDelay and Profiles.
type SpeedOptions struct {
	Command  Command // how to start this binary as a Part
	Messages int     // that wait in the stream when a run begins; default 100,000
	Devices  int     // that they go to in turn; default 1000
	Pairs    int     // runs of each; default 7
	Body     int     // bytes; default 256
	Window   int     // sends in flight; default 512
	// Rate is messages a second for the latency; 0: it is not measured.
	Rate    int
	RateFor time.Duration // of one latency run; default 3s
	// HubDelay makes the round trip to the hub so much longer, in a second set of runs; 0: no such runs.
	HubDelay time.Duration
	// Profiles is a directory for CPU profiles of bridge and minimal loop, of the last pair; none: no profiles.
	Profiles string
	// Progress is told of each round; nil is fine.
	Progress func(Round)
}

// Leg is one run.
type Leg struct {
	Rate float64 `json:"per_second"`
	CPU  float64 `json:"cpu_us_per_message"` // of the process that moves the messages alone
	Peak int64   `json:"peak_rss_bytes"`     // of that process since it started
}

// Round is one run of each, right after each other. The order turns round every time.
type Round struct {
	Raw     Leg `json:"raw"`
	Minimal Leg `json:"minimal"`
	Bridge  Leg `json:"bridge"`
}

// Comparison sums up rounds.
type Comparison struct {
	Rounds        []Round       `json:"rounds"`
	Raw           spread.Spread `json:"raw_per_second"`
	Minimal       spread.Spread `json:"minimal_per_second"`
	Bridge        spread.Spread `json:"bridge_per_second"`
	RawCPU        spread.Spread `json:"raw_cpu_us"`
	MinimalCPU    spread.Spread `json:"minimal_cpu_us"`
	BridgeCPU     spread.Spread `json:"bridge_cpu_us"`
	Throughput    spread.Spread `json:"bridge_to_minimal_throughput"`
	CPU           spread.Spread `json:"bridge_to_minimal_cpu"`
	MinimalToRaw  spread.Spread `json:"minimal_to_raw_throughput"`
	Peak          spread.Spread `json:"bridge_peak_rss_bytes"`
	PeakOfMinimal spread.Spread `json:"minimal_peak_rss_bytes"`
}

func compare(rounds []Round) Comparison {
	each := func(f func(Round) float64) spread.Spread { return spread.Each(rounds, f) }
	return Comparison{
		Rounds:        rounds,
		Raw:           each(func(r Round) float64 { return r.Raw.Rate }),
		Minimal:       each(func(r Round) float64 { return r.Minimal.Rate }),
		Bridge:        each(func(r Round) float64 { return r.Bridge.Rate }),
		RawCPU:        each(func(r Round) float64 { return r.Raw.CPU }),
		MinimalCPU:    each(func(r Round) float64 { return r.Minimal.CPU }),
		BridgeCPU:     each(func(r Round) float64 { return r.Bridge.CPU }),
		Throughput:    each(func(r Round) float64 { return ratio(r.Bridge.Rate, r.Minimal.Rate) }),
		CPU:           each(func(r Round) float64 { return ratio(r.Bridge.CPU, r.Minimal.CPU) }),
		MinimalToRaw:  each(func(r Round) float64 { return ratio(r.Minimal.Rate, r.Raw.Rate) }),
		Peak:          each(func(r Round) float64 { return float64(r.Bridge.Peak) }),
		PeakOfMinimal: each(func(r Round) float64 { return float64(r.Minimal.Peak) }),
	}
}

// ratio is 0 where there is nothing to compare with, which JSON can say.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Far is what a hub that is farther away costs.
type Far struct {
	Delay time.Duration `json:"delay_ns"`
	// Bound is what a window can carry: so many messages a round trip of Delay.
	Bound float64 `json:"window_bound_per_second"`
	// Explained is the bound, or what the bridge does with the hub near, whichever is less.
	Explained float64 `json:"explained_per_second"`
	// OfExplained is what the bridge did of that.
	OfExplained spread.Spread `json:"bridge_to_explained"`
	Comparison
}

// SpeedResult is what Speed measured.
type SpeedResult struct {
	Messages int        `json:"messages"`
	Devices  int        `json:"devices"`
	Body     int        `json:"body_bytes"`
	Window   int        `json:"window"`
	Near     Comparison `json:"near"`
	Latency  *Latency   `json:"latency,omitempty"`
	Far      *Far       `json:"far,omitempty"`
}

// Check fills in defaults, and names the first option that is out of range.
func (o *SpeedOptions) Check() error {
	if o.RateFor == 0 {
		o.RateFor = 3 * time.Second
	}
	for _, f := range []struct {
		name         string
		value        *int
		normal, most int
	}{
		{"messages", &o.Messages, 100_000, 100_000_000}, {"devices", &o.Devices, 1000, 1_000_000}, {"pairs", &o.Pairs, 7, 1000},
		{"body", &o.Body, 256, 60_000}, {"window", &o.Window, 512, 2000},
	} {
		if *f.value == 0 {
			*f.value = f.normal
		}
		if *f.value < 1 || *f.value > f.most {
			return fmt.Errorf("%s: %d is not from 1 to %d", f.name, *f.value, f.most)
		}
	}
	switch {
	case o.Messages < 100:
		return fmt.Errorf("messages: %d are too few to measure: take 100", o.Messages)
	case o.Rate < 0 || o.Rate > 100_000:
		return fmt.Errorf("rate: %d is not from 0 to 100000", o.Rate)
	case o.RateFor < 100*time.Millisecond || o.RateFor > time.Hour:
		return fmt.Errorf("rate-for: %v is not from 100ms to 1h", o.RateFor)
	case o.HubDelay < 0 || o.HubDelay > 10*time.Second:
		return fmt.Errorf("hub-delay: %v is not from 0 to 10s", o.HubDelay)
	case o.Window > o.Devices*25:
		// A device's queue takes 50 messages, and while virtual devices complete at once, they are not ahead of time.
		return fmt.Errorf("devices: %d are too few for %d messages in flight: take %d", o.Devices, o.Window, o.Window/25+1)
	}
	return nil
}

// Speed measures the bridge beside the minimal loop and the raw send leg. Every
// message must be accepted by the hub once, and acked; anything else is an error.
func Speed(ctx context.Context, o SpeedOptions) (*SpeedResult, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	w, err := newWorld(ctx, o.Command)
	if err != nil {
		return nil, err
	}
	defer w.close()
	hub, err := o.Command.start(ctx, Spec{Part: "hub", Hub: &HubSpec{
		DataDir: filepath.Join(w.dir, "hub"), Devices: deviceIDs(o.Devices), Virtual: []string{"*=complete"}, Credit: 4 * o.Window,
	}})
	if err != nil {
		return nil, err
	}
	defer hub.stop()
	s := &speed{SpeedOptions: o, world: w, hub: hub, address: hub.ready.Hub}
	r := &SpeedResult{Messages: o.Messages, Devices: o.Devices, Body: o.Body, Window: o.Window}
	rounds, err := s.rounds(ctx)
	if err != nil {
		return nil, err
	}
	r.Near = compare(rounds)
	if o.Rate > 0 {
		if r.Latency, err = s.latency(ctx); err != nil {
			return nil, err
		}
	}
	if o.HubDelay > 0 {
		if r.Far, err = s.far(ctx, r.Near); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// speed is one call of Speed.
type speed struct {
	SpeedOptions
	world   *world
	hub     *process
	address Address // where the legs reach the hub
}

// rounds runs a small round that is not counted, since what is slow the first
// time is not what is measured, and then those that are.
func (s *speed) rounds(ctx context.Context) ([]Round, error) {
	var rounds []Round
	for i := range s.Pairs + 1 {
		n, profiles := s.Messages, ""
		if i == 0 {
			n = max(100, min(n, 5000))
		}
		if i == s.Pairs {
			profiles = s.Profiles
		}
		var r Round
		legs := []func() (err error){
			func() (err error) { r.Raw, err = s.raw(ctx, n); return },
			func() (err error) { r.Minimal, err = s.leg(ctx, "minimal", n, profiles); return },
			func() (err error) { r.Bridge, err = s.leg(ctx, "bridge", n, profiles); return },
		}
		for k := range legs {
			if i%2 == 1 {
				k = len(legs) - 1 - k
			}
			if err := legs[k](); err != nil {
				return nil, err
			}
		}
		if i == 0 {
			continue
		}
		rounds = append(rounds, r)
		if s.Progress != nil {
			s.Progress(r)
		}
	}
	return rounds, nil
}

func (s *speed) raw(ctx context.Context, n int) (Leg, error) {
	return s.measure(ctx, n, Spec{Part: "raw", Loop: &LoopSpec{
		Hub: s.address, Window: s.Window, Messages: n, Devices: s.Devices, Body: s.Body,
	}}, nil)
}

// leg is a run from JetStream: the messages are there before the process starts.
func (s *speed) leg(ctx context.Context, part string, n int, profiles string) (Leg, error) {
	stream, err := s.world.stream(ctx, jetstream.MemoryStorage)
	if err != nil {
		return Leg{}, err
	}
	defer s.world.js.DeleteStream(context.WithoutCancel(ctx), stream) //nolint:errcheck // it goes with its server
	if err := s.world.fill(ctx, stream, n, s.Body, inTurn(s.Devices)); err != nil {
		return Leg{}, err
	}
	spec, consumer := s.spec(part, stream)
	if profiles != "" {
		spec.Profile = filepath.Join(profiles, part+".pprof")
	}
	return s.measure(ctx, n, spec, func() error { return s.world.settled(ctx, stream, consumer) })
}

// spec is how to start what takes from a stream, and the durable it uses.
func (s *speed) spec(part, stream string) (Spec, string) {
	if part == "bridge" {
		return Spec{Part: part, Bridge: bridgeConfig(s.world.nats.ready.URL, s.address, s.Window, 0, stream, "")}, bridgeConsumer
	}
	return Spec{Part: part, Loop: &LoopSpec{Hub: s.address, Window: s.Window, NATS: s.world.nats.ready.URL, Stream: stream}}, minimalConsumer
}

// measure starts a process and takes the time and its CPU from when the hub has
// a tenth of the messages to when it has them all. At the end all must be settled.
func (s *speed) measure(ctx context.Context, n int, spec Spec, settled func() error) (leg Leg, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute+time.Duration(n)*time.Millisecond, fmt.Errorf("the %s run does not end", spec.Part))
	defer cancel()
	before, err := s.hub.stat(ctx)
	if err != nil {
		return leg, err
	}
	p, err := s.world.command.start(ctx, spec)
	if err != nil {
		return leg, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	reached := func(want int) (at time.Time, count int, used Stat, err error) {
		err = poll(ctx, 5*time.Millisecond, func() (bool, error) {
			now, err := s.hub.stat(ctx)
			at, count = time.Now(), now.Count-before.Count
			return count >= want, err
		})
		if err == nil {
			used, err = p.stat(ctx)
		}
		return at, count, used, err
	}
	begin, first, used, err := reached(n / 10)
	if err != nil {
		return leg, err
	}
	end, last, all, err := reached(n)
	if err != nil {
		return leg, err
	}
	if settled != nil {
		if err := settled(); err != nil {
			return leg, err
		}
	}
	final, err := p.stat(ctx)
	if err != nil {
		return leg, err
	}
	if last != n {
		return leg, fmt.Errorf("the hub accepted %d messages of the %s run, which had %d", last, spec.Part, n)
	}
	if last > first { // or it was too fast to be seen
		leg.Rate = float64(last-first) / end.Sub(begin).Seconds()
		leg.CPU = float64((all.CPU - used.CPU).Nanoseconds()) / 1e3 / float64(last-first)
	}
	leg.Peak = final.Peak
	return leg, nil
}

// far measures again through a relay that holds up everything by half of HubDelay each way.
func (s *speed) far(ctx context.Context, near Comparison) (*Far, error) {
	way, err := tcplink.Listen(s.address.AMQP)
	if err != nil {
		return nil, err
	}
	defer way.Close()
	way.Late(s.HubDelay / 2)
	there := *s
	there.address.AMQP, there.Profiles = way.Addr(), ""
	rounds, err := there.rounds(ctx)
	if err != nil {
		return nil, err
	}
	f := &Far{Delay: s.HubDelay, Comparison: compare(rounds), Bound: float64(min(s.Window, s.Devices)) / s.HubDelay.Seconds()}
	f.Explained = min(f.Bound, near.Bridge.Median)
	f.OfExplained = spread.Each(rounds, func(r Round) float64 { return ratio(r.Bridge.Rate, f.Explained) })
	return f, nil
}
