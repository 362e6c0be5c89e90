package amqpd

import (
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
)

// Backend is the hub behind the endpoint. Both methods are called by many goroutines at once.
type Backend interface {
	// Enqueue takes a message over, or says why not with a *c2d.Refusal. Any other error is
	// told to the sender as amqp:internal-error. It may keep m's slices.
	Enqueue(m c2d.Message) error
	// Authorize verifies the text of a SAS token, or of an Entra token with "Bearer " before it. A *c2d.Refusal chooses the answer's code and text;
	// any other error is answered as unauthorized, without its text.
	Authorize(token string) (Grant, error)
}

// Grant is what a verified token allows.
type Grant struct {
	Policy         string    // the shared access policy that signed it
	Expires        time.Time // zero: never
	ServiceConnect bool      // may send messages and receive feedback
}

// Behaviour is what nobody outside knows of the hub. The zero value is the likeliest.
type Behaviour struct {
	// Credit is what the hub grants on a link to /messages/devicebound, topped up at half. Default 100.
	Credit uint32
	// DetachExpired says that a token's expiry detaches the links that need it and keeps the connection, so that the client
	// may put another token and attach again. Otherwise the connection ends, as it does anyhow if the token came by SASL PLAIN.
	DetachExpired bool
}

// Options say how to serve. Zero values have defaults.
type Options struct {
	// Backend is required.
	Backend Backend
	// Hostnames are the hub's names, compared without case. A client that opens a connection to another
	// name is refused; the loopback addresses are always right. Empty: any name is.
	Hostnames []string
	// Feedback is what clients receive at /messages/serviceBound/feedback; nil: nothing is offered there.
	Feedback *feedback.Queue
	// Throttle limits what is sent to devices; nil: nothing does.
	Throttle  *throttle.Throttle
	Behaviour Behaviour
	// Faults may be nil.
	Faults *fault.Injector
	// Logger may be nil: discard.
	Logger *slog.Logger
	// HandshakeTimeout bounds everything before OPEN: TLS, SASL and protocol headers. Default 30 s.
	HandshakeTimeout time.Duration
	// IdleTimeout is what the hub advertises; a peer is cut after twice as long without a
	// frame (§2.4.5). Default 4 min.
	IdleTimeout time.Duration
	// WriteTimeout bounds one write to a peer that does not read. Default 30 s.
	WriteTimeout time.Duration
	// MaxConnections closes what is accepted beyond it. Default 1024.
	MaxConnections int
}

// The endpoint's bounds. All are per connection.
const (
	maxFrameSize   = 64 << 10
	maxMessageSize = 1 << 20 // advertised on links; the hub's own 64 KB rule is the backend's
	maxChannel     = 63
	maxHandle      = 255
	maxLinks       = 256
	maxUnsettled   = 2048            // deliveries that wait for a late answer
	maxReassembly  = 4 << 20         // bytes of deliveries that have not arrived whole
	maxQueued      = 64              // messages that wait for credit on a link to the client
	maxText        = 240             // bytes of an error's description
	incomingWindow = 5000            // transfer frames; renewed at half
	lingerTime     = 2 * time.Second // for the peer to read why it was closed
)

// Server serves any number of listeners and connections. Make one with New.
type Server struct {
	o Options

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	running   sync.WaitGroup // Serve and ServeConn calls
	done      chan struct{}
}

// New returns a Server that does nothing yet. It panics without a Backend.
func New(o Options) *Server {
	if o.Backend == nil {
		panic("amqpd: Options.Backend is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("component", "hub-amqp")
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.HandshakeTimeout, 30*time.Second)
	def(&o.IdleTimeout, 4*time.Minute)
	def(&o.WriteTimeout, 30*time.Second)
	if o.Behaviour.Credit == 0 {
		o.Behaviour.Credit = 100
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 1024
	}
	return &Server{o: o, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, done: make(chan struct{})}
}

// Serve accepts connections until Close, and then returns nil, or until the listener is closed
// by someone else, and then returns its error. It closes ln. For a TLS listener the handshake takes
// place in the connection's goroutine. Several Serve calls may run at once.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners[ln] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	const first, last = 5 * time.Millisecond, time.Second
	for wait := first; ; {
		nc, err := ln.Accept()
		if err == nil {
			wait = first
			s.running.Go(func() { s.ServeConn(nc) })
			continue
		}
		select {
		case <-s.done:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of descriptors, or a client that was gone before it was accepted.
		if wait == first {
			s.o.Logger.Warn("accept failed, trying again", "err", err)
		}
		select {
		case <-s.done:
			return nil
		case <-time.After(wait):
			wait = min(2*wait, last)
		}
	}
}

// ServeConn serves one connection, such as one that came over WebSocket, and returns when it has
// ended and its goroutines have exited. It closes nc.
func (s *Server) ServeConn(nc net.Conn) {
	s.mu.Lock()
	if s.closed || len(s.conns) >= s.o.MaxConnections {
		full := !s.closed
		s.mu.Unlock()
		if full {
			s.o.Logger.Warn("connection refused: too many", "limit", s.o.MaxConnections)
		}
		nc.Close()
		return
	}
	c := newConn(s, nc)
	s.conns[c] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	c.serve()
}

// Close closes the listeners, tells every peer amqp:connection:forced, gives it a moment to
// read that, and returns when every goroutine has exited. It may be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		for ln := range s.listeners {
			ln.Close()
		}
		for c := range s.conns {
			c.shutdown()
		}
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Connections is the number of connections being served.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// serves says whether host, which may carry a port, is one of the hub's names.
func (s *Server) serves(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "" || len(s.o.Hostnames) == 0 {
		return true
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return true
	}
	for _, name := range s.o.Hostnames {
		if strings.EqualFold(name, host) {
			return true
		}
	}
	return false
}
