package relay_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/hubdevice"
	"downlink/bridge/natsio"
	"downlink/bridge/relay"
	"downlink/mapping"
)

// These run the whole device side: the embedded hub, MQTT over TLS, the relay, a real nats-server.

const within = 30 * time.Second

// edge is one relay with its client and publishers.
type edge struct {
	*relay.Relay
	client *hubdevice.Client
	stop   func() // in the order of an orderly shutdown; returns when all have ended
}

// runEdge starts a relay of d1. JetStream unless core.
func runEdge(t *testing.T, h *bridgetest.Hub, n *bridgetest.NATS, core bool) *edge {
	t.Helper()
	client, err := hubdevice.New(hubdevice.Options{ConnectionString: h.DeviceConnectionString("d1"), Address: h.MQTTAddr(), RootCAs: h.RootCAs()})
	require.NoError(t, err)
	subjects, err := mapping.CompileRelay(mapping.RelayOptions{Subject: `edge.{device}.{property["verb"] ?? "command"}`, Name: "downlink"})
	require.NoError(t, err)
	type publisher interface {
		relay.Publisher
		Run(context.Context) error
	}
	var publishers []publisher
	add := func(o natsio.PublisherOptions) publisher {
		o.Conn = natsio.Options{URLs: []string{n.URL()}, Name: "relay"}
		var p publisher
		var err error
		if core {
			p, err = natsio.NewCorePublisher(o)
		} else {
			p, err = natsio.NewOrderedPublisher(o)
		}
		require.NoError(t, err)
		publishers = append(publishers, p)
		return p
	}
	o := relay.Options{Device: client.Device(), Receiver: relay.From(client), Map: subjects, Grace: within}
	if core {
		o.Publisher = add(natsio.PublisherOptions{})
	} else {
		o.Publisher = add(natsio.PublisherOptions{Stream: "EDGE", Create: true, Subjects: []string{"edge.>"}})
		o.DeadLetters = add(natsio.PublisherOptions{Stream: "DOWNLINK_DEAD", Create: true, Subjects: []string{"downlink.dead.>"}})
	}
	r, err := relay.New(o)
	require.NoError(t, err)

	var stops []func()
	start := func(run func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- run(ctx) }()
		stops = append(stops, func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
	start(r.Run)
	start(client.Run)
	for _, p := range publishers {
		start(p.Run)
	}
	e := &edge{Relay: r, client: client}
	e.stop = func() {
		for _, stop := range stops {
			stop()
		}
		stops = nil
	}
	t.Cleanup(func() { e.stop() })
	require.Eventually(t, func() bool { return client.Ready() == nil }, within, time.Millisecond)
	return e
}

func send(t *testing.T, h *bridgetest.Hub, m c2d.Message) {
	t.Helper()
	m.To = "/devices/d1/messages/devicebound"
	require.Eventually(t, func() bool { return h.Enqueue(m) == nil }, within, time.Millisecond, "50 at most: wait for room")
}

// stored are all messages of a stream.
func stored(t *testing.T, n *bridgetest.NATS, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	s, err := n.JetStream(t).Stream(ctx, stream)
	require.NoError(t, err)
	var out []*jetstream.RawStreamMsg
	for i := uint64(1); i <= s.CachedInfo().State.LastSeq; i++ {
		m, err := s.GetMsg(ctx, i)
		require.NoError(t, err)
		out = append(out, m)
	}
	return out
}

func drained(t *testing.T, h *bridgetest.Hub) {
	t.Helper()
	require.Eventually(t, func() bool { return len(h.Queue("d1")) == 0 }, within, time.Millisecond)
}

func TestEdgeJetStream(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	e := runEdge(t, h, n, false)
	send(t, h, c2d.Message{
		MessageID: "m-1", CorrelationID: "c", UserID: "u", ContentType: "application/json", ContentEncoding: "utf-8",
		Properties: []c2d.Property{{Name: "verb", Value: "re.boot"}, {Name: "note", Value: "a&b=c %+"}, {Name: "Nats-Rollup", Value: "all"}}, Body: []byte(`{"x":1}`),
	})
	send(t, h, c2d.Message{MessageID: "m-2", Body: []byte{}})
	drained(t, h)
	got := stored(t, n, "EDGE")
	require.Len(t, got, 2)
	require.Equal(t, "edge.d1.re%2Eboot", got[0].Subject)
	require.Equal(t, `{"x":1}`, string(got[0].Data))
	for name, want := range map[string]string{
		"Downlink-Device": "d1", "Downlink-Message-Id": "m-1", "Downlink-Correlation-Id": "c", "Downlink-User-Id": "u",
		"Downlink-Content-Type": "application/json", "Downlink-Content-Encoding": "utf-8", "note": "a&b=c %+", "Downlink-Prop-Nats-Rollup": "all", "Nats-Rollup": "",
	} {
		require.Equal(t, want, first(got[0].Header, name), name)
	}
	require.Equal(t, "edge.d1.command", got[1].Subject)
	require.Empty(t, got[1].Data)
	require.EqualValues(t, 2, e.Stats().Published)
	// The hub may have the PUBACK before the relay counts it.
	require.Eventually(t, func() bool { return e.Stats().Acked == 2 }, within, time.Millisecond)
}

func first(h nats.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func TestEdgeCore(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	local := n.Conn(t)
	sub, err := local.SubscribeSync("edge.>")
	require.NoError(t, err)
	require.NoError(t, sub.SetPendingLimits(-1, -1))
	require.NoError(t, local.Flush())
	runEdge(t, h, n, true)
	for i := range 100 {
		send(t, h, c2d.Message{MessageID: fmt.Sprint(i)})
	}
	for i := range 100 {
		m, err := sub.NextMsg(within)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), first(m.Header, "Downlink-Message-Id"))
	}
	drained(t, h)
}

// A dead letter holds nobody up, and is completed at the hub.
func TestEdgeDeadLetter(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	runEdge(t, h, n, false)
	long := strings.Repeat("v", 3000) // a token too long for a subject
	send(t, h, c2d.Message{MessageID: "a"})
	send(t, h, c2d.Message{MessageID: "b", Properties: []c2d.Property{{Name: "verb", Value: long}}, Body: []byte("whole")})
	send(t, h, c2d.Message{MessageID: "c"})
	drained(t, h)
	require.Len(t, stored(t, n, "EDGE"), 2)
	dead := stored(t, n, "DOWNLINK_DEAD")
	require.Len(t, dead, 1)
	require.Equal(t, "downlink.dead.bad-subject.d1", dead[0].Subject)
	require.Equal(t, "whole", string(dead[0].Data))
	require.Equal(t, long, first(dead[0].Header, "Downlink-Orig-verb"))
	require.Equal(t, "b", first(dead[0].Header, "Downlink-Message-Id"))
	require.Contains(t, first(dead[0].Header, "Downlink-Text"), "publish.subject")
}

// Nothing is lost and the order stays, while the hub cuts connections, loses
// PUBACKs and deliveries, and the local NATS restarts. JetStream stores each once.
func TestEdgeFaults(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	e := runEdge(t, h, n, false)
	const count = 300
	for i := range count {
		switch i {
		case 50:
			h.Faults().Add(fault.Puback, 1, nil, fault.Action{Kind: fault.Drop})
		case 100:
			h.DisconnectDevice("d1")
		case 150:
			n.Restart(t)
		case 200:
			h.Faults().Add(fault.MQTTPublish, 1, nil, fault.Action{Kind: fault.Drop, After: true})
		case 250: // another process of the relay takes over in the middle
			e.stop()
			e = runEdge(t, h, n, false)
		}
		send(t, h, c2d.Message{MessageID: fmt.Sprint(i), Body: []byte(fmt.Sprint(i))})
	}
	drained(t, h)
	var got, want []string
	for _, m := range stored(t, n, "EDGE") {
		got = append(got, string(m.Data))
	}
	for i := range count {
		want = append(want, fmt.Sprint(i))
	}
	require.Equal(t, want, got)
	for id, tally := range h.Tally("d1") {
		require.Equal(t, 1, tally.Completed, id)
	}
}

// While the local NATS is away nothing is completed at the hub.
func TestEdgeNATSAway(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	e := runEdge(t, h, n, false)
	send(t, h, c2d.Message{MessageID: "a"})
	drained(t, h)
	n.Stop()
	send(t, h, c2d.Message{MessageID: "b"})
	send(t, h, c2d.Message{MessageID: "c"})
	require.Eventually(t, func() bool { return e.Stats().InFlight == 2 }, within, time.Millisecond)
	require.Len(t, h.Queue("d1"), 2)
	n.Start(t)
	drained(t, h)
	require.Len(t, stored(t, n, "EDGE"), 3)
}

// An orderly stop completes what it has published: the next process gets nothing twice.
func TestEdgeStopMakesNoRepeats(t *testing.T) {
	h, n := bridgetest.RunHub(t, "d1"), bridgetest.RunNATS(t)
	e := runEdge(t, h, n, false)
	for i := range 200 {
		send(t, h, c2d.Message{MessageID: fmt.Sprint(i)})
		if i%40 == 39 {
			e.stop()
			require.Zero(t, e.Stats().InFlight)
			e = runEdge(t, h, n, false)
		}
	}
	drained(t, h)
	require.Len(t, stored(t, n, "EDGE"), 200)
	require.Zero(t, e.Stats().Repeats)
}
