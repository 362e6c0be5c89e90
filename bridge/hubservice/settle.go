package hubservice

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"
)

// settler passes the hub's decisions on to those who wait in Send. The hub decides
// about in the order of the sends, and about many at once, so one goroutine that
// waits for one after the other wakes once for all of them; a goroutine for each
// would cost more than the message. But the hub may decide late about any of them
// (AMQP 1.0 §2.7.6: a disposition names the deliveries that it is about), and that must
// not keep the others: after a moment another goroutine goes on with what is behind, and
// the first one ends with the decision that it waits for.
type settler struct {
	sent chan flight // closed by the writer at its end

	// waits is the number of the flight that the one in charge waits for; 0: it has none. Who sets it from a number to 0
	// ends that charge: the one itself, when the decision is there, or whoever has another one take over.
	waits   atomic.Uint64
	flights atomic.Uint64

	look   *time.Timer // runs while there are flights
	armed  atomic.Bool
	before uint64 // what the last look found; look's

	mu      sync.Mutex // guards closed, took and aside
	closed  bool       // nobody takes over any more
	took    time.Time  // when somebody took over last
	aside   int        // flights that are waited for aside at the next time
	running sync.WaitGroup
}

// flight is a message that has left.
type flight struct {
	request *request
	grant   int64 // the number of the token under which it left
	receipt amqp.SendReceipt
}

// overdue is how long the one in charge waits for one decision before another goes on with the next, or up to twice that.
const overdue = time.Millisecond

// asideMost bounds how many are waited for aside at a time, each by a goroutine of its own.
const asideMost = 64

// settle starts to pass decisions on. end must be called once the writer has ended.
func settle(l *link, window int) *settler {
	s := &settler{sent: make(chan flight, window)}
	s.look = time.AfterFunc(time.Hour, func() { s.lookAgain(l) })
	s.look.Stop()
	s.running.Go(func() { s.serve(l) })
	return s
}

// end waits until each flight has its decision, or its link's end.
func (s *settler) end() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.look.Stop()
	s.running.Wait()
}

// serve is the one in charge, until another one takes over.
func (s *settler) serve(l *link) {
	for f := range s.sent {
		n := s.flights.Add(1)
		s.waits.Store(n)
		s.arm()
		f.settle(l)
		if !s.waits.CompareAndSwap(n, 0) {
			return
		}
	}
}

// takeOver has another one go on behind flight n, unless that has got its decision. One that finds nothing behind it
// waits for more, and no other takes over from it. When one is late after the other, what comes next is likely to be, too:
// ever more of it is waited for aside at once, or a decision behind all of them would come late as well.
func (s *settler) takeOver(l *link, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.waits.CompareAndSwap(n, 0) {
		return
	}
	now := time.Now()
	if now.Sub(s.took) < 4*overdue {
		s.aside = min(max(2*s.aside, 1), asideMost)
	} else {
		s.aside = 0
	}
	s.took = now
	for range s.aside {
		select {
		case f, more := <-s.sent:
			if more {
				s.running.Go(func() { f.settle(l) })
			}
		default:
		}
	}
	s.running.Go(func() { s.serve(l) })
}

// settle waits for the decision and passes it on.
func (f *flight) settle(l *link) {
	state, err := l.wait(&f.receipt)
	f.request.answer(result{link: l, grant: f.grant, state: state, lost: err})
}

// arm has somebody look whether a decision is overdue.
func (s *settler) arm() {
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		s.look.Reset(overdue)
	}
}

// lookAgain has another one take over if the one in charge still waits for the same decision.
func (s *settler) lookAgain(l *link) {
	now := s.waits.Load()
	if now == 0 {
		s.armed.Store(false)
		if s.waits.Load() != 0 {
			s.arm() // it began to wait just then, and may have found it armed
		}
		return
	}
	if now == s.before {
		s.takeOver(l, now)
	}
	s.before = now
	s.look.Reset(overdue)
}

// wait returns the hub's decision, or why there will be none on this link.
func (l *link) wait(receipt *amqp.SendReceipt) (amqp.DeliveryState, error) {
	state, err := receipt.Wait(context.Background())
	// When the decision and the end of the link are both there, Wait picks one at
	// random. A few more looks spare nearly every needless second send.
	for i := 0; err != nil && i < 6; i++ {
		state, err = receipt.Wait(context.Background())
	}
	if err == nil {
		l.settled.Add(1)
	}
	return state, err
}
