package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"downlink/mapping"
)

// The table of fates. What a send's outcome means for the message and its
// device's lane is decided here and nowhere else; what it means for the whole hub
// is in gate.go.
//
//	outcome        message                        lane                    hub
//	accepted       accepted                       next                    its budget grows by steps
//	queue full     stays at the head              waits, is probed        8 devices in a row: pauses, unless another's is accepted
//	no device      dead letter (a route may wait) next (or waits)         –
//	refused        dead letter                    next                    –
//	throttled      stays at the head              keeps its place         its budget slows down by a step
//	paused         stays at the head              keeps its place         one probe a minute
//	resend         sent again, the same bytes     keeps its place, waits  –
//	link lost      sent again; 3rd in a row: dead keeps its place         2nd time: alone on the link
//	unauthorized   stays at the head              keeps its place         waits, unhealthy
//	not recorded   was not sent, tried again      keeps its place, waits  –
//	unknown        sent again, bounded; then dead waits                   –
//	expired        dead letter, before the wire   next                    –

const (
	unknownTries  = 8 // sends of one message answered by conditions we do not know
	soloAfter     = 2 // link breaks with a message in flight before it is sent alone
	breaksLinkTry = 3 // link breaks before the message is taken for the cause
	retryFirst    = 100 * time.Millisecond
	retryMax      = 30 * time.Second
)

// step is what becomes of an item after one try.
type step int

const (
	stepAccepted step = iota
	stepDead          // store a dead letter, go on with the lane
	stepWait          // keep the head, hold the lane for a while
	stepProbe         // keep the head, hold the lane until its device is probed
	stepAgain         // keep the head and its place; the hub's gate decides when
	stepReturn        // shutdown: let go of it, it comes again
	stepDisowned      // another process may own its source: keep it until that is sure
)

// verdict is the step with what a dead letter must say.
type verdict struct {
	step   step
	reason mapping.Reason
	wait   time.Duration
}

// judge turns the outcome of one send of it into a verdict, counting the tries in it.
func judge(it *item, err error, retryNoDevice bool) verdict {
	if err == nil {
		return verdict{step: stepAccepted}
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		if errors.Is(err, ErrDisowned) {
			return verdict{step: stepDisowned}
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return verdict{step: stepReturn}
		}
		e = &Error{Class: Unknown, Op: "send", Err: err}
	}
	if e.Class != LinkLost && e.Class != Resend && e.Class != Unrecorded {
		it.linkBreaks = 0 // the hub read it and answered
	}
	switch e.Class {
	case QueueFull:
		return verdict{step: stepProbe}
	case NoDevice:
		if retryNoDevice {
			return verdict{step: stepProbe}
		}
		return verdict{step: stepDead, reason: ReasonDeviceNotFound}
	case Refused:
		return verdict{step: stepDead, reason: orRefused(e.Reason)}
	case Throttled, Paused, Unauthorized:
		return verdict{step: stepAgain}
	case Resend, Unrecorded:
		return verdict{step: stepWait, wait: it.pause(e, retryFirst, retryMax)}
	case LinkLost:
		it.linkBreaks++
		if it.linkBreaks >= breaksLinkTry {
			return verdict{step: stepDead, reason: ReasonBreaksLink}
		}
		// The sender waits for its new connection, so no pause of ours is needed.
		return verdict{step: stepAgain}
	default:
		it.unknowns++
		if it.unknowns >= unknownTries {
			return verdict{step: stepDead, reason: ReasonUnknownCondition}
		}
		return verdict{step: stepWait, wait: it.pause(e, retryFirst, retryMax)}
	}
}

func orRefused(r mapping.Reason) mapping.Reason {
	if r == "" {
		return ReasonRefused
	}
	return r
}

// pause is the next wait of this item: exponential with jitter, and no shorter
// than the hub asked for.
func (it *item) pause(e *Error, first, longest time.Duration) time.Duration {
	if it.backoff == nil || it.backoffClass != e.Class {
		it.backoff = newBackoff(first, longest)
		it.backoffClass = e.Class
	}
	return max(it.backoff.NextBackOff(), e.After)
}

func newBackoff(first, longest time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = first
	b.MaxInterval = longest
	b.Multiplier = 2
	b.Reset()
	return b
}
