package tcplink

import (
	"bytes"
	"net"
	"time"
)

// Late has every byte on new connections arrive so much later, in each
// direction, as over a longer way: it delays and does not slow down. 0 ends that.
func (l *Link) Late(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = by
}

// way is one direction of a connection on which everything is late.
type way struct {
	to    net.Conn
	by    time.Duration
	going chan leg
	ended chan struct{}
	err   error // of a write; read after ended
}

type leg struct {
	bytes []byte
	due   time.Time
}

// newWay needs a close.
func newWay(to net.Conn, by time.Duration) *way {
	// When so much is on the way it is the sender's turn to wait, as with TCP's window.
	w := &way{to: to, by: by, going: make(chan leg, 4096), ended: make(chan struct{})}
	go w.arrive()
	return w
}

func (w *way) arrive() {
	defer close(w.ended)
	for l := range w.going {
		if w.err != nil {
			continue
		}
		time.Sleep(time.Until(l.due))
		_, w.err = w.to.Write(l.bytes)
	}
}

// Write never fails: the reader finds out when the other end is gone.
func (w *way) Write(b []byte) (int, error) {
	w.going <- leg{bytes.Clone(b), time.Now().Add(w.by)}
	return len(b), nil
}

// close returns when everything has arrived, or cannot.
func (w *way) close() {
	close(w.going)
	<-w.ended
}
