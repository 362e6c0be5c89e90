package hubservice

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

func TestMain(m *testing.M) {
	// Those that are parallel wait for tokens to grow old, all at the same time. The command line overrules it.
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// soon bounds what a test waits for and what comes at once. It is long because it
// costs nothing: a busy machine may leave a process alone for seconds.
const soon = 30 * time.Second

// nobody is an address on which nobody listens: a port that was free a moment ago
// may be anybody's by now, this one is kept for one service.
const nobody = "127.0.0.1:1"

// requireLogged waits until the log has text: what a client tells in its Stats it
// may log a moment later.
func requireLogged(t *testing.T, log *bridgetest.Log, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(log.String(), text) }, soon, time.Millisecond)
}

// requireLoggedTimes is requireLogged for a text that comes n times and no more.
func requireLoggedTimes(t *testing.T, log *bridgetest.Log, n int, text string) {
	t.Helper()
	count := func() int { return strings.Count(log.String(), text) }
	require.Eventually(t, func() bool { return count() >= n }, soon, time.Millisecond)
	require.Equal(t, n, count(), log.String())
}

func testOptions(p *peer) Options {
	return Options{
		ConnectionString: "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=" + testKey,
		Address:          p.ln.Addr().String(),
		RootCAs:          p.roots,
		ReconnectMin:     5 * time.Millisecond,
		ReconnectMax:     50 * time.Millisecond,
	}
}

// runClient runs a client until the test ends. Whatever it logs never contains
// the key or a signature.
func runClient(t *testing.T, o Options, change ...func(*Client)) (*Client, *bridgetest.Log) {
	t.Helper()
	log := &bridgetest.Log{}
	o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := New(o)
	require.NoError(t, err)
	for _, f := range change {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		require.NotContains(t, log.String(), testKey)
		require.NotContains(t, log.String(), otherKey)
		require.NotContains(t, log.String(), "sig=")
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return c, log
}

// command is the vector's envelope without its expiry, which is over.
func command() *mapping.Envelope {
	e := envelope()
	e.ExpiresAt = time.Time{}
	return e
}

func ctxTimeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func requireReady(t *testing.T, c *Client) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Ready() == nil }, soon, time.Millisecond)
}

// requireNotReady waits until Ready says text.
func requireNotReady(t *testing.T, c *Client, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), text) }, soon, time.Millisecond)
}

func requireClass(t *testing.T, err error, class bridge.Class) *bridge.Error {
	t.Helper()
	var e *bridge.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, class.String(), e.Class.String(), "%v", err)
	return e
}
