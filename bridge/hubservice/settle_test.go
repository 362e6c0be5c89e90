package hubservice

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The hub decides about every third message late, in the reverse order and only after all the others: those are
// decided at once, one after the other and all together.
func TestDecisionsOutOfOrder(t *testing.T) {
	const sends = 90
	var mu sync.Mutex
	var n int
	var late []uint32
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%3 == 1 {
			late = append(late, id)
			return
		}
		c.settle(id, accepted)
	}})
	c, _ := runClient(t, testOptions(p))
	ctx := ctxTimeout(t, soon)
	results := make(chan error, 2*sends)
	send := func() { results <- c.Send(ctx, command()) }
	for range sends {
		go send()
	}
	for range sends * 2 / 3 {
		require.NoError(t, <-results)
	}
	for i := 0; i < sends; i += 3 { // with all those before them undecided
		go send()
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(late) == sends/3+i/3+1
		}, soon, 100*time.Microsecond)
		go send()
		go send()
		require.NoError(t, <-results)
		require.NoError(t, <-results)
	}
	require.Empty(t, results)
	slices.Reverse(late)
	for _, id := range late {
		p.last().settle(id, accepted)
		require.NoError(t, <-results)
	}
	require.Equal(t, 1, p.opened())
}

// A link that breaks ends the wait for each decision that is out.
func TestLinkBreaksWithManyUndecided(t *testing.T) {
	const sends = 50
	left := make(chan struct{}, sends)
	p := runPeer(t, script{transfer: func(*peerConn, uint32, []byte) { left <- struct{}{} }})
	c, _ := runClient(t, testOptions(p))
	results := make(chan error, sends)
	for range sends {
		go func() { results <- c.Send(context.WithoutCancel(t.Context()), command()) }()
		<-left
	}
	require.NoError(t, p.last().Conn.Close())
	for range sends {
		require.ErrorContains(t, <-results, "the link broke while the message was in flight")
	}
}

// Behind many late decisions one is not late itself.
func TestDecisionBehindManyLateOnes(t *testing.T) {
	const sends = 500
	left := make(chan struct{}, sends)
	var late atomic.Bool
	late.Store(true)
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
		if late.Load() {
			left <- struct{}{}
			return
		}
		c.settle(id, accepted)
	}})
	c, _ := runClient(t, testOptions(p))
	ctx, cancel := context.WithCancel(ctxTimeout(t, 2*soon))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	requireReady(t, c)
	for range sends {
		wg.Go(func() { _ = c.Send(ctx, command()) })
	}
	for range sends {
		<-left
	}
	late.Store(false)
	decided := make(chan error, 1)
	wg.Go(func() { decided <- c.Send(ctx, command()) })
	// The measure is what is waited here meanwhile, one time after the other, and not the clock: a busy machine
	// makes both longer.
	for waits := 0; ; waits++ {
		select {
		case err := <-decided:
			require.NoError(t, err)
			require.Less(t, waits, sends/2, "one after the other")
			return
		case <-time.After(overdue):
		}
	}
}

// However late a decision is: one goroutine waits for it, and one for what comes behind it; then one is left.
func TestLateDecisionCostsOneGoroutine(t *testing.T) {
	left := make(chan uint32, 1)
	p := runPeer(t, script{transfer: func(_ *peerConn, id uint32, _ []byte) { left <- id }})
	c, _ := runClient(t, testOptions(p))
	done := make(chan error, 1)
	go func() { done <- c.Send(ctxTimeout(t, soon), command()) }()
	id := <-left
	require.Eventually(t, func() bool { return settlers() == 2 }, soon, time.Millisecond)
	require.Never(t, func() bool { return settlers() > 2 }, 100*time.Millisecond, 5*time.Millisecond)
	p.last().settle(id, accepted)
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { return settlers() == 1 }, soon, time.Millisecond)
}

// settlers is how many goroutines wait for decisions, or for something that needs one.
func settlers() int {
	stacks := make([]byte, 1<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("hubservice.(*settler).serve("))
}
