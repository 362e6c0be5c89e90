package natsio

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// limited is a server with one login of these rights, and the options to log in as it; no rights: it may do all.
func limited(t *testing.T, list []Right, changes ...func(*server.Options)) (*bridgetest.NATS, Options) {
	t.Helper()
	text := "authorization: {users: [{user: admin, password: p}, {user: u, password: p"
	if list != nil {
		text += "\n" + Permissions(list, "")
	}
	dir := t.TempDir()
	conf := write(t, dir, "nats.conf", text+"}]}\n")
	parsed, err := server.ProcessConfigFile(conf)
	require.NoError(t, err, text)
	n := bridgetest.RunNATS(t, append(changes, func(o *server.Options) { o.Users = parsed.Users })...)
	return n, Options{URLs: []string{n.URL()}, User: "u", PasswordFile: write(t, dir, "password", "p")}
}

func probeOf(t *testing.T, o Options) *Probe {
	t.Helper()
	p, err := OpenProbe(o)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// Of each right the probe tells whether it is there, for all of a bridge's.
func TestProbeTellsEachRight(t *testing.T) {
	t.Parallel()
	all := BridgeRights(BridgeNeeds{
		Name: "prod", Create: true, Core: []string{"ask.>"}, Buckets: []string{"b"},
		Sources: []RightsSource{{Stream: "S", Filters: []string{"cmd.*.>"}, Create: true}},
	})
	require.Greater(t, len(all), 35)
	check := func(t *testing.T, o Options, allowed func(i int) bool) {
		p := probeOf(t, o)
		for i, r := range all {
			err := p.May(t.Context(), r)
			if allowed(i) {
				require.NoError(t, err, "%s %s", r.Op, r.Subject)
			} else {
				require.EqualError(t, err, "not allowed", "%s %s", r.Op, r.Subject)
			}
		}
	}
	t.Run("all", func(t *testing.T) {
		_, o := limited(t, all)
		check(t, o, func(int) bool { return true })
	})
	t.Run("no permissions block", func(t *testing.T) {
		_, o := limited(t, nil)
		check(t, o, func(int) bool { return true })
	})
	t.Run("none", func(t *testing.T) {
		_, o := limited(t, []Right{})
		check(t, o, func(int) bool { return false })
	})
	t.Run("half of them", func(t *testing.T) {
		for odd := range 2 {
			var half []Right
			for i, r := range all {
				if i%2 == odd {
					half = append(half, r)
				}
			}
			_, o := limited(t, half)
			check(t, o, func(i int) bool { return i%2 == odd })
		}
	})
}

// Nobody gets anything of a probe, and no stream: not even who listens to all.
func TestProbeChangesNothing(t *testing.T) {
	t.Parallel()
	n, o := limited(t, nil)
	admin := n.Conn(t, nats.UserInfo("admin", "p"))
	js := n.JetStream(t, nats.UserInfo("admin", "p"))
	for _, stream := range []Stream{{Name: "S", Subjects: []string{"cmd.>"}}, {Name: "PROD_DEAD", Subjects: []string{"prod.dead.>"}}} {
		require.NoError(t, createStream(t.Context(), js, stream.config()))
	}
	all, err := admin.SubscribeSync(">")
	require.NoError(t, err)
	require.NoError(t, admin.Flush())
	p := probeOf(t, o)
	rights := append(BridgeRights(BridgeNeeds{Name: "prod", Create: true, Core: []string{"ask.>"}, Sources: []RightsSource{{Stream: "S", Filters: []string{"cmd.>"}, Create: true}}}),
		Right{Op: opPublish, Subject: "cmd.>"}, Right{Op: opPublish, Subject: "$JS.API.STREAM.PURGE.S"}, Right{Op: opPublish, Subject: "$JS.API.STREAM.DELETE.S"})
	for _, r := range rights {
		require.NoError(t, p.May(t.Context(), r))
	}
	// The marker comes last, so that nothing can be on its way still.
	require.NoError(t, p.nc.Publish("marker", nil))
	for heard := ""; heard != "marker"; {
		m, err := all.NextMsg(20 * time.Second)
		require.NoError(t, err)
		heard = m.Subject
		// The server tells of the two streams above when it gets to it. What a probe asked for would be heard itself.
		if !strings.HasPrefix(heard, "$JS.EVENT.ADVISORY.") {
			require.Equal(t, "marker", heard, "a probe got through")
		}
	}
	for _, name := range []string{"S", "PROD_DEAD"} {
		s, err := js.Stream(t.Context(), name)
		require.NoError(t, err)
		require.Zero(t, s.CachedInfo().State.Msgs)
	}
}

// What takes no offence at a reserved reply, whatever it is, is given nothing but the one message that nobody hears.
func TestProbeOfWhatRefusesNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	published := make(chan string, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "INFO {\"server_id\":\"x\",\"version\":\"2.11.0\",\"max_payload\":1048576,\"headers\":true}\r\n")
		for lines := bufio.NewScanner(c); lines.Scan(); {
			switch words := strings.Fields(lines.Text()); {
			case len(words) == 0:
			case words[0] == "PING":
				_, _ = fmt.Fprint(c, "PONG\r\n")
			case words[0] == "PUB", words[0] == "HPUB", words[0] == "SUB":
				published <- words[1]
			}
		}
	}()
	p, err := OpenProbe(Options{URLs: []string{"nats://" + l.Addr().String()}})
	require.NoError(t, err)
	for _, r := range []Right{{Op: opPublish, Subject: "cmd.a"}, {Op: opSubscribe, Subject: "cmd.b"}, {Op: opPublish, Subject: "cmd.c"}} {
		require.ErrorIs(t, p.May(t.Context(), r), ErrCannotTell)
	}
	p.Close()
	require.NoError(t, l.Close())
	<-done
	close(published)
	var all []string
	for s := range published {
		all = append(all, s)
	}
	require.Equal(t, []string{p.canary}, all)
}

func TestProbeSubjects(t *testing.T) {
	t.Parallel()
	n, o := limited(t, nil)
	js := n.JetStream(t, nats.UserInfo("admin", "p"))
	require.NoError(t, createStream(t.Context(), js, Stream{Name: "S", Subjects: []string{"cmd.>", "x"}}.config()))
	p := probeOf(t, o)
	got, err := p.Subjects(t.Context(), "S")
	require.NoError(t, err)
	require.Equal(t, []string{"cmd.>", "x"}, got)
	var missing *MissingError
	_, err = p.Subjects(t.Context(), "T")
	require.ErrorAs(t, err, &missing)
	stream, err := p.StoredBy(t.Context(), "cmd.a.*")
	require.NoError(t, err)
	require.Equal(t, "S", stream)
	stream, err = p.StoredBy(t.Context(), "y")
	require.NoError(t, err)
	require.Empty(t, stream)
	require.Equal(t, []string{"y.*"}, Uncovered([]string{"cmd.*.b", "y.*", "x"}, got))

	o.PasswordFile = write(t, t.TempDir(), "password", "wrong")
	_, err = OpenProbe(o)
	require.ErrorContains(t, err, "authorization violation")
}

// A context's domain, API prefix and prefix of answers are part of the rights, told without a connection.
func TestPrefixesOfAContext(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	save := func(name string, settings map[string]string) {
		b, err := json.Marshal(settings)
		require.NoError(t, err)
		write(t, dir, name+".json", string(b))
	}
	save("domain", map[string]string{"url": "nats://127.0.0.1:1", "jetstream_domain": "cloud", "inbox_prefix": "_IN.me"})
	save("prefix", map[string]string{"url": "nats://127.0.0.1:1", "jetstream_api_prefix": "js.x"})
	p, err := Options{Context: "domain"}.Prefixes()
	require.NoError(t, err)
	require.Equal(t, Prefixes{API: "$JS.cloud.API.", Domain: "cloud", Inbox: "_IN.me"}, p)
	p, err = Options{Context: "prefix"}.Prefixes()
	require.NoError(t, err)
	require.Equal(t, Prefixes{API: "js.x.", Inbox: "_INBOX"}, p)
	p, err = Options{URLs: []string{"nats://127.0.0.1:1"}}.Prefixes()
	require.NoError(t, err)
	require.Equal(t, Prefixes{API: "$JS.API.", Inbox: "_INBOX"}, p)
	_, err = Options{Context: "absent"}.Prefixes()
	require.ErrorContains(t, err, "unknown context")
}

// The rights do in a domain, and with a private prefix of answers, by a lease, a source and the receipts.
func TestRightsInADomain(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	write(t, dir, "c.json", `{"url": "nats://127.0.0.1:1", "jetstream_domain": "cloud", "inbox_prefix": "_IN.me"}`)
	on, err := Options{Context: "c"}.Prefixes()
	require.NoError(t, err)
	list := BridgeRights(BridgeNeeds{Name: "prod", Create: true, On: on, Sources: []RightsSource{{Stream: "S", Filters: []string{"cmd.>"}, Create: true}}})
	n, _ := limited(t, list, func(o *server.Options) { o.JetStreamDomain = "cloud" })
	write(t, dir, "c.json", fmt.Sprintf(`{"url": %q, "jetstream_domain": "cloud", "inbox_prefix": "_IN.me", "user": "u", "password": "p"}`, n.URL()))

	c := connect(t, Options{Context: "c"})
	lease, err := NewLease(LeaseOptions{Conn: c, Name: "prod", Stream: "S", Create: true})
	require.NoError(t, err)
	run(t, func(ctx context.Context) error { lease.Run(ctx); return nil })
	s, err := NewJetStreamSource(SourceOptions{Conn: c, Stream: "S", Consumer: Durable("prod"), Filters: []string{"cmd.>"}, Start: "all", Create: true, Lease: lease})
	require.NoError(t, err)
	run(t, s.Run)
	receipts, err := NewReceipts(ReceiptsOptions{Conn: c, Name: "prod", Create: true, Wanted: true})
	require.NoError(t, err)
	run(t, receipts.Run)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // for all that follows
	defer cancel()
	if err := s.Own(ctx); err != nil {
		t.Log(lease.Ready(), c.Ready())
		t.FailNow()
	}
	require.Eventually(t, func() bool { return s.Ready() == nil && receipts.Ready() == nil }, 20*time.Second, 5*time.Millisecond)
	_, err = n.JetStream(t, nats.UserInfo("admin", "p")).Publish(ctx, "cmd.a", nil)
	require.NoError(t, err)
	d, err := s.Receive(ctx)
	require.NoError(t, err)
	require.NoError(t, d.Ack(ctx))
	// Of a replicated bucket the leader is asked for what a replica does not have.
	receipts.mu.Lock()
	receipts.replicated = true
	receipts.mu.Unlock()
	_, err = receipts.Find(ctx, "main", []bridge.Record{{MessageID: "m", Device: "d", Status: bridge.StatusCompleted, At: time.Now()}})
	require.NoError(t, err)
	require.NoError(t, c.nc.FlushWithContext(ctx))
	require.Empty(t, c.deniedOf(func(string, string) bool { return true }))

	p := probeOf(t, Options{Context: "c"})
	for _, r := range list {
		require.NoError(t, p.May(ctx, r), r.Subject)
	}

	// Those of a server in the domain alone do, and the others stand for them.
	own := slices.DeleteFunc(slices.Clone(list), func(r Right) bool { return strings.HasPrefix(r.Subject, "$JS.cloud.") })
	require.Less(t, len(own), len(list))
	_, o := limited(t, own, func(o *server.Options) { o.JetStreamDomain = "cloud" })
	p = probeOf(t, o)
	for _, r := range list {
		require.NoError(t, p.May(ctx, r), r.Subject)
	}
	require.EqualError(t, p.May(ctx, Right{Op: opPublish, Subject: "$JS.cloud.API.STREAM.PURGE.S"}), "not allowed")
}

// A relay on core NATS asks for nothing, so that it may not subscribe to anything.
func TestPermissionsOfNothing(t *testing.T) {
	t.Parallel()
	list := RelayRights(RelayNeeds{Name: "site", Subjects: []string{"edge.>"}})
	require.Equal(t, []Right{{Op: opPublish, Subject: "edge.>", For: "core NATS"}, {Op: opPublish, Subject: "site.dead.>", For: "dead letters"}}, list)
	_, o := limited(t, list)
	p := probeOf(t, o)
	require.EqualError(t, p.May(t.Context(), Right{Op: opSubscribe, Subject: "any.thing"}), "not allowed")
	require.EqualError(t, p.May(t.Context(), Right{Op: opPublish, Subject: "any.thing"}), "not allowed")
	require.False(t, slices.ContainsFunc(list, func(r Right) bool { return strings.HasPrefix(r.Subject, "$") }))
}
