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
	socket net.Conn
	conn   *amqp.Conn
	wire   *wire
	cbs    *cbs
	sender *amqp.Sender
	grant  grant        // the token in use; the token keeper's once the link is up
	number atomic.Int64 // of that grant, among all of the client

	broken chan struct{} // closed by fail
	over   chan struct{} // closed once nobody can find the link any more

	waiting atomic.Int64  // sends that wait for the hub, and whose callers do
	settled atomic.Uint64 // sends that it has decided

	mu      sync.Mutex // guards all below
	failure error      // why it broke
}

var errStalled = errors.New("no answer from the hub")

// grant is a token that the hub took.
type grant struct {
	token
	way   *way
	taken time.Time // by the monotonic clock
	wall  time.Time // the wall clock then, without the monotonic one
}

// ends is when the token is over. It goes by the monotonic clock: the wall clock
// may jump.
func (g grant) ends() time.Time { return g.taken.Add(g.left) }

// connect opens connection, session and links, and authorizes them. There is no
// SASL layer: the hub takes a connection that starts with the AMQP header, as its
// Node and C# SDKs do (AMQP 1.0 §5.3: SASL is a layer of its own), and the token
// on $cbs authorizes everything.
func (c *Client) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()

	c.credentials.refresh()
	// The first token comes before the connection: without one there is no use in it,
	// and the hub need not wait while Entra ID is asked.
	var tried []*way
	w, t, err := c.credentials.issue(ctx, &tried, c.wall())
	if err != nil {
		return nil, err
	}
	socket, err := c.dial(ctx)
	if err != nil {
		return nil, explainTLS(err)
	}
	l := &link{socket: socket, wire: newWire(together(socket)), broken: make(chan struct{}), over: make(chan struct{})}
	// NewConn owns the socket from here on, also when it fails.
	l.conn, err = amqp.NewConn(ctx, l.wire, &amqp.ConnOptions{HostName: c.host, WriteTimeout: writeTimeout, IdleTimeout: c.options.IdleTimeout})
	if err != nil {
		return nil, readable(fmt.Errorf("open the AMQP connection to %s: %w", c.options.Address, err))
	}
	if err := c.open(ctx, l, w, t, tried); err != nil {
		l.close()
		return nil, readable(err)
	}
	return l, nil
}

// together has frames leave together, but not over WebSocket: there each write
// is a message, and a peer may want one frame in each.
func together(socket net.Conn) net.Conn {
	if _, ok := socket.(*tls.Conn); ok {
		return gather(socket)
	}
	return socket
}

// open authorizes the new connection and attaches the sender. A refused
// credential gives its place to the next one, or gets one new token (the hub's
// clock may have been the cause), here as for a message.
func (c *Client) open(ctx context.Context, l *link, w *way, t token, tried []*way) error {
	session, err := l.conn.NewSession(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin the AMQP session: %w", err)
	}
	if l.cbs, err = openCBS(ctx, session); err != nil {
		return err
	}
	for {
		err = c.authorize(ctx, l, w, t)
		if err == nil {
			if l.sender, err = session.NewSender(ctx, sendAddress, nil); err == nil {
				c.accepted(l)
				return nil
			}
			err = fmt.Errorf("attach to %s: %w", sendAddress, orContext(ctx, err))
		}
		if !isUnauthorized(err) || isLinkLoss(err) {
			return err
		}
		c.credentials.refuse(w)
		next, minted, mintErr := c.credentials.issue(ctx, &tried, c.wall())
		if mintErr != nil || next == nil {
			return err
		}
		w, t = next, minted
	}
}

// authorize has the hub take a token.
func (c *Client) authorize(ctx context.Context, l *link, w *way, t token) error {
	taken, wall := time.Now(), c.wall().Round(0) // before the hub has it
	if err := l.cbs.put(ctx, t); err != nil {
		return err
	}
	l.mu.Lock()
	l.grant = grant{token: t, way: w, taken: taken, wall: wall}
	l.mu.Unlock()
	l.number.Store(c.grants.Add(1))
	return nil
}

// accepted notes that the link's token is in use.
func (c *Client) accepted(l *link) {
	if before, other := c.credentials.accept(l.grant.way); other {
		c.health.switched(before, l.grant.way.role)
	}
}

// current reports whether a message that left under a grant left under the one in
// use.
func (l *link) current(grant int64) bool { return l.number.Load() == grant }

// disown has the way of the token in use come after the others.
func (l *link) disown(c *credentials) {
	l.mu.Lock()
	w := l.grant.way
	l.mu.Unlock()
	c.refuse(w)
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

func (l *link) gone() bool {
	select {
	case <-l.broken:
		return true
	default:
		return false
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
	cut := time.AfterFunc(closeTimeout, func() { _ = l.socket.Close() })
	defer cut.Stop()
	_ = l.conn.Close()
}

// write is the writer: it takes requests while the link lives. It alone sends,
// so that a caller's context can neither leave a message half sent nor put its
// short deadline on a write that others share.
func (l *link) write(requests <-chan *request, sent chan<- flight) {
	defer close(sent)
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
		if !l.writeOne(r, sent) {
			return
		}
	}
}

func (l *link) writeOne(r *request, sent chan<- flight) bool {
	l.waiting.Add(1) // until it is answered
	r.link = l
	if !r.state.CompareAndSwap(queued, taken) {
		l.waiting.Add(-1)
		return true
	}
	if r.tooLate() {
		r.answer(result{refused: expired()})
		return true
	}
	before, grant := l.wire.transfers.Load(), l.number.Load()
	// Blocks until there is credit and the message has left, or the link is gone.
	receipt, err := l.sender.SendWithReceipt(context.Background(), r.message, nil)
	if err == nil {
		sent <- flight{request: r, grant: grant, receipt: receipt}
		return true
	}
	if refused, ok := local(err); ok {
		r.answer(result{refused: refused})
		return true
	}
	l.fail(err)
	if l.wire.transfers.Load() == before {
		r.answer(result{unwritten: true})
	} else {
		r.answer(result{link: l, lost: err})
	}
	return false
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

// watchEnds gives the link up when the hub has closed the session, the sender or
// the way to $cbs: go-amqp tells only those who send.
func (l *link) watchEnds() {
	for {
		select {
		case <-l.broken:
			return
		case <-l.wire.ended:
			if err := l.closedCause(); err != nil {
				l.fail(err)
				return
			}
		}
	}
}

// closedCause is why, once go-amqp has got to the frame: by then it has passed on
// what the hub had decided before. nil: what was closed is none of these.
func (l *link) closedCause() error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range causeTries {
		for _, s := range []*amqp.Sender{l.sender, l.cbs.sender} {
			if err := closed(s); err != nil {
				return err
			}
		}
		select {
		case <-l.broken:
			return l.cause()
		case <-tick.C:
		}
	}
	return nil
}

// causeTries are the milliseconds that go-amqp gets.
const causeTries = 1000

// closed returns why s is closed, and nil if it is not. go-amqp tells only those
// who send: this message it refuses itself, for its tag, if the link is alive.
func closed(s *amqp.Sender) error {
	_, err := s.SendWithReceipt(context.Background(), &amqp.Message{DeliveryTag: make([]byte, 33)}, nil)
	if isLinkLoss(err) {
		return err
	}
	return nil
}
