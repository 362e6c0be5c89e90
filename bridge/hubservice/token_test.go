package hubservice

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
)

func TestUnauthorized(t *testing.T) {
	refusals := map[string]script{
		"put-token": {putToken: func(*peerConn, int) int { return 401 }},
		"attach":    {attach: func(*peerConn, int) string { return "amqp:unauthorized-access" }},
		"link closed": {attached: func(c *peerConn) { c.detach("amqp:unauthorized-access") },
			transfer: func(*peerConn, uint32, []byte) {}}, // what crossed the detach is not taken
		"connection closed": {transfer: func(c *peerConn, _ uint32, _ []byte) { c.close("amqp:unauthorized-access") }},
	}
	for name, s := range refusals {
		t.Run(name, func(t *testing.T) {
			p := runPeer(t, s)
			c, log := runClient(t, testOptions(p))
			ctx := ctxTimeout(t, soon)
			result := make(chan error, 1)
			go func() { result <- c.Send(ctx, command()) }()
			require.Eventually(t, func() bool {
				err := c.Ready()
				return p.opened() >= 3 && err != nil && strings.Contains(err.Error(),
					`hub main: unauthorized: the hub refuses policy "service": `) && strings.Contains(err.Error(), "ServiceConnect")
			}, soon, time.Millisecond)
			require.Empty(t, result, "the message waits")
			p.set(func(s *script) { *s = script{} })
			require.NoError(t, <-result)
			requireReady(t, c)
			if name == "put-token" || name == "attach" {
				requireLoggedTimes(t, log, 1, "level=ERROR")
				require.GreaterOrEqual(t, len(p.tokensSeen()), 4, "each connection renewed the token once")
			}
		})
	}
}

// A message that is refused for our credential: one new token, then it is the
// engine's, and Ready says so until the hub takes one again.
func TestUnauthorizedMessage(t *testing.T) {
	var refuse atomic.Bool
	refuse.Store(true)
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) {
		if refuse.Load() {
			c.settle(id, rejectedWith("amqp:unauthorized-access"))
		} else {
			c.settle(id, accepted)
		}
	}})
	c, log := runClient(t, testOptions(p))
	ctx := ctxTimeout(t, soon)
	for range 3 {
		requireClass(t, c.Send(ctx, command()), bridge.Unauthorized)
	}
	require.ErrorContains(t, c.Ready(), "hub main: unauthorized: the hub refuses policy")
	require.Eventually(t, func() bool { return len(p.tokensSeen()) == 2 }, soon, time.Millisecond)
	refuse.Store(false)
	require.NoError(t, c.Send(ctx, command()))
	require.NoError(t, c.Ready())
	require.Len(t, p.tokensSeen(), 2)
	require.Equal(t, 1, p.opened())
	requireLoggedTimes(t, log, 1, "level=ERROR")
}

func TestTokenRenewedOnTheSameConnection(t *testing.T) {
	t.Parallel()
	p := runPeer(t, script{})
	o := testOptions(p)
	o.TokenLifetime = 12 * time.Second
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, 2*soon)
	require.NoError(t, c.Send(ctx, command()))
	expires := c.Stats().TokenExpires
	require.Eventually(t, func() bool { return len(p.tokensSeen()) >= 3 }, soon, 20*time.Millisecond)
	require.NoError(t, c.Send(ctx, command()))
	require.NoError(t, c.Ready())
	require.Equal(t, 1, p.opened())
	require.True(t, c.Stats().TokenExpires.After(expires))
}

// Renewal fails twice, by a refusal and by silence, and is tried again on the same connection.
func TestTokenRenewalIsRetried(t *testing.T) {
	t.Parallel()
	p := runPeer(t, script{putToken: func(_ *peerConn, n int) int { return map[int]int{1: 200, 2: 500, 3: 0}[n] }})
	o := testOptions(p)
	o.TokenLifetime = 12 * time.Second
	c, log := runClient(t, o)
	requireReady(t, c)
	requireNotReady(t, c, "hub main: cannot renew the token, which expires at ")
	require.NoError(t, c.Send(ctxTimeout(t, soon), command()), "the link lives as long as its token")
	p.set(func(s *script) { s.putToken = nil })
	requireReady(t, c)
	require.Equal(t, 1, p.opened())
	requireLogged(t, log, "token renewed")
	requireLoggedTimes(t, log, 1, "level=WARN")
}

// The token runs out before a renewal succeeds: a new connection, and what was in flight goes with it.
func TestTokenExpiry(t *testing.T) {
	p := runPeer(t, script{
		putToken: func(c *peerConn, n int) int {
			if n == 1 {
				return 200
			}
			return 503
		},
		transfer: func(*peerConn, uint32, []byte) {},
	})
	o := testOptions(p)
	o.TokenLifetime = time.Second
	c, _ := runClient(t, o)
	result := make(chan error, 1)
	go func() { result <- c.Send(ctxTimeout(t, soon), command()) }()
	require.Eventually(t, func() bool { return p.opened() >= 2 }, soon, time.Millisecond)
	p.set(func(s *script) { *s = script{} })
	require.NoError(t, <-result)
}
