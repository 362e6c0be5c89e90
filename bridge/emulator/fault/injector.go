package fault

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"downlink/bridge/emulator/c2d"
)

// Scripted is a snapshot of a rule in an Injector.
type Scripted struct {
	ID int
	Rule
	Left int // occasions to come; 0: any number
	Hits int // occasions so far
}

type rule struct {
	Scripted
	match func(device string) bool // besides Rule.Device; may be nil
}

// Injector holds the scripted faults. The zero value and a nil *Injector are ready
// to use; a nil one never acts. All methods are safe for concurrent use.
type Injector struct {
	armed atomic.Int64 // number of rules, so that the usual case takes no lock
	mu    sync.Mutex
	last  int
	rules []*rule
}

// Add scripts a at p for the next times occasions whose device match accepts; times <= 0
// means until cancel is called, a nil match means every device. Rules are tried in
// the order they were added. cancel may be called more than once. On a nil Injector
// Add does nothing. match runs under the Injector's lock and must not call it.
func (i *Injector) Add(p Point, times int, match func(device string) bool, a Action) (cancel func()) {
	id := i.add(&rule{Scripted{Rule: Rule{Point: p, Times: max(0, times), Action: a}}, match})
	return func() { i.Remove(id) }
}

// Script adds a rule, which is tried after those that are there, and returns its
// ID: 1 and up. On a nil Injector it does nothing and returns 0.
func (i *Injector) Script(r Rule) (id int) {
	r.Times = max(0, r.Times)
	return i.add(&rule{Scripted: Scripted{Rule: r}})
}

func (i *Injector) add(r *rule) int {
	if i == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last++
	r.ID, r.Left = i.last, r.Times
	i.rules = append(i.rules, r)
	i.armed.Store(int64(len(i.rules)))
	return r.ID
}

// Remove ends a rule and reports whether it was still there.
func (i *Injector) Remove(id int) bool { return i.drop(func(r *rule) bool { return r.ID == id }) > 0 }

// Clear ends all rules and returns how many there were.
func (i *Injector) Clear() int { return i.drop(func(*rule) bool { return true }) }

func (i *Injector) drop(which func(*rule) bool) int {
	if i == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	before := len(i.rules)
	i.rules = slices.DeleteFunc(i.rules, which)
	i.armed.Store(int64(len(i.rules)))
	return before - len(i.rules)
}

// Rules returns what is scripted and not used up, in the order in which it is tried.
func (i *Injector) Rules() []Scripted {
	if i == nil {
		return nil
	}
	now := time.Now()
	i.drop(func(r *rule) bool { return r.over(now) })
	i.mu.Lock()
	defer i.mu.Unlock()
	out := make([]Scripted, len(i.rules))
	for n, r := range i.rules {
		out[n] = r.Scripted
	}
	return out
}

func (r *rule) concerns(device string) bool {
	if r.Exact {
		return r.Device == device
	}
	return c2d.MatchID(r.Device, device) && (r.match == nil || r.match(device))
}

func (r *rule) over(now time.Time) bool { return !r.Until.IsZero() && !now.Before(r.Until) }

// Next returns the action scripted for this occasion and uses it up; false is the usual case.
func (i *Injector) Next(p Point, device string) (Action, bool) {
	if i == nil || i.armed.Load() == 0 {
		return Action{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	i.rules = slices.DeleteFunc(i.rules, func(r *rule) bool { return r.over(now) })
	i.armed.Store(int64(len(i.rules)))
	for _, r := range i.rules {
		if r.Point != p || !r.concerns(device) {
			continue
		}
		r.Hits++
		if r.Times > 0 {
			if r.Left--; r.Left == 0 {
				i.rules = slices.DeleteFunc(i.rules, func(x *rule) bool { return x == r })
				i.armed.Store(int64(len(i.rules)))
			}
		}
		return r.Action, true
	}
	return Action{}, false
}
