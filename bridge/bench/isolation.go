package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/spread"
)

// hubUnits of tier S3 make a hub that takes hubRate messages a second, which is
// what the bridge is told.
const (
	hubUnits = 6
	hubRate  = 500
)

// queueLimit is how many messages a device's queue takes.
const queueLimit = 50

// idHeader has a message's number in its run; it becomes the message ID.
const idHeader = "X-Number"

// IsolationOptions say what Isolation measures. Zero values have defaults, except that of Ahead.
type IsolationOptions struct {
	Command Command // how to start this binary as a Part
	Devices int     // of a run with troubled ones: 1 % full, 1 % unknown, 1 % slow; default 1000
	Pairs   int     // of a run with the troubled devices and one without; default 7
	// Rate is messages a second for all devices together: below hubRate, which is the load that can be carried. Default 400.
	Rate int
	For  time.Duration // of one run; default 10s
	// Ahead is how many messages of one device stand before another device's single one; 0: not measured.
	Ahead      int
	AheadLimit time.Duration // until that one must have arrived; default 5m
	// Progress is told of each pair; nil is fine.
	Progress func(IsolationPair)
}

// Healthy is what the healthy devices saw of one run.
type Healthy struct {
	Goodput float64 `json:"per_second"` // accepted by the hub for them while the load lasted
	P50     float64 `json:"p50_ms"`     // from the publication to the hub's acceptance
	P99     float64 `json:"p99_ms"`
}

// Troubled is what the others did, to see that there was trouble.
type Troubled struct {
	Refused int `json:"refused_full"`  // sends to full devices, refused
	Unknown int `json:"sends_unknown"` // sends to unknown devices
	Slow    int `json:"accepted_slow"` // messages that slow devices had room for
}

// IsolationPair is one run of each, right after each other.
type IsolationPair struct {
	Without  Healthy  `json:"without"`
	With     Healthy  `json:"with"`
	Troubled Troubled `json:"troubled"`
}

// IsolationResult is what Isolation measured.
type IsolationResult struct {
	Devices int             `json:"devices"`
	Rate    int             `json:"offered_per_second"`
	Pairs   []IsolationPair `json:"pairs"`
	Goodput spread.Spread   `json:"goodput_ratio"`
	MoreP50 spread.Spread   `json:"more_p50_ms"`
	MoreP99 spread.Spread   `json:"more_p99_ms"`
	Ahead   *Ahead          `json:"ahead,omitempty"`
}

// Check fills in defaults, and names the first option that is out of range.
func (o *IsolationOptions) Check() error {
	for _, f := range []struct {
		name                string
		value               *int
		normal, least, most int
	}{
		{"devices", &o.Devices, 1000, 4, 100_000}, {"pairs", &o.Pairs, 7, 1, 1000}, {"rate", &o.Rate, 400, 1, hubRate}, {"ahead", &o.Ahead, 0, 0, 100_000_000},
	} {
		if *f.value == 0 {
			*f.value = f.normal
		}
		if *f.value < f.least || *f.value > f.most {
			return fmt.Errorf("%s: %d is not from %d to %d", f.name, *f.value, f.least, f.most)
		}
	}
	if o.For == 0 {
		o.For = 10 * time.Second
	}
	if o.AheadLimit == 0 {
		o.AheadLimit = 5 * time.Minute
	}
	switch {
	case o.For < 100*time.Millisecond || o.For > time.Hour:
		return fmt.Errorf("for: %v is not from 100ms to 1h", o.For)
	case o.AheadLimit < 0:
		return fmt.Errorf("ahead-limit: %v is below 0", o.AheadLimit)
	}
	return nil
}

// Isolation measures what healthy devices notice of full, unknown and slow ones,
// and of one with very many messages. Every message for a healthy device must arrive once.
func Isolation(ctx context.Context, o IsolationOptions) (*IsolationResult, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	r := &IsolationResult{Devices: o.Devices, Rate: o.Rate}
	for i := range o.Pairs {
		var p IsolationPair
		order := []bool{false, true}
		if i%2 == 1 {
			order[0], order[1] = true, false
		}
		for _, with := range order {
			healthy, troubled, err := o.run(ctx, with)
			if err != nil {
				return nil, err
			}
			if with {
				p.With, p.Troubled = healthy, troubled
			} else {
				p.Without = healthy
			}
		}
		r.Pairs = append(r.Pairs, p)
		if o.Progress != nil {
			o.Progress(p)
		}
	}
	r.Goodput = spread.Each(r.Pairs, func(p IsolationPair) float64 { return ratio(p.With.Goodput, p.Without.Goodput) })
	r.MoreP50 = spread.Each(r.Pairs, func(p IsolationPair) float64 { return p.With.P50 - p.Without.P50 })
	r.MoreP99 = spread.Each(r.Pairs, func(p IsolationPair) float64 { return p.With.P99 - p.Without.P99 })
	if o.Ahead > 0 {
		var err error
		if r.Ahead, err = o.ahead(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// fleet is the devices of a run, as the last part of a subject names them.
type fleet struct {
	healthy, full, unknown, slow []string
	all                          []string // in turn, the troubled ones spread among the others
}

func newFleet(n int) fleet {
	var f fleet
	each := max(1, n/100)
	for i := range n {
		switch id := strconv.Itoa(i); {
		case i%(n/each) == 0 && len(f.full) < each:
			f.full = append(f.full, "full"+id)
			f.all = append(f.all, "full"+id)
		case i%(n/each) == 1 && len(f.unknown) < each:
			f.unknown = append(f.unknown, "unknown"+id)
			f.all = append(f.all, "unknown"+id)
		case i%(n/each) == 2 && len(f.slow) < each:
			f.slow = append(f.slow, "slow"+id)
			f.all = append(f.all, "slow"+id)
		default:
			f.healthy = append(f.healthy, "d"+id)
			f.all = append(f.all, "d"+id)
		}
	}
	return f
}

// site makes device IDs of names.
func site(names ...[]string) (ids []string) {
	for _, list := range names {
		for _, n := range list {
			ids = append(ids, "berlin-"+n)
		}
	}
	return ids
}

// run is one run, on servers of its own: what waits at its end is nobody else's.
func (o *IsolationOptions) run(ctx context.Context, with bool) (h Healthy, t Troubled, err error) {
	w, err := newWorld(ctx, o.Command)
	if err != nil {
		return h, t, err
	}
	defer w.close()
	n := max(1, int(float64(o.Rate)*o.For.Seconds()))
	f := newFleet(o.Devices)
	spec := HubSpec{
		DataDir: filepath.Join(w.dir, "hub"), Devices: site(f.healthy, f.full, f.slow), Credit: 1000, Units: hubUnits,
		Virtual: []string{"berlin-full*=offline", "berlin-slow*=complete:1s", "*=complete"},
		History: n + queueLimit*o.Devices,
	}
	hub, address, err := spec.open()
	if err != nil {
		return h, t, err
	}
	defer hub.Close()
	if err := fillQueues(hub, site(f.full, f.slow)); err != nil {
		return h, t, err
	}
	stream, err := w.stream(ctx, jetstream.MemoryStorage)
	if err != nil {
		return h, t, err
	}
	p, err := o.Command.start(ctx, Spec{Part: "bridge", Bridge: bridgeConfig(w.nats.ready.URL, address, 512, hubRate, stream, idHeader)})
	if err != nil {
		return h, t, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()

	published := make(map[string]time.Time, n) // healthy ones alone
	lost := 0                                  // published to unknown ones
	body := bytes.Repeat([]byte("x"), 256)
	begin := time.Now()
	err = pace(ctx, o.Rate, n, func(i int) error {
		device := f.all[i%len(f.all)]
		if device[0] != 'd' && !with {
			return nil
		}
		m := newCommand(stream, device, body)
		m.Header.Set(idHeader, strconv.Itoa(i))
		switch device[0] {
		case 'd':
			published[strconv.Itoa(i)] = time.Now()
		case 'u':
			lost++
		}
		_, err := w.js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute))
		return err
	})
	if err != nil {
		return h, t, err
	}
	took := time.Since(begin)
	healthy := site(f.healthy)
	h.Goodput = float64(accepted(hub, healthy)) / took.Seconds()
	if err := arrived(ctx, hub, healthy, len(published)); err != nil {
		return h, t, err
	}
	var times []time.Duration
	for _, r := range hub.Log("") {
		if at, ok := published[r.MessageID]; ok && strings.HasPrefix(r.Device, "berlin-d") {
			times = append(times, r.Accepted.Sub(at))
		}
	}
	if len(times) != len(published) {
		return h, t, fmt.Errorf("the hub has %d messages for healthy devices, which got %d", len(times), len(published))
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	h.P50, h.P99 = ms(spread.Quantile(times, 0.5)), ms(spread.Quantile(times, 0.99))
	if with {
		if err := troubled(ctx, hub, site(f.full), lost); err != nil {
			return h, t, err
		}
	}
	t.Refused = refused(hub, site(f.full))
	for _, d := range site(f.slow) {
		t.Slow += int(hub.Counts(d).Accepted) - queueLimit
	}
	t.Unknown = hub.UnknownSends()
	return h, t, nil
}

// fillQueues leaves no room in the devices' queues.
func fillQueues(hub *emulator.Hub, devices []string) error {
	for _, d := range devices {
		for i := range queueLimit {
			m := c2d.Message{To: "/devices/" + d + "/messages/devicebound", MessageID: "before-" + strconv.Itoa(i), Body: []byte("x")}
			if err := hub.Enqueue(m); err != nil {
				return fmt.Errorf("filling the queue of %s: %w", d, err)
			}
		}
	}
	return nil
}

func refused(hub *emulator.Hub, devices []string) (n int) {
	for _, d := range devices {
		n += int(hub.Counts(d).Refused)
	}
	return n
}

// troubled waits until the hub has been sent the messages for unknown devices, of which there are lost, and one for a
// full one: nothing holds those up, but the healthy ones do not wait for them.
func troubled(ctx context.Context, hub *emulator.Hub, full []string, lost int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	if err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		return hub.UnknownSends() >= lost && refused(hub, full) > 0, nil
	}); err != nil {
		return fmt.Errorf("%d of %d messages for unknown devices were sent, and %d for full ones: %w", hub.UnknownSends(), lost, refused(hub, full), err)
	}
	return nil
}

// arrived waits until the hub has accepted n messages for these devices.
func arrived(ctx context.Context, hub *emulator.Hub, devices []string, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	have := 0
	if err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		have = accepted(hub, devices)
		return have >= n, nil
	}); err != nil {
		return fmt.Errorf("%d of %d messages for healthy devices arrived: %w", have, n, err)
	}
	return nil
}
