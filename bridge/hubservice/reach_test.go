package hubservice

import (
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
)

const otherKey = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="

func connectionString(key string) string {
	return "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=" + key
}

// signedBy tells which key made a token, and when it is over.
func signedBy(t *testing.T, text string) (key string, expires time.Time) {
	token, err := sas.ParseToken(text)
	if err != nil {
		return "", time.Time{}
	}
	for _, k := range []string{testKey, otherKey} {
		c, err := sas.Parse(connectionString(k))
		require.NoError(t, err)
		if token.Verify(c.Key) {
			return k, token.Expiry
		}
	}
	return "", token.Expiry
}

// lock is which keys the scripted hub takes.
type lock struct {
	mu      sync.Mutex
	refused map[string]bool
}

func (l *lock) refuse(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = map[string]bool{}
	for _, k := range keys {
		l.refused[k] = true
	}
}

func (l *lock) refuses(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused[key]
}

func (p *peer) lastKey(t *testing.T) string {
	seen := p.tokensSeen()
	if len(seen) == 0 {
		return ""
	}
	key, _ := signedBy(t, seen[len(seen)-1])
	return key
}

func fast(c *Client) {
	c.pace = pace{check: 5 * time.Millisecond, back: 20 * time.Millisecond, jump: time.Minute}
	c.credentials.forgive = 10 * time.Millisecond
}

// The secondary takes over, wherever the hub refuses the primary, and gives its
// place back when the primary works again.
func TestSecondaryTakesOver(t *testing.T) {
	for name, s := range map[string]func(t *testing.T, l *lock) script{
		"put-token": func(t *testing.T, l *lock) script {
			return script{putToken: func(c *peerConn, _ int) int {
				if l.refuses(c.lastKey(t)) {
					return 401
				}
				return 200
			}}
		},
		"attach": func(t *testing.T, l *lock) script {
			return script{attach: func(c *peerConn, _ int) string {
				if l.refuses(c.lastKey(t)) {
					return "amqp:unauthorized-access"
				}
				return ""
			}}
		},
		"message": func(t *testing.T, l *lock) script {
			return script{transfer: func(c *peerConn, id uint32, _ []byte) {
				if l.refuses(c.lastKey(t)) {
					c.settle(id, rejectedWith("amqp:unauthorized-access"))
				} else {
					c.settle(id, accepted)
				}
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &lock{}
			l.refuse(testKey)
			p := runPeer(t, s(t, l))
			o := testOptions(p)
			o.SecondaryConnectionString = connectionString(otherKey)
			c, log := runClient(t, o, func(c *Client) {
				c.pace.check = 5 * time.Millisecond
				// If the primary is forgiven before the secondary has been tried, its second token has the last try of this minute.
				c.credentials.forgive = time.Second
			})
			ctx := ctxTimeout(t, soon)
			requireReady(t, c)
			require.Eventually(t, func() bool {
				err := c.Send(ctx, command())
				if err != nil {
					requireClass(t, err, bridge.Unauthorized)
				}
				return err == nil
			}, soon, time.Millisecond)
			require.NoError(t, c.Ready())
			// The hub may take a message before the client has read that it takes the token.
			require.Eventually(t, func() bool { return c.Stats().Credential == "secondary" }, soon, time.Millisecond)
			stats := c.Stats()
			require.Equal(t, "the hub refuses the primary connection string; the secondary is in use", stats.Notice)
			require.Equal(t, 1, p.opened(), "on the same connection")
			requireLoggedTimes(t, log, 1, "using the secondary")
			if name == "put-token" {
				require.Len(t, p.tokensSeen(), 2)
			}

			// The link goes: the primary has its turn on the next one.
			l.refuse()
			refused := time.Now()
			require.Eventually(t, func() bool { return time.Since(refused) > 2*c.credentials.forgive }, soon, time.Millisecond)
			p.last().close("amqp:connection:forced")
			require.Eventually(t, func() bool { return c.Stats().Credential == "primary" }, soon, time.Millisecond)
			require.Empty(t, c.Stats().Notice)
			requireLogged(t, log, "using the primary connection string again")
		})
	}
}

// While the link lives on the secondary, the primary is tried now and then.
func TestPrimaryIsTriedAgain(t *testing.T) {
	l := &lock{}
	l.refuse(testKey)
	p := runPeer(t, script{putToken: func(c *peerConn, _ int) int {
		if l.refuses(c.lastKey(t)) {
			return 401
		}
		return 200
	}})
	o := testOptions(p)
	o.SecondaryConnectionString = connectionString(otherKey)
	c, log := runClient(t, o, fast)
	requireReady(t, c)
	require.Eventually(t, func() bool { return len(p.tokensSeen()) >= 6 }, soon, time.Millisecond)
	require.NoError(t, c.Ready())
	require.Equal(t, "secondary", c.Stats().Credential)
	l.refuse()
	require.Eventually(t, func() bool { return c.Stats().Credential == "primary" }, soon, time.Millisecond)
	require.Equal(t, 1, p.opened())
	requireLoggedTimes(t, log, 1, "level=WARN")
	n := len(p.tokensSeen())
	require.Never(t, func() bool { return len(p.tokensSeen()) > n+1 }, 20*c.pace.back, c.pace.back)
}

// Both are refused: two tokens a connection, and connections ever more slowly.
func TestBothRefusedIsNoHotLoop(t *testing.T) {
	p := runPeer(t, script{putToken: func(*peerConn, int) int { return 401 }})
	o := testOptions(p)
	o.SecondaryConnectionString = strings.Replace(connectionString(otherKey), "=service;", "=second;", 1)
	o.ReconnectMin, o.ReconnectMax = 20*time.Millisecond, time.Second
	begin := time.Now()
	c, log := runClient(t, o)
	require.Eventually(t, func() bool { return p.opened() >= 4 }, soon, time.Millisecond)
	// 20, 40 and 80 ms, each with at most half of it taken off by jitter.
	require.GreaterOrEqual(t, time.Since(begin), 70*time.Millisecond)
	require.ErrorContains(t, c.Ready(), `hub main: unauthorized: the hub refuses policy "service" and, as the secondary, policy "second": put-token: 401 scripted; check its key`)
	require.LessOrEqual(t, len(p.tokensSeen()), 2*p.opened())
	requireLoggedTimes(t, log, 1, "level=ERROR")
	p.set(func(s *script) { s.putToken = nil })
	require.NoError(t, c.Send(ctxTimeout(t, soon), command()))
}

// Both are refused to messages: a token for each, then nothing but the engine's tries.
func TestBothRefusedToMessages(t *testing.T) {
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, _ []byte) { c.settle(id, rejectedWith("amqp:unauthorized-access")) }})
	o := testOptions(p)
	o.SecondaryConnectionString = connectionString(otherKey)
	c, _ := runClient(t, o)
	ctx := ctxTimeout(t, soon)
	refused := func() { requireClass(t, c.Send(ctx, command()), bridge.Unauthorized) }
	// Those that left before the next token was in use ask for no more.
	require.Eventually(t, func() bool { refused(); return len(p.tokensSeen()) == 3 }, soon, time.Millisecond)
	for range 50 {
		refused()
	}
	require.Len(t, p.tokensSeen(), 3)
	require.ErrorContains(t, c.Ready(), "the hub refuses")
	require.Equal(t, 1, p.opened())
}

// store is a file of a connection string in a test.
type store struct {
	mu   sync.Mutex
	text string
	err  error
}

func (s *store) set(text string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.err = text, err
}

func (s *store) read() (string, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text, "", s.err
}

func TestConnectionStringChanges(t *testing.T) {
	l := &lock{}
	l.refuse(otherKey)
	p := runPeer(t, script{putToken: func(c *peerConn, _ int) int {
		if l.refuses(c.lastKey(t)) {
			return 401
		}
		return 200
	}})
	file := &store{text: connectionString(testKey)}
	o := testOptions(p)
	o.Reread = file.read
	c, log := runClient(t, o, fast)
	ctx := ctxTimeout(t, soon)
	require.NoError(t, c.Send(ctx, command()))

	// Rotated: the hub learns of it at once, on the same link.
	l.refuse(testKey)
	file.set(connectionString(otherKey), nil)
	require.Eventually(t, func() bool { return p.lastKey(t) == otherKey }, soon, time.Millisecond)
	require.NoError(t, c.Send(ctx, command()))
	require.NoError(t, c.Ready())

	// What cannot be used changes nothing, and is told once.
	for _, x := range []struct {
		text string
		err  error
		want string
	}{
		{"", errors.New("connection_string_file: /run/x is empty"), "/run/x is empty"},
		{"HostName=localhost;DeviceId=d;SharedAccessKey=" + testKey, nil, "this is a device connection string"},
		{strings.Replace(connectionString(testKey), "localhost", "elsewhere", 1), nil, "primary connection string: it is for hub elsewhere, not for localhost"},
	} {
		n := len(p.tokensSeen())
		file.set(x.text, x.err)
		require.Eventually(t, func() bool { return strings.Contains(c.Stats().Notice, x.want) }, soon, time.Millisecond)
		require.NoError(t, c.Send(ctx, command()))
		require.NoError(t, c.Ready())
		require.Len(t, p.tokensSeen(), n)
		requireLoggedTimes(t, log, 1, x.want)
	}

	// A new key that the hub refuses: the old token goes on as long as it is valid, and Ready tells.
	file.set(connectionString(testKey), nil)
	requireNotReady(t, c, "cannot renew the token, which expires at ")
	require.NoError(t, c.Send(ctx, command()))
	file.set(connectionString(otherKey), nil)
	requireReady(t, c)
	require.Equal(t, 1, p.opened())
	require.Empty(t, c.Stats().Notice)

	// With the key withdrawn while no connection can be made, the next attempt reads the file.
	l.refuse(otherKey)
	p.last().close("amqp:connection:forced")
	requireNotReady(t, c, "unauthorized")
	file.set(connectionString(testKey), nil)
	require.NoError(t, c.Send(ctx, command()))
}

func TestWrongSecondary(t *testing.T) {
	_, err := New(Options{ConnectionString: connectionString(testKey), SecondaryConnectionString: "HostName=h;DeviceId=d;SharedAccessKey=" + testKey})
	require.ErrorContains(t, err, "hub main: secondary connection string: this is a device connection string")
	_, err = New(Options{ConnectionString: connectionString(testKey), SecondaryConnectionString: strings.Replace(connectionString(otherKey), "localhost", "x", 1)})
	require.EqualError(t, err, "hub main: secondary connection string: it is for hub x, not for localhost")
	_, err = New(Options{ConnectionString: connectionString(testKey), Entra: &Entra{}, Host: "x"})
	require.ErrorContains(t, err, "a connection string as well as Entra ID")
	_, err = New(Options{Entra: &Entra{}})
	require.ErrorContains(t, err, "Entra ID without the hub's host name")
}

// jumpy is a wall clock that is set.
type jumpy struct{ off atomic.Int64 }

func (j *jumpy) now() time.Time { return time.Now().Round(0).Add(time.Duration(j.off.Load())) }

// The hub keeps the right time. A wall clock that jumps makes the client renew at
// once: the link outlives the jump, forward or backward.
func TestClockJumps(t *testing.T) {
	p := runPeer(t, script{putToken: func(c *peerConn, _ int) int {
		seen := c.tokensSeen()
		_, expires := signedBy(t, seen[len(seen)-1])
		if time.Now().After(expires) {
			return 401
		}
		return 200
	}})
	clock := &jumpy{}
	c, log := runClient(t, testOptions(p), fast, func(c *Client) { c.wall = clock.now })
	requireReady(t, c)
	for n, off := range []time.Duration{3 * time.Hour, 0, 26 * time.Hour} {
		clock.off.Store(int64(off))
		require.Eventually(t, func() bool { return len(p.tokensSeen()) == n+2 }, soon, time.Millisecond)
		require.Eventually(t, func() bool { return c.Stats().TokenExpires.Sub(clock.now()).Round(time.Minute) == time.Hour }, soon, time.Millisecond)
	}
	require.NoError(t, c.Send(ctxTimeout(t, soon), command()))
	require.NoError(t, c.Ready())
	requireLogged(t, log, "the clock has jumped; renewing the token")

	// Two hours slow: what we sign is over before the hub sees it. The link goes on with the
	// token that it has, and the cause is named.
	clock.off.Store(-int64(2 * time.Hour))
	requireNotReady(t, c, "this machine's clock")
	require.NoError(t, c.Send(ctxTimeout(t, soon), command()))
	clock.off.Store(0)
	requireReady(t, c)
	require.Equal(t, 1, p.opened(), "the link never went")
}

// Whatever the wall clock does, a token is renewed after three quarters of its life.
func TestRenewalGoesByTheMonotonicClock(t *testing.T) {
	t.Parallel()
	p := runPeer(t, script{})
	clock := &jumpy{}
	o := testOptions(p)
	o.TokenLifetime = 12 * time.Second
	c, _ := runClient(t, o, func(c *Client) { c.wall, c.pace.jump = clock.now, time.Hour })
	requireReady(t, c)
	clock.off.Store(-int64(50 * time.Minute)) // by the wall clock it has 50 minutes to live
	require.Eventually(t, func() bool { return len(p.tokensSeen()) >= 2 }, soon, 20*time.Millisecond)
	clock.off.Store(int64(50 * time.Minute)) // and now it died long ago
	seen := len(p.tokensSeen())              // two, unless the CPU was away for long
	require.Eventually(t, func() bool { return len(p.tokensSeen()) > seen }, soon, 20*time.Millisecond)
	require.Equal(t, 1, p.opened())
}

// The hub goes away without a word while nothing is sent: no more than
// IdleTimeout passes before the connection is replaced.
func TestHalfOpenIsNoticed(t *testing.T) {
	p := runPeer(t, script{}) // it never sends the empty frames that we ask for
	o := testOptions(p)
	o.IdleTimeout = 500 * time.Millisecond
	c, log := runClient(t, o)
	requireReady(t, c)
	require.Eventually(t, func() bool { return p.opened() >= 2 }, soon, time.Millisecond)
	requireLogged(t, log, "lost the connection to the hub")
}

// One attempt at a time, each after a pause that grows.
func TestOneAttemptAtATime(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var open, most, all atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Add(1)
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
			wg.Go(func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 1)) // the hello
				_, _ = conn.Read(make([]byte, 4096))
				open.Add(-1) // before it is told, or the next could be there already
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	begin := time.Now()
	c, _ := runClient(t, Options{
		ConnectionString: connectionString(testKey), Address: ln.Addr().String(),
		ReconnectMin: 10 * time.Millisecond, ReconnectMax: 80 * time.Millisecond,
	})
	for range 20 { // senders that wait do not hurry it
		wg.Go(func() { _ = c.Send(ctxTimeout(t, 500*time.Millisecond), command()) })
	}
	require.Eventually(t, func() bool { return all.Load() >= 6 }, soon, time.Millisecond)
	require.EqualValues(t, 1, most.Load())
	// 10, 20, 40, 80, 80 ms, each with at most half of it taken off.
	require.GreaterOrEqual(t, time.Since(begin), 115*time.Millisecond)
}

// A message in flight at a loss is sent again by its owner: the same bytes, the same ID.
func TestResentByteIdentical(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	p := runPeer(t, script{transfer: func(c *peerConn, id uint32, b []byte) {
		mu.Lock()
		seen = append(seen, string(b))
		n := len(seen)
		mu.Unlock()
		switch n {
		case 1:
			_ = c.Close()
		case 2:
			c.close("amqp:unauthorized-access") // the client sends this one again by itself
		default:
			c.settle(id, accepted)
		}
	}})
	c, _ := runClient(t, testOptions(p))
	ctx := ctxTimeout(t, soon)
	e := command()
	requireClass(t, c.Send(ctx, e), bridge.LinkLost)
	require.NoError(t, c.Send(ctx, e))
	require.Len(t, seen, 3)
	require.Equal(t, seen[0], seen[1])
	require.Equal(t, seen[0], seen[2])
	require.Contains(t, seen[0], e.MessageID)
}
