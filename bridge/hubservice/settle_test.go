package hubservice

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"
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
	ctx := ctxTimeout(t, 20*time.Second)
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
		}, 10*time.Second, 100*time.Microsecond)
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

// A decision that takes long costs one goroutine more, however long it takes.
func TestOneTakesOver(t *testing.T) {
	p := runPeer(t, script{transfer: func(*peerConn, uint32, []byte) {}})
	c, _ := runClient(t, testOptions(p))
	requireReady(t, c)
	err := c.Send(ctxTimeout(t, 20*time.Millisecond), command())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Never(t, func() bool { return settlers(t) > 2 }, 100*time.Millisecond, 5*time.Millisecond)
}

// settlers is how many goroutines wait for decisions.
func settlers(t *testing.T) int {
	t.Helper()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("hubservice.(*settler).takeOver.func"))
}
