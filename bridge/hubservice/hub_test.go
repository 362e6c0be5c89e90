package hubservice_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/hubservice"
	"downlink/bridge/internal/sas"
	"downlink/mapping"
)

// soon bounds what a test waits for and what comes at once.
const soon = 30 * time.Second

func options(h *bridgetest.Hub) hubservice.Options {
	return hubservice.Options{
		ConnectionString: h.ServiceConnectionString,
		Address:          h.AMQPAddr(),
		RootCAs:          h.RootCAs(),
		ReconnectMin:     5 * time.Millisecond,
		ReconnectMax:     100 * time.Millisecond,
	}
}

func run(t testing.TB, o hubservice.Options) *hubservice.Client {
	t.Helper()
	c, err := hubservice.New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return c
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func class(t *testing.T, err error) bridge.Class {
	t.Helper()
	var e *bridge.Error
	require.ErrorAs(t, err, &e)
	return e.Class
}

// What the hub's own decoder finds in the message is what the envelope says, for
// every field and in order.
func TestHubReadsTheEnvelope(t *testing.T) {
	const device = "berlin:pump#7%()*!+',=@$_?;.-" // all the marks that a device ID may have
	h := bridgetest.RunHub(t, device)
	c := run(t, options(h))
	expires := time.Now().Add(time.Hour).Truncate(time.Millisecond).UTC()
	e := &mapping.Envelope{
		Device: device, MessageID: "COMMANDS:7:abc", CorrelationID: "c=1&2", UserID: "ann", ContentType: "application/json",
		ContentEncoding: "utf-8", ExpiresAt: expires, Ack: mapping.AckFull,
		Properties: []mapping.Property{{Name: "zeta", Value: "1"}, {Name: "alpha", Value: "grün %26"}, {Name: "empty"}},
		Body:       []byte("\x00\xffbody"),
	}
	require.NoError(t, c.Send(within(t, soon), e))
	queue := h.Queue(device)
	require.Len(t, queue, 1)
	got := *queue[0].Message
	require.True(t, strings.HasPrefix(got.To, "/devices/berlin%3Apump%237%25"), got.To)
	got.To = ""
	require.Equal(t, c2d.Message{
		MessageID: e.MessageID, CorrelationID: e.CorrelationID, UserID: e.UserID, ContentType: e.ContentType,
		ContentEncoding: e.ContentEncoding, ExpiresAt: expires, Ack: "full", Body: e.Body,
		Properties: []c2d.Property{{Name: "zeta", Value: "1"}, {Name: "alpha", Value: "grün %26"}, {Name: "empty"}},
	}, got)
}

// The hub's real rules, without a script.
func TestHubRefusals(t *testing.T) {
	h := bridgetest.RunHub(t, "d1", "d2")
	c := run(t, options(h))
	ctx := within(t, soon)
	require.Equal(t, bridge.NoDevice, class(t, c.Send(ctx, &mapping.Envelope{Device: "nobody"})))
	for range 50 {
		require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	}
	require.Equal(t, bridge.QueueFull, class(t, c.Send(ctx, &mapping.Envelope{Device: "d1"})))

	err := c.Send(ctx, &mapping.Envelope{Device: "d2", Body: make([]byte, 64<<10+1)})
	require.Equal(t, bridge.Refused, class(t, err))
	var e *bridge.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, mapping.ReasonTooLarge, e.Reason)
	err = c.Send(ctx, &mapping.Envelope{Device: "d2", Body: make([]byte, 2<<20)}) // over the link's limit: not sent
	require.ErrorAs(t, err, &e)
	require.Equal(t, mapping.ReasonTooLarge, e.Reason)
	require.Equal(t, bridge.Refused, class(t, c.Send(ctx, &mapping.Envelope{Device: "d2", ExpiresAt: time.Now().Add(1000 * time.Hour)})))
	require.Zero(t, c.Stats().Reconnects)
	require.NoError(t, c.Ready())
	require.Empty(t, h.Queue("d2"))
}

func TestHubFaults(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	c := run(t, options(h))
	ctx := within(t, 2*soon)
	e := &mapping.Envelope{Device: "d1", MessageID: "m"}
	for _, x := range []struct {
		action fault.Action
		class  bridge.Class
	}{
		{fault.Action{Kind: fault.Release}, bridge.Resend},
		{fault.Action{Kind: fault.Modify}, bridge.Resend},
		{fault.Action{Kind: fault.Reject, Condition: "amqp:not-found"}, bridge.NoDevice},
		{fault.Action{Kind: fault.Reject, Condition: "amqp:resource-limit-exceeded"}, bridge.QueueFull},
		{fault.Action{Kind: fault.Reject, Condition: "com.microsoft:quota-exceeded"}, bridge.Paused},
		{fault.Action{Kind: fault.Reject, Condition: "com.microsoft:iot-hub-suspended"}, bridge.Paused},
		{fault.Action{Kind: fault.Reject, Condition: "com.microsoft:device-container-throttled"}, bridge.Throttled},
		{fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"}, bridge.Unauthorized},
		{fault.Action{Kind: fault.Reject, Condition: "amqp:link:message-size-exceeded"}, bridge.Refused},
		{fault.Action{Kind: fault.Reject, Condition: "com.microsoft:argument-error"}, bridge.Refused},
		{fault.Action{Kind: fault.Reject, Condition: "amqp:not-allowed"}, bridge.Refused},
		{fault.Action{Kind: fault.Reject, Condition: "com.microsoft:timeout"}, bridge.Unknown},
		{fault.Action{Kind: fault.Reject}, bridge.Unknown},
	} {
		h.Faults().Add(fault.Transfer, 1, nil, x.action)
		require.Equal(t, x.class.String(), class(t, c.Send(ctx, e)).String(), "%+v", x.action)
	}
	require.NoError(t, c.Send(ctx, e))
	require.Zero(t, c.Stats().Reconnects, "no answer to a message costs the connection")

	h.Faults().Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Drop})
	require.Equal(t, bridge.LinkLost, class(t, c.Send(ctx, e)))
	require.NoError(t, c.Send(ctx, e))
	require.Equal(t, 1, c.Stats().Reconnects)

	h.Faults().Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Delay, Delay: 300 * time.Millisecond})
	require.NoError(t, c.Send(ctx, e), "slow is no error")
}

func TestHubWithholdsDispositions(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	o := options(h)
	o.Stall = time.Second // long enough for the answer to the second message
	c := run(t, o)
	ctx := within(t, soon)
	h.Faults().Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Withhold, After: true})
	require.Equal(t, bridge.Resend, class(t, c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: "m"})))
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: "m"}))
	require.Equal(t, 1, c.Stats().Reconnects)
	require.Len(t, h.Queue("d1"), 2, "at least once")
}

func TestHubRefusesTheToken(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	o := options(h)
	good, err := sas.Parse(h.ServiceConnectionString)
	require.NoError(t, err)
	bad := good
	bad.Key = []byte("not the key of this hub at all..")
	for name, text := range map[string]string{"wrong key": bad.Reveal(), "no such policy": strings.Replace(good.Reveal(), "=service", "=nobody", 1)} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.ConnectionString = text
			c := run(t, o)
			require.Eventually(t, func() bool {
				return strings.Contains(fmt.Sprint(c.Ready()), "unauthorized: the hub refuses policy")
			}, soon, time.Millisecond)
			err := c.Send(within(t, 100*time.Millisecond), &mapping.Envelope{Device: "d1"})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "not sent: context deadline exceeded: hub main: unauthorized: the hub refuses policy")
			require.NotContains(t, err.Error(), "sig=")
		})
	}
	t.Run("for a while", func(t *testing.T) {
		cancel := h.Faults().Add(fault.PutToken, 0, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"})
		defer cancel()
		c := run(t, o)
		require.Eventually(t, func() bool {
			return strings.Contains(fmt.Sprint(c.Ready()), "unauthorized: the hub refuses policy")
		}, soon, time.Millisecond)
		cancel()
		require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
		require.NoError(t, c.Ready())
	})
	t.Run("at attach", func(t *testing.T) {
		h.Faults().Add(fault.AttachSender, 3, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"})
		c := run(t, o)
		require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
	})
}

// The hub closes connections whose token has expired; a client that renews lives on.
func TestHubTokenRenewal(t *testing.T) {
	t.Parallel()
	h := bridgetest.RunHub(t, "d1")
	o := options(h)
	o.TokenLifetime = 12 * time.Second
	c := run(t, o)
	ctx := within(t, 2*soon)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	first := c.Stats().TokenExpires
	require.Eventually(t, func() bool { return time.Now().After(first.Add(time.Second)) }, soon, 50*time.Millisecond)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.Zero(t, c.Stats().Reconnects)

	// Renewals that are withheld past the expiry cost the connection, and nothing else.
	o.TokenLifetime = 2 * time.Second
	c = run(t, o)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	cancel := h.Faults().Add(fault.PutToken, 0, nil, fault.Action{Kind: fault.Withhold})
	require.Eventually(t, func() bool { return !c.Stats().Connected }, soon, 5*time.Millisecond)
	cancel()
	// A new connection whose token was withheld as well is given up after 30 s.
	require.NoError(t, c.Send(within(t, 2*soon), &mapping.Envelope{Device: "d1"}))
}

// One hub after another on the same address: every message is accepted by one of
// them, in order per device, whatever was in flight at the time.
func TestHubRestarts(t *testing.T) {
	data := t.TempDir()
	devices := []string{"a", "b", "c", "d"}
	first, err := emulator.Start(emulator.Options{DataDir: data, Devices: devices})
	require.NoError(t, err)
	service, err := first.ConnectionString("service")
	require.NoError(t, err)
	link := bridgetest.RunLink(t, first.AMQPAddr()) // keeps the address, which another process could take between the two
	c := run(t, hubservice.Options{ConnectionString: service, Address: link.Addr(), RootCAs: first.RootCAs(),
		ReconnectMin: 5 * time.Millisecond, ReconnectMax: 50 * time.Millisecond})

	const each = 40
	ctx := within(t, 2*soon)
	var wg sync.WaitGroup
	var sent atomic.Int64
	for _, d := range devices {
		wg.Go(func() {
			for i := range each {
				e := &mapping.Envelope{Device: d, MessageID: fmt.Sprintf("%03d", i)}
				for c.Send(ctx, e) != nil && ctx.Err() == nil {
				}
				sent.Add(1)
			}
		})
	}
	require.Eventually(t, func() bool { return sent.Load() > 20 }, soon, time.Millisecond)
	logs := map[string][]string{}
	collect := func(h *emulator.Hub) {
		for _, d := range devices {
			for _, r := range h.Log(d) {
				logs[d] = append(logs[d], r.MessageID)
			}
		}
	}
	require.NoError(t, first.Close())
	collect(first)
	second, err := emulator.Start(emulator.Options{DataDir: data, Devices: devices})
	require.NoError(t, err)
	link.Target(second.AMQPAddr())
	defer func() { require.NoError(t, second.Close()) }()
	wg.Wait()
	require.NoError(t, ctx.Err())
	collect(second)
	for _, d := range devices {
		var want, got []string
		for i := range each {
			want = append(want, fmt.Sprintf("%03d", i))
		}
		for i, id := range logs[d] {
			if i == 0 || id != logs[d][i-1] { // a repeat follows its first directly
				got = append(got, id)
			}
		}
		require.Equal(t, want, got, d)
	}
}

// BenchmarkSend is the raw send leg: TLS, one link, a window of 512, to the
// embedded hub on loopback, each device's queue drained beside it.
func BenchmarkSend(b *testing.B) {
	devices := make([]string, 512)
	for i := range devices {
		devices[i] = fmt.Sprintf("d%d", i)
	}
	h := bridgetest.RunHub(b, devices...)
	c := run(b, options(h))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	require.Eventually(b, func() bool { return c.Ready() == nil }, soon, time.Millisecond)
	body := make([]byte, 256)
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, d := range devices {
		wg.Go(func() {
			for i := 1; ; i++ {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				if i%50 == 0 { // before the queue is full
					_, _ = h.PurgeDevice(d)
				}
				e := &mapping.Envelope{Device: d, MessageID: "m", Properties: []mapping.Property{{Name: "verb", Value: "reboot"}}, Body: body}
				if err := c.Send(ctx, e); err != nil {
					b.Errorf("%v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
