package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge/app"
	"downlink/bridge/bridgetest"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/entra"
)

const tick = 10 * time.Millisecond

// runFile runs a process from a file, with what it names.
func runFile(t *testing.T, text string) (*app.App, *testLog) {
	t.Helper()
	c, err := config.LoadBytes(filepath.Join(t.TempDir(), "test.yaml"), []byte(text), config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err)
	log := &testLog{t: t}
	a, err := app.New(app.Options{Config: c, Logger: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		log.end()
	})
	return a, log
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

const routesYAML = `
  routes:
    - {subject: "cmd.{device}.x", stream: COMMANDS, create: true, device: "{device}"}
`

// The hub by its connection string over WebSocket, and by Entra ID, from one
// file: two hubs, two ways, one process.
func TestWaysToTheHub(t *testing.T) {
	t.Parallel()
	issuer := bridgetest.RunIssuer(t)
	cloud := bridgetest.RunNATS(t)
	first := bridgetest.RunHub(t, "a")
	second := bridgetest.RunHubWith(t, emulator.Options{Devices: []string{"b"}, Entra: &entra.Options{Issuer: issuer.URL(), RootCAs: issuer.RootCAs()}})
	a, log := runFile(t, fmt.Sprintf(`
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs:
    - {name: first, connection_string_file: %q, transport: websocket, https_address: %q, ca_file: %q}
    - name: second
      host: localhost
      amqp_address: %q
      ca_file: %q
      entra: {tenant_id: %s, client_id: %s, client_secret_file: %q, authority: %q}
  routes:
    - {subject: "cmd.a.x", stream: COMMANDS, create: true, device: a}
    - {subject: "cmd.b.x", stream: COMMANDS, device: b, hub: second}
`, cloud.URL(), secretFile(t, first.ServiceConnectionString), first.HTTPAddr(), first.CAFile(),
		second.AMQPAddr(), issuer.CAFile(second.CAFile()), issuer.Tenant, issuer.Client, secretFile(t, issuer.Secret), issuer.Authority()))
	waitReady(t, a)
	js := cloud.JetStream(t)
	publish(t, js, nats.NewMsg("cmd.a.x"))
	publish(t, js, nats.NewMsg("cmd.b.x"))
	require.Eventually(t, func() bool { return len(first.Queue("a")) == 1 && len(second.Queue("b")) == 1 }, deadline, tick)
	require.NotContains(t, log.String(), issuer.Secret)
	require.NotContains(t, log.String(), "SharedAccessKey=")
}

// The embedded hub of the process, over WebSocket.
func TestEmbeddedHubOverWebSocket(t *testing.T) {
	t.Parallel()
	cloud, hub := bridgetest.RunNATS(t), bridgetest.RunHub(t, "s-a")
	text := strings.Replace(fmt.Sprintf(bridgeYAML, cloud.URL()), "embedded: true", "embedded: true, transport: websocket", 1)
	a := runApp(t, hub, text)
	waitReady(t, a)
	publish(t, cloud.JetStream(t), nats.NewMsg("cmd.s.a.x"))
	require.Eventually(t, func() bool { return len(hub.Queue("s-a")) == 1 }, deadline, tick)
}

// One hub that is away stops its own routes only, also on a shared stream, and
// Ready names it alone; when it comes, its messages are there in order.
func TestOneHubAway(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t)
	good, away := bridgetest.RunHub(t, "a"), bridgetest.RunHub(t, "b")
	link := bridgetest.RunLink(t, away.AMQPAddr())
	link.Down()
	a, _ := runFile(t, fmt.Sprintf(`
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs:
    - {name: good, connection_string_file: %q, amqp_address: %q, ca_file: %q}
    - {name: away, connection_string_file: %q, amqp_address: %q, ca_file: %q}
  routes:
    - {subject: "cmd.a.x", stream: COMMANDS, create: true, device: a}
    - {subject: "cmd.b.x", stream: COMMANDS, device: b, hub: away}
`, cloud.URL(), secretFile(t, good.ServiceConnectionString), good.AMQPAddr(), good.CAFile(),
		secretFile(t, away.ServiceConnectionString), link.Addr(), away.CAFile()))
	js := cloud.JetStream(t)
	alone := func() { // else the consumer may not be there yet, and what was published before it is not new
		t.Helper()
		require.Eventually(t, func() bool {
			err := a.Ready()
			return err != nil && strings.HasPrefix(err.Error(), "hub away: ") && strings.Contains(err.Error(), link.Addr()) && !strings.Contains(err.Error(), "\n")
		}, deadline, tick, "%v", a.Ready())
	}
	alone()
	const n = 40
	for i := range n {
		for _, d := range []string{"b", "a"} {
			publish(t, js, &nats.Msg{Subject: "cmd." + d + ".x", Data: fmt.Appendf(nil, "%03d", i)})
		}
	}
	require.Eventually(t, func() bool { return len(good.Queue("a")) == n }, deadline, tick)
	alone()
	require.Empty(t, away.Queue("b"))

	link.Up()
	require.Eventually(t, func() bool { return len(away.Queue("b")) == n }, deadline, tick)
	for i, q := range away.Queue("b") {
		require.Equal(t, fmt.Sprintf("%03d", i), string(q.Message.Body))
	}
	waitReady(t, a)
}

// NATS and hub go away together, in the middle of the traffic, and stay away for
// longer than the first pauses between tries; they come back in either order. Nothing is lost, the order is kept.
func TestBothGone(t *testing.T) {
	t.Parallel()
	for name, hubFirst := range map[string]bool{"hub back first": true, "NATS back first": false} {
		t.Run(name, func(t *testing.T) {
			cloud := bridgetest.RunNATS(t)
			hub := bridgetest.RunHub(t, "a")
			toHub, toNATS := bridgetest.RunLink(t, hub.AMQPAddr()), cloud.Link(t)
			a, _ := runFile(t, fmt.Sprintf("version: 1\nhttp: \"off\"\nbridge:\n  nats: {url: [%q]}\n  hubs: [{name: main, connection_string_file: %q, amqp_address: %q, ca_file: %q}]\n",
				toNATS.URL(), secretFile(t, hub.ServiceConnectionString), toHub.Addr(), hub.CAFile())+routesYAML)
			waitReady(t, a)
			js := cloud.JetStream(t) // its own way to the server
			const n = 45             // fewer than a device's queue holds
			for i := range n {
				publish(t, js, &nats.Msg{Subject: "cmd.a.x", Data: fmt.Appendf(nil, "%03d", i)})
				if i == n/2 {
					toHub.Down()
					toNATS.Down()
				}
			}
			notReady(t, a, toHub.Addr(), toNATS.Addr())
			links := []*bridgetest.Link{toNATS, toHub}
			if hubFirst {
				links[0], links[1] = links[1], links[0]
			}
			links[0].Up()
			require.Eventually(t, func() bool {
				err := a.Ready()
				return err != nil && !strings.Contains(err.Error(), links[0].Addr())
			}, deadline, tick, "%v", a.Ready())
			links[1].Up()
			waitReady(t, a)
			last := fmt.Sprintf("%03d", n-1)
			require.Eventually(t, func() bool {
				q := hub.Queue("a")
				return len(q) > 0 && string(q[len(q)-1].Message.Body) == last
			}, deadline, tick)
			// A message whose answer was lost with the link is there twice, right behind the first.
			var bodies []string
			ids := map[string]string{}
			for _, q := range hub.Queue("a") {
				body := string(q.Message.Body)
				if id, ok := ids[body]; ok {
					require.Equal(t, id, q.Message.MessageID)
				}
				ids[body] = q.Message.MessageID
				if len(bodies) == 0 || bodies[len(bodies)-1] != body {
					bodies = append(bodies, body)
				}
			}
			require.Len(t, bodies, n)
			require.IsIncreasing(t, bodies)
		})
	}
}
