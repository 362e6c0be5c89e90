// Package mqttd is the embedded hub's device endpoint: MQTT 3.1.1 as IoT Hub
// speaks it (developer guide, "Communicate with an IoT hub using the MQTT
// protocol"). A device's client ID is its device ID; it signs in with a SAS
// token, subscribes to devices/{id}/messages/devicebound/#, and completes each
// cloud-to-device message with its PUBACK. Whoever breaks the protocol is cut
// off without a word, as the hub does.
package mqttd

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/telemetry"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/twin"
)

// Authority decides which devices may connect.
type Authority interface {
	// AuthorizeDevice verifies the SAS token that a device signs in with, for the
	// hub and device that its user name tells, and returns when it expires. The
	// error says why not, for the hub's log alone; a *c2d.Refusal with code 429001
	// drops the connection without an answer.
	AuthorizeDevice(l Login, token string) (expiry time.Time, err error)
}

// FirstSubscribe says what a device gets of the messages that were queued
// before it subscribed for the first time (or, with a clean session, before it subscribed).
type FirstSubscribe int

const (
	// DeliverAll delivers them all, as device SDKs see it.
	DeliverAll FirstSubscribe = iota
	// DeliverNew delivers only what is sent from then on, as the documentation says.
	// Older messages stay in the queue until they expire.
	DeliverNew
)

// Behaviour is what nobody outside knows of the hub, or what its owner may set.
// The zero value is the likeliest.
type Behaviour struct {
	Window         int // messages in flight to one device; 0: 10
	FirstSubscribe FirstSubscribe
	// CodeBadCredentials is the CONNACK code for them; 0: 5, not authorized. (4 is the other candidate.)
	CodeBadCredentials byte
	// Resend sends a message whose lock lapsed again on the same connection;
	// otherwise it waits for the next one.
	Resend bool
	Dup    bool // set the DUP flag when a message comes again
	// NoSessionPresent leaves the session-present flag of a CONNACK unset where
	// MQTT 3.1.1 §3.2.2.2 wants it set.
	NoSessionPresent bool
	// ReverseProperties turns the order of a C2D topic's properties round. Which
	// order IoT Hub keeps is not documented, so nobody should depend on one.
	ReverseProperties bool
	// OrderUnacknowledged sends no PUBACK for a message that orders a fault, as
	// the tests of the C# SDK describe the hub; by default it gets one like any other.
	OrderUnacknowledged bool
	// ConnectTimeout bounds TLS handshake and CONNECT together, WriteTimeout one
	// write to a device that does not read; 0: 10 s each.
	ConnectTimeout, WriteTimeout time.Duration
}

// Options make a Server.
type Options struct {
	Store     *c2d.Store
	Authority Authority
	Behaviour Behaviour
	Throttle  *throttle.Throttle // limits device-to-cloud messages; nil: nothing does
	Telemetry *telemetry.Log     // takes device-to-cloud messages; nil: one of its own
	Twins     *twin.Store        // nil: one of its own
	Faults    *fault.Injector    // may be nil
	// Order is told of device-to-cloud messages that order a fault for their
	// device. It must not block; nil: nobody.
	Order  func(device string, o fault.Order)
	Now    func() time.Time // the clock of tokens; nil: time.Now
	Logger *slog.Logger     // nil: discard
}

// Server serves any number of listeners. Safe for concurrent use.
type Server struct {
	store     *c2d.Store
	authority Authority
	behaviour Behaviour
	throttle  *throttle.Throttle
	telemetry *telemetry.Log
	twins     *twin.Store
	faults    *fault.Injector
	order     func(device string, o fault.Order)
	now       func() time.Time
	log       *slog.Logger
	done      chan struct{} // closed by Close

	wg sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	listeners []net.Listener
	conns     map[*conn]struct{}
	online    map[string]*conn        // by device: the one connection it has
	sessions  map[string]sessionState // by device: persistent sessions (CleanSession 0)
	arrival   chan struct{}           // closed when a device came or subscribed; nil while nobody waits
}

// sessionState is what MQTT 3.1.1 §3.1.2.4 has the server keep between
// connections, besides the queue.
type sessionState struct {
	generation string // of the device that made it
	grants     grants
	after      uint64 // messages up to this one are not for the subscription
}

// New makes a server; it listens nowhere yet.
func New(o Options) *Server {
	b := &o.Behaviour
	if b.Window <= 0 {
		b.Window = 10
	}
	if b.CodeBadCredentials == 0 {
		b.CodeBadCredentials = 5
	}
	if b.ConnectTimeout <= 0 {
		b.ConnectTimeout = 10 * time.Second
	}
	if b.WriteTimeout <= 0 {
		b.WriteTimeout = 10 * time.Second
	}
	if o.Telemetry == nil {
		o.Telemetry = new(telemetry.Log)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Twins == nil {
		o.Twins = twin.New(o.Now)
	}
	if o.Order == nil {
		o.Order = func(string, fault.Order) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		store: o.Store, authority: o.Authority, behaviour: *b, throttle: o.Throttle, telemetry: o.Telemetry, twins: o.Twins, faults: o.Faults, order: o.Order, now: o.Now,
		log: o.Logger.With("component", "mqttd"), done: make(chan struct{}),
		conns: map[*conn]struct{}{}, online: map[string]*conn{}, sessions: map[string]sessionState{},
	}
}

// Serve accepts connections until Close, then returns nil. It owns l. A TLS
// listener's handshake happens per connection, under ConnectTimeout.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			if !s.start(nc) {
				nc.Close()
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		// Out of file descriptors, most likely: it passes.
		if pause == 0 {
			s.log.Warn("cannot accept connections", "err", err)
		}
		pause = min(pause+10*time.Millisecond, time.Second)
		select {
		case <-time.After(pause):
		case <-s.done:
			return nil
		}
	}
}

func (s *Server) start(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(func() { s.serve(nc) })
	return true
}

// ServeConn serves one connection, such as a WebSocket's, and returns when it has ended.
func (s *Server) ServeConn(nc net.Conn) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	s.serve(nc)
}

// Close ends all listeners and connections and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	for _, l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.abort()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.online[c.device] == c {
		delete(s.online, c.device)
	}
}

// resume makes c the device's connection, gives it its session's state, and
// returns the session's subscriptions and whether it was there before.
func (s *Server) resume(c *conn) (g grants, present bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.session.Live() { // else a newer connection is, or comes, here
		s.online[c.device] = c
	}
	old, ok := s.sessions[c.device]
	if c.persistent && ok && old.generation == c.generation {
		c.after = old.after
		return old.grants, true
	}
	if s.online[c.device] != c {
		return 0, false
	}
	delete(s.sessions, c.device)
	if c.persistent {
		s.sessions[c.device] = sessionState{generation: c.generation}
	}
	return 0, false
}

// keep stores the state of a persistent session, unless another connection has taken over.
func (s *Server) keep(c *conn, g grants) {
	if !c.persistent {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.online[c.device] == c {
		s.sessions[c.device] = sessionState{generation: c.generation, grants: g, after: c.after}
	}
}

// Forget drops the persistent sessions of devices that are gone.
func (s *Server) Forget(gone func(device, generation string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sessions, func(device string, state sessionState) bool { return gone(device, state.generation) })
}

// Connection is a snapshot of one device's connection.
type Connection struct {
	Device     string
	Remote     string
	Since      time.Time
	Persistent bool // CleanSession 0
	InFlight   int  // messages sent and not acknowledged
}

// Connections returns the connected devices, sorted by ID.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	out := make([]Connection, 0, len(s.online))
	for _, c := range s.online {
		out = append(out, Connection{
			Device: c.device, Remote: c.net.RemoteAddr().String(), Since: c.since,
			Persistent: c.persistent, InFlight: c.window.len(),
		})
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b Connection) int { return strings.Compare(a.Device, b.Device) })
	return out
}
