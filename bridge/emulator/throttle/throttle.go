package throttle

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"downlink/bridge/emulator/c2d"
)

// The conditions with which hubs are said to answer when the daily quota is
// used up; the sources differ.
const (
	ResourceLimit = "amqp:resource-limit-exceeded" // as for a device's full queue, but with code 403002
	QuotaExceeded = "com.microsoft:quota-exceeded"
)

// Options make a Throttle.
type Options struct {
	Tier  Tier // Off: nothing is limited
	Units int  // 0: 1
	// Burst is how long a hub may run ahead of its rate: that much time's worth
	// of requests is served at once. 0: 1 min; negative: one request.
	Burst time.Duration
	// Backlog is how long a cloud-to-device message may be delayed once the
	// burst is used up; beyond it messages are refused. 0: 30 s; negative: none is delayed.
	Backlog time.Duration
	// Daily is the quota of messages a day for all units together; 0: the tier's.
	Daily int64
	// QuotaCondition is ResourceLimit, the default, or QuotaExceeded.
	QuotaCondition string
	// RetryAfter goes into the Retry-After header of every REST answer 429, in whole
	// seconds, rounded up. The documentation does not say whether IoT Hub sends it; 0: no header.
	RetryAfter time.Duration
	Now        func() time.Time // nil: time.Now
}

// Throttle limits one hub. A nil *Throttle limits nothing. Safe for concurrent use.
type Throttle struct {
	o                                 Options
	limits                            limits
	sends, registry, connects, events *rate.Limiter

	mu     sync.Mutex
	day    time.Time
	used   int64
	status Status
}

// Status is a snapshot of a Throttle.
type Status struct {
	Tier        Tier
	Units       int
	Used, Quota int64 // messages of today, in blocks
	// Delayed and Throttled count cloud-to-device messages; OverQuota all messages.
	Delayed, Throttled, OverQuota uint64
}

// New makes a Throttle; nil for Off.
func New(o Options) (*Throttle, error) {
	if o.Units < 0 {
		return nil, fmt.Errorf("units: %d is negative", o.Units)
	}
	if o.Tier == Off {
		if o.Units > 0 {
			return nil, fmt.Errorf("units: %d units of no tier: give the tier as well", o.Units)
		}
		return nil, nil
	}
	l, ok := tiers[o.Tier]
	if !ok {
		_, err := ParseTier(string(o.Tier))
		return nil, fmt.Errorf("tier: %w", err)
	}
	if o.Units == 0 {
		o.Units = 1
	}
	if o.Units > l.maxUnits {
		return nil, fmt.Errorf("units: %d is more than the %d a hub of tier %s can have", o.Units, l.maxUnits, o.Tier)
	}
	if o.Burst == 0 {
		o.Burst = time.Minute
	}
	if o.Backlog == 0 {
		o.Backlog = 30 * time.Second
	}
	if o.Daily <= 0 {
		o.Daily = l.daily * int64(o.Units)
	}
	switch o.QuotaCondition {
	case "":
		o.QuotaCondition = ResourceLimit
	case ResourceLimit, QuotaExceeded:
	default:
		return nil, fmt.Errorf("quota condition: %q is neither %s nor %s", o.QuotaCondition, ResourceLimit, QuotaExceeded)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	units := float64(o.Units)
	devices := max(l.devices*units, l.floor)
	limiter := func(r float64) *rate.Limiter {
		return rate.NewLimiter(rate.Limit(r), int(max(1, r*o.Burst.Seconds()+.5)))
	}
	return &Throttle{
		o: o, limits: l,
		sends: limiter(l.sends * units), registry: limiter(l.registry * units), connects: limiter(devices), events: limiter(devices),
	}, nil
}

// Send asks for one cloud-to-device message of size bytes. The caller takes it
// after wait, keeping the order of the calls, or refuses it with err, a
// *c2d.Refusal. A message that is not taken after all is given back with Refund.
func (t *Throttle) Send(size int) (wait time.Duration, err error) {
	if t == nil {
		return 0, nil
	}
	if t.limits.sends == 0 {
		return 0, &c2d.Refusal{Condition: "amqp:not-allowed", Code: 400003, Text: "tier " + string(t.o.Tier) + " has no cloud-to-device messages"}
	}
	if err := t.charge(size); err != nil {
		return 0, err
	}
	now := t.o.Now()
	r := t.sends.ReserveN(now, 1)
	wait = r.DelayFrom(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case wait > t.o.Backlog && wait > 0:
		r.CancelAt(now)
		t.used -= t.blocks(size)
		t.status.Throttled++
		return 0, throttled("too many cloud-to-device messages")
	case wait > 0:
		t.status.Delayed++
	}
	return wait, nil
}

// Refund takes a message off the daily quota that the hub did not take: only
// successful sends are charged. The rate counts it all the same.
func (t *Throttle) Refund(size int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = max(0, t.used-t.blocks(size))
}

// Telemetry asks for one device-to-cloud message; the error is a *c2d.Refusal.
func (t *Throttle) Telemetry(size int) error {
	if t == nil {
		return nil
	}
	if !t.events.AllowN(t.o.Now(), 1) {
		return throttled("too many device-to-cloud messages")
	}
	return t.charge(size)
}

// Connect asks for one new connection of a device; the error is a *c2d.Refusal.
func (t *Throttle) Connect() error {
	if t == nil || t.connects.AllowN(t.o.Now(), 1) {
		return nil
	}
	return throttled("too many new connections of devices")
}

// Registry asks for one operation on the identity registry; the error is a *c2d.Refusal.
func (t *Throttle) Registry() error {
	if t == nil || t.registry.AllowN(t.o.Now(), 1) {
		return nil
	}
	return throttled("too many registry operations")
}

func throttled(text string) *c2d.Refusal {
	return &c2d.Refusal{Condition: "com.microsoft:device-container-throttled", Code: 429001, Text: text}
}

// blocks is what a message counts as: every 4 KB begun, on the free tier 0.5 KB.
func (t *Throttle) blocks(size int) int64 {
	return int64(max(1, (size+t.limits.block-1)/t.limits.block))
}

// charge takes a message off the day's quota, which is renewed at 00:00 UTC.
func (t *Throttle) charge(size int) error {
	today := t.o.Now().UTC().Truncate(24 * time.Hour)
	t.mu.Lock()
	defer t.mu.Unlock()
	if today.After(t.day) {
		t.day, t.used = today, 0
	}
	n := t.blocks(size)
	if t.used+n > t.o.Daily {
		t.status.OverQuota++
		return &c2d.Refusal{Condition: t.o.QuotaCondition, Code: 403002, Text: fmt.Sprintf("the daily quota of %d messages is used up", t.o.Daily)}
	}
	t.used += n
	return nil
}

// Status returns what is used and what was refused so far.
func (t *Throttle) Status() Status {
	if t == nil {
		return Status{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status
	s.Tier, s.Units, s.Used, s.Quota = t.o.Tier, t.o.Units, t.used, t.o.Daily
	return s
}
