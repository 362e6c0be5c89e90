package hubdevice

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// maxPacket is far above the hub's largest message: 64 KB of body and properties,
	// each byte of the latter three on the wire, and a topic of at most 64 KB.
	maxPacket = 512 << 10
	// writeTimeout bounds one write: paho sets none for PUBACK and PINGREQ, and its
	// keep-alive could not notice a dead peer while its own ping is stuck.
	writeTimeout = 30 * time.Second
)

// wire is the network connection under paho. It tells when and why the connection
// ended, which paho does only after all its workers stopped; it bounds writes; and
// it refuses what paho's parser trusts the server with: the length it allocates
// (up to 256 MB) and the number of SUBACK codes (it panics on a second one).
type wire struct {
	net.Conn
	frames frames

	once  sync.Once
	ended chan struct{}
	cause error // why it ended; read after ended is closed
}

func newWire(c net.Conn) *wire { return &wire{Conn: c, ended: make(chan struct{})} }

// end marks the connection as over; the first cause stays.
func (w *wire) end(cause error) {
	w.once.Do(func() {
		w.cause = cause
		close(w.ended)
	})
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if bad := w.frames.see(p[:n]); bad != nil {
		w.end(bad)
		return 0, bad
	}
	if err != nil {
		w.end(err)
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		w.end(err)
		return 0, err
	}
	n, err := w.Conn.Write(p)
	if err != nil {
		w.end(err)
	}
	return n, err
}

var errClosedHere = errors.New("closed on this side")

func (w *wire) Close() error {
	w.end(errClosedHere)
	return w.Conn.Close()
}

// frames follows the control packets in a byte stream from the server.
type frames struct {
	header byte
	state  int // 0: at a packet's first byte; 1 to 4: at a byte of its length
	length int
	body   int // bytes of the body still to come
}

// MQTT 3.1.1 §2.2.1: the packets a server sends to a client that publishes nothing.
const (
	packetConnack  = 2
	packetPublish  = 3
	packetSuback   = 9
	packetPingresp = 13
)

func (f *frames) see(p []byte) error {
	for len(p) > 0 {
		if f.body > 0 {
			n := min(f.body, len(p))
			f.body -= n
			p = p[n:]
			continue
		}
		b := p[0]
		p = p[1:]
		if f.state == 0 {
			f.header, f.state, f.length = b, 1, 0
			continue
		}
		f.length |= int(b&0x7f) << (7 * (f.state - 1))
		if b&0x80 != 0 {
			if f.state == 4 { // MQTT 3.1.1 §2.2.3: at most four bytes
				return errors.New("protocol error: packet length longer than four bytes")
			}
			f.state++
			continue
		}
		f.state, f.body = 0, f.length
		if err := f.check(); err != nil {
			return fmt.Errorf("protocol error: %w", err)
		}
	}
	return nil
}

func (f *frames) check() error {
	kind, qos := f.header>>4, f.header>>1&3
	switch kind {
	case packetConnack:
		if f.length != 2 {
			return fmt.Errorf("CONNACK of %d bytes", f.length)
		}
	case packetSuback:
		if f.length != 3 { // the client subscribes to one topic at a time
			return fmt.Errorf("SUBACK of %d bytes", f.length)
		}
	case packetPublish:
		if qos > 1 { // the hub grants at most QoS 1
			return fmt.Errorf("PUBLISH at QoS %d", qos)
		}
		if f.length > maxPacket {
			return fmt.Errorf("PUBLISH of %d bytes", f.length)
		}
	case packetPingresp:
		if f.length != 0 {
			return fmt.Errorf("PINGRESP of %d bytes", f.length)
		}
	default:
		return fmt.Errorf("unexpected packet type %d from the hub", kind)
	}
	return nil
}
