package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/internal/sas"
)

const (
	benchMessages = 20_000
	benchDevices  = 1_000
	benchWindow   = 512
)

// BenchmarkPipeline measures, in turn and in one run, three ways to the embedded
// hub on loopback, each with one window of 512 sends over one TLS connection and
// 256-byte bodies: the raw send leg; a minimal loop from JetStream (batched consume, send, ack on
// accepted) without order, lanes, mapping or fates; and the bridge with three
// headers mapped. The figures to read are the ratios.
func BenchmarkPipeline(b *testing.B) {
	devices := make([]string, benchDevices)
	for i := range devices {
		devices[i] = fmt.Sprintf("berlin-d%d", i)
	}
	hub := bridgetest.RunHubWith(b, emulator.Options{Devices: devices, Virtual: []virtual.Rule{{Pattern: "*"}}}) // complete at once
	srv := bridgetest.RunNATS(b)

	var raw, minimal, full []float64
	for b.Loop() {
		raw = append(raw, rawLeg(b, hub, devices))
		minimal = append(minimal, minimalLeg(b, hub, srv, fill(b, srv)))
		full = append(full, bridgeLeg(b, hub, srv, fill(b, srv)))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mean(raw), "raw-msg/s")
	b.ReportMetric(mean(minimal), "minimal-msg/s")
	b.ReportMetric(mean(full), "bridge-msg/s")
	b.ReportMetric(mean(minimal)/mean(raw), "minimal/raw")
	b.ReportMetric(mean(full)/mean(minimal), "bridge/minimal")
}

func mean(x []float64) float64 {
	var sum float64
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

// fill makes a stream of its own with all the messages, and returns its name.
func fill(b *testing.B, srv *bridgetest.NATS) string {
	b.Helper()
	b.StopTimer()
	defer b.StartTimer()
	name := fmt.Sprintf("BENCH%d", time.Now().UnixNano())
	prefix := strings.ToLower(name)
	srv.CreateStreamFrom(b, jetstream.StreamConfig{Name: name, Subjects: []string{prefix + ".>"}, Storage: jetstream.MemoryStorage})
	js := srv.JetStream(b)
	body := bytes.Repeat([]byte("x"), 256)
	for i := range benchMessages {
		m := &nats.Msg{Subject: fmt.Sprintf("%s.berlin.d%d.reboot", prefix, i%benchDevices), Data: body, Header: nats.Header{
			"X-User": {"ann"}, "X-Trace": {"0123456789abcdef"}, "Correlation-Id": {"c-1"},
		}}
		_, err := js.PublishMsgAsync(m, jetstream.WithRetryAttempts(10))
		require.NoError(b, err)
	}
	<-js.PublishAsyncComplete()
	return name
}

// rawSender is a sender link on a connection of its own, after CBS.
func rawSender(b *testing.B, hub *bridgetest.Hub) *amqp.Sender {
	b.Helper()
	ctx := context.Background()
	cs, err := sas.Parse(hub.ServiceConnectionString)
	require.NoError(b, err)
	conn, err := amqp.Dial(ctx, "amqps://"+hub.AMQPAddr(), &amqp.ConnOptions{TLSConfig: &tls.Config{RootCAs: hub.RootCAs(), ServerName: cs.HostName}})
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	session, err := conn.NewSession(ctx, nil)
	require.NoError(b, err)
	cbs, err := session.NewSender(ctx, "$cbs", nil)
	require.NoError(b, err)
	require.NoError(b, cbs.Send(ctx, &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: "1"},
		ApplicationProperties: map[string]any{"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": cs.HostName},
		Value:                 sas.Sign(cs.HostName, cs.KeyName, cs.Key, time.Now().Add(time.Hour)),
	}, nil))
	sender, err := session.NewSender(ctx, "/messages/devicebound", nil)
	require.NoError(b, err)
	return sender
}

// sendWindow sends what next yields with a window of receipts and calls done for each accepted one.
func sendWindow(b *testing.B, sender *amqp.Sender, next func() (*amqp.Message, func())) {
	ctx := context.Background()
	window := make(chan struct{}, benchWindow)
	var sends sync.WaitGroup
	for range benchMessages {
		m, done := next()
		window <- struct{}{}
		receipt, err := sender.SendWithReceipt(ctx, m, nil)
		require.NoError(b, err)
		sends.Go(func() {
			defer func() { <-window }()
			state, err := receipt.Wait(ctx)
			if _, ok := state.(*amqp.StateAccepted); !ok || err != nil {
				b.Errorf("not accepted: %v %v", state, err)
			}
			done()
		})
	}
	sends.Wait()
}

func c2dMessage(device string, body []byte) *amqp.Message {
	to := "/devices/" + device + "/messages/devicebound"
	return &amqp.Message{
		Properties:            &amqp.MessageProperties{To: &to, MessageID: "m"},
		ApplicationProperties: map[string]any{"verb": "reboot", "X-User": "ann", "X-Trace": "0123456789abcdef"},
		Data:                  [][]byte{body},
	}
}

func rawLeg(b *testing.B, hub *bridgetest.Hub, devices []string) float64 {
	sender := rawSender(b, hub)
	body := bytes.Repeat([]byte("x"), 256)
	begin, i := time.Now(), 0
	sendWindow(b, sender, func() (*amqp.Message, func()) {
		i++
		return c2dMessage(devices[i%len(devices)], body), func() {}
	})
	return benchMessages / time.Since(begin).Seconds()
}

func minimalLeg(b *testing.B, hub *bridgetest.Hub, srv *bridgetest.NATS, stream string) float64 {
	sender := rawSender(b, hub)
	js := srv.JetStream(b)
	consumer, err := js.CreateConsumer(context.Background(), stream, jetstream.ConsumerConfig{
		Durable: "minimal", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 4096,
	})
	require.NoError(b, err)
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1024))
	require.NoError(b, err)
	defer messages.Stop()
	begin := time.Now()
	sendWindow(b, sender, func() (*amqp.Message, func()) {
		m, err := messages.Next()
		require.NoError(b, err)
		tokens := strings.Split(m.Subject(), ".")
		return c2dMessage(tokens[1]+"-"+tokens[2], m.Data()), func() { require.NoError(b, m.Ack()) }
	})
	return benchMessages / time.Since(begin).Seconds()
}

func bridgeLeg(b *testing.B, hub *bridgetest.Hub, srv *bridgetest.NATS, stream string) float64 {
	c, err := config.Parse("bench.yaml", fmt.Appendf(nil, `
version: 1
http: "off"
bridge:
  name: bench
  nats: {url: [%q]}
  hubs:
    - {name: main, embedded: true, window: %d}
  routes:
    - name: r
      subject: "%s.{site}.{device}.{verb}"
      stream: %s
      start: all
      device: "{site}-{device}"
      message: {correlation_id: '{header["Correlation-Id"]}'}
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "X-*"}
`, srv.URL(), benchWindow, strings.ToLower(stream), stream))
	require.NoError(b, err)
	a, err := New(Options{Config: c, Logger: slog.New(slog.DiscardHandler), EmbeddedHub: embedded(hub)})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		cancel()
		require.NoError(b, <-ended)
	}()
	accepted := func() uint64 { return a.statuses["bridge"]().(bridge.Status).Accepted }
	waitFor(b, func() bool { return accepted() > 0 })
	begin, already := time.Now(), accepted()
	waitFor(b, func() bool { return accepted() == benchMessages })
	return float64(benchMessages-already) / time.Since(begin).Seconds()
}

func embedded(hub *bridgetest.Hub) *EmbeddedHub {
	return &EmbeddedHub{
		ServiceConnectionString: hub.ServiceConnectionString, DeviceConnectionString: hub.Hub.DeviceConnectionString,
		AMQPAddress: hub.AMQPAddr(), MQTTAddress: hub.MQTTAddr(), HTTPSAddress: hub.HTTPAddr(), RootCAs: hub.RootCAs(),
	}
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not within a minute")
		}
	}
}
