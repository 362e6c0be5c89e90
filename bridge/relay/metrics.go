package relay

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// result is what happened to a message, as in the metric's label.
type result string

const (
	resultReceived  result = "received"
	resultPublished result = "published"
	resultDead      result = "dead"
	resultRepeat    result = "repeat"
	resultAcked     result = "acked"
	resultLost      result = "lost"
)

var results = []result{resultReceived, resultPublished, resultDead, resultRepeat, resultAcked, resultLost}

// Stats counts since New. Received = Published + Dead + Repeats + Lost + InFlight,
// unless Run ended with messages in flight.
type Stats struct {
	Received     uint64    `json:"received"`
	Published    uint64    `json:"published"`
	Dead         uint64    `json:"dead"`    // stored as dead letters
	Repeats      uint64    `json:"repeats"` // recognised, not published again
	Lost         uint64    `json:"lost"`    // neither published nor stored, given up after an hour
	Acked        uint64    `json:"acked"`   // completed; the PUBACK may still wait for an earlier one's
	InFlight     int       `json:"in_flight"`
	LastActivity time.Time `json:"last_activity,omitzero"` // the last time any of these changed
}

// Stats returns the counters. Safe for concurrent use.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.InFlight = r.inFlight
	return s
}

func (r *Relay) count(what result) {
	r.metrics.count(what)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.LastActivity = time.Now()
	switch what {
	case resultReceived:
		r.stats.Received++
	case resultPublished:
		r.stats.Published++
	case resultDead:
		r.stats.Dead++
	case resultRepeat:
		r.stats.Repeats++
	case resultAcked:
		r.stats.Acked++
	case resultLost:
		r.stats.Lost++
	}
}

// metrics are shared by the relays of one registerer: the device is no label.
type metrics struct{ messages *prometheus.CounterVec }

func newMetrics(to prometheus.Registerer) (*metrics, error) {
	if to == nil {
		return nil, nil
	}
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "downlink_relay_messages_total",
		Help: "Cloud-to-device messages by what the relay did: received, published, dead (stored as a dead letter), repeat, acked, lost.",
	}, []string{"result"})
	if err := to.Register(messages); err != nil {
		var before prometheus.AlreadyRegisteredError
		if !errors.As(err, &before) {
			return nil, err
		}
		existing, ok := before.ExistingCollector.(*prometheus.CounterVec)
		if !ok {
			return nil, err
		}
		messages = existing
	}
	for _, r := range results { // show zeros from the start
		messages.WithLabelValues(string(r))
	}
	return &metrics{messages}, nil
}

func (m *metrics) count(what result) {
	if m != nil {
		m.messages.WithLabelValues(string(what)).Inc()
	}
}
