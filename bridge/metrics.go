package bridge

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is a snapshot of the engine for /status. The balance holds at rest:
// received + expanded + restored = accepted + dead + dropped + replaced + parked + returned + waiting.
type Status struct {
	Received uint64      `json:"received"`
	Expanded uint64      `json:"expanded"`
	Restored uint64      `json:"restored"` // taken up from the mailbox
	Accepted uint64      `json:"accepted"`
	Dead     uint64      `json:"dead"`
	Dropped  uint64      `json:"dropped"`
	Replaced uint64      `json:"replaced"`
	Parked   uint64      `json:"parked"` // put into the mailbox
	Returned uint64      `json:"returned"`
	Waiting  uint64      `json:"waiting"`
	Hubs     []HubStatus `json:"hubs"`
}

// What a hub's state is when it is no class.
const (
	stateOpen         = "open"
	stateDisconnected = "disconnected"
)

// HubStatus is one hub's part of Status.
type HubStatus struct {
	Name         string     `json:"name"`
	State        string     `json:"state"` // open, disconnected, or the class it waits for
	Cause        string     `json:"cause,omitempty"`
	Until        time.Time  `json:"until,omitzero"`
	InFlight     int        `json:"in_flight"`
	Window       int        `json:"window"`
	Pace         PaceStatus `json:"pace"`
	DrainSeconds float64    `json:"drain_seconds"` // until all that waits is sent, at this pace; 0: not known
	Lanes        int        `json:"lanes"`
	LanesWaiting int        `json:"lanes_waiting"`
	Waiting      int        `json:"waiting"` // messages in lanes, those in flight included
	Mailbox      uint64     `json:"mailbox"` // messages in the mailbox beside those

	newer int // devices that wait for a newer version to read their next entry
}

// Status takes a snapshot. Safe for concurrent use, also while Run runs.
func (b *Bridge) Status() Status {
	t := &b.metrics.totals
	s := Status{
		// What ends a message is read before what begins one, so that a message
		// passing meanwhile counts as waiting and never as less than nothing.
		Accepted: t.accepted.Load(), Dead: t.dead.Load(), Dropped: t.dropped.Load(), Returned: t.returned.Load(),
		Replaced: t.replaced.Load(), Parked: t.parked.Load(),
	}
	s.Received, s.Expanded, s.Restored = t.received.Load(), t.expanded.Load(), t.restored.Load()
	s.Waiting = s.Received + s.Expanded + s.Restored - s.Accepted - s.Dead - s.Dropped - s.Replaced - s.Parked - s.Returned
	for _, h := range b.options.Hubs {
		s.Hubs = append(s.Hubs, b.hubs[h.Name].status())
	}
	return s
}

// metrics counts fates. Labels are routes, reasons and classes: never a device.
type metrics struct {
	totals struct {
		received, expanded, restored, accepted, dead, dropped, replaced, parked, returned atomic.Uint64
	}

	byFate counters[fateKey]
}

// counters counts by key. The zero value is ready.
type counters[K comparable] struct {
	mu sync.RWMutex
	m  map[K]*atomic.Uint64
}

func (c *counters[K]) add(k K) {
	c.mu.RLock()
	n := c.m[k]
	c.mu.RUnlock()
	if n == nil {
		n = c.new(k)
	}
	n.Add(1)
}

func (c *counters[K]) new(k K) *atomic.Uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[K]*atomic.Uint64)
	}
	if c.m[k] == nil {
		c.m[k] = new(atomic.Uint64)
	}
	return c.m[k]
}

func (c *counters[K]) each(f func(K, uint64)) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for k, n := range c.m {
		f(k, n.Load())
	}
}

type fateKey struct{ route, fate, reason string }

func (m *metrics) received(targets int) {
	m.totals.received.Add(1)
	m.totals.expanded.Add(uint64(targets - 1))
}

func (m *metrics) restored() { m.totals.restored.Add(1) }

func (m *metrics) returned(n uint64) { m.totals.returned.Add(n) }

func (m *metrics) fate(r Receipt) {
	switch r.Status {
	case StatusAccepted:
		m.totals.accepted.Add(1)
	case StatusDead:
		m.totals.dead.Add(1)
	case StatusReplaced:
		m.totals.replaced.Add(1)
	case statusParked:
		m.totals.parked.Add(1)
	default:
		m.totals.dropped.Add(1)
	}
	m.byFate.add(fateKey{r.Route, r.Status, r.Reason})
}

// outcomes counts one hub's sends: accepted, and each class of failure.
type outcomes struct {
	accepted atomic.Uint64
	failed   [classes]atomic.Uint64
}

func (o *outcomes) add(err error) {
	if err == nil {
		o.accepted.Add(1)
	} else if e, ok := errors.AsType[*Error](err); ok && e.Class >= 0 && e.Class < classes {
		o.failed[e.Class].Add(1)
	} // else it is the end of the process, or of owning the source
}

func (o *outcomes) each(f func(outcome string, n uint64)) {
	f("accepted", o.accepted.Load())
	for c := range classes {
		if n := o.failed[c].Load(); n > 0 {
			f(c.String(), n)
		}
	}
}

var (
	descReceived = prometheus.NewDesc("downlink_bridge_received_total", "Deliveries received from NATS.", nil, nil)
	descExpanded = prometheus.NewDesc("downlink_bridge_expanded_total", "Targets beyond the first of a delivery.", nil, nil)
	descFates    = prometheus.NewDesc("downlink_bridge_messages_total", "Targets by fate: accepted, dead, dropped, replaced or parked (put into the mailbox), with the reason.", []string{"route", "fate", "reason"}, nil)
	descRestored = prometheus.NewDesc("downlink_bridge_restored_total", "Targets taken up from the mailbox.", nil, nil)
	descMailbox  = prometheus.NewDesc("downlink_bridge_mailbox", "Messages in the mailbox that are not in memory.", []string{"hub"}, nil)
	descReturned = prometheus.NewDesc("downlink_bridge_returned_total", "Targets let go at shutdown; their messages come again.", nil, nil)
	descWaiting  = prometheus.NewDesc("downlink_bridge_waiting", "Targets without a fate yet.", nil, nil)
	descSends    = prometheus.NewDesc("downlink_bridge_sends_total", "Sends by the hub's outcome.", []string{"hub", "outcome"}, nil)
	descInFlight = prometheus.NewDesc("downlink_bridge_in_flight", "Sends in flight.", []string{"hub"}, nil)
	descWindow   = prometheus.NewDesc("downlink_bridge_window", "Sends that may be in flight.", []string{"hub"}, nil)
	descRate     = prometheus.NewDesc("downlink_bridge_rate", "Messages a second that the hub is sent now at most; 0 when nothing limits it.", []string{"hub"}, nil)
	descDaily    = prometheus.NewDesc("downlink_bridge_quota_used", "The day's messages of this process, in the blocks of the hub's quota.", []string{"hub"}, nil)
	descLanes    = prometheus.NewDesc("downlink_bridge_lanes", "Devices with messages, by state.", []string{"hub", "state"}, nil)
	descOpen     = prometheus.NewDesc("downlink_bridge_hub_open", "1 when the hub takes messages, 0 when it waits (throttled, quota, unauthorized, disconnected).", []string{"hub"}, nil)
)

// collector gives the metrics to Prometheus.
type collector struct{ b *Bridge }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descReceived, descExpanded, descRestored, descMailbox, descFates, descReturned, descWaiting, descSends, descInFlight, descWindow, descRate, descDaily, descLanes, descOpen} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	s := c.b.Status()
	counter(descReceived, s.Received)
	counter(descExpanded, s.Expanded)
	counter(descRestored, s.Restored)
	counter(descReturned, s.Returned)
	gauge(descWaiting, int(s.Waiting))
	for _, h := range s.Hubs {
		gauge(descMailbox, int(h.Mailbox), h.Name)
		gauge(descInFlight, h.InFlight, h.Name)
		gauge(descWindow, h.Window, h.Name)
		ch <- prometheus.MustNewConstMetric(descRate, prometheus.GaugeValue, h.Pace.Rate, h.Name)
		gauge(descDaily, int(h.Pace.Used), h.Name)
		gauge(descLanes, h.LanesWaiting, h.Name, "waiting")
		gauge(descLanes, h.Lanes-h.LanesWaiting, h.Name, "flowing")
		open := 1
		if h.State != stateOpen {
			open = 0
		}
		gauge(descOpen, open, h.Name)
	}
	c.b.metrics.byFate.each(func(k fateKey, v uint64) { counter(descFates, v, k.route, k.fate, k.reason) })
	for name, h := range c.b.hubs {
		h.outcomes.each(func(outcome string, n uint64) { counter(descSends, n, name, outcome) })
	}
}

// status is a snapshot for humans.
func (h *hub) status() HubStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := HubStatus{Name: h.name, State: stateOpen, InFlight: h.inFlight, Window: h.window, Lanes: len(h.lanes)}
	for _, l := range h.lanes {
		s.Waiting += len(l.heads) + len(l.tail)
		s.Mailbox += l.stored
		if l.waits {
			s.LanesWaiting++
		}
		if l.newer {
			s.newer++
		}
	}
	now := time.Now()
	s.Pace = h.budget.status(now)
	s.DrainSeconds = h.budget.timeToDrain(uint64(s.Waiting)+s.Mailbox, now).Seconds()
	switch {
	case h.down:
		s.State = stateDisconnected
	case h.gate.closed:
		s.State, s.Cause, s.Until = h.gate.class.String(), h.gate.cause, h.gate.until
	case s.Pace.Exhausted:
		s.State, s.Cause, s.Until = "quota", "the day's quota is used up by what this bridge sent", s.Pace.Until
	case !s.Pace.Until.IsZero():
		s.State, s.Cause, s.Until = Throttled.String(), "the hub throttles every message: "+h.slowedBy, s.Pace.Until
	}
	return s
}
