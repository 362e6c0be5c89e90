package hubservice

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
	"downlink/mapping"
)

// Options configure a Client. ConnectionString is required, or Entra and Host.
type Options struct {
	// Hub is the hub's name in the configuration, for errors and logs. Default main.
	Hub string
	// ConnectionString is a service connection string of a policy with the
	// ServiceConnect right. It is a secret.
	ConnectionString string
	// SecondaryConnectionString, of the same hub, is used while the hub refuses the
	// first. It is a secret.
	SecondaryConnectionString string
	// Reread returns both connection strings as they are now, for those that stand
	// in files. It is called for each connection, when the hub refuses us and every
	// 30 s; what has changed is taken over without a new connection. With an error, which
	// has no secret in it, one that is empty stays what it was. Nil: they never change.
	Reread func() (primary, secondary string, err error)
	// Entra authorizes with Microsoft Entra ID in place of connection strings.
	Entra *Entra
	// Host is the hub's host name, such as hub.azure-devices.net, with Entra.
	Host string
	// WebSocket tunnels AMQP through HTTPS, through the proxy that HTTPS_PROXY and NO_PROXY name.
	WebSocket bool
	// Address is host:port. Default: the hub's host, and 5671, or 443 with WebSocket.
	// Whatever it is, the certificate must be the host name's.
	Address string
	// RootCAs are the CAs to trust; nil: the system's.
	RootCAs *x509.CertPool
	// Window bounds the sends whose outcome is not known yet. Default 512. The
	// credit that the hub grants bounds them too.
	Window int
	// TokenLifetime is how long a SAS token is valid; any token is renewed after
	// three quarters of its life. Default 1h, as the hub's SDKs have it.
	TokenLifetime time.Duration
	// Stall is how long sends may wait without any answer from the hub before the
	// connection is replaced. Default 60s.
	Stall time.Duration
	// IdleTimeout is how long the hub may send nothing at all, not even the empty
	// frames that we ask it for, before the connection is replaced (AMQP 1.0
	// §2.4.5). Default 60s.
	IdleTimeout time.Duration
	// ReconnectMin and ReconnectMax bound the pause between connections; it
	// doubles, with jitter. Defaults 250ms and 30s.
	ReconnectMin, ReconnectMax time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

const (
	defaultPort          = "5671" // AMQP over TLS
	defaultWebSocketPort = "443"
	defaultWindow        = 512
	defaultTokenLifetime = time.Hour
	defaultStall         = time.Minute
	defaultIdle          = time.Minute
	defaultReconnectMin  = 250 * time.Millisecond
	defaultReconnectMax  = 30 * time.Second
)

// Client sends C2D messages to one hub. It implements bridge.Sender. Its methods
// are safe for concurrent use.
type Client struct {
	options     Options
	host        string
	credentials *credentials
	pace        pace
	wall        func() time.Time // the wall clock, which may jump
	proxy       func(*http.Request) (*url.URL, error)
	log         *slog.Logger
	health      *health

	running  atomic.Bool
	stopped  chan struct{} // closed when Run has returned
	requests chan *request // for the writer of the link that is up; nobody takes them while there is none
	window   chan struct{} // one token a send in progress
	renew    chan struct{} // asks the token keeper for a new token; one is enough
	inFlight atomic.Int64
	grants   atomic.Int64 // tokens that the hub took, on all links
	links    links
	feedback feedback
}

// weedEvery is how often what waits for a link is looked through.
const weedEvery = time.Second

// New checks the options; it opens nothing. The error is about the connection
// string or the address and contains no secret.
func New(o Options) (*Client, error) {
	if o.Hub == "" {
		o.Hub = "main"
	}
	fail := func(err error) (*Client, error) { return nil, fmt.Errorf("hub %s: %w", o.Hub, err) }
	o.Window = orDefault(o.Window, defaultWindow)
	o.TokenLifetime = orDefault(o.TokenLifetime, defaultTokenLifetime)
	o.Stall = orDefault(o.Stall, defaultStall)
	o.IdleTimeout = orDefault(o.IdleTimeout, defaultIdle)
	o.ReconnectMin = orDefault(o.ReconnectMin, defaultReconnectMin)
	o.ReconnectMax = max(orDefault(o.ReconnectMax, defaultReconnectMax), o.ReconnectMin)

	var ways *credentials
	var err error
	switch {
	case o.Entra != nil && o.ConnectionString != "":
		return fail(errors.New("a connection string as well as Entra ID; take one of the two"))
	case o.Entra != nil && o.Host == "":
		return fail(errors.New("Entra ID without the hub's host name"))
	case o.Entra != nil:
		ways = entraCredentials(*o.Entra, o.Host, o.RootCAs)
	default:
		if ways, err = sasCredentials(o); err != nil {
			return fail(err)
		}
	}
	o.ConnectionString, o.SecondaryConnectionString = "", "" // kept only where they are needed
	if o.Address == "" {
		port := defaultPort
		if o.WebSocket {
			port = defaultWebSocketPort
		}
		o.Address = net.JoinHostPort(ways.host, port)
	}
	if _, port, err := net.SplitHostPort(o.Address); err != nil || port == "" {
		return fail(fmt.Errorf("address %q: want host:port", o.Address))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	log := o.Logger.With("component", "hubservice", "hub", o.Hub)
	ways.forgive, ways.log = defaultForgive, log
	return &Client{
		options:     o,
		host:        ways.host,
		credentials: ways,
		pace:        defaultPace,
		wall:        time.Now,
		proxy:       http.ProxyFromEnvironment,
		log:         log,
		health:      newHealth(o.Hub, o.Address, ways, log),
		stopped:     make(chan struct{}),
		requests:    make(chan *request, o.Window),
		window:      make(chan struct{}, o.Window),
		renew:       make(chan struct{}, 1),
		links:       links{changed: make(chan struct{})},
	}, nil
}

func orDefault[T int | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// request is one message on its way to the writer of a link. It is used again
// once the hub has decided, and no sooner: until then go-amqp may still have it.
type request struct {
	message *amqp.Message // has bytes, now and later
	bytes   []byte
	expires time.Time // at the hub
	sendBy  time.Time // too late to send from then on, be it for that or for max_age; zero: never
	state   atomic.Int32
	link    *link       // that took it
	result  chan result // buffered: nobody waits for the caller
}

// States of a request. A link takes a queued one and answers it, or the caller of Send gives it up before.
const (
	queued int32 = iota
	taken
	answered
	gone
)

// tooLate reports whether it must not be sent any more. Most have no such time, and ask no clock.
func (r *request) tooLate() bool { return !r.sendBy.IsZero() && !time.Now().Before(r.sendBy) }

// answer ends a try of a request that was taken.
func (r *request) answer(w result) {
	if r.state.CompareAndSwap(taken, answered) {
		r.link.waiting.Add(-1)
	}
	r.result <- w
}

// giveUp ends the caller's waiting, and returns the state that it found: of one that was answered the result is there.
func (r *request) giveUp() (found int32) {
	if found = r.state.Swap(gone); found == taken {
		r.link.waiting.Add(-1)
	}
	return found
}

var requests = sync.Pool{New: func() any {
	r := &request{result: make(chan result, 1)}
	r.message = wireMessage(&r.bytes)
	return r
}}

// keepBytes is the largest buffer that a request keeps for its next message.
const keepBytes = 4 << 10

// release lets the request be used for another message.
func (r *request) release() {
	if cap(r.bytes) > keepBytes {
		r.bytes = nil
	}
	requests.Put(r)
}

// result is how one try ended: exactly one of refused, lost, unwritten, and the hub's state.
type result struct {
	link      *link
	grant     int64 // the number of the token under which it left
	state     amqp.DeliveryState
	refused   *bridge.Error // an outcome without the hub
	lost      error         // the link broke when all or part of the message may have left
	unwritten bool          // nothing of it left: it goes to the next link
}

var (
	errExpired = errors.New("expired before it could be sent")
	errStopped = errors.New("the client has stopped")
)

// Send implements bridge.Sender: it blocks until the hub has decided, nil means
// accepted. While there is no connection, or the hub refuses our credential, it
// waits, at most for as long as the message may be sent. What never left, and what was in flight when the hub refused our
// credential, is sent again on the next connection; otherwise a message in flight
// on a lost link fails with bridge.LinkLost, its outcome unknown. There is no
// time-out but ctx's; when ctx ends, the error wraps ctx.Err() and says what Send
// was waiting for, and the message may yet reach the hub if it had left.
// After Run has returned, Send fails at once.
func (c *Client) Send(ctx context.Context, e *mapping.Envelope) error {
	r := requests.Get().(*request)
	var err error
	if r.bytes, err = appendMessage(r.bytes[:0], e); err != nil {
		r.release()
		return err
	}
	select {
	case c.window <- struct{}{}:
	default:
		select {
		case c.window <- struct{}{}:
		case <-ctx.Done():
			return c.notSent(ctx)
		case <-c.stopped:
			return stopped()
		}
	}
	c.inFlight.Add(1)
	defer func() {
		c.inFlight.Add(-1)
		<-c.window
	}()

	r.expires, r.sendBy = e.ExpiresAt, e.Deadline()
	for {
		again, err := c.try(ctx, r)
		if !again {
			return err
		}
	}
}

// try sends r on one link; again asks for the next one.
func (c *Client) try(ctx context.Context, r *request) (again bool, err error) {
	r.state.Store(queued)
	select {
	case c.requests <- r:
	default: // full of such as were given up
		select {
		case c.requests <- r:
		case <-ctx.Done():
			return false, c.notSent(ctx)
		case <-c.stopped:
			return false, stopped()
		}
	}
	var w result
	select {
	case w = <-r.result:
	case <-ctx.Done():
		switch r.giveUp() {
		case queued:
			return false, c.notSent(ctx)
		case taken:
			return false, c.unanswered(ctx)
		}
		w = <-r.result
	case <-c.stopped:
		if r.state.CompareAndSwap(queued, gone) {
			return false, stopped()
		}
		w = <-r.result // the writer has ended, and what it took has its decision or its link's end
	}
	switch {
	case w.unwritten:
		return true, nil
	case w.refused != nil:
		return false, w.refused
	case w.lost != nil:
		return w.link.lost(w.lost)
	}
	err = outcome(w.state)
	if err != nil {
		err = late(err, r.expires, time.Now())
	}
	r.release()
	return false, c.decided(err, w)
}

// Link implements bridge.Linked.
func (c *Client) Link() (up bool, changed <-chan struct{}) {
	l, changed := c.links.get()
	return l != nil, changed
}

// decided passes the outcome on. The hub's no to our credential, given to a
// message that left under the token in use, asks for a new one, of another
// connection string if there is one; what follows is the engine's back-off.
func (c *Client) decided(err error, w result) error {
	if err == nil {
		c.health.accepted()
		return nil
	}
	if e, ok := errors.AsType[*bridge.Error](err); ok && e.Class == bridge.Unauthorized && w.link.current(w.grant) && c.health.refused(err, w.grant) {
		w.link.disown(c.credentials)
		select {
		case c.renew <- struct{}{}:
		default:
		}
	}
	return err
}

// notSent is the error of a Send whose context ended before the message left.
func (c *Client) notSent(ctx context.Context) error {
	if err := c.health.ready(); err != nil {
		return fmt.Errorf("not sent: %w: %w", ctx.Err(), err)
	}
	return fmt.Errorf("hub %s: not sent: %w", c.options.Hub, ctx.Err())
}

// unanswered is the error of a Send whose context ended after the message was
// handed to the link.
func (c *Client) unanswered(ctx context.Context) error {
	return fmt.Errorf("hub %s: no answer yet, so whether the hub has the message is not known: %w", c.options.Hub, ctx.Err())
}

func expired() *bridge.Error {
	return &bridge.Error{Class: bridge.Refused, Op: "send", Reason: bridge.ReasonExpired, Err: errExpired}
}

func stopped() error { return &bridge.Error{Class: bridge.LinkLost, Op: "send", Err: errStopped} }

// Ready is nil while the client is connected and authorized. Its error names the
// hub, the cause and, where there is one, the remedy.
func (c *Client) Ready() error { return c.health.ready() }

// Stats is a snapshot for /status.
type Stats struct {
	Connected    bool      `json:"connected"`
	Since        time.Time `json:"since"`            // of the present state
	Reconnects   int       `json:"reconnects"`       // connections after the first
	TokenExpires time.Time `json:"token_expires"`    // of the token in use
	InFlight     int       `json:"in_flight"`        // sends whose outcome is not known yet, waiting ones included
	Credential   string    `json:"credential"`       // in use: primary, secondary or entra; empty before the first
	Notice       string    `json:"notice,omitempty"` // what is wrong with the credentials although we are connected
	// Feedback is what was read of the hub's feedback; nil if it is not read.
	Feedback *FeedbackStats `json:"feedback,omitempty"`
}

// Stats returns a snapshot.
func (c *Client) Stats() Stats {
	s := c.health.stats()
	s.InFlight = int(c.inFlight.Load())
	if f := &c.feedback; f.used.Load() {
		s.Feedback = &FeedbackStats{Attached: f.attached.Load(), Batches: f.batches.Load(), Unreadable: f.unreadable.Load()}
	}
	s.Credential, s.Notice = c.credentials.state()
	return s
}
