package amqpwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The protocol headers a connection starts with (§2.2, §5.3.1).
const (
	HeaderAMQP = "AMQP\x00\x01\x00\x00"
	HeaderSASL = "AMQP\x03\x01\x00\x00"
)

// Frame types (§2.3.1).
const (
	FrameAMQP byte = 0
	FrameSASL byte = 1
)

// MinMaxFrameSize is the smallest max-frame-size a peer may ask for (§2.7.1).
const MinMaxFrameSize = 512

// ErrMalformedFrame is what every error about a frame's own header unwraps to.
var ErrMalformedFrame = errors.New("amqp: malformed frame")

// Frame is one frame as it came. Body aliases the FrameReader's buffer; an empty one is
// a heartbeat (§2.4.5).
type Frame struct {
	Type    byte
	Channel uint16
	Body    []byte
}

// FrameReader cuts a byte stream into frames. Its buffer grows with what has arrived,
// not with what a frame claims, and never beyond one frame of the maximum size. Not safe
// for concurrent use.
type FrameReader struct {
	r          io.Reader
	max        int
	buf        []byte
	start, end int
}

// NewFrameReader reads frames of at most max bytes from r.
func NewFrameReader(r io.Reader, max int) *FrameReader {
	return &FrameReader{r: r, max: max, buf: make([]byte, min(16<<10, max))}
}

// Header reads the 8 bytes of a protocol header.
func (f *FrameReader) Header() (string, error) {
	if err := f.fill(8); err != nil {
		return "", err
	}
	h := string(f.buf[f.start : f.start+8])
	f.start += 8
	return h, nil
}

// Next reads one frame; it is valid until the call after. It blocks until the frame is
// complete. io.EOF means that the stream ended between two frames.
func (f *FrameReader) Next() (Frame, error) {
	if err := f.fill(8); err != nil {
		return Frame{}, err
	}
	h := f.buf[f.start:]
	size, doff := binary.BigEndian.Uint32(h), int(h[4])*4
	switch {
	case uint64(size) > uint64(f.max):
		return Frame{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformedFrame, size, f.max)
	case doff < 8 || int(size) < doff:
		return Frame{}, fmt.Errorf("%w: size %d with data offset %d", ErrMalformedFrame, size, doff)
	}
	if err := f.fill(int(size)); err != nil {
		return Frame{}, err
	}
	b := f.buf[f.start : f.start+int(size) : f.start+int(size)]
	f.start += int(size)
	return Frame{Type: b[5], Channel: binary.BigEndian.Uint16(b[6:]), Body: b[doff:]}, nil
}

// Ready says whether Next would return without reading from the stream.
func (f *FrameReader) Ready() bool {
	n := f.end - f.start
	return n >= 8 && uint64(n) >= uint64(binary.BigEndian.Uint32(f.buf[f.start:]))
}

func (f *FrameReader) fill(n int) error {
	if f.end-f.start >= n {
		return nil
	}
	if f.start > 0 && (f.start == f.end || f.start+n > len(f.buf)) {
		copy(f.buf, f.buf[f.start:f.end])
		f.start, f.end = 0, f.end-f.start
	}
	for empty := 0; f.end-f.start < n; {
		if f.end == len(f.buf) {
			grown := make([]byte, min(4*len(f.buf), f.max))
			copy(grown, f.buf[:f.end])
			f.buf = grown
		}
		m, err := f.r.Read(f.buf[f.end:])
		f.end += m
		switch {
		case f.end-f.start >= n:
		case err == io.EOF && f.end > f.start:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case m == 0:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// AppendFrame appends an AMQP frame with p and, after it, payload. A nil p is a heartbeat.
func AppendFrame(b []byte, channel uint16, p Performative, payload []byte) []byte {
	return appendFrame(b, FrameAMQP, channel, p, payload)
}

// AppendSASLFrame appends a SASL frame.
func AppendSASLFrame(b []byte, p Performative) []byte { return appendFrame(b, FrameSASL, 0, p, nil) }

func appendFrame(b []byte, kind byte, channel uint16, p Performative, payload []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 2, kind, byte(channel>>8), byte(channel))
	if p != nil {
		b = p.Append(b)
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}
