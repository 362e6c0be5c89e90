package bridge

import (
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"

	"downlink/mapping"
)

// item is one target of one delivery: an envelope on its way.
type item struct {
	of       *held
	envelope *mapping.Envelope

	// Only the goroutine that sends the item touches these.
	attempts     int
	linkBreaks   int
	unknowns     int
	backoff      *backoff.ExponentialBackOff
	backoffClass Class
}

// lane holds one device's items in order. It exists while it has any. The head
// stays in the queue until its fate is decided; the hub's mutex guards it all.
type lane struct {
	device string
	queue  []*item
	state  laneState
	timer  *time.Timer // while waiting
	warned bool        // this streak of waiting has been logged
}

type laneState int

const (
	laneReady   laneState = iota // in the hub's ready list
	laneSending                  // its head is in flight
	laneWaiting                  // its head waits for its timer
)

// fifo is a queue of lanes that are ready, the longest waiting first: one turn
// each, which makes the hub fair among devices however much one of them has.
type fifo struct {
	lanes []*lane
	first int
}

func (f *fifo) len() int { return len(f.lanes) - f.first }

func (f *fifo) push(l *lane) { f.lanes = append(f.lanes, l) }

// take removes the first lane that wanted accepts; nil: none does.
func (f *fifo) take(wanted func(*lane) bool) *lane {
	for i := f.first; i < len(f.lanes); i++ {
		if l := f.lanes[i]; wanted(l) {
			f.lanes = slices.Delete(f.lanes, i, i+1)
			return l
		}
	}
	return nil
}

func (f *fifo) pop() *lane {
	l := f.lanes[f.first]
	f.lanes[f.first] = nil
	if f.first++; f.first*2 >= len(f.lanes) {
		n := copy(f.lanes, f.lanes[f.first:])
		clear(f.lanes[n:])
		f.lanes, f.first = f.lanes[:n], 0
	}
	return l
}
