package bridge

import (
	"cmp"
	"slices"
)

// levels is the queue of lanes that are ready, by priority, the longest waiting
// first: one turn each, which makes the hub fair among devices however much one
// of them has. A higher priority goes first, but every eighth turn is a lower one's, each of them in turn.
type levels struct {
	list  []*level // the highest priority first
	n     int
	turns int
}

type level struct {
	priority int
	fifo
}

const lowTurn = 8

func (q *levels) len() int { return q.n }

func (q *levels) push(l *lane) {
	q.level(l.priority).push(l)
	q.n++
}

// level is the queue of a priority, a new one if there is none.
func (q *levels) level(priority int) *level {
	i, ok := slices.BinarySearchFunc(q.list, priority, func(v *level, p int) int { return cmp.Compare(p, v.priority) })
	if !ok {
		q.list = slices.Insert(q.list, i, &level{priority: priority})
	}
	return q.list[i]
}

func (q *levels) pop() *lane {
	if q.n == 0 {
		return nil
	}
	q.turns++
	if lower := q.list[1:]; q.turns%lowTurn == 0 {
		for i := range lower {
			if v := lower[(q.turns/lowTurn+i)%len(lower)]; v.len() > 0 {
				q.n--
				return v.pop()
			}
		}
	}
	for _, v := range q.list {
		if v.len() > 0 {
			q.n--
			return v.pop()
		}
	}
	return nil
}

// putBack undoes a pop. The lane's priority may have changed since it was put here.
func (q *levels) putBack(l *lane) {
	q.turns--
	q.level(l.priority).putBack(l)
	q.n++
}

// take removes the first lane that wanted accepts; nil: none does.
func (q *levels) take(wanted func(*lane) bool) *lane {
	for _, v := range q.list {
		if l := v.take(wanted); l != nil {
			q.n--
			return l
		}
	}
	return nil
}

// fifo is a queue of lanes.
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

// putBack undoes a pop.
func (f *fifo) putBack(l *lane) {
	if f.first > 0 {
		f.first--
		f.lanes[f.first] = l
		return
	}
	f.lanes = slices.Insert(f.lanes, 0, l)
}

func (f *fifo) pop() *lane {
	if f.len() == 0 {
		return nil
	}
	l := f.lanes[f.first]
	f.lanes[f.first] = nil
	if f.first++; f.first*2 >= len(f.lanes) {
		n := copy(f.lanes, f.lanes[f.first:])
		clear(f.lanes[n:])
		f.lanes, f.first = f.lanes[:n], 0
	}
	return l
}
