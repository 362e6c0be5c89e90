package bridge

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// An entry that nobody can read has a fate, too: its device's other messages do not wait for it for ever.
func TestUnreadableEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for i := range 200 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(10 * time.Second)
		require.Equal(t, 200, w.boxed())
		damaged := errors.New("entry 3: its body has no line of JSON before the payload")
		w.set(func() {
			w.unread = map[uint64]error{1: damaged, 3: damaged, 200: damaged} // the first and the last one, too
			w.full["d"] = false
		})
		p.Freed("main", "d")
		w.quiet(t, "after there is room")
		want := numbered(200)[1:199]
		require.Equal(t, append(want[:1:1], want[2:]...), w.names("d"))
		require.Len(t, w.letters, 3)
		for _, l := range w.letters {
			require.Equal(t, ReasonUnreadable, l.Reason)
			require.Equal(t, "MAILBOX", l.Message.Stream, "what is stored, as it is stored")
			require.Equal(t, "main", l.Hub)
			require.Equal(t, "d", l.Device)
			require.Equal(t, damaged.Error(), l.Text)
		}
		p.stop(t)
	})
}

// A message that comes again is looked for in its box also behind an entry that cannot be read.
func TestUnreadableEntryIsLookedPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for i := range 100 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(10 * time.Second)
		require.Equal(t, 100, w.boxed())
		w.set(func() {
			w.unread = map[uint64]error{1: errors.New("damaged"), 50: errors.New("damaged")}
			for seq := uint64(60); seq <= 100; seq++ {
				delete(w.acked, seq) // the acks were lost
			}
		})
		p.stop(t)
		p = w.run(t)
		time.Sleep(time.Minute)
		require.Zero(t, w.unacked())
		require.NoError(t, p.Ready())
		w.set(func() { w.full["d"] = false })
		w.quiet(t, "after there is room")
		require.Len(t, w.letters, 2)
		require.Len(t, w.names("d"), 98, "nothing twice")
		p.stop(t)
	})
}

// What a newer version stored waits for it, and that shows.
func TestNewerEntryShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for i := range 100 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(10 * time.Second)
		w.set(func() {
			w.unread = map[uint64]error{2: fmt.Errorf("format 2: %w", ErrFormat)}
			w.full["d"] = false
		})
		p.Freed("main", "d")
		time.Sleep(time.Minute)
		require.Equal(t, []string{"0000"}, w.names("d"))
		require.Empty(t, w.letters)
		require.ErrorContains(t, p.Ready(), "hub main: devices whose next message in the mailbox only a newer version of downlink can read: 1; run that one")
		w.set(func() { w.unread = nil })
		w.quiet(t, "after the upgrade")
		require.NoError(t, p.Ready())
		require.Equal(t, numbered(100), w.names("d"))
		p.stop(t)
	})
}
