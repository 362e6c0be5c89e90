package hubservice

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// wireBuffer is how many bytes may wait to be written before a writer has to wait itself.
const wireBuffer = 64 << 10

// wire is the socket as go-amqp sees it.
//
// It counts the transfer frames that go-amqp starts to write, one Write a frame. It
// tells a message that never left (no credit, no window) from one whose outcome is
// unknown. A put-token counts too, which only errs to the safe side.
//
// And it gathers frames: go-amqp writes each one on its own, and waits for it
// before it takes the next message, which costs a system call and a TLS record
// a message. A goroutine of wire's own writes what has come while it wrote
// before, so that nothing waits for company when there is none.
type wire struct {
	net.Conn
	transfers atomic.Uint64
	ended     chan struct{} // closed when the goroutine is gone

	mu     sync.Mutex // guards all below
	moved  *sync.Cond // there is something to write, or room again, or it is over
	buf    []byte
	closed bool
	err    error // of a write: there are no more
}

// newWire takes the socket over. Close ends its goroutine.
func newWire(c net.Conn) *wire {
	w := &wire{Conn: c, ended: make(chan struct{})}
	w.moved = sync.NewCond(&w.mu)
	go w.flush()
	return w
}

// Write takes one frame. What goes wrong with it later is the error of the next Write, and ends the connection.
func (w *wire) Write(b []byte) (int, error) {
	// Frame header of 8 bytes (§2.3.1), then the descriptor amqp:transfer:list, 0x14.
	if len(b) > 10 && b[5] == 0 && b[8] == 0x00 && b[9] == 0x53 && b[10] == 0x14 {
		w.transfers.Add(1)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.buf) > wireBuffer && w.err == nil && !w.closed {
		w.moved.Wait()
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closed:
		return 0, net.ErrClosed
	}
	w.buf = append(w.buf, b...)
	w.moved.Broadcast()
	return len(b), nil
}

// SetWriteDeadline does nothing: each write has its own.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func (w *wire) flush() {
	defer close(w.ended)
	var spare []byte
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.buf) == 0 && !w.closed {
			w.moved.Wait()
		}
		if len(w.buf) == 0 {
			return
		}
		out := w.buf
		w.buf = spare[:0]
		w.mu.Unlock()
		_ = w.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := w.Conn.Write(out)
		if err != nil {
			_ = w.Conn.Close() // the reader finds out
		}
		w.mu.Lock()
		spare = out
		w.err = err
		w.moved.Broadcast()
		if err != nil {
			return
		}
	}
}

// Close writes what is left, then closes the socket.
func (w *wire) Close() error {
	w.mu.Lock()
	w.closed = true
	w.moved.Broadcast()
	w.mu.Unlock()
	<-w.ended
	return w.Conn.Close()
}

// cut closes the socket at once. Close must still be called.
func (w *wire) cut() { _ = w.Conn.Close() }
