package hubservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
)

const (
	// sendAddress is the target of all C2D messages; "to" names the device.
	sendAddress    = "/messages/devicebound"
	connectTimeout = 30 * time.Second
	// writeTimeout is how long frames may take to leave. The connection is given up then.
	writeTimeout = 15 * time.Second
	closeTimeout = 2 * time.Second
)

// link is one connection with its sender. It never comes back: after fail the
// client makes another.
type link struct {
	conn    *amqp.Conn
	wire    *wire
	cbs     *cbs
	sender  *amqp.Sender
	expires time.Time // of the token that authorized it

	broken chan struct{} // closed by fail

	waiting atomic.Int64  // sends that wait for the hub
	settled atomic.Uint64 // sends that it has decided

	mu      sync.Mutex // guards all below
	failure error      // why it broke
}

var errStalled = errors.New("no answer from the hub")

// connect opens connection, session and links, and authorizes them. There is no
// SASL layer: the hub takes a connection that starts with the AMQP header, as its
// Node and C# SDKs do (AMQP 1.0 §5.3: SASL is a layer of its own), and the token
// on $cbs authorizes everything.
func (c *Client) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()

	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4}},
		Config:    &tls.Config{ServerName: c.host, RootCAs: c.options.RootCAs, MinVersion: tls.VersionTLS12},
	}
	socket, err := dialer.DialContext(ctx, "tcp", c.options.Address)
	if err != nil {
		return nil, explainTLS(err)
	}
	l := &link{wire: newWire(socket), broken: make(chan struct{})}
	// NewConn owns the socket from here on, also when it fails.
	l.conn, err = amqp.NewConn(ctx, l.wire, &amqp.ConnOptions{HostName: c.host})
	if err != nil {
		return nil, readable(fmt.Errorf("open the AMQP connection to %s: %w", c.options.Address, err))
	}
	if err := c.open(ctx, l); err != nil {
		l.close()
		return nil, readable(err)
	}
	return l, nil
}

// open authorizes the new connection and attaches the sender. A refused
// credential gets one new token (the hub's clock may have been the cause), here
// as for a message.
func (c *Client) open(ctx context.Context, l *link) error {
	session, err := l.conn.NewSession(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin the AMQP session: %w", err)
	}
	if l.cbs, err = openCBS(ctx, session); err != nil {
		return err
	}
	for try := 0; ; try++ {
		if err = c.authorize(ctx, l); err == nil {
			l.sender, err = session.NewSender(ctx, sendAddress, nil)
			if err == nil {
				return nil
			}
			err = fmt.Errorf("attach to %s: %w", sendAddress, orContext(ctx, err))
		}
		if try > 0 || !isUnauthorized(err) || isLinkLoss(err) {
			return err
		}
	}
}

func (c *Client) authorize(ctx context.Context, l *link) error {
	token, expires, err := c.credential.mint(time.Now())
	if err != nil {
		return err
	}
	if err := l.cbs.put(ctx, c.host, token); err != nil {
		return err
	}
	l.expires = expires
	return nil
}

func explainTLS(err error) error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w; if the hub has a CA of its own, name its file in ca_file", err)
	}
	return err
}

// fail gives the link up for the first cause. Safe to call at any time.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil {
		l.failure = readable(err)
		close(l.broken)
	}
}

func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// close ends the connection and returns when go-amqp's reader and writer are
// gone. A socket that takes no more bytes is cut, or the close frame would wait
// for it.
func (l *link) close() {
	cut := time.AfterFunc(closeTimeout, func() { l.wire.cut() })
	defer cut.Stop()
	_ = l.conn.Close()
}

// write is the writer: it takes requests while the link lives. It alone sends,
// so that a caller's context can neither leave a message half sent nor put its
// short deadline on a write that others share.
func (l *link) write(requests <-chan *request) {
	for {
		select {
		case <-l.broken:
			return
		default:
		}
		var r *request
		select {
		case r = <-requests: // without a look at anything else, while there is more
		default:
			select {
			case <-l.broken:
				return
			case r = <-requests:
			}
		}
		if !l.writeOne(r) {
			return
		}
	}
}

func (l *link) writeOne(r *request) bool {
	if !r.state.CompareAndSwap(queued, taken) {
		return true
	}
	if !r.expires.IsZero() && !time.Now().Before(r.expires) {
		r.written <- writeResult{refused: &bridge.Error{Class: bridge.Refused, Op: "send", Reason: bridge.ReasonExpired, Err: errExpired}}
		return true
	}
	before := l.wire.transfers.Load()
	l.waiting.Add(1)
	// Blocks until there is credit and the message has left, or the link is gone.
	receipt, err := l.sender.SendWithReceipt(context.Background(), r.message, nil)
	l.waiting.Add(-1)
	if err == nil {
		r.written <- writeResult{link: l, receipt: receipt}
		return true
	}
	if refused, ok := local(err); ok {
		r.written <- writeResult{refused: refused}
		return true
	}
	l.fail(err)
	if l.wire.transfers.Load() == before {
		r.written <- writeResult{unwritten: true}
	} else {
		r.written <- writeResult{link: l, lost: err}
	}
	return false
}

// wait returns the hub's decision, or why there will be none on this link.
func (l *link) wait(ctx context.Context, receipt *amqp.SendReceipt) (amqp.DeliveryState, error) {
	l.waiting.Add(1)
	state, err := receipt.Wait(ctx)
	// When the decision and the end of the link are both there, Wait picks one at
	// random. A few more looks spare nearly every needless second send.
	for i := 0; err != nil && ctx.Err() == nil && i < 6; i++ {
		state, err = receipt.Wait(ctx)
	}
	if err == nil {
		l.settled.Add(1)
	}
	l.waiting.Add(-1)
	return state, err
}

// lost decides about a message that was in flight when the link broke for err.
func (l *link) lost(err error) (again bool, _ error) {
	l.fail(err)
	cause := l.cause()
	switch {
	case isUnauthorized(cause) || errors.Is(cause, errTokenEnd):
		// Not the message's fault, and the next connection comes with a new token.
		return true, nil
	case errors.Is(cause, errStalled):
		// Nor is a hub that is silent for everybody: it does not count against the message.
		return false, &bridge.Error{Class: bridge.Resend, Op: "send", Err: cause}
	default:
		return false, &bridge.Error{Class: bridge.LinkLost, Op: "send", Condition: condition(cause), Err: fmt.Errorf("the link broke while the message was in flight: %w", cause)}
	}
}

// carried reports whether the hub has settled anything on this link.
func (l *link) carried() bool { return l.settled.Load() > 0 }

// watch is the watchdog: it gives the link up when sends wait and the hub has
// settled nothing for stall, or up to half of that longer. One slow message is fine as long as others move.
func (l *link) watch(stall time.Duration) {
	tick := time.NewTicker(max(stall/4, time.Millisecond))
	defer tick.Stop()
	settled, still := uint64(0), time.Time{} // since the first look at which sends waited, and nothing moved
	for {
		select {
		case <-l.broken:
			return
		case now := <-tick.C:
			waiting := l.waiting.Load()
			switch n := l.settled.Load(); {
			case waiting == 0 || n != settled:
				settled, still = n, time.Time{}
			case still.IsZero():
				still = now
			case now.Sub(still) > stall:
				l.fail(fmt.Errorf("%w for %s with sends waiting", errStalled, stall))
				return
			}
		}
	}
}
