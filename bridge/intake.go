package bridge

import (
	"context"
	"sync/atomic"
	"time"
)

// intake bounds what one hub holds of its sources' messages.
type intake struct {
	share int64
	held  atomic.Int64
	done  atomic.Int64  // places given back, ever
	freed chan struct{} // a place was given back when there was none

	// A hub that empties its share within two seconds is waited for; what another
	// one cannot hold is parked, so that the stream is read on.
	stuck atomic.Bool
}

const (
	patience   = 250 * time.Millisecond
	patienceOf = 8 // the part of its share that a hub must settle meanwhile
)

func newIntake(share int) intake {
	return intake{share: max(int64(share), 1), freed: make(chan struct{}, 1)}
}

func (i *intake) enter() { i.held.Add(1) }

func (i *intake) leave() {
	i.done.Add(1)
	n := i.held.Add(-1)
	if n == i.share-1 {
		select {
		case i.freed <- struct{}{}:
		default:
		}
	}
	if n < i.share/2 {
		i.stuck.Store(false)
	}
}

// crowded reports whether more than half of the share is held.
func (i *intake) crowded() bool { return i.held.Load() > i.share/2 }

// admit waits for a place as long as the hub keeps up. False: there is none.
func (i *intake) admit(ctx context.Context) bool {
	if i.held.Load() < i.share {
		return true
	}
	for !i.stuck.Load() {
		before := i.done.Load()
		t := time.NewTimer(patience)
		for waiting := true; waiting; {
			select {
			case <-i.freed:
			case <-t.C:
				waiting = false
			case <-ctx.Done():
				t.Stop()
				return true
			}
			if i.held.Load() < i.share {
				t.Stop()
				return true
			}
		}
		if i.done.Load()-before < i.share/patienceOf {
			i.stuck.Store(true)
		}
	}
	return false
}
