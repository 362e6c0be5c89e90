package bridge

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	roomFirst = time.Second      // before the first probe of a full queue
	roomMax   = 30 * time.Second // the longest back-off
)

// probeQueue holds the lanes of one hub that wait for room in their device's queue
// there. Each is due after a back-off of its own. First comes what was woken, then
// what has been due for longest: with more full queues than the budget has probes
// for, each gets its turn, and none that stays full keeps another from being tried.
// It is pure; the hub's mutex guards it, and time is what it is told. The scheduler
// calls wait when a lane's head was answered with queue full. While due says so and
// the budget allows a probe (for a lane that was woken: a normal send) it pops a lane
// and sends its head. A lane that got room or has nothing left is forgotten.
type probeQueue[T comparable] struct {
	list    []*probeWait[T] // a heap by due and turn
	lanes   map[T]*probeWait[T]
	devices map[string][]*probeWait[T] // what is in list, by device, in turn
	turns   uint64
}

type probeWait[T comparable] struct {
	lane   T
	device string
	pause  time.Duration // the next back-off
	due    time.Time     // zero: woken
	turn   uint64        // first come, first served
	index  int           // in list; -1: popped, its probe is under way
}

func newProbeQueue[T comparable]() *probeQueue[T] {
	return &probeQueue[T]{lanes: make(map[T]*probeWait[T]), devices: make(map[string][]*probeWait[T])}
}

// wait queues a lane, longer each time until forget. One that is queued stays as it is.
func (q *probeQueue[T]) wait(lane T, device string, now time.Time) {
	w := q.lanes[lane]
	switch {
	case w == nil:
		w = &probeWait[T]{lane: lane, device: device, pause: roomFirst}
		q.lanes[lane] = w
	case w.index >= 0:
		return
	}
	q.turns++
	// Spread by half either way, or devices that filled up together would come together.
	w.due, w.turn, w.pause = now.Add(w.pause/2+rand.N(w.pause+1)), q.turns, min(2*w.pause, roomMax)
	heap.Push(q, w)
}

// due reports whether a lane is to be probed now, and whether it was woken. Otherwise
// wait is how long until one is due; 0: none waits.
func (q *probeQueue[T]) due(now time.Time) (ok, woken bool, wait time.Duration) {
	if len(q.list) == 0 {
		return false, false, 0
	}
	wait = max(0, q.list[0].due.Sub(now))
	return wait == 0, q.list[0].due.IsZero(), wait
}

// pop takes out the lane to be probed next; there must be one.
func (q *probeQueue[T]) pop() T { return heap.Pop(q).(*probeWait[T]).lane }

// wake makes one lane of the device due at once, the first that waited: feedback
// tells of room there. It reports whether there was one.
func (q *probeQueue[T]) wake(device string) bool {
	for _, w := range q.devices[device] {
		if !w.due.IsZero() {
			w.due = time.Time{}
			heap.Fix(q, w.index)
			return true
		}
	}
	return false
}

// forget takes a lane out, wherever it is, with its back-off.
func (q *probeQueue[T]) forget(lane T) {
	if w := q.lanes[lane]; w != nil && w.index >= 0 {
		heap.Remove(q, w.index)
	}
	delete(q.lanes, lane)
}

// Len is the number of lanes that wait, without those being probed. (heap.Interface)
func (q *probeQueue[T]) Len() int { return len(q.list) }
func (q *probeQueue[T]) Less(i, j int) bool {
	a, b := q.list[i], q.list[j]
	return a.due.Before(b.due) || a.due.Equal(b.due) && a.turn < b.turn
}

func (q *probeQueue[T]) Swap(i, j int) {
	q.list[i], q.list[j] = q.list[j], q.list[i]
	q.list[i].index, q.list[j].index = i, j
}

func (q *probeQueue[T]) Push(x any) {
	w := x.(*probeWait[T])
	w.index = len(q.list)
	q.list = append(q.list, w)
	q.devices[w.device] = append(q.devices[w.device], w)
}

func (q *probeQueue[T]) Pop() any {
	w := q.list[len(q.list)-1]
	w.index, q.list = -1, slices.Delete(q.list, len(q.list)-1, len(q.list))
	q.devices[w.device] = slices.DeleteFunc(q.devices[w.device], func(x *probeWait[T]) bool { return x == w })
	if len(q.devices[w.device]) == 0 {
		delete(q.devices, w.device)
	}
	return w
}
