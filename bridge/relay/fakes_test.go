package relay_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/relay"
	"downlink/mapping"
)

// device is the hub's side: it yields messages and notes their acks.
type device struct {
	messages chan *message

	mu    sync.Mutex
	acked []string // message IDs, in the order of the PUBACKs
	all   []*message
}

func newDevice() *device { return &device{messages: make(chan *message, 10_000)} }

type message struct {
	device *device
	c2d    *mapping.C2D
	acked  bool
	sent   bool // PUBACK sent
}

func (d *device) send(c *mapping.C2D) *message {
	c.Device = "d1"
	m := &message{device: d, c2d: c}
	d.mu.Lock()
	d.all = append(d.all, m)
	d.mu.Unlock()
	d.messages <- m
	return m
}

func (d *device) sendN(n int) {
	for i := range n {
		d.send(&mapping.C2D{MessageID: strconv.Itoa(i)})
	}
}

func (d *device) Receive(ctx context.Context) (*message, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	select {
	case m := <-d.messages:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *message) C2D() *mapping.C2D { return m.c2d }

// Ack sends PUBACKs for the acked prefix, as hubdevice does.
func (m *message) Ack() {
	m.device.mu.Lock()
	defer m.device.mu.Unlock()
	m.acked = true
	for _, n := range m.device.all {
		if !n.acked {
			return
		}
		if !n.sent {
			n.sent = true
			m.device.acked = append(m.device.acked, n.c2d.MessageID)
		}
	}
}

func (m *message) done() bool {
	m.device.mu.Lock()
	defer m.device.mu.Unlock()
	return m.acked
}

func (d *device) pubacks() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.acked)
}

// server is the local NATS with its publisher: each publication is answered after
// the latency, in order, by the verdict.
type server struct {
	latency time.Duration
	verdict func(*mapping.Publication) error // nil: accepts
	refuse  func(try int) error              // what Publish itself returns; nil: accepts

	window chan struct{}
	queue  chan call

	mu sync.Mutex
	tally
	stored []*mapping.Publication
}

type tally struct {
	tries int
	most  int // most in flight at once
}

func (s *server) counts() tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tally
}

type call struct {
	publication *mapping.Publication
	at          time.Time
	done        func(error)
}

// runServer starts a server; it ends with ctx, giving up what is queued.
func runServer(ctx context.Context, window int, latency time.Duration) *server {
	s := &server{latency: latency, window: make(chan struct{}, window), queue: make(chan call, window)}
	go func() {
		for {
			select {
			case c := <-s.queue:
				select {
				case <-time.After(time.Until(c.at)):
				case <-ctx.Done():
					c.done(ctx.Err())
					<-s.window
					continue
				}
				var err error
				if s.verdict != nil {
					err = s.verdict(c.publication)
				}
				if err == nil {
					s.mu.Lock()
					s.stored = append(s.stored, c.publication)
					s.mu.Unlock()
				}
				c.done(err)
				<-s.window
			case <-ctx.Done():
				return
			}
		}
	}()
	return s
}

func (s *server) Publish(ctx context.Context, p *mapping.Publication, done func(error)) error {
	s.mu.Lock()
	s.tries++
	try := s.tries
	s.mu.Unlock()
	if s.refuse != nil {
		if err := s.refuse(try); err != nil {
			return err
		}
	}
	select {
	case s.window <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	s.most = max(s.most, len(s.window))
	s.mu.Unlock()
	s.queue <- call{p, time.Now().Add(s.latency), done}
	return nil
}

func (s *server) publications() []*mapping.Publication {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stored)
}

func (s *server) ids() []string {
	var ids []string
	for _, p := range s.publications() {
		ids = append(ids, p.Header["Downlink-Message-Id"][0])
	}
	return ids
}

// plain maps to edge.<device>; an ID that starts with "unmappable" fails.
type plain struct{}

func (plain) Map(c *mapping.C2D) (mapping.Publication, error) {
	if len(c.MessageID) >= 10 && c.MessageID[:10] == "unmappable" {
		return mapping.Publication{}, &mapping.RouteError{Route: "relay", Field: "publish.subject", Reason: mapping.ReasonBadSubject, Err: fmt.Errorf("token 2 is empty")}
	}
	return mapping.Publication{
		Subject: "edge." + c.Device,
		Header:  map[string][]string{"Downlink-Message-Id": {c.MessageID}},
		Data:    c.Body,
		ID:      c.MessageID,
	}, nil
}

func refused(reason mapping.Reason) error {
	return &bridge.Error{Class: bridge.Refused, Op: "publish", Reason: reason, Err: fmt.Errorf("the server says no")}
}

// bed is one relay between a device and a server, in a bubble.
type bed struct {
	*relay.Relay
	device *device
	server *server
	cancel context.CancelFunc
	result chan error
}

// inBubble runs a relay inside a synctest bubble. prepare may set up server and options.
func inBubble(t *testing.T, window int, latency time.Duration, prepare func(*bed, *relay.Options), test func(t *testing.T, b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		nats, stop := context.WithCancel(t.Context())
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		b := &bed{device: newDevice(), server: runServer(nats, window, latency), cancel: cancel, result: make(chan error, 1)}
		o := relay.Options{Device: "d1", Receiver: relay.From(b.device), Publisher: b.server, Map: plain{}}
		if prepare != nil {
			prepare(b, &o)
		}
		r, err := relay.New(o)
		require.NoError(t, err)
		b.Relay = r
		go func() { b.result <- r.Run(ctx) }()
		test(t, b)
		cancel()
		time.Sleep(time.Minute) // in the bubble: past any grace
		synctest.Wait()
	})
}

// stop cancels and waits for Run.
func (b *bed) stop(t *testing.T) {
	t.Helper()
	b.cancel()
	require.NoError(t, <-b.result)
}

func numbers(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strconv.Itoa(i)
	}
	return out
}
