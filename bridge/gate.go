package bridge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	quotaStreak = 8 // devices in a row answered "resource limit" with no accept between: the quota, not their queues
	pauseProbe  = time.Minute
	fullPace    = time.Second // between probes of full queues, all devices together: the smallest hub takes 1.67 messages a second
)

// gate is one hub's pace: how many sends may be in flight, and whether it is
// closed altogether until a probe gets through. The hub's mutex guards it.
//
// limit starts at the window, halves when the hub throttles and grows by one per
// window of accepted messages, so that it recovers by steps.
type gate struct {
	window int
	limit  int
	grown  int // accepted since limit last grew

	closed  bool
	class   Class     // why
	cause   string    // for humans
	until   time.Time // next probe
	probing bool      // the one probe is in flight
	backoff *backoff.ExponentialBackOff

	// Devices refused for lack of room since the hub last accepted anything: many
	// of them are taken for the quota, which is a guess. When the hub then accepts
	// another's message, their own queues are full, and they count no more.
	full    map[string]struct{}
	known   map[string]struct{}
	guessed bool // closed on that guess
}

func newGate(window int) gate {
	return gate{window: window, limit: window, full: make(map[string]struct{}), known: make(map[string]struct{})}
}

// admits reports whether one more send may start now, given the number in
// flight. When it may not because of time, wait is how long until it may.
func (g *gate) admits(inFlight int, now time.Time) (ok bool, wait time.Duration) {
	if !g.closed {
		return inFlight < g.limit, 0
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
// device than those refused may disprove: such a one is a probe at any time, one
// after the other, so that a device pays for no other's full queue.
func (g *gate) doubts() bool { return g.closed && g.guessed && !g.probing }

// suspects reports whether the device is one of those refused.
func (g *gate) suspects(device string) bool {
	_, full := g.full[device]
	_, known := g.known[device]
	return full || known
}

// pace is how long a device without room waits at least, so that many of them do
// not use up together what the hub takes.
func (g *gate) pace() time.Duration {
	all := fullPace * time.Duration(len(g.full)+len(g.known))
	return all/2 + rand.N(all+1) // spread, or they would all come at once
}

// forget is for a device with nothing left to send.
func (g *gate) forget(device string) { delete(g.known, device) }

// started notes that a send begins.
func (g *gate) started() {
	if g.closed {
		g.probing = true
	}
}

// outcome learns from a send's end. changed reports that the gate opened or closed.
func (g *gate) outcome(device string, err error, now time.Time) (changed bool) {
	e, failed := errors.AsType[*Error](err)
	if err != nil && !failed {
		g.probing = false // shutdown
		return false
	}
	wasClosed := g.closed
	switch {
	case err == nil:
		g.disprove(device)
		g.open()
		g.grow()
	case e.Class == Throttled:
		if !wasClosed || g.probing {
			// One answer of a burst halves; its siblings in flight say nothing new.
			g.limit = max(1, g.limit/2)
			g.close(e, now, time.Second, time.Minute)
		}
	case e.Class == Paused:
		g.shut(e, now, pauseProbe, e.Error())
	case e.Class == Unauthorized:
		if !wasClosed || g.probing {
			g.close(e, now, 2*time.Second, time.Minute)
		}
	case e.Class == QueueFull:
		if _, known := g.known[device]; !known {
			g.full[device] = struct{}{}
		}
		if len(g.full) >= quotaStreak {
			g.guess(e, now)
		} else {
			g.open() // about one device only: the hub serves again
		}
	case e.Class == LinkLost, e.Class == Resend, e.Class == Unrecorded, e.Class == Refused && e.Condition == "":
		// Says nothing about the pace; a refusal without a condition is ours, before the wire.
		g.probing = false
	default:
		// An answer about the message itself: the hub serves again.
		g.open()
	}
	return g.closed != wasClosed
}

// unused is for a send that began and did not come to the wire.
func (g *gate) unused() { g.probing = false }

func (g *gate) open() {
	g.closed, g.probing, g.guessed, g.backoff, g.cause = false, false, false, nil, ""
}

// guess closes the gate because too many devices in a row have no room. What
// disproves it does not put off the next regular probe.
func (g *gate) guess(e *Error, now time.Time) {
	wait := pauseProbe
	if left := g.until.Sub(now); g.closed && g.guessed && left > 0 {
		wait = left
	}
	g.shut(&Error{Class: Paused}, now, wait, fmt.Sprintf(
		"%s from %d devices in a row: the daily quota is used up, or every device's queue is full", e.Condition, len(g.full)))
	g.guessed = true
}

// disprove: the hub accepted a message of device, so it was not the quota that
// stopped the others.
func (g *gate) disprove(device string) {
	for d := range g.full {
		g.known[d] = struct{}{}
	}
	clear(g.full)
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
	g.closed, g.probing, g.guessed = true, false, false
	g.class, g.cause, g.until = e.Class, cause, now.Add(d)
}

func (g *gate) grow() {
	if g.limit >= g.window {
		return
	}
	if g.grown++; g.grown >= g.limit {
		g.limit, g.grown = g.limit+1, 0
	}
}
