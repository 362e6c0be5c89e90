package app_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/natsio"
)

// violations takes a server's log and keeps what it refused.
type violations struct {
	mu   sync.Mutex
	list []string
}

func (v *violations) Errorf(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); strings.Contains(text, "Violation") {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.list = append(v.list, text)
	}
}
func (*violations) Noticef(string, ...any) {}
func (*violations) Warnf(string, ...any)   {}
func (*violations) Fatalf(string, ...any)  {}
func (*violations) Debugf(string, ...any)  {}
func (*violations) Tracef(string, ...any)  {}

func (v *violations) all() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.list)
}

// guarded is a nats-server with a login that has just these rights, as a process's password_file has it.
type guarded struct {
	*bridgetest.NATS
	t        *testing.T
	denied   *violations
	password string
	admin    jetstream.JetStream
	// stop ends a wait: a test that takes a right away has seen what it waits for.
	early bool
}

func guard(t *testing.T, list []natsio.Right) *guarded {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "nats.conf")
	// Pasted, as a person would.
	text := "authorization: {users: [\n  {user: admin, password: p}\n  {user: process, password: p\n" + natsio.Permissions(list, "    ") + "  }\n]}\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	o, err := server.ProcessConfigFile(file)
	require.NoError(t, err, text)
	g := &guarded{t: t, denied: &violations{}, password: filepath.Join(dir, "password")}
	require.NoError(t, os.WriteFile(g.password, []byte("p"), 0o600))
	g.NATS = bridgetest.RunNATS(t, func(to *server.Options) { to.Users = o.Users })
	g.Server().SetLogger(g.denied, false, false)
	g.admin = g.JetStream(t, nats.UserInfo("admin", "p"))
	return g
}

// until waits for a condition; true if what happens after it is of no interest any more.
func (g *guarded) until(what string, ok func() bool) (over bool) {
	g.t.Helper()
	require.Eventually(g.t, func() bool {
		over = g.early && len(g.denied.all()) > 0
		return over || ok()
	}, deadline, 5*time.Millisecond, "%s; refused: %v", what, g.denied.all())
	return over
}

func (g *guarded) count(stream string) int {
	s, err := g.admin.Stream(g.t.Context(), stream)
	if err != nil {
		return 0
	}
	return int(s.CachedInfo().State.Msgs)
}

const guardedBridge = `
version: 1
http: "off"
shutdown_grace: 100ms
bridge:
  name: prod
  nats: {url: [%q], user: process, password_file: %q}
  hubs: [{name: main, embedded: true, rate: 2000}]
  storage: {create: %v}
  lookups: [{name: aliases, bucket: aliases}]
  routes:
    - name: commands
      subject: "cmd.{alias}.{verb}"
      stream: COMMANDS
      create: %v
      start: all
      device: '{lookup("aliases", alias) ?? alias}'
      allow: ["*"]
      message: {ack: full}
    - {name: one, stream: ORDERS, create: %v, subject: "order.{device}.a", start: all, device: "{device}"}
    - {name: two, stream: ORDERS, subject: "order.{device}.b.c", device: "{device}"}
    - {name: ask, source: core, subject: "ask.{device}", device: "{device}"}
`

func (g *guarded) bridgeText(create bool) string {
	return fmt.Sprintf(guardedBridge, g.URL(), g.password, create, create, create)
}

// bridgeRights are those of the configuration above.
func bridgeRights(t *testing.T, create bool) []natsio.Right {
	t.Helper()
	c, err := config.Parse("x.yaml", fmt.Appendf(nil, guardedBridge, "nats://127.0.0.1:1", "p", create, create, create))
	require.NoError(t, err)
	r, err := app.BridgeRights(c.Bridge)
	require.NoError(t, err)
	return r.NATS
}

// bucket makes the bucket of aliases, so large that its watch needs flow control.
func (g *guarded) bucket() {
	g.t.Helper()
	kv, err := g.admin.CreateKeyValue(g.t.Context(), jetstream.KeyValueConfig{Bucket: "aliases"})
	require.NoError(g.t, err)
	_, err = kv.PutString(g.t.Context(), "nick", "good")
	require.NoError(g.t, err)
	for i := range 60 {
		_, err = kv.PutString(g.t.Context(), fmt.Sprintf("big-%d", i), strings.Repeat("x", 100_000))
		require.NoError(g.t, err)
	}
}

func (g *guarded) send(subject string) {
	g.t.Helper()
	_, err := g.admin.Publish(g.t.Context(), subject, []byte("x"))
	require.NoError(g.t, err)
}

// guardedHub is a hub with a device that takes all and one that is full.
func guardedHub(t *testing.T) *bridgetest.Hub {
	t.Helper()
	hub := bridgetest.RunHubWith(t, emulator.Options{
		Devices:  []string{"good", "full"},
		Virtual:  []virtual.Rule{{Pattern: "good", Behaviour: virtual.Behaviour{Kind: virtual.Complete}}},
		Feedback: feedback.Rules{Every: 20 * time.Millisecond, BatchSize: 16},
	})
	for range 50 { // a queue's length (IoT Hub, Cloud-to-device messages)
		require.NoError(t, hub.Enqueue(c2d.Message{To: "/devices/full/messages/devicebound", Body: []byte("before")}))
	}
	return hub
}

// exercise runs bridges through all that they do on NATS. It returns as soon as something was refused, if that is
// what the test waits for.
func (g *guarded) exercise(create bool) {
	g.t.Helper()
	hub := guardedHub(g.t)
	first, stopFirst := startApp(g.t, hub, g.bridgeText(create))
	defer stopFirst()
	if g.until("the bridge is ready", func() bool { return first.Ready() == nil }) {
		return
	}
	// Delivery, by an alias, with the device's outcome; a dead letter.
	g.send("cmd.nick.reboot")
	g.send("cmd.nobody.reboot")
	g.send("order.good.a")
	if g.until("receipts of the outcome", func() bool { return g.has("prod.receipt.main.good.completed") }) ||
		g.until("a dead letter", func() bool { return g.count("PROD_DEAD") == 1 }) {
		return
	}
	// A request, and a stored message whose publisher waits.
	nc := g.Conn(g.t, nats.UserInfo("admin", "p"))
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	require.NoError(g.t, err)
	require.NoError(g.t, nc.Flush()) // the stored message goes by another connection, and its answer may be faster
	require.NoError(g.t, nc.PublishRequest("ask.good", inbox, []byte("x")))
	waits := nats.NewMsg("cmd.good.reboot")
	waits.Header.Set("Downlink-Reply-To", inbox)
	_, err = g.admin.PublishMsg(g.t.Context(), waits)
	require.NoError(g.t, err)
	got := 0
	if g.until("two answers", func() bool { n, _, _ := answers.Pending(); got = n; return n >= 2 }) {
		return
	}
	require.Equal(g.t, 2, got)
	// Into the mailbox, and across a restart.
	const parked = 80
	for range parked {
		g.send("cmd.full.reboot")
	}
	if g.until("entries in the mailbox", func() bool { return g.count("PROD_MAILBOX") >= parked }) {
		return
	}
	stopFirst()
	second, stopSecond := startApp(g.t, hub, g.bridgeText(create))
	defer stopSecond()
	if g.until("the bridge is ready again", func() bool { return second.Ready() == nil }) {
		return
	}
	// A hand-over in order, to one that stands by; then out of the mailbox.
	third, stopThird := startApp(g.t, hub, g.bridgeText(create))
	defer stopThird()
	if g.until("the standby is ready", func() bool { return third.Ready() == nil }) {
		return
	}
	stopSecond()
	g.send("cmd.nick.again")
	if g.until("the standby delivers", func() bool { return hub.Counts("good").Sends >= 5 }) {
		return
	}
	// An operator takes an entry out: the bridge asks for it, and then the leader, before it believes that it is gone.
	s, err := g.admin.Stream(g.t.Context(), "PROD_MAILBOX")
	require.NoError(g.t, err)
	entry, err := s.GetLastMsgForSubject(g.t.Context(), "prod.mailbox.>")
	require.NoError(g.t, err)
	require.NoError(g.t, s.DeleteMsg(g.t.Context(), entry.Sequence))
	sent := hub.Sends("full")
	g.until("the mailbox is empty", func() bool {
		if len(hub.Queue("full")) > 20 {
			_, err := hub.PurgeDevice("full")
			require.NoError(g.t, err)
		}
		return g.count("PROD_MAILBOX") == 0 && hub.Sends("full") >= sent
	})
	stopThird()
	g.ended()
}

// ended waits for what was refused, if that is what the test is about: the server may log it after all has been done.
func (g *guarded) ended() {
	g.t.Helper()
	g.until("what the end brings", func() bool { return !g.early })
}

// has reports whether a stream of the bridge has a message of this subject.
func (g *guarded) has(subject string) bool {
	s, err := g.admin.Stream(g.t.Context(), "PROD_RECEIPTS")
	if err != nil {
		return false
	}
	_, err = s.GetLastMsgForSubject(g.t.Context(), subject)
	return err == nil
}

// Everything that a bridge does is done with its rights alone, and nothing is refused.
func TestRightsOfABridgeSuffice(t *testing.T) {
	t.Parallel()
	g := guard(t, bridgeRights(t, true))
	g.bucket()
	g.exercise(true)
	require.Empty(t, g.denied.all())
}

// The same where somebody else makes the streams and buckets.
func TestRightsOfABridgeThatMakesNothing(t *testing.T) {
	t.Parallel()
	list := bridgeRights(t, false)
	for _, r := range list {
		require.NotContains(t, r.Subject, "STREAM.CREATE")
	}
	g := guard(t, list)
	g.bucket()
	maker := strings.Replace(strings.Replace(g.bridgeText(true), "user: process", "user: admin", 1), "ack: full", "ack: full, max_age: 1h", 1)
	a, stop := startApp(t, guardedHub(t), maker)
	waitReady(t, a)
	created(t, g.admin, "COMMANDS", "ORDERS", "PROD_DEAD", "PROD_RECEIPTS", "PROD_MAILBOX", "KV_prod-leases", "KV_prod-pending")
	stop()
	g.exercise(false)
	require.Empty(t, g.denied.all())
}

// replicated are the rights that only replicas call for: a direct get that one of them answers with
// nothing is asked again of the leader. Of one server there is no other.
var replicated = []string{"$JS.API.STREAM.MSG.GET.KV_prod-pending"}

// No right is in the list for nothing: without it the server refuses something that the bridge does.
func TestEachRightOfABridgeIsNeeded(t *testing.T) {
	t.Parallel()
	all := bridgeRights(t, true)
	for i, r := range all {
		if slices.Contains(replicated, r.Subject) {
			continue
		}
		t.Run(r.Op+" "+r.Subject, func(t *testing.T) {
			t.Parallel()
			g := guard(t, slices.Delete(slices.Clone(all), i, i+1))
			g.early = true
			g.bucket()
			g.exercise(true)
			subject, _, _ := strings.Cut(r.Subject, " ")
			plain := strings.TrimSuffix(subject, ">")
			plain, _, _ = strings.Cut(plain, "*")
			for _, text := range g.denied.all() {
				require.Contains(t, text, plain, "something else was refused")
			}
		})
	}
}

const guardedRelay = `
version: 1
http: "off"
shutdown_grace: 100ms
relay:
  name: site
  nats: {url: [%q], user: process, password_file: %q}
  devices: [{embedded: d1}]
  allow_subjects: ["out.>"]
  publish: {subject: 'edge.{device}.{property["verb"] ?? "command"}'%s}
`

func relayRights(t *testing.T, more string) []natsio.Right {
	t.Helper()
	c, err := config.Parse("x.yaml", fmt.Appendf(nil, guardedRelay, "nats://127.0.0.1:1", "p", more))
	require.NoError(t, err)
	r, err := app.RelayRights(c.Relay)
	require.NoError(t, err)
	return r.NATS
}

// exerciseRelay sends a message of each kind through a relay.
func (g *guarded) exerciseRelay(more string, stored bool) {
	g.t.Helper()
	hub := bridgetest.RunHub(g.t, "d1")
	a, stop := startApp(g.t, hub, fmt.Sprintf(guardedRelay, g.URL(), g.password, more))
	defer stop()
	nc := g.Conn(g.t, nats.UserInfo("admin", "p"))
	seen, err := nc.SubscribeSync(">")
	require.NoError(g.t, err)
	require.NoError(g.t, nc.Flush())
	if g.until("the relay is ready", func() bool { return a.Ready() == nil }) {
		return
	}
	property := func(name, value string) []c2d.Property { return []c2d.Property{{Name: name, Value: value}} }
	for i, m := range []c2d.Message{
		{Properties: property("verb", "reboot")},
		{Properties: property("Downlink-Subject", "out.a.b")},
		{Body: []byte(strings.Repeat("x", 3000))},
	} {
		m.To, m.MessageID = "/devices/d1/messages/devicebound", fmt.Sprint(i)
		require.NoError(g.t, hub.Enqueue(m))
	}
	subjects := map[string]bool{}
	g.until("all are published", func() bool {
		for {
			m, err := seen.NextMsg(time.Millisecond)
			if err != nil {
				break
			}
			subjects[m.Subject] = true
		}
		dead := slices.ContainsFunc(mapKeys(subjects), func(s string) bool { return strings.HasPrefix(s, "site.dead.") })
		return subjects["edge.d1.reboot"] && subjects["out.a.b"] && (dead || !stored && subjects["edge.d1.command"])
	})
	stop()
	g.ended()
}

func mapKeys(m map[string]bool) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	return list
}

// smallEdge makes the relay's stream beforehand, in which one of the messages does not fit.
func (g *guarded) smallEdge() {
	g.t.Helper()
	_, err := g.admin.CreateStream(g.t.Context(), jetstream.StreamConfig{Name: "EDGE", Subjects: []string{"edge.>", "out.>"}, MaxMsgSize: 2000})
	require.NoError(g.t, err)
}

func TestRightsOfARelay(t *testing.T) {
	t.Parallel()
	const stream, create = ", stream: EDGE", ", stream: EDGE, create: true"
	t.Run("core", func(t *testing.T) {
		t.Parallel()
		list := relayRights(t, "")
		require.NotContains(t, natsio.Permissions(list, ""), "$JS", "no JetStream")
		g := guard(t, list)
		g.exerciseRelay("", false)
		require.Empty(t, g.denied.all())
	})
	t.Run("stream", func(t *testing.T) {
		t.Parallel()
		g := guard(t, relayRights(t, stream))
		g.smallEdge()
		g.exerciseRelay(stream, true)
		require.Empty(t, g.denied.all())
	})
	for _, more := range []string{stream, create} {
		all := relayRights(t, more)
		for i, r := range all {
			t.Run(more+" without "+r.Op+" "+r.Subject, func(t *testing.T) {
				t.Parallel()
				g := guard(t, slices.Delete(slices.Clone(all), i, i+1))
				g.early = true
				if more == stream {
					g.smallEdge()
				} else if !strings.Contains(r.Subject, "STREAM.") {
					t.Skip("covered by the stream that is there")
				}
				g.exerciseRelay(more, true)
				require.NotEmpty(t, g.denied.all())
			})
		}
	}
}

// What is printed for programs is the same list.
func TestRightsAsJSON(t *testing.T) {
	t.Parallel()
	list := bridgeRights(t, true)
	b, err := json.Marshal(list)
	require.NoError(t, err)
	var back []natsio.Right
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, list, back)
}
