package hubservice

import (
	"encoding/binary"
	"net"
	"sync/atomic"
)

// Performatives that begin a session, end a link or a session (AMQP 1.0 §2.7.2,
// §2.7.7, §2.7.8), and the transfer (§2.7.5): the last byte of their descriptors 00 53 xx.
const (
	codeBegin    = 0x11
	codeTransfer = 0x14
	codeDetach   = 0x16
	codeEnd      = 0x17
)

// wire is what go-amqp reads from and writes to. It counts the transfer frames
// that go-amqp starts to write, one Write a frame: that tells a message that
// never left (no credit, no window) from one whose outcome is unknown. A
// put-token counts too, which only errs to the safe side.
//
// And it sees the frames with which the hub closes a link or the session:
// go-amqp tells the next send about it, and nobody while nothing is sent.
type wire struct {
	net.Conn
	transfers atomic.Uint64
	ended     chan struct{} // has one after a detach or an end of the hub
	scan      frameScanner  // the reader's
}

func newWire(c net.Conn) *wire { return &wire{Conn: c, ended: make(chan struct{}, 1)} }

func (w *wire) Write(b []byte) (int, error) {
	// Frame header of 8 bytes (§2.3.1), then the descriptor amqp:transfer:list.
	if len(b) > 10 && b[5] == 0 && b[8] == 0x00 && b[9] == 0x53 && b[10] == codeTransfer {
		w.transfers.Add(1)
	}
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.scan.count(b[:n]) > 0 {
		select {
		case w.ended <- struct{}{}:
		default:
		}
	}
	return n, err
}

// frameScanner finds the hub's detach and end frames in the bytes of a
// connection, however they are cut: those of the session that began first, which
// has the sender. The zero value is at the connection's start.
type frameScanner struct {
	greeted int    // bytes seen of the protocol header, 8 (§2.2)
	at      uint32 // bytes seen of the frame
	head    [8]byte
	code    [3]byte
	skip    uint32  // bytes of the frame that concern nobody
	lost    bool    // what came was no frame: go-amqp will say so
	begun   bool    // a session has begun,
	channel [2]byte // the hub sends its frames on this channel
}

// count takes the next bytes and returns how many frames of the two kinds have
// begun in them.
func (s *frameScanner) count(b []byte) (ends int) {
	for len(b) > 0 && !s.lost {
		switch {
		case s.greeted < 8:
			n := min(8-s.greeted, len(b))
			s.greeted, b = s.greeted+n, b[n:]
		case s.skip > 0:
			n := min(s.skip, uint32(len(b)))
			s.skip, b = s.skip-n, b[n:]
		default:
			if s.byte(b[0]) {
				ends++
			}
			b = b[1:]
		}
	}
	return ends
}

// byte takes one byte of a frame's beginning and reports whether it completes the
// descriptor of one that is looked for.
func (s *frameScanner) byte(c byte) (found bool) {
	if s.at < 8 {
		s.head[s.at] = c
		s.at++
		if s.at < 8 {
			return false
		}
		size, offset := s.size(), s.offset()
		switch {
		case size < 8 || offset < 8 || offset > size:
			s.lost = true
		case size < offset+3 || s.head[5] != 0: // an empty frame, or none of AMQP
			s.next(size - 8)
		default:
			s.skip = offset - 8 // the extended header
		}
		return false
	}
	i := s.at - 8
	s.code[i] = c
	s.at++
	if i < 2 {
		return false
	}
	channel := [2]byte(s.head[6:8])
	if s.code == [3]byte{0, 0x53, codeBegin} && !s.begun {
		s.begun, s.channel = true, channel
	}
	found = (s.code == [3]byte{0, 0x53, codeDetach} || s.code == [3]byte{0, 0x53, codeEnd}) && (!s.begun || channel == s.channel)
	s.next(s.size() - s.offset() - 3)
	return found
}

func (s *frameScanner) size() uint32 { return binary.BigEndian.Uint32(s.head[:4]) }

func (s *frameScanner) offset() uint32 { return 4 * uint32(s.head[4]) }

func (s *frameScanner) next(skip uint32) { s.at, s.skip = 0, skip }
