package amqpd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

// errDone ends the read loop in good order.
var errDone = errors.New("amqpd: connection is over")

// conn is one connection. The reader alone touches in, parser and sections without the lock.
type conn struct {
	srv      *Server
	nc       net.Conn
	log      *slog.Logger
	in       *amqpwire.FrameReader
	parser   amqpwire.Parser
	sections amqpwire.Sections
	out      *outbox

	ctx    context.Context // ends with the connection; late answers wait on it
	cancel context.CancelFunc
	late   sync.WaitGroup

	opened atomic.Bool
	// plainToken: the token came by SASL PLAIN, which has no renewal: the connection ends with it.
	plainToken atomic.Bool
	until      atomic.Int64 // once CLOSE is on its way: when to stop listening for the peer's, in Unix ns

	mu        sync.Mutex // guards what follows, sessions and links included
	muted     bool       // by a fault: nothing is answered any more
	peerFrame uint32     // the largest frame the peer takes
	sessions  [maxChannel + 1]*session
	links     int
	held      int // deliveries whose answer is late or never comes
	partial   int // bytes of deliveries that have not arrived whole
	grant     Grant
	granted   bool
	feeding   bool     // feed runs
	shaped    []shaped // messages that the throttle delays, in their order
	replies   [][]byte // of $cbs, for a client that has not attached its receiver yet
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		srv: s, nc: nc, out: newOutbox(), in: amqpwire.NewFrameReader(nc, maxFrameSize),
		log: s.o.Logger.With("remote", remote(nc)),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func remote(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

// serve runs the connection to its end.
func (c *conn) serve() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer c.recovered()
		c.write()
	}()
	err := c.read()
	// Let the writer send what is left, such as our CLOSE; it is bound by its deadline.
	c.out.finish(nil)
	<-written
	c.nc.Close()
	c.cancel()
	c.late.Wait()
	c.release()
	if err != nil && !errors.Is(err, errDone) && !errors.Is(err, io.EOF) {
		c.log.Debug("connection ended", "err", err)
	} else {
		c.log.Debug("connection ended")
	}
}

// recovered contains a panic: it costs the connection and nothing else.
func (c *conn) recovered() {
	if p := recover(); p != nil {
		c.log.Error("internal error, connection cut", "err", p, "stack", string(debug.Stack()))
		c.cut()
	}
}

// cut ends the connection at once and without a word. Safe from any goroutine.
func (c *conn) cut() {
	c.out.kill()
	if t, ok := c.nc.(*tls.Conn); ok {
		t.NetConn().Close() // without close_notify, as a lost link would
		return
	}
	c.nc.Close()
}

// fail closes the connection with e: CLOSE goes out after all that is in the outbox, and the
// reader goes on for a moment to see the peer's. Closing the socket at once could
// destroy our CLOSE on its way, if there is unread input (RFC 1122 §4.2.2.13). Safe from any goroutine.
func (c *conn) fail(e *amqpwire.Error, linger time.Duration) {
	if !c.opened.Load() {
		c.cut() // no CLOSE before OPEN
		return
	}
	if !c.out.finish(&amqpwire.Close{Error: e}) {
		return
	}
	c.log.Debug("closing the connection", "err", e)
	until := time.Now().Add(linger)
	c.until.Store(until.UnixNano())
	c.nc.SetDeadline(until)
}

func (c *conn) shutdown() {
	c.fail(problem(condForced, "the hub is shutting down"), lingerTime/4)
}

func (c *conn) closing() bool { return c.until.Load() != 0 }

// write is the writer's loop.
func (c *conn) write() {
	never := func() *time.Timer {
		t := time.NewTimer(0)
		t.Stop()
		return t
	}
	beat, expiry := never(), never()
	defer beat.Stop()
	defer expiry.Stop()
	var set timers
	for {
		heartbeat := false
		select {
		case <-c.out.wake:
		case <-beat.C:
			heartbeat = true
		case <-expiry.C:
			if d := time.Until(c.out.expiry()); d > 0 { // renewed meanwhile
				expiry.Reset(d)
				continue
			}
			if c.srv.o.Behaviour.DetachExpired && !c.plainToken.Load() {
				c.detachExpired()
				continue
			}
			// The connection ends with the token that opened it (developer guide, "Control
			// access with shared access signatures").
			c.fail(problem(condUnauthorized, "the token has expired"), lingerTime)
			continue
		}
		b, t, last := c.out.take()
		if heartbeat && len(b) == 0 && !last {
			b = amqpwire.AppendFrame(nil, 0, nil, nil)
		}
		if len(b) > 0 {
			c.nc.SetWriteDeadline(time.Now().Add(c.srv.o.WriteTimeout))
			if until := c.until.Load(); until != 0 {
				c.nc.SetWriteDeadline(time.Unix(0, until))
			}
			if _, err := c.nc.Write(b); err != nil {
				if !last {
					c.log.Debug("write failed", "err", err)
				}
				c.cut()
				return
			}
		}
		if last {
			return
		}
		if !t.expiry.Equal(set.expiry) {
			expiry.Stop()
			if !t.expiry.IsZero() {
				expiry.Reset(time.Until(t.expiry))
			}
		}
		if t.heartbeat > 0 && (len(b) > 0 || t.heartbeat != set.heartbeat) {
			beat.Reset(t.heartbeat)
		}
		set = t
	}
}

// read is the reader's loop.
func (c *conn) read() error {
	defer c.recovered()
	c.nc.SetDeadline(time.Now().Add(c.srv.o.HandshakeTimeout))
	if err := c.handshake(); err != nil {
		return err
	}
	for {
		if !c.out.wait() {
			return errDone // what came after the cut was never read
		}
		if !c.in.Ready() {
			c.flush()
			c.arm()
		}
		fr, err := c.in.Next()
		switch {
		case err == nil:
		case c.closing():
			return err
		case errors.Is(err, amqpwire.ErrMalformedFrame):
			c.fail(problem(condFraming, "%v", err), lingerTime)
			io.Copy(io.Discard, c.nc) // until the peer hangs up or the deadline
			return err
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.fail(problem(condLimit, "no frame for %v", 2*c.srv.o.IdleTimeout), lingerTime)
			return err
		default:
			return err
		}
		if err := c.handle(fr); err != nil {
			return err
		}
	}
}

// arm sets the deadline for the next frame, whole: trickling bytes does not extend it.
func (c *conn) arm() {
	if !c.opened.Load() {
		return // the handshake's still stands
	}
	c.nc.SetReadDeadline(time.Now().Add(2 * c.srv.o.IdleTimeout))
	// fail stores its deadline before it sets it, so one of the two of us sets the right one last.
	if until := c.until.Load(); until != 0 {
		c.nc.SetReadDeadline(time.Unix(0, until))
	}
}

// send adds a frame to the outbox. One that the peer cannot take, which only what it made us echo can
// bring about, ends the connection.
func (c *conn) send(channel uint16, p amqpwire.Performative, payload []byte) {
	if !c.out.frame(channel, p, payload, max(c.peerFrame, amqpwire.MinMaxFrameSize)) {
		c.fail(problem(condFrameSize, "an answer does not fit the client's max-frame-size %d", c.peerFrame), lingerTime)
	}
}

// flush sends all that was held back to be sent in one go.
func (c *conn) flush() {
	c.settle()
	c.out.flush()
}

func (c *conn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s != nil {
			s.flush()
		}
	}
}

func (c *conn) handle(fr amqpwire.Frame) error {
	if len(fr.Body) == 0 && fr.Type == amqpwire.FrameAMQP {
		return nil // heartbeat
	}
	perf, payload, err := c.parser.Parse(fr.Type, fr.Body)
	if c.closing() {
		if _, ok := perf.(*amqpwire.Close); ok {
			return errDone
		}
		return nil
	}
	if err != nil {
		if !c.opened.Load() {
			return err
		}
		c.fail(problem(condDecode, "%v", err), lingerTime)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.muted {
		return nil
	}
	switch p := perf.(type) {
	case *amqpwire.Open:
		return c.open(p)
	case *amqpwire.Close:
		for _, s := range c.sessions {
			if s != nil {
				s.flush()
			}
		}
		c.out.finish(&amqpwire.Close{})
		return errDone
	}
	if !c.opened.Load() {
		return errors.New("amqpd: frame before open")
	}
	if fr.Channel > maxChannel {
		c.fail(problem(condFraming, "channel %d is above channel-max %d", fr.Channel, maxChannel), lingerTime)
		return nil
	}
	s := c.sessions[fr.Channel]
	if p, ok := perf.(*amqpwire.Begin); ok {
		c.begin(fr.Channel, s, p)
		return nil
	}
	if s == nil {
		c.fail(problem(condFraming, "no session on channel %d", fr.Channel), lingerTime)
		return nil
	}
	if p, ok := perf.(*amqpwire.End); ok {
		s.peerEnded(p)
		return nil
	}
	if !s.ending {
		s.handle(perf, payload)
	}
	return nil
}

// open answers OPEN. After it the handshake's deadline is gone.
func (c *conn) open(p *amqpwire.Open) error {
	if c.opened.Load() {
		c.fail(problem(condNotAllowed, "second open"), lingerTime)
		return nil
	}
	act, faulty := c.srv.o.Faults.Next(fault.Open, "")
	if faulty && act.Kind == fault.Drop {
		c.cut()
		return errDone
	}
	c.peerFrame = p.MaxFrameSize
	c.nc.SetReadDeadline(time.Time{}) // arm sets it from now on
	if faulty && act.Kind == fault.Withhold {
		c.muted = true
		return nil
	}
	if faulty && act.Kind == fault.Delay {
		// Nothing else goes on yet, so the reader itself can wait.
		t := time.NewTimer(act.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.srv.done:
			return errDone
		}
	}
	c.send(0, &amqpwire.Open{
		ContainerID: "DeviceGateway_" + newGUID(), MaxFrameSize: maxFrameSize, ChannelMax: maxChannel,
		IdleTimeout: uint32(c.srv.o.IdleTimeout / time.Millisecond),
	}, nil)
	c.opened.Store(true)
	if p.IdleTimeout > 0 {
		// Half of what the peer allows (§2.4.5), and no storm for one that allows next to nothing.
		every := max(time.Duration(p.IdleTimeout)*time.Millisecond/2, 50*time.Millisecond)
		c.out.setTimers(func(t *timers) { t.heartbeat = every })
	}
	switch {
	case faulty && act.Kind != fault.Delay:
		c.fail(scripted(act), lingerTime)
	case p.MaxFrameSize < amqpwire.MinMaxFrameSize:
		c.fail(problem(condInvalidField, "max-frame-size %d is below 512", p.MaxFrameSize), lingerTime)
	case !c.srv.serves(p.Hostname):
		c.fail(problem(condNoHub, "no hub %q here", p.Hostname), lingerTime)
	}
	return nil
}

func scripted(a fault.Action) *amqpwire.Error {
	condition, text := a.Condition, a.Text
	if condition == "" {
		condition = condInternal
	}
	if text == "" {
		text = "refused on request"
	}
	return problem(condition, "%s", text)
}

// after runs f under the lock in d, unless the connection ends before. Called with the lock held.
func (c *conn) after(d time.Duration, f func()) {
	c.late.Go(func() {
		defer c.recovered()
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			f()
		}()
		c.flush()
	})
}
