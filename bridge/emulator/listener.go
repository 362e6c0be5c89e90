package emulator

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
)

// bounded closes the connections that it accepts beyond a number, so that a
// peer that opens them without end takes a listener's share and no more.
type bounded struct {
	net.Listener
	max  int64
	open atomic.Int64
	full atomic.Bool // said so already
	log  *slog.Logger
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if b.open.Add(1) <= b.max {
			return &counted{Conn: c, of: b}, nil
		}
		b.open.Add(-1)
		c.Close()
		if !b.full.Swap(true) {
			b.log.Warn("refusing connections: too many are open", "listener", b.Addr().String(), "limit", b.max)
		}
	}
}

// counted is a connection that gives its place back when it is closed.
type counted struct {
	net.Conn
	of   *bounded
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.of.open.Add(-1)
		c.of.full.Store(false)
	})
	return c.Conn.Close()
}
