package hubservice

import (
	"net"
	"runtime"
	"sync"
	"time"
)

// gatherMost is how many bytes may wait to be written before a writer has to wait itself.
const gatherMost = 64 << 10

// gathered is a socket that gathers what is written to it: go-amqp writes each
// frame on its own, and waits for it before it takes the next message, which
// costs a system call and a TLS record a message. A goroutine of its own writes
// what has come while it wrote before, so that nothing waits for company when
// there is none.
type gathered struct {
	net.Conn
	ended chan struct{} // closed when the goroutine is gone

	mu     sync.Mutex // guards all below
	moved  *sync.Cond // there is something to write, or room again, or it is over
	buf    []byte
	closed bool
	err    error // of a write: there are no more
}

// gather takes a socket over. Close ends the goroutine.
func gather(c net.Conn) *gathered {
	g := &gathered{Conn: c, ended: make(chan struct{})}
	g.moved = sync.NewCond(&g.mu)
	go g.flush()
	return g
}

// Write takes b at once, unless too much waits. What goes wrong with it later is the error of the next Write, and ends the connection.
func (g *gathered) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.buf) > gatherMost && g.err == nil && !g.closed {
		g.moved.Wait()
	}
	switch {
	case g.err != nil:
		return 0, g.err
	case g.closed:
		return 0, net.ErrClosed
	}
	g.buf = append(g.buf, b...)
	g.moved.Broadcast()
	return len(b), nil
}

// SetWriteDeadline does nothing: each write has its own.
func (g *gathered) SetWriteDeadline(time.Time) error { return nil }

func (g *gathered) flush() {
	defer close(g.ended)
	var spare []byte
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		for len(g.buf) == 0 && !g.closed {
			g.moved.Wait()
		}
		if len(g.buf) == 0 {
			return
		}
		// Whoever is about to write does so first. When nobody is, this takes no time.
		g.mu.Unlock()
		runtime.Gosched()
		g.mu.Lock()
		out := g.buf
		g.buf = spare[:0]
		g.mu.Unlock()
		_ = g.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := g.Conn.Write(out)
		if err != nil {
			_ = g.Conn.Close() // the reader finds out
		}
		g.mu.Lock()
		spare = out
		g.err = err
		g.moved.Broadcast()
		if err != nil {
			return
		}
	}
}

// Close writes what is left, then closes the socket. To close at once, close the
// socket itself first.
func (g *gathered) Close() error {
	g.mu.Lock()
	g.closed = true
	g.moved.Broadcast()
	g.mu.Unlock()
	<-g.ended
	return g.Conn.Close()
}
