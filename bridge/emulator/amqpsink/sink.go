// Package amqpsink is the least that an AMQP 1.0 sender needs on the other side:
// it grants credit, accepts every delivery unread, and knows no queues,
// addresses, tokens or rules. It is what the embedded hub's speed is measured
// against, and so it is no part of the hub: it does not share its endpoint, only
// the frames of amqpwire. Peers are trusted.
package amqpsink

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"downlink/bridge/internal/amqpwire"
)

const (
	maxFrame = 64 << 10
	window   = 5000 // frames of each session; renewed at half
)

// Sink serves any number of listeners. The zero Sink is ready to use. Safe for concurrent use.
type Sink struct {
	// Credit is what each link gets, renewed at half; 0: 1000. Not to be changed after Serve.
	Credit uint32

	mu     sync.Mutex
	open   map[io.Closer]struct{}
	closed bool
	wg     sync.WaitGroup
}

// Serve accepts connections until Close, then returns nil. It closes l.
func (s *Sink) Serve(l net.Listener) error {
	if !s.enter(l) {
		return nil
	}
	defer s.leave(l)
	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				return nil
			}
			return err
		}
		if !s.enter(nc) {
			continue
		}
		go func() {
			defer s.leave(nc)
			s.serve(nc)
		}()
	}
}

func (s *Sink) enter(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	if s.open == nil {
		s.open = map[io.Closer]struct{}{}
	}
	s.open[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Sink) leave(c io.Closer) {
	c.Close()
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	s.wg.Done()
}

// Close cuts all connections and returns when every goroutine has ended.
func (s *Sink) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// conn is one connection; one goroutine reads, answers and writes.
type conn struct {
	nc       net.Conn
	credit   uint32
	in       *amqpwire.FrameReader
	out      []byte
	sessions map[uint16]*session
}

type session struct {
	channel     uint16
	next        uint32 // the next frame's transfer-id
	window      uint32
	links       map[uint32]*link
	first, last uint32 // deliveries to accept
	pending     bool
}

type link struct{ credit, count, id uint32 }

func (s *Sink) serve(nc net.Conn) {
	credit := s.Credit
	if credit == 0 {
		credit = 1000
	}
	c := &conn{nc: nc, credit: credit, in: amqpwire.NewFrameReader(nc, maxFrame), sessions: map[uint16]*session{}}
	_ = c.run() // the sender sees that the connection ended
}

var errClosed = errors.New("closed")

func (c *conn) run() error {
	h, err := c.in.Header()
	if err != nil {
		return err
	}
	if h == amqpwire.HeaderSASL {
		c.out = append(c.out, h...)
		c.out = amqpwire.AppendSASLFrame(c.out, &amqpwire.SASLMechanisms{Mechanisms: []amqpwire.Symbol{"ANONYMOUS", "PLAIN"}})
		if err := c.flush(); err != nil {
			return err
		}
		if _, err := c.in.Next(); err != nil {
			return err
		}
		c.out = amqpwire.AppendSASLFrame(c.out, &amqpwire.SASLOutcome{Code: amqpwire.SASLOk})
		if err := c.flush(); err != nil {
			return err
		}
		if _, err := c.in.Header(); err != nil {
			return err
		}
	}
	c.out = append(c.out, amqpwire.HeaderAMQP...)
	c.out = amqpwire.AppendFrame(c.out, 0, &amqpwire.Open{ContainerID: "sink", MaxFrameSize: maxFrame, ChannelMax: 63}, nil)
	var parser amqpwire.Parser
	for {
		// One write answers all that came with one read.
		if !c.in.Ready() {
			if err := c.flush(); err != nil {
				return err
			}
		}
		f, err := c.in.Next()
		if err != nil {
			return err
		}
		if len(f.Body) == 0 {
			continue // a heartbeat
		}
		p, _, err := parser.Parse(f.Type, f.Body)
		if err != nil {
			return err
		}
		if err := c.take(f.Channel, p); err != nil {
			_ = c.flush()
			return err
		}
	}
}

// flush settles what came and writes.
func (c *conn) flush() error {
	for _, s := range c.sessions {
		s.accept(c)
	}
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *conn) emit(channel uint16, p amqpwire.Performative) {
	c.out = amqpwire.AppendFrame(c.out, channel, p, nil)
}

func (c *conn) take(channel uint16, p amqpwire.Performative) error {
	s := c.sessions[channel]
	switch p := p.(type) {
	case *amqpwire.Open:
		return nil
	case *amqpwire.Begin:
		c.sessions[channel] = &session{channel: channel, next: p.NextOutgoingID, window: window, links: map[uint32]*link{}}
		c.emit(channel, &amqpwire.Begin{RemoteChannel: amqpwire.Some(channel), IncomingWindow: window, OutgoingWindow: window, HandleMax: 255})
		return nil
	case *amqpwire.Close:
		c.emit(0, &amqpwire.Close{})
		return errClosed
	}
	if s == nil {
		return fmt.Errorf("no session on channel %d", channel)
	}
	switch p := p.(type) {
	case *amqpwire.Attach:
		c.emit(channel, &amqpwire.Attach{Name: p.Name, Handle: p.Handle, Role: amqpwire.RoleReceiver, Source: p.Source, Target: p.Target})
		s.links[p.Handle] = &link{}
		s.flow(c, p.Handle, s.links[p.Handle])
	case *amqpwire.Transfer:
		s.transfer(c, p)
	case *amqpwire.Detach:
		delete(s.links, p.Handle)
		s.accept(c)
		c.emit(channel, &amqpwire.Detach{Handle: p.Handle, Closed: p.Closed})
	case *amqpwire.End:
		s.accept(c)
		delete(c.sessions, channel)
		c.emit(channel, &amqpwire.End{})
	}
	return nil
}

func (s *session) transfer(c *conn, p *amqpwire.Transfer) {
	s.next++
	s.window--
	l := s.links[p.Handle]
	if l == nil {
		return
	}
	if p.DeliveryID.Set { // the first frame of a delivery has one (§2.7.5)
		l.id = p.DeliveryID.Value
	}
	if !p.More {
		l.count++
		l.credit--
		if !s.pending {
			s.first, s.pending = l.id, true
		}
		s.last = l.id
	}
	if l.credit <= c.credit/2 || s.window <= window/2 {
		s.flow(c, p.Handle, l)
	}
}

// accept settles all deliveries since the last call in one frame.
func (s *session) accept(c *conn) {
	if s.pending {
		s.pending = false
		c.emit(s.channel, &amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: s.first, Last: amqpwire.Some(s.last), Settled: true, State: amqpwire.Accepted{}})
	}
}

func (s *session) flow(c *conn, handle uint32, l *link) {
	l.credit, s.window = c.credit, window
	c.emit(s.channel, &amqpwire.Flow{
		NextIncomingID: amqpwire.Some(s.next), IncomingWindow: window, OutgoingWindow: window,
		Handle: amqpwire.Some(handle), DeliveryCount: amqpwire.Some(l.count), LinkCredit: amqpwire.Some(c.credit),
	})
}
