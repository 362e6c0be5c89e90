package bridge

import (
	"slices"
	"sync/atomic"
	"time"
)

// A lane in memory holds at most so much; what is beyond it is parked in the mailbox.
const (
	laneItems = 64
	laneBytes = 1 << 20
	parallel  = 8 // in flight a device, of routes with order: none
)

// laneKey: order is kept for each device and source stream. Routes with order: none have a lane of their own.
type laneKey struct {
	device, stream string
	unordered      bool
}

func keyOf(it *item) laneKey {
	return laneKey{it.envelope.Device, it.message.Stream, it.envelope.Unordered}
}

// lane is one device's messages of one source stream. It exists while it has any.
// Their order is: heads, then what is in the mailbox, then tail. The hub's mutex
// guards it all.
type lane struct {
	key   laneKey
	heads []*item // taken up: in flight, or kept for another try
	// parked: the mailbox may hold entries that were not taken up. Only a look that
	// finds none, with nothing put there meanwhile, says that it does not.
	parked   bool
	stored   uint64    // about how many; 0 means that it has to be looked up
	tail     []*item   // not taken up, and not in the mailbox yet
	bytes    int       // of heads and tail
	above    uint64    // the last entry taken up
	puts     uint64    // entries that this process has put there, ever
	due      time.Time // when its next entry may have expired; zero: not known
	tries    *tries    // of an entry that was taken up and put back
	triesOf  uint64    // that entry
	priority int       // of the latest message seen

	flying int // sends and loads under way
	// replaced counts what newer messages replaced and whose fate is not durable yet. Nothing is sent or parked before: after
	// a crash the old value would come again, behind the new one.
	replaced int
	listed   bool // in the hub's ready list
	spills   bool // bound exceeded: all of it goes to the mailbox
	parking  bool // the parker has it
	looking  bool // for entries beyond those counted
	// orphan: its source has another owner by now; what is in flight comes to its end. It is
	// set under the mutex; a send that is about to begin asks without it.
	orphan atomic.Bool
	// inherited: it had entries when this process became the owner.
	inherited bool

	waits  bool // its head waits: for its timer, or among the hub's probes
	timer  *time.Timer
	warned bool // this streak of waiting has been logged
	newer  bool // its next entry is for a newer version to read
}

func (l *lane) box(hub string) Box { return Box{Hub: hub, Device: l.key.device, Stream: l.key.stream} }

func (l *lane) limit() int {
	if l.key.unordered {
		return parallel
	}
	return 1
}

func (l *lane) empty() bool {
	return len(l.heads)+len(l.tail) == 0 && !l.parked && l.flying == 0 && l.replaced == 0
}

// full reports whether it holds more in memory than it may.
func (l *lane) full() bool {
	return len(l.heads)+len(l.tail) > laneItems || l.bytes > laneBytes
}

// kept is the first head that waits for another try.
func (l *lane) kept() *item {
	for _, it := range l.heads {
		if !it.flying {
			return it
		}
	}
	return nil
}

// next reports what the lane could start: a message from memory, or (load) its next entry of the mailbox.
func (l *lane) next() (it *item, load, ok bool) {
	switch {
	case l.waits || l.flying >= l.limit() || l.replaced > 0:
		return nil, false, false
	case l.kept() != nil:
		return l.kept(), false, true
	case l.parked && l.stored == 0:
		return nil, false, false // whether there is more is being looked up
	case l.parked:
		return nil, true, true
	case len(l.tail) > 0 && (!l.tail[0].group || l.tail[0].unstorable):
		return l.tail[0], false, true
	}
	return nil, false, false
}

// take starts what next has found.
func (l *lane) take() *item {
	it, _, _ := l.next()
	l.flying++
	if it == nil {
		return nil
	}
	if !slices.Contains(l.heads, it) {
		l.tail = slices.Delete(l.tail, 0, 1)
		l.heads = append(l.heads, it)
	}
	it.flying = true
	return it
}

// unparked is the first message that is not in the mailbox and should be.
func (l *lane) unparked() *item {
	if l.replaced > 0 {
		return nil
	}
	for _, it := range l.heads {
		if it.unstorable {
			return nil // nothing behind it may be stored before it has its fate, or it would come first
		}
		if it.left.Load() == 0 {
			return it
		}
	}
	if len(l.tail) > 0 && !l.tail[0].unstorable {
		return l.tail[0]
	}
	return nil
}

// drop removes one item.
func (l *lane) drop(it *item) {
	if i := slices.Index(l.heads, it); i >= 0 {
		l.heads = slices.Delete(l.heads, i, i+1)
	} else if i := slices.Index(l.tail, it); i >= 0 {
		l.tail = slices.Delete(l.tail, i, i+1)
		if len(l.tail) == 0 && cap(l.tail) > parallel {
			l.tail = nil // what waits in the mailbox must not keep the room of what waited here
		}
	} else {
		return
	}
	l.bytes -= it.size
}

// stale removes and returns what waits in memory with this coalescing key, and
// marks what is in flight: a newer message is here.
func (l *lane) stale(key string, before *item) (out []*item) {
	for _, it := range slices.Concat(l.heads, l.tail) {
		switch {
		case it == before || it.envelope.Coalesce != key:
		case it.group && !it.unstorable: // its message comes again for all its targets unless the mailbox has it: replaced there
		case it.flying || it.storing.Load():
			it.superseded = true
		default:
			l.drop(it)
			out = append(out, it)
		}
	}
	return out
}
