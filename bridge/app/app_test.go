package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/app"
	"downlink/bridge/bridgetest"
	"downlink/bridge/config"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/natsio"
)

func TestMain(m *testing.M) {
	bridgetest.Parallel(8)
	bridgetest.VerifyTestMain(m)
}

// deadline is how long anything may take on a machine that is busy with much else. What must come soon has a time of its own.
const deadline = 2 * time.Minute

// runApp runs a process with this configuration until the test ends.
func runApp(t *testing.T, hub *bridgetest.Hub, text string) *app.App {
	t.Helper()
	a, _ := startApp(t, hub, text)
	return a
}

// startApp is runApp with the first signal.
func startApp(t *testing.T, hub *bridgetest.Hub, text string) (_ *app.App, stop func()) {
	t.Helper()
	return startAt(t, embeddedHub(hub), text)
}

// startAt is startApp with the hub at other addresses than its own.
func startAt(t *testing.T, hub *app.EmbeddedHub, text string) (_ *app.App, stop func()) {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(text))
	require.NoError(t, err)
	log := &testLog{t: t}
	a, err := app.New(app.Options{
		Config: c, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})), EmbeddedHub: hub,
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(func() {
		stop()
		log.end()
	})
	return a, stop
}

// testLog shows the process's log if the test fails.
type testLog struct {
	bridgetest.Log
	t *testing.T
}

func (l *testLog) end() {
	if l.t.Failed() {
		l.t.Log(l.String())
	}
}

func embeddedHub(hub *bridgetest.Hub) *app.EmbeddedHub {
	if hub == nil {
		return nil
	}
	return &app.EmbeddedHub{
		ServiceConnectionString: hub.ServiceConnectionString, DeviceConnectionString: hub.Hub.DeviceConnectionString,
		AMQPAddress: hub.AMQPAddr(), MQTTAddress: hub.MQTTAddr(), HTTPSAddress: hub.HTTPAddr(), RootCAs: hub.RootCAs(),
	}
}

func waitReady(t *testing.T, a *app.App) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	require.NoError(t, a.WaitReady(ctx))
}

// notReady waits until readiness names every one of the texts.
func notReady(t *testing.T, a *app.App, texts ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := a.Ready()
		if err == nil {
			return false
		}
		for _, s := range texts {
			if !strings.Contains(err.Error(), s) {
				return false
			}
		}
		return true
	}, deadline, 10*time.Millisecond, "wanted %q; have: %v", texts, a.Ready())
}

const bridgeYAML = `
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true, rate: 2000}] # without a rate one throttle answer would slow the tests down
  routes:
    - name: commands
      subject: "cmd.{site}.{device}.{verb}"
      stream: COMMANDS
      create: true
      device: "{site}-{device}"
      envelope: relay
      message: {correlation_id: '{header["Correlation-Id"]}', content_type: '{header["Content-Type"]}'}
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "*"}
`

const relayYAML = `
version: 1
http: "off"
relay:
  nats: {url: [%q]}
  devices:
%s
  publish: {subject: 'edge.{device}.{property["verb"] ?? "command"}', stream: EDGE, create: true}
`

func relayConfig(srv *bridgetest.NATS, devices ...string) string {
	var list strings.Builder
	for _, d := range devices {
		fmt.Fprintf(&list, "    - embedded: %s\n", d)
	}
	return fmt.Sprintf(relayYAML, srv.URL(), list.String())
}

// created waits until a server has the streams: nats-server leaks the files of one that is being
// made while it stops.
func created(t *testing.T, js jetstream.JetStream, streams ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, name := range streams {
			if _, err := js.Stream(t.Context(), name); err != nil {
				return false
			}
		}
		return true
	}, deadline, 10*time.Millisecond, "streams %v", streams)
}

// rig is the whole product: cloud NATS, bridge, hub, relay, edge NATS.
type rig struct {
	cloud, edge   *bridgetest.NATS
	hub           *bridgetest.Hub
	bridge, relay *app.App
}

func run(t *testing.T, devices ...string) *rig {
	t.Helper()
	r := &rig{cloud: bridgetest.RunNATS(t), edge: bridgetest.RunNATS(t), hub: bridgetest.RunHub(t, devices...)}
	r.bridge = runApp(t, r.hub, fmt.Sprintf(bridgeYAML, r.cloud.URL()))
	r.relay = runApp(t, r.hub, relayConfig(r.edge, devices...))
	waitReady(t, r.bridge)
	waitReady(t, r.relay)
	return r
}

func publish(t *testing.T, js jetstream.JetStream, m *nats.Msg) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	_, err := js.PublishMsg(ctx, m)
	require.NoError(t, err)
}

// read takes n messages from a stream, in order; it waits for the stream as well.
func read(t *testing.T, js jetstream.JetStream, stream string, n int) []jetstream.Msg {
	t.Helper()
	created(t, js, stream)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	require.NoError(t, err)
	it, err := c.Messages()
	require.NoError(t, err)
	defer it.Stop()
	var list []jetstream.Msg
	for len(list) < n {
		m, err := it.Next(jetstream.NextContext(ctx))
		require.NoError(t, err, "%d of %d messages in %s", len(list), n, stream)
		list = append(list, m)
	}
	return list
}

func TestWhatLeavesTheEdgeEqualsWhatEnteredTheCloud(t *testing.T) {
	t.Parallel()
	r := run(t, "berlin-pump7")
	values := map[string]string{
		"X-Plain": "ann", "X-Empty": "", "X-Percent": "100%25 %41", "X-Bag": "a=b&c=d?e/f+g#h", "X-Unicode": "grün ✓ 日本",
		"X-Quotes": `"'\`, "X-Long": strings.Repeat("é%", 2000), "x-lower": "kept", "X-Enc": "downlink-enc", "X-Inner": "a  b\tc",
	}
	m := nats.NewMsg("cmd.berlin.pump7.reboot")
	m.Data = []byte("\x00\xff body \r\n")
	for k, v := range values {
		m.Header[k] = []string{v}
	}
	m.Header.Set("Correlation-Id", "c=1&2 ü")
	m.Header.Set("Content-Type", "application/json; charset=utf-8")
	m.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	publish(t, r.cloud.JetStream(t), m)

	got := read(t, r.edge.JetStream(t), "EDGE", 1)[0]
	require.Equal(t, "edge.berlin-pump7.reboot", got.Subject())
	require.Equal(t, m.Data, got.Data())
	for k, v := range values {
		require.Equal(t, []string{v}, got.Headers()[k], k)
	}
	require.Equal(t, "reboot", got.Headers().Get("verb"))
	require.Equal(t, "berlin-pump7", got.Headers().Get("Downlink-Device"))
	require.Equal(t, "application/json; charset=utf-8", got.Headers().Get("Downlink-Content-Type"))
	require.Equal(t, "cmd.berlin.pump7.reboot", got.Headers().Get("Downlink-Subject"))
	require.Equal(t, "1", got.Headers().Get("Downlink-Seq"))
	require.Equal(t, m.Header.Get("traceparent"), got.Headers().Get("traceparent"))
	require.True(t, strings.HasPrefix(got.Headers().Get("Downlink-Message-Id"), "COMMANDS:1:"))
}

func TestNATSHeadersAreInertBothWays(t *testing.T) {
	t.Parallel()
	r := run(t, "berlin-pump7")
	cloud := r.cloud.JetStream(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()

	// Into the cloud: what a publisher may have set does not reach the hub as a property.
	m := nats.NewMsg("cmd.berlin.pump7.first")
	m.Header.Set("Nats-Msg-Id", "p1")
	m.Header.Set("nats-rollup", "all")
	m.Header.Set("Downlink-Via", "somewhere-else")
	m.Header.Set("X-User", "ann")
	publish(t, cloud, m)
	first := read(t, r.edge.JetStream(t), "EDGE", 1)[0]
	require.Equal(t, "ann", first.Headers().Get("X-User"))
	require.Empty(t, first.Headers().Values("nats-rollup"))

	// Out of the hub: anybody who may send C2D can name a property so. At the edge it would wipe the stream.
	require.NoError(t, r.hub.Enqueue(c2dMessage("berlin-pump7", "evil", map[string]string{
		"Nats-Rollup": "all", "nats-expected-last-sequence": "99", "Nats-Msg-Id": "x", "Nats-TTL": "1s", "Downlink-Device": "other", "verb": "evil",
	})))
	all := read(t, r.edge.JetStream(t), "EDGE", 2)
	require.Equal(t, "edge.berlin-pump7.evil", all[1].Subject())
	require.Equal(t, "berlin-pump7", all[1].Headers().Get("Downlink-Device"))
	require.Equal(t, "all", all[1].Headers().Get("Downlink-Prop-Nats-Rollup"))
	require.Equal(t, "1s", all[1].Headers().Get("Downlink-Prop-Nats-TTL"))
	stream, err := r.edge.JetStream(t).Stream(ctx, "EDGE")
	require.NoError(t, err)
	info, err := stream.Info(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 2, info.State.Msgs)

	// Into a dead letter: kept, under a name that does nothing.
	m = nats.NewMsg("cmd.berlin.nobody.x")
	m.Header.Set("Nats-Msg-Id", "p2")
	m.Header.Set("Nats-Rollup-Not", "x")
	publish(t, cloud, m)
	dead := read(t, cloud, "DOWNLINK_DEAD", 1)[0]
	require.Equal(t, "device-not-found", dead.Headers().Get("Downlink-Reason"))
	require.Equal(t, "p2", dead.Headers().Get("Downlink-Orig-Nats-Msg-Id"))
}

func TestNothingIsLostWhenTheHubMisbehaves(t *testing.T) {
	t.Parallel()
	faults := map[string]struct {
		point  fault.Point
		times  int
		action fault.Action
	}{
		"released":            {fault.Transfer, 20, fault.Action{Kind: fault.Release}},
		"modified":            {fault.Transfer, 20, fault.Action{Kind: fault.Modify}},
		"throttled":           {fault.Transfer, 2, fault.Action{Kind: fault.Reject, Condition: "com.microsoft:device-container-throttled"}},
		"unknown condition":   {fault.Transfer, 5, fault.Action{Kind: fault.Reject, Condition: "amqp:internal-error"}},
		"connection cut":      {fault.Transfer, 1, fault.Action{Kind: fault.Drop}},
		"device cut":          {fault.MQTTPublish, 2, fault.Action{Kind: fault.Drop}},
		"PUBACK lost and cut": {fault.Puback, 2, fault.Action{Kind: fault.Drop}},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devices := []string{"s-a", "s-b", "s-c", "s-d"}
			r := run(t, devices...)
			r.hub.Faults().Add(f.point, f.times, nil, f.action)
			const n = 200
			js := r.cloud.JetStream(t)
			for i := range n {
				m := nats.NewMsg(fmt.Sprintf("cmd.s.%c.x", 'a'+i%4))
				m.Data = fmt.Appendf(nil, "%04d", i)
				publish(t, js, m)
			}
			last := map[string]string{}
			for _, m := range read(t, r.edge.JetStream(t), "EDGE", n) {
				device := m.Headers().Get("Downlink-Device")
				require.Greater(t, string(m.Data()), last[device], "order of %s; the edge stream drops repeats", device)
				last[device] = string(m.Data())
			}
		})
	}
}

func TestServersAwayAndBack(t *testing.T) {
	t.Parallel()
	cloud, edge := bridgetest.RunNATS(t), bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "s-a")
	cloud.Stop()
	edge.Stop()
	b := runApp(t, hub, fmt.Sprintf(bridgeYAML, cloud.URL()))
	r := runApp(t, hub, relayConfig(edge, "s-a"))
	notReady(t, b, cloud.Addr(), "connection refused")
	notReady(t, r, edge.Addr(), "connection refused")
	cloud.Start(t)
	edge.Start(t)
	waitReady(t, b)
	waitReady(t, r)
	publish(t, cloud.JetStream(t), nats.NewMsg("cmd.s.a.x"))
	read(t, edge.JetStream(t), "EDGE", 1)
}

func TestHubAwayIsNamed(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "s-a")
	gone := embeddedHub(hub)
	gone.AMQPAddress, gone.MQTTAddress = "127.0.0.1:1", "127.0.0.1:1"
	c, err := config.Parse("test.yaml", fmt.Appendf(nil, bridgeYAML, cloud.URL()))
	require.NoError(t, err)
	a, err := app.New(app.Options{Config: c, Logger: slog.New(slog.DiscardHandler), EmbeddedHub: gone})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	notReady(t, a, "hub main", "127.0.0.1:1", "connection refused")
	cancel()
	require.NoError(t, <-ended)
}

func TestWrongKeyIsUnauthorizedAndSecret(t *testing.T) {
	t.Parallel()
	cloud, edge := bridgetest.RunNATS(t), bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "s-a")
	other := bridgetest.RunHub(t, "s-a")
	wrong := *other // its keys, at the first hub's addresses
	e := embeddedHub(hub)
	e.ServiceConnectionString, e.DeviceConnectionString = wrong.ServiceConnectionString, wrong.Hub.DeviceConnectionString
	for name, text := range map[string]string{"bridge": fmt.Sprintf(bridgeYAML, cloud.URL()), "relay": relayConfig(edge, "s-a")} {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("test.yaml", []byte(text))
			require.NoError(t, err)
			log := &testLog{t: t}
			a, err := app.New(app.Options{Config: c, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), EmbeddedHub: e})
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx) }()
			notReady(t, a, "unauthorized")
			if name == "bridge" {
				created(t, cloud.JetStream(t), "COMMANDS", "DOWNLINK_DEAD")
			} else {
				created(t, edge.JetStream(t), "EDGE", "DOWNLINK_DEAD")
			}
			cancel()
			require.NoError(t, <-ended)
			key := wrong.ServiceConnectionString[strings.Index(wrong.ServiceConnectionString, "SharedAccessKey=")+len("SharedAccessKey="):]
			require.NotContains(t, log.String(), key)
			require.NotContains(t, log.String(), "sig=")
		})
	}
}

func TestMissingStreamSaysWhatCreatesIt(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "s-a")
	a := runApp(t, hub, strings.Replace(fmt.Sprintf(bridgeYAML, cloud.URL()), "      create: true\n", "", 1))
	notReady(t, a, "COMMANDS", "nats stream add COMMANDS", "create: true")
	cloud.CreateStream(t, "COMMANDS", "cmd.>")
	waitReady(t, a)
}

// TestMailboxThatCannotBeWrittenShows: what the bridge keeps for itself is not made where it may not be, and one that
// would lose messages is refused.
func TestMailboxThatCannotBeWrittenShows(t *testing.T) {
	t.Parallel()
	cloud, hub := bridgetest.RunNATS(t), bridgetest.RunHub(t, "s-a")
	text := fmt.Sprintf(bridgeYAML, cloud.URL()) + "  storage: {create: false}\n"
	b := runApp(t, hub, text)
	notReady(t, b, "stream DOWNLINK_MAILBOX for the mailbox does not exist: `nats stream add DOWNLINK_MAILBOX --subjects 'downlink.mailbox.>'` or set storage.create: true",
		"bucket downlink-leases, which says who owns stream COMMANDS, does not exist: `nats kv add downlink-leases --ttl 10s`")
	stream := cloud.CreateStreamFrom(t, jetstream.StreamConfig{Name: "DOWNLINK_MAILBOX", Subjects: []string{"downlink.mailbox.>"}, MaxAge: time.Hour})
	notReady(t, b, "its max age of 1h0m0s would delete what waits: `nats stream edit DOWNLINK_MAILBOX --max-age 0`")
	cfg := stream.CachedInfo().Config
	cfg.MaxAge = 0
	_, err := cloud.JetStream(t).UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !strings.Contains(fmt.Sprint(b.Ready()), "MAILBOX") }, deadline, 10*time.Millisecond)
}

// TestStandby: two bridges of one name; the second is ready, and goes on at once when the first one stops.
func TestStandby(t *testing.T) {
	t.Parallel()
	cloud, hub := bridgetest.RunNATS(t), bridgetest.RunHub(t, "s-a")
	text := fmt.Sprintf(bridgeYAML, cloud.URL())
	first, stop := startApp(t, hub, text)
	waitReady(t, first)
	waitReady(t, runApp(t, hub, text))
	js := cloud.JetStream(t)
	publish(t, js, &nats.Msg{Subject: "cmd.s.a.x", Data: []byte("1")})
	require.Eventually(t, func() bool { return len(hub.Queue("s-a")) == 1 }, deadline, time.Millisecond)
	leases, err := js.KeyValue(t.Context(), natsio.LeaseBucket("downlink"))
	require.NoError(t, err)
	lease, err := leases.Get(t.Context(), "COMMANDS")
	require.NoError(t, err)
	stop()
	publish(t, js, &nats.Msg{Subject: "cmd.s.a.x", Data: []byte("2")})
	require.Eventually(t, func() bool { return len(hub.Queue("s-a")) == 2 }, deadline, time.Millisecond)
	require.Less(t, time.Since(lease.Created()), 10*time.Second, "the lease did not have to run out")
}

func TestMissingPermissionIsNamedWithItsRoute(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "admin", Password: "a"}, {Username: "limited", Password: "l", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{">"}},
		}}}
	})
	hub := bridgetest.RunHub(t, "s-a")
	admin := cloud.JetStream(t, nats.UserInfo("admin", "a"))
	password := t.TempDir() + "/password"
	require.NoError(t, writeFile(password, "l"))
	text := strings.Replace(fmt.Sprintf(bridgeYAML, cloud.URL()), fmt.Sprintf("{url: [%q]}", cloud.URL()),
		fmt.Sprintf("{url: [%q], user: limited, password_file: %q}", cloud.URL(), password), 1)
	a := runApp(t, hub, text)
	notReady(t, a, "missing NATS permission", "$JS.API.CONSUMER.", "commands")
	created(t, admin, "COMMANDS", "DOWNLINK_DEAD")
}
