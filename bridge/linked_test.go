package bridge

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// linkedHub is a hub whose connection comes and goes.
type linkedHub struct {
	Sender
	mu      sync.Mutex
	up      bool
	changed chan struct{}
}

func (h *linkedHub) Link() (bool, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up, h.changed
}

func (h *linkedHub) set(up bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.up, h.changed = up, make(chan struct{})
}

// While there is no connection nothing is under way: a newer value replaces any that waits, and a stop is at once.
func TestNothingBeginsWithoutALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		h := &linkedHub{changed: make(chan struct{})}
		linked := func(o *Options) {
			o.Mapper, o.ShutdownGrace = coalescing{}, time.Hour
			h.Sender = o.Hubs[0].Sender
			o.Hubs[0].Sender = h
		}
		p := w.run(t, linked)
		for i := range 5 {
			w.publish("cmd.d", fmt.Sprint("first ", i))
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, "disconnected", p.Status().Hubs[0].State)
		require.Zero(t, p.Status().Hubs[0].InFlight)
		require.NoError(t, p.Ready(), "the sender says so itself")
		h.set(true)
		w.quiet(t, "up")
		require.Equal(t, []string{"first 4"}, w.names("d"))
		require.Equal(t, "open", p.Status().Hubs[0].State)

		h.set(false)
		for i := range 5 {
			w.publish("cmd.d", fmt.Sprint("then ", i))
		}
		time.Sleep(10 * time.Second)
		begun := time.Now()
		p.stop(t)
		require.Less(t, time.Since(begun), time.Second)
		h.set(true)
		p = w.run(t, linked)
		w.quiet(t, "the next process")
		require.Equal(t, []string{"first 4", "then 4"}, w.names("d"))
		p.stop(t)
	})
}
