package hubservice

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
	"downlink/mapping"
)

// Options configure a Client. Only ConnectionString is required.
type Options struct {
	// Hub is the hub's name in the configuration, for errors and logs. Default main.
	Hub string
	// ConnectionString is a service connection string of a policy with the
	// ServiceConnect right. It is a secret.
	ConnectionString string
	// Address is host:port. Default: the connection string's host and 5671.
	// Whatever it is, the certificate must be the host name's.
	Address string
	// RootCAs are the CAs to trust; nil: the system's.
	RootCAs *x509.CertPool
	// Window bounds the sends whose outcome is not known yet. Default 512. The
	// credit that the hub grants bounds them too.
	Window int
	// TokenLifetime is how long a token is valid; it is renewed after three
	// quarters of that. Default 1h, as the hub's SDKs have it.
	TokenLifetime time.Duration
	// Stall is how long sends may wait without any answer from the hub before the
	// connection is replaced. Default 60s.
	Stall time.Duration
	// ReconnectMin and ReconnectMax bound the pause between connections; it
	// doubles, with jitter. Defaults 250ms and 30s.
	ReconnectMin, ReconnectMax time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

const (
	defaultPort          = "5671" // AMQP over TLS
	defaultWindow        = 512
	defaultTokenLifetime = time.Hour
	defaultStall         = time.Minute
	defaultReconnectMin  = 250 * time.Millisecond
	defaultReconnectMax  = 30 * time.Second
)

// Client sends C2D messages to one hub. It implements bridge.Sender. Its methods
// are safe for concurrent use.
type Client struct {
	options    Options
	host       string
	credential credential
	log        *slog.Logger
	health     *health

	running  atomic.Bool
	stopped  chan struct{} // closed when Run has returned
	requests chan *request // for the writer of the link that is up; nobody takes them while there is none
	window   chan struct{} // one token a send in progress
	renew    chan struct{} // asks the token keeper for a new token; one is enough
	inFlight atomic.Int64
}

// New checks the options; it opens nothing. The error is about the connection
// string or the address and contains no secret.
func New(o Options) (*Client, error) {
	if o.Hub == "" {
		o.Hub = "main"
	}
	fail := func(err error) (*Client, error) { return nil, fmt.Errorf("hub %s: %w", o.Hub, err) }

	c, err := sas.Parse(o.ConnectionString)
	if err != nil {
		return fail(err)
	}
	switch c.Kind() {
	case sas.KindService:
	case sas.KindEventHubs:
		return fail(errors.New("this is an Event Hubs connection string; take the hub's service connection string (Shared access policies, policy service)"))
	default:
		return fail(fmt.Errorf("this is a %s connection string; take the hub's service connection string (Shared access policies, policy service)", c.Kind()))
	}

	o.ConnectionString = "" // kept only where it is needed
	o.Window = orDefault(o.Window, defaultWindow)
	o.TokenLifetime = orDefault(o.TokenLifetime, defaultTokenLifetime)
	o.Stall = orDefault(o.Stall, defaultStall)
	o.ReconnectMin = orDefault(o.ReconnectMin, defaultReconnectMin)
	o.ReconnectMax = max(orDefault(o.ReconnectMax, defaultReconnectMax), o.ReconnectMin)
	if o.Address == "" {
		o.Address = net.JoinHostPort(c.HostName, defaultPort)
	}
	if _, port, err := net.SplitHostPort(o.Address); err != nil || port == "" {
		return fail(fmt.Errorf("address %q: want host:port", o.Address))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cr, err := newCredential(c, o.TokenLifetime)
	if err != nil {
		return fail(err)
	}
	log := o.Logger.With("component", "hubservice", "hub", o.Hub)
	return &Client{
		options:    o,
		host:       c.HostName,
		credential: cr,
		log:        log,
		health:     newHealth(o.Hub, o.Address, cr.keyName, log),
		stopped:    make(chan struct{}),
		requests:   make(chan *request, o.Window),
		window:     make(chan struct{}, o.Window),
		renew:      make(chan struct{}, 1),
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
	message *amqp.Message
	bytes   []byte // the message's
	expires time.Time
	state   atomic.Int32
	written chan writeResult // buffered: the writer never waits for the caller
}

// States of a request. The writer takes a queued one, or the caller of Send gives it up.
const (
	queued int32 = iota
	taken
	gone
)

var requests = sync.Pool{New: func() any { return &request{written: make(chan writeResult, 1)} }}

// keepBytes is the largest buffer that a request keeps for its next message.
const keepBytes = 4 << 10

// release lets the request be used for another message.
func (r *request) release() {
	r.message = nil
	if cap(r.bytes) > keepBytes {
		r.bytes = nil
	}
	requests.Put(r)
}

// writeResult is what the writer says: exactly one of refused, lost, unwritten,
// and a link with a receipt.
type writeResult struct {
	link      *link
	receipt   amqp.SendReceipt
	refused   *bridge.Error // an outcome without the hub
	lost      error         // the link broke when part of the message may have left
	unwritten bool          // nothing of it left: it goes to the next link
}

var (
	errExpired = errors.New("expired before it could be sent")
	errStopped = errors.New("the client has stopped")
)

// Send implements bridge.Sender: it blocks until the hub has decided, nil means
// accepted. While there is no connection, or the hub refuses our credential, it
// waits. What never left, and what was in flight when the hub refused our
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

	r.message, r.expires = wireMessage(r.bytes), e.ExpiresAt
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
	var w writeResult
	select {
	case w = <-r.written:
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, gone) {
			return false, c.notSent(ctx)
		}
		return false, c.unanswered(ctx)
	case <-c.stopped:
		if r.state.CompareAndSwap(queued, gone) {
			return false, stopped()
		}
		w = <-r.written // the writer has ended, and said what became of what it took
	}
	switch {
	case w.unwritten:
		return true, nil
	case w.refused != nil:
		return false, w.refused
	case w.lost != nil:
		return w.link.lost(w.lost)
	}
	state, err := w.link.wait(ctx, &w.receipt)
	switch {
	case err == nil:
		r.release()
		return false, c.decided(outcome(state))
	case ctx.Err() != nil:
		return false, c.unanswered(ctx)
	default:
		return w.link.lost(err)
	}
}

// decided passes the outcome on. The hub's no to our credential, given to one
// message, asks for a new token once; what follows is the engine's back-off.
func (c *Client) decided(err error) error {
	if err == nil {
		c.health.accepted()
		return nil
	}
	if e, ok := errors.AsType[*bridge.Error](err); ok && e.Class == bridge.Unauthorized && c.health.refused(err) {
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

func stopped() error { return &bridge.Error{Class: bridge.LinkLost, Op: "send", Err: errStopped} }

// Ready is nil while the client is connected and authorized. Its error names the
// hub, the cause and, where there is one, the remedy.
func (c *Client) Ready() error { return c.health.ready() }

// Stats is a snapshot for /status.
type Stats struct {
	Connected    bool      `json:"connected"`
	Since        time.Time `json:"since"`         // of the present state
	Reconnects   int       `json:"reconnects"`    // connections after the first
	TokenExpires time.Time `json:"token_expires"` // of the token in use
	InFlight     int       `json:"in_flight"`     // sends whose outcome is not known yet, waiting ones included
}

// Stats returns a snapshot.
func (c *Client) Stats() Stats {
	s := c.health.stats()
	s.InFlight = int(c.inFlight.Load())
	return s
}
