package bridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	quotaStreak = 8 // devices in a row answered "resource limit" with no accept between: the quota, not their queues
	pauseProbe  = time.Minute
	doubtFirst  = 50 * time.Millisecond
	doubtMax    = 1500 * time.Millisecond
)

// gate says whether one hub is sent to at all: it is closed while the hub takes
// nothing from anybody (quota, suspended, unauthorized), until a probe gets
// through. How fast an open hub is sent to is its budget's matter (pace.go). The
// hub's mutex guards it, and time is what it is told.
type gate struct {
	closed  bool
	class   Class     // why
	cause   string    // for humans
	until   time.Time // next probe
	probing bool      // the one probe is in flight
	backoff *backoff.ExponentialBackOff
	// epoch counts closings. An answer to a send of an earlier one was under way when
	// the gate closed, and says nothing about whether it may open.
	epoch uint64

	// Devices refused for lack of room since the hub last accepted anything. Many of
	// them are taken for the quota, which is a guess, if at least one of them was not
	// known to be full. When the hub then accepts another's message, their own queues are
	// full: they are known from then on.
	streak  map[string]struct{}
	known   map[string]struct{}
	fresh   bool          // one in streak is not known
	guessed bool          // closed on that guess
	doubtAt time.Time     // when it may be doubted next
	doubt   time.Duration // the pause after that
}

func newGate() gate {
	return gate{streak: make(map[string]struct{}), known: make(map[string]struct{})}
}

// admits reports whether a send may start now. When it may not because of time,
// wait is how long until it may.
func (g *gate) admits(now time.Time) (ok bool, wait time.Duration) {
	if !g.closed {
		return true, 0
	}
	if g.probing {
		return false, 0
	}
	if d := g.until.Sub(now); d > 0 {
		return false, d
	}
	return true, 0
}

// doubts reports whether the gate is closed on a guess that a message for another
// device than those refused may disprove: such a one is a probe, whenever the
// regular one is due, so that a device pays for no other's full queue. They go one
// after the other, ever slower while each is refused as well. wait is until the next one may.
func (g *gate) doubts(now time.Time) (ok bool, wait time.Duration) {
	if !g.closed || !g.guessed || g.probing {
		return false, 0
	}
	wait = max(0, g.doubtAt.Sub(now))
	return wait == 0, wait
}

// suspects reports whether the device is one of those refused.
func (g *gate) suspects(device string) bool {
	_, full := g.streak[device]
	_, known := g.known[device]
	return full || known
}

// forget is for a device with nothing left to send.
func (g *gate) forget(device string) { delete(g.known, device) }

// started notes that a send begins, and returns its epoch.
func (g *gate) started(now time.Time) uint64 {
	if g.closed {
		g.probing = true
		g.doubtAt, g.doubt = now.Add(g.doubt), min(2*g.doubt, doubtMax)
	}
	return g.epoch
}

// outcome learns from a send's end. changed reports that the gate opened or closed.
func (g *gate) outcome(device string, epoch uint64, err error, now time.Time) (changed bool) {
	wasClosed := g.closed
	late := g.closed && epoch != g.epoch
	if !late {
		g.probing = false
	}
	e, failed := errors.AsType[*Error](err)
	switch {
	case err != nil && !failed: // shutdown
	case err == nil:
		g.disprove(device)
		if !late || g.guessed {
			g.open()
		}
	case e.Class == QueueFull:
		g.refused(device)
		if late {
			break
		}
		if g.guessed || g.fresh && len(g.streak) >= quotaStreak {
			g.guess(e, now)
		} else {
			g.open() // about one device only: the hub serves again
		}
	case late:
	case e.Class == Paused:
		g.shut(e, now, pauseProbe, e.Error())
	case e.Class == Unauthorized:
		g.close(e, now, 2*time.Second, time.Minute)
	case e.Class == NoDevice, e.Class == Refused && e.Condition != "":
		g.open() // an answer about the message itself
	case e.Class == Throttled && !g.guessed:
		g.open() // it takes messages again, but fewer: the budget's matter
	case e.Class == Refused: // before the wire: it has its fate, and the next one is the probe
	case g.closed:
		// It tells nothing (released, link lost, a condition we do not know): the next regular probe is a whole pause away.
		if !g.until.After(now) {
			g.until = now.Add(pauseProbe)
		}
	}
	return g.closed != wasClosed
}

// unused is for a send that began and did not come to the wire.
func (g *gate) unused() { g.probing = false }

func (g *gate) open() {
	g.closed, g.probing, g.guessed, g.backoff, g.cause = false, false, false, nil, ""
}

// refused notes that a device has no room.
func (g *gate) refused(device string) {
	g.streak[device] = struct{}{}
	if _, known := g.known[device]; !known {
		g.fresh = true
	}
}

// guess closes the gate because too many devices in a row have no room. What
// disproves it does not put off the next regular probe.
func (g *gate) guess(e *Error, now time.Time) {
	wait := pauseProbe
	if left := g.until.Sub(now); g.closed && g.guessed && left > 0 {
		wait = left
	}
	g.shut(&Error{Class: Paused}, now, wait, fmt.Sprintf(
		"%s from %d devices in a row: the daily quota is used up, or every device's queue is full", e.Condition, len(g.streak)))
	g.guessed = true
}

// disprove: the hub accepted a message of device, so it was not the quota that
// stopped the others.
func (g *gate) disprove(device string) {
	for d := range g.streak {
		g.known[d] = struct{}{}
	}
	clear(g.streak)
	g.fresh = false
	delete(g.known, device)
}

// close keeps the hub shut for the next back-off step.
func (g *gate) close(e *Error, now time.Time, first, longest time.Duration) {
	if g.backoff == nil || g.class != e.Class {
		g.backoff = newBackoff(first, longest)
	}
	g.shut(e, now, max(g.backoff.NextBackOff(), e.After), e.Error())
}

func (g *gate) shut(e *Error, now time.Time, d time.Duration, cause string) {
	if !g.closed {
		g.epoch++
		g.doubtAt, g.doubt = now, doubtFirst
	}
	g.closed, g.probing, g.guessed = true, false, false
	g.class, g.cause, g.until = e.Class, cause, now.Add(d)
}
