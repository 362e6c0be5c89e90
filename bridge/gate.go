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
	full    map[string]struct{} // devices refused in a row for lack of room
}

func newGate(window int) gate {
	return gate{window: window, limit: window, full: make(map[string]struct{})}
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
		clear(g.full)
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
		g.full[device] = struct{}{}
		if len(g.full) >= quotaStreak {
			g.shut(&Error{Class: Paused}, now, pauseProbe, fmt.Sprintf(
				"%s from %d devices in a row: the daily quota is used up, or every device's queue is full", e.Condition, len(g.full)))
		} else {
			g.open() // about one device only: the hub serves again
		}
	case e.Class == LinkLost, e.Class == Resend:
		// says nothing about the pace
		g.probing = false
	default:
		// An answer about the message itself: the hub serves again.
		g.open()
	}
	return g.closed != wasClosed
}

func (g *gate) open() {
	g.closed, g.probing, g.backoff, g.cause = false, false, nil, ""
}

// close keeps the hub shut for the next back-off step.
func (g *gate) close(e *Error, now time.Time, first, longest time.Duration) {
	if g.backoff == nil || g.class != e.Class {
		g.backoff = newBackoff(first, longest)
	}
	g.shut(e, now, max(g.backoff.NextBackOff(), e.After), e.Error())
}

func (g *gate) shut(e *Error, now time.Time, d time.Duration, cause string) {
	g.closed, g.probing = true, false
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
