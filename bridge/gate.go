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
)

// gate says whether one hub is sent to at all: it is closed while the hub takes
// nothing from anybody (quota, suspended, unauthorized), until a probe gets
// through. How fast an open hub is sent to is its budget's matter (pace.go). The hub's mutex guards it.
type gate struct {
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

func newGate() gate {
	return gate{full: make(map[string]struct{}), known: make(map[string]struct{})}
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
// device than those refused may disprove: such a one is a probe at any time, one
// after the other, so that a device pays for no other's full queue.
func (g *gate) doubts() bool { return g.closed && g.guessed && !g.probing }

// suspects reports whether the device is one of those refused.
func (g *gate) suspects(device string) bool {
	_, full := g.full[device]
	_, known := g.known[device]
	return full || known
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
	case e.Class == Throttled, e.Class == LinkLost, e.Class == Resend, e.Class == Unrecorded, e.Class == Refused && e.Condition == "":
		// Says nothing about whether it takes messages; a refusal without a condition is ours, before the wire.
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
