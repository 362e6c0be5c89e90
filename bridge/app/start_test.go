package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

// textLog logs level and message only.
func textLog(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// TestWatch: an ordinary start is no warning, and what is said is said once.
func TestWatch(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		ready func(since time.Duration) error
		want  []string
	}{
		"at once":  {func(time.Duration) error { return nil }, []string{"level=INFO msg=ready"}},
		"ordinary": {func(d time.Duration) error { return unless(d >= 2*time.Second, "hub") }, []string{"level=INFO msg=starting missing=hub", "level=INFO msg=ready"}},
		"never":    {func(time.Duration) error { return unless(false, "hub") }, []string{"level=INFO msg=starting missing=hub", `level=WARN msg="not ready" err=hub`}},
		"lost": {func(d time.Duration) error { return unless(d < time.Second || d >= 4*time.Second, "hub") },
			[]string{"level=INFO msg=ready", `level=WARN msg="not ready" err=hub`, "level=INFO msg=ready"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				begin := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				watch(ctx, textLog(&b), func() error { return test.ready(time.Since(begin)) })
				require.Equal(t, test.want, strings.Split(strings.TrimSpace(b.String()), "\n"))
			})
		})
	}
}

func unless(ok bool, missing string) error {
	if ok {
		return nil
	}
	return errors.New(missing)
}

// TestRunEndsLast: once Run has returned nothing of it asks the parts any more, or logs.
func TestRunEndsLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asking := false
		log := slog.New(slog.DiscardHandler)
		a := &App{options: Options{Logger: log}, parts: stack{log: log}, checks: []func() error{func() error {
			asking = true
			time.Sleep(time.Minute)
			asking = false
			return nil
		}}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, a.Run(ctx))
		require.False(t, asking)
	})
}

// TestEmbeddedAddressInUse: told once, with the field and the remedy.
func TestEmbeddedAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	addr := l.Addr().String()
	for side, text := range map[string]string{
		"bridge": "bridge:\n  nats: {embedded: {listen: \"" + addr + "\"}}\n  hubs: [{embedded: true}]\n  routes: [{subject: a, stream: S, device: d}]\n",
		"relay":  "relay:\n  nats: {embedded: {listen: \"" + addr + "\"}}\n  devices: [{embedded: d}]\n",
	} {
		c, err := config.Parse("c.yaml", []byte("version: 1\nhttp: \"off\"\n"+text))
		require.NoError(t, err)
		var b bytes.Buffer
		_, err = New(Options{Config: c, Logger: textLog(&b)})
		require.EqualError(t, err, side+".nats.embedded.listen: "+addr+" is in use: stop what listens there, or take another address (127.0.0.1:0 takes a free port)")
		require.Empty(t, b.String())
	}
}

func TestEmbeddedError(t *testing.T) {
	t.Parallel()
	err := embeddedError("bridge", ":80", errors.New(`embedded nats: Error listening on port: :80, "listen tcp :80: bind: permission denied"`))
	require.EqualError(t, err, "bridge.nats.embedded.listen: cannot listen on :80: permission denied; take another address, such as 127.0.0.1:4222")
	require.EqualError(t, inSide("bridge", embeddedError("bridge", ":80", errors.New("embedded nats: x"))), "bridge.nats.embedded: embedded nats: x")
	require.EqualError(t, inSide("bridge", errors.New("x")), "bridge: x")
}
