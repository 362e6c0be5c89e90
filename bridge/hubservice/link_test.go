package hubservice

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

func TestSendOutcomes(t *testing.T) {
	var state atomic.Value
	var got atomic.Value
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, message []byte) {
		got.Store(message)
		c.settle(id, state.Load().([]byte))
	}})
	c, _ := runClient(t, testOptions(p))
	ctx := ctxTimeout(t, soon)

	state.Store(accepted)
	require.NoError(t, c.Send(ctx, command()))
	want, err := appendMessage(nil, command())
	require.NoError(t, err)
	require.Equal(t, want, got.Load(), "the bytes on the wire are the encoded ones")

	for _, x := range []struct {
		state []byte
		class bridge.Class
	}{
		{released, bridge.Resend}, {modified, bridge.Resend},
		{rejectedWith("amqp:not-found"), bridge.NoDevice},
		{rejectedWith("amqp:resource-limit-exceeded"), bridge.QueueFull},
		{rejectedWith("com.microsoft:device-container-throttled"), bridge.Throttled},
		{rejectedWith("com.microsoft:quota-exceeded"), bridge.Paused},
		{rejectedWith("com.microsoft:argument-error"), bridge.Refused},
		{rejectedWith("amqp:internal-error"), bridge.Unknown},
	} {
		state.Store(x.state)
		requireClass(t, c.Send(ctx, command()), x.class)
	}
	state.Store(accepted)
	require.NoError(t, c.Send(ctx, command()))
	require.Equal(t, 1, p.opened(), "no answer to a message costs the connection")
	require.NoError(t, c.Ready())
	require.Zero(t, c.Stats().InFlight)
}

// A message of more than one frame, and one that settles in two steps.
func TestSendLargeAndUnsettled(t *testing.T) {
	var got atomic.Value
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, message []byte) {
		got.Store(message)
		c.settleUnsettled(id, accepted)
	}})
	c, _ := runClient(t, testOptions(p))
	e := command()
	e.Body = bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16+100)
	require.NoError(t, c.Send(ctxTimeout(t, soon), e))
	want, err := appendMessage(nil, e)
	require.NoError(t, err)
	require.Equal(t, want, got.Load())
}

func TestExpiredNeverReachesTheWire(t *testing.T) {
	var transfers atomic.Int64
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
		transfers.Add(1)
		c.settle(id, accepted)
	}})
	c, _ := runClient(t, testOptions(p))
	past, later := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	for name, e := range map[string]mapping.Envelope{
		"ttl": {ExpiresAt: past}, "max_age": {SendBy: past}, "max_age below ttl": {ExpiresAt: later, SendBy: past}, "ttl below max_age": {ExpiresAt: past, SendBy: later},
	} {
		m := command()
		m.ExpiresAt, m.SendBy = e.ExpiresAt, e.SendBy
		err := requireClass(t, c.Send(ctxTimeout(t, soon), m), bridge.Refused)
		require.Equal(t, bridge.ReasonExpired, err.Reason, name)
	}
	require.Zero(t, transfers.Load())
}

// Nobody takes what waits for a connection or for credit, and yet its time runs out.
func TestExpiresWhileItWaitsForALink(t *testing.T) {
	for name, address := range map[string]string{"no hub": nobody, "no credit": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := runPeer(t, script{noCredit: true})
			o := testOptions(p)
			if address != "" {
				o.Address = address
			}
			c, _ := runClient(t, o)
			ctx, cancel := context.WithCancel(ctxTimeout(t, 2*soon))
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			var still atomic.Int64
			for range 3 { // the first one for which there is no credit is at the writer; the rest keep their places
				still.Add(1)
				wg.Go(func() { _ = c.Send(ctx, command()); still.Add(-1) })
			}
			require.Eventually(t, func() bool { return c.Stats().InFlight == 3 }, soon, time.Millisecond)
			for range 2 {
				e := command()
				e.SendBy = time.Now().Add(50 * time.Millisecond)
				err := requireClass(t, c.Send(ctx, e), bridge.Refused)
				require.Equal(t, bridge.ReasonExpired, err.Reason)
			}
			require.EqualValues(t, 3, still.Load())
		})
	}
}

// In flight when the link goes, in each way it can go.
func TestLinkLostInFlight(t *testing.T) {
	for name, breakLink := range map[string]func(*peerConn){
		"socket cut":        func(c *peerConn) { _ = c.Close() },
		"link detached":     func(c *peerConn) { c.detach("amqp:link:detach-forced") },
		"session ended":     func(c *peerConn) { c.end("amqp:internal-error") },
		"connection closed": func(c *peerConn) { c.close("amqp:connection:forced") },
		"garbage":           func(c *peerConn) { _, _ = c.Conn.Write([]byte{0, 0, 0, 12, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}) },
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
				if sent.Add(1) == 1 {
					breakLink(c)
					return
				}
				c.settle(id, accepted)
			}})
			c, log := runClient(t, testOptions(p))
			ctx := ctxTimeout(t, soon)
			err := requireClass(t, c.Send(ctx, command()), bridge.LinkLost)
			require.NotContains(t, err.Error(), "*Error{")
			require.NoError(t, c.Send(ctx, command()), "the next one waits for the new connection")
			require.Equal(t, 2, p.opened())
			require.Equal(t, 1, c.Stats().Reconnects)
			requireLoggedTimes(t, log, 1, "level=WARN")
		})
	}
}

// What never left goes to the next link without a word: here the link dies while
// the message waits for credit.
func TestNoCreditIsNotInFlight(t *testing.T) {
	p := runPeer(t, script{noCredit: true})
	o := testOptions(p)
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, soon)
	result := make(chan error, 1)
	go func() { result <- c.Send(ctx, command()) }()
	requireReady(t, c)
	for range 4 { // more often than the engine would bear a lost link
		n := p.opened()
		require.Eventually(t, func() bool { return c.Stats().InFlight == 1 && c.Ready() == nil }, soon, time.Millisecond)
		p.last().close("amqp:connection:forced")
		require.Eventually(t, func() bool { return p.opened() > n }, soon, time.Millisecond)
	}
	requireReady(t, c) // on a link without credit still: with some, the message could be in flight at the close
	p.set(func(s *script) { s.noCredit = false })
	p.last().close("amqp:connection:forced")
	require.NoError(t, <-result)
}

// A link or session that the hub closes while nothing is sent is replaced at
// once, with its reason in the log, and no message has to find out.
func TestIdleLinkClosed(t *testing.T) {
	for name, x := range map[string]struct {
		closeIdle func(*peerConn)
		cause     string
	}{
		"link":         {func(c *peerConn) { c.detach("amqp:link:detach-forced") }, "amqp:link:detach-forced: scripted"},
		"session":      {func(c *peerConn) { c.end("amqp:session:window-violation") }, "amqp:session:window-violation: scripted"},
		"unauthorized": {func(c *peerConn) { c.detach("amqp:unauthorized-access") }, "amqp:unauthorized-access: scripted"},
	} {
		t.Run(name, func(t *testing.T) {
			p := runPeer(t, script{})
			c, log := runClient(t, testOptions(p))
			for n := 1; n <= 3; n++ {
				requireReady(t, c)
				require.Equal(t, n, p.opened())
				x.closeIdle(p.last())
				require.Eventually(t, func() bool { return p.opened() == n+1 }, soon, time.Millisecond)
			}
			requireReady(t, c)
			require.Equal(t, 3, c.Stats().Reconnects)
			requireLoggedTimes(t, log, 3, x.cause)
			require.NoError(t, c.Send(ctxTimeout(t, soon), command()))
		})
	}
}

func TestSilentHubReplacesTheConnection(t *testing.T) {
	p := runPeer(t, script{transfer: func(*peerConn, uint32, []byte) {}})
	o := testOptions(p)
	o.Stall = time.Second // long enough for the answer to the second message
	c, log := runClient(t, o)
	ctx := ctxTimeout(t, soon)
	err := c.Send(ctx, command())
	requireClass(t, err, bridge.Resend) // no proof against the message
	require.ErrorContains(t, err, "no answer from the hub for 1s with sends waiting")
	p.set(func(s *script) { s.transfer = nil })
	require.NoError(t, c.Send(ctx, command()))
	requireLogged(t, log, "no answer from the hub for 1s")
}

// One slow message does not cost the link as long as others move.
func TestSlowMessageIsLeftAlone(t *testing.T) {
	slow := make(chan uint32, 1)
	var once sync.Once
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
		first := false
		once.Do(func() { first = true; slow <- id })
		if !first {
			c.settle(id, accepted)
		}
	}})
	o := testOptions(p)
	o.Stall = 1500 * time.Millisecond
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, soon)
	result := make(chan error, 1)
	go func() { result <- c.Send(ctx, command()) }()
	var id uint32
	select {
	case id = <-slow:
	case err := <-result:
		require.NoError(t, err)
	}
	for end := time.Now().Add(2 * o.Stall); time.Now().Before(end); {
		require.NoError(t, c.Send(ctx, command()))
	}
	p.last().settle(id, accepted)
	require.NoError(t, <-result)
	require.Equal(t, 1, p.opened())
}

// A Send that is given up does not make the watchdog think that one waits.
func TestAbandonedSendDoesNotStall(t *testing.T) {
	ctx, giveUp := context.WithCancel(ctxTimeout(t, soon))
	p := runPeer(t, script{transfer: func(*peerConn, uint32, []byte) { giveUp() }})
	o := testOptions(p)
	o.Stall = 200 * time.Millisecond
	c, _ := runClient(t, o)
	err := c.Send(ctx, command())
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "hub main: no answer yet, so whether the hub has the message is not known")
	require.Never(t, func() bool { return p.opened() > 1 }, 3*o.Stall, 10*time.Millisecond)
}

func TestSendBeforeAndWithoutHub(t *testing.T) {
	c, log := runClient(t, Options{
		Hub:              "west",
		ConnectionString: "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=" + testKey,
		Address:          nobody, ReconnectMin: time.Millisecond, ReconnectMax: 10 * time.Millisecond,
	})
	requireNotReady(t, c, "connection refused")
	err := c.Send(ctxTimeout(t, 100*time.Millisecond), command())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "not sent: context deadline exceeded: hub west: not connected: dial tcp "+nobody)
	require.ErrorContains(t, err, "connection refused")
	requireLoggedTimes(t, log, 1, "level=WARN")
}

func TestCertificatesAreVerified(t *testing.T) {
	p := runPeer(t, script{})
	o := testOptions(p)
	o.RootCAs = x509.NewCertPool()
	c, _ := runClient(t, o)
	requireNotReady(t, c, "name its file in ca_file")

	o = testOptions(p)
	o.ConnectionString = "HostName=hub.example;SharedAccessKeyName=service;SharedAccessKey=" + testKey
	c, _ = runClient(t, o)
	requireNotReady(t, c, "certificate is valid for localhost, not hub.example")
	require.Zero(t, p.opened())
}

func TestWindowBoundsTheUnsettled(t *testing.T) {
	var mu sync.Mutex
	var held []uint32
	p := runPeer(t, script{transfer: func(_ *peerConn, id uint32, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, id)
	}})
	o := testOptions(p)
	o.Window = 4
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, soon)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { requireNoErrorAsync(t, c.Send(ctx, command())) })
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(held) }
	require.Eventually(t, func() bool { return count() == 4 }, soon, time.Millisecond)
	require.Never(t, func() bool { return count() > 4 || c.Stats().InFlight > 4 }, 50*time.Millisecond, 5*time.Millisecond)
	p.set(func(s *script) { s.transfer = nil })
	mu.Lock()
	for _, id := range held {
		p.last().settle(id, accepted)
	}
	mu.Unlock()
	wg.Wait()
}

func requireNoErrorAsync(t *testing.T, err error) {
	if err != nil {
		t.Errorf("unexpected: %v", err)
	}
}

func TestSendAfterRun(t *testing.T) {
	p := runPeer(t, script{transfer: func(*peerConn, uint32, []byte) {}})
	c, err := New(testOptions(p))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	requireReady(t, c)
	result := make(chan error, 1)
	go func() { result <- c.Send(context.Background(), command()) }()
	require.Eventually(t, func() bool { return c.Stats().InFlight == 1 }, soon, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	requireClass(t, <-result, bridge.LinkLost)
	requireClass(t, c.Send(context.Background(), command()), bridge.LinkLost)
	require.EqualError(t, c.Ready(), "hub main: the client has stopped")
	require.EqualError(t, c.Run(context.Background()), "hub main: Run called twice")
}

// Many senders over a hub that drops its connection again and again: every
// message ends accepted once the caller sends it again, in spite of it all.
func TestManySendersThroughLosses(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	transfers := 0
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, b []byte) {
		var m amqp.Message
		if m.UnmarshalBinary(b) != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		transfers++
		if transfers%97 == 0 {
			_ = c.Close()
			return
		}
		seen[m.Properties.MessageID.(string)]++
		c.settle(id, accepted)
	}})
	c, _ := runClient(t, testOptions(p))
	ctx := ctxTimeout(t, 2*soon)
	var wg sync.WaitGroup
	for device := range 20 {
		wg.Go(func() {
			for i := range 50 {
				e := &mapping.Envelope{Device: fmt.Sprintf("d%d", device), MessageID: fmt.Sprintf("%d/%d", device, i), Body: []byte("x")}
				for {
					err := c.Send(ctx, e)
					if err == nil {
						break
					}
					if ctx.Err() != nil {
						t.Errorf("%v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, seen, 1000)
	require.Greater(t, p.opened(), 5)
}

// The hub closes the link with its answers to tokens: messages go on until the
// next token is due, which then takes a new connection.
func TestAnswersLinkClosed(t *testing.T) {
	t.Parallel()
	p := runPeer(t, script{})
	o := testOptions(p)
	o.TokenLifetime = 8 * time.Second
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, 2*soon)
	require.NoError(t, c.Send(ctx, command()))
	p.last().detachAnswers()
	require.NoError(t, c.Send(ctx, command()))
	require.Never(t, func() bool { return p.opened() > 1 }, 1500*time.Millisecond, 10*time.Millisecond)
	require.NoError(t, c.Send(ctx, command()))
	require.Eventually(t, func() bool { return p.opened() == 2 && c.Ready() == nil }, soon, 20*time.Millisecond)
	require.NoError(t, c.Send(ctx, command()))
}
