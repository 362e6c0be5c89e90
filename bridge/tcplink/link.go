// Package tcplink is a TCP relay in front of a server, to cut, to stall and to be late: what
// tests and `downlink soak` put between two processes.
package tcplink

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Link is a running relay. A NATS client that connects through it does not learn
// of the server behind it only as long as the server does not advertise itself, which a
// single one does not. Safe for concurrent use.
type Link struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	moving sync.Cond // on mu: stall ended, or a pair did
	target string
	refuse bool
	stall  bool
	late   time.Duration
	pairs  map[*pair]struct{}
	closed bool
}

type pair struct {
	client, server net.Conn
	over           bool // guarded by Link.mu
}

// Listen starts a relay on a free port of 127.0.0.1 to host:port, which need not
// listen yet. The caller closes it.
func Listen(target string) (*Link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("link to %s: %w", target, err)
	}
	l := &Link{listener: ln, target: target, pairs: map[*pair]struct{}{}}
	l.moving.L = &l.mu
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is the relay's host:port.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Target has new connections go to another host:port, where a server has moved. Those there are stay.
func (l *Link) Target(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = address
}

// Cut resets all connections, without a word in either direction. New ones are let through.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		l.reset(p)
	}
}

// Down cuts and refuses connections until Up.
func (l *Link) Down() {
	l.mu.Lock()
	l.refuse = true
	l.mu.Unlock()
	l.Cut()
}

// Up lets connections through again.
func (l *Link) Up() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = false
}

// Stall lets no byte through in either direction until Flow; connections stay
// open, and new ones are made. Nothing is lost unless they are cut.
func (l *Link) Stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stall = true
}

// Flow ends Stall.
func (l *Link) Flow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stall = false
	l.moving.Broadcast()
}

// Close ends all connections and returns when its goroutines have ended.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	_ = l.listener.Close()
	l.Cut()
	l.wg.Wait()
}

func (l *Link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.relay(client) })
	}
}

func (l *Link) relay(client net.Conn) {
	l.mu.Lock()
	target := l.target
	l.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		_ = client.Close()
		return
	}
	p := &pair{client: client, server: server}
	l.mu.Lock()
	if l.refuse || l.closed {
		l.reset(p)
		l.mu.Unlock()
		return
	}
	l.pairs[p] = struct{}{}
	late := l.late
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(p, server, client, late) })
	wg.Go(func() { l.pump(p, client, server, late) })
	wg.Wait()
	l.mu.Lock()
	delete(l.pairs, p)
	l.mu.Unlock()
}

// pump copies one direction until an end is gone, then resets both.
func (l *Link) pump(p *pair, to, from net.Conn, late time.Duration) {
	var out io.Writer = to
	arrived := func() {}
	if late > 0 {
		w := newWay(to, late)
		out, arrived = w, w.close
	}
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && l.wait(p) {
			if _, e := out.Write(buffer[:n]); e != nil {
				err = e
			}
		}
		if err != nil {
			arrived()
			l.mu.Lock()
			l.reset(p)
			l.mu.Unlock()
			return
		}
	}
}

// wait blocks while the link is stalled; false: the pair is over.
func (l *Link) wait(p *pair) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.stall && !p.over {
		l.moving.Wait()
	}
	return !p.over
}

// reset closes both ends with RST, so that what is under way is lost as with a dead peer. Called with mu held.
func (l *Link) reset(p *pair) {
	p.over = true
	for _, c := range []net.Conn{p.client, p.server} {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
	l.moving.Broadcast()
}
