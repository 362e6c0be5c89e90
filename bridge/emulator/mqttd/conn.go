package mqttd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
)

// maxSilence is how long any connection may be silent, whatever keep-alive it
// asked for (developer guide: 1767 s at most).
const maxSilence = 1767 * time.Second

const (
	// readBuffer takes a whole packet of the usual kind: a longer one is read past
	// it. Thousands of idle connections have one each.
	readBuffer = 512
	// writeBuffer is how much delivery gathers for one write.
	writeBuffer = 4096
)

// writeBuffers are not in use.
var writeBuffers = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, writeBuffer)) }}

var (
	errExpired    = errors.New("the token has expired")
	errDisconnect = errors.New("the device disconnected")
	errFault      = errors.New("injected fault")
)

// conn is one connection. The goroutine that serves it reads; a second one,
// started by the first subscription, delivers.
type conn struct {
	server *Server
	net    net.Conn
	since  time.Time
	log    *slog.Logger
	r      *bufio.Reader
	window window
	done   chan struct{} // closed when reading has ended
	slot   chan struct{} // signalled when the window may have room
	wg     sync.WaitGroup

	// Set by CONNECT, before anyone else sees them.
	device     string
	session    *c2d.Session
	persistent bool
	silence    time.Duration
	expires    time.Time
	will       *packets.ConnectPacket // nil: none

	// For the reading goroutine alone.
	generation string
	after      uint64 // C2D messages up to this one are not for the subscription
	delivering bool

	grants atomic.Uint32 // subscriptions: a grants, changed by the reading goroutine (grant)

	cause atomic.Pointer[error] // why the hub ended the session

	mu      sync.Mutex    // guards what follows; held while writing
	pending *bytes.Buffer // written and not flushed; nil while there is none, so that an idle connection holds no buffer
	calls   calls
}

func (s *Server) serve(nc net.Conn) {
	c := &conn{
		server: s, net: nc, since: time.Now(), log: s.log,
		r:    bufio.NewReaderSize(nc, readBuffer),
		done: make(chan struct{}), slot: make(chan struct{}, 1),
		window: window{size: s.behaviour.Window},
	}
	if !s.add(c) {
		nc.Close()
		return
	}
	defer s.remove(c)
	err := c.run()
	c.end(err)
}

// abort closes the connection under whoever reads or writes, without a TLS
// farewell, which could block.
func (c *conn) abort() {
	if t, ok := c.net.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	c.net.Close()
}

// evict is called when the hub ends the session.
func (c *conn) evict(cause error) {
	c.cause.Store(&cause)
	c.abort()
}

func (c *conn) run() error {
	deadline := time.Now().Add(c.server.behaviour.ConnectTimeout)
	if err := c.net.SetDeadline(deadline); err != nil {
		return err
	}
	if err := c.handshake(); err != nil {
		return err
	}
	p, err := readPacket(c.r)
	if err != nil {
		return err
	}
	connect, ok := p.(*packets.ConnectPacket)
	if !ok {
		return violation("first packet is not CONNECT")
	}
	if err := c.connect(connect); err != nil {
		return err
	}
	for {
		if err := c.arm(); err != nil {
			return err
		}
		p, err := readPacket(c.r)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && !c.server.now().Before(c.expires) {
				return errExpired
			}
			return err
		}
		if err := c.handle(p); err != nil {
			return err
		}
	}
}

// handshake lets TLS shake hands in a goroutine of its own, which takes the
// stack that this needs with it: this one may be idle for days.
func (c *conn) handshake() error {
	t, ok := c.net.(*tls.Conn)
	if !ok {
		return nil
	}
	done := make(chan error, 1)
	c.wg.Go(func() { done <- t.Handshake() })
	return <-done
}

// arm bounds the wait for the next packet by the keep-alive and the token.
func (c *conn) arm() error {
	left := c.expires.Sub(c.server.now())
	if left <= 0 {
		return errExpired
	}
	return c.net.SetReadDeadline(time.Now().Add(min(c.silence, left)))
}

func (c *conn) handle(p packets.ControlPacket) error {
	switch p := p.(type) {
	case *packets.PublishPacket:
		return c.received(p)
	case *packets.PubackPacket:
		return c.acknowledged(p.MessageID)
	case *packets.SubscribePacket:
		return c.subscribe(p)
	case *packets.UnsubscribePacket:
		return c.unsubscribe(p)
	case *packets.PingreqPacket:
		return c.reply(packets.NewControlPacket(packets.Pingresp))
	case *packets.DisconnectPacket:
		c.will = nil
		return errDisconnect
	default:
		return violation("second CONNECT")
	}
}

// reply writes a packet now, after what is pending.
func (c *conn) reply(p packets.ControlPacket) error {
	var b bytes.Buffer
	_ = p.Write(&b) // to memory: cannot fail
	return c.write(b.Bytes(), true)
}

// grant puts a session's subscriptions into force with the CONNACK or SUBACK that tells of them: whoever sees
// them and has something for the device writes it after that packet, and who has seen the packet finds them.
func (c *conn) grant(g grants, ack packets.ControlPacket) error {
	var b bytes.Buffer
	_ = ack.Write(&b) // to memory: cannot fail
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grants.Store(uint32(g))
	return c.put(b.Bytes(), true)
}

// write writes b, with flush at once; with nothing in b it flushes alone.
func (c *conn) write(b []byte, flush bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.put(b, flush)
}

// put is write with the lock held.
func (c *conn) put(b []byte, flush bool) error {
	if c.pending == nil && flush {
		return c.transmit(b)
	}
	if c.pending == nil {
		c.pending = writeBuffers.Get().(*bytes.Buffer)
	}
	c.pending.Write(b)
	if !flush && c.pending.Len() < writeBuffer {
		return nil
	}
	err := c.transmit(c.pending.Bytes())
	if c.pending.Cap() <= 4*writeBuffer {
		c.pending.Reset()
		writeBuffers.Put(c.pending)
	}
	c.pending = nil
	return err
}

func (c *conn) transmit(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := c.net.SetWriteDeadline(time.Now().Add(c.server.behaviour.WriteTimeout)); err != nil {
		return err
	}
	_, err := c.net.Write(b)
	return err
}

// end closes the connection and gives back what it held.
func (c *conn) end(err error) {
	close(c.done)
	// An orderly farewell only where the peer expects one.
	if errors.Is(err, errDisconnect) || errors.Is(err, errRefused) {
		c.net.Close()
	} else {
		c.abort()
	}
	c.wg.Wait()
	if cause := c.cause.Load(); cause != nil {
		err = *cause
	}
	if c.session == nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, errRefused) {
			c.log.Debug("connection ended before it was accepted", "remote", c.net.RemoteAddr().String(), "err", err)
		}
		return
	}
	if w := c.will; w != nil {
		if err := c.telemetry(w.WillTopic, w.WillMessage, w.WillRetain, "Will"); err != nil {
			c.log.Info("dropped a will", "err", err)
		}
	}
	c.session.Detach()
	c.log.Info("device disconnected", "err", err)
}

// pause waits for an injected delay; false if the connection ended meanwhile.
func (c *conn) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.done:
	case <-c.server.done:
	}
	return false
}

func (c *conn) fault(p fault.Point, device string) (fault.Action, bool) {
	return c.server.faults.Next(p, device)
}
