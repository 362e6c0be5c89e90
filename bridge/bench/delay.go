package bench

import (
	"net"
	"sync"
	"time"
)

// delay is a relay for TCP that hands on every byte so much later, in both
// directions, as a longer way does: it delays and does not slow down.
type delay struct {
	listener net.Listener
	to       string
	by       time.Duration

	wg     sync.WaitGroup
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

func newDelay(to string, by time.Duration) (*delay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delay{listener: l, to: to, by: by, open: make(map[net.Conn]struct{})}
	d.wg.Go(d.serve)
	return d, nil
}

func (d *delay) addr() string { return d.listener.Addr().String() }

// close cuts everything and returns when all has ended.
func (d *delay) close() {
	_ = d.listener.Close()
	d.mu.Lock()
	d.closed = true
	for c := range d.open {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// hold has close cut the connection too.
func (d *delay) hold(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = c.Close()
		return
	}
	d.open[c] = struct{}{}
}

func (d *delay) serve() {
	for {
		near, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.hold(near)
		d.wg.Go(func() {
			defer near.Close()
			far, err := net.Dial("tcp", d.to)
			if err != nil {
				return
			}
			d.hold(far)
			var both sync.WaitGroup
			both.Go(func() { d.pass(far, near) })
			both.Go(func() { d.pass(near, far) })
			both.Wait()
			d.mu.Lock()
			delete(d.open, near)
			delete(d.open, far)
			d.mu.Unlock()
		})
	}
}

// pass hands on what one end says until it ends, then ends both.
func (d *delay) pass(to, from net.Conn) {
	type chunk struct {
		bytes []byte
		due   time.Time
	}
	// What is on the way; full, it is the sender's turn to wait, as with a window of TCP.
	way := make(chan chunk, 4096)
	var writer sync.WaitGroup
	writer.Go(func() {
		defer to.Close()
		for c := range way {
			time.Sleep(time.Until(c.due))
			if _, err := to.Write(c.bytes); err != nil {
				_ = from.Close()
			}
		}
	})
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			way <- chunk{b[:n], time.Now().Add(d.by)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	writer.Wait()
}
