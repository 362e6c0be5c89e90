package app_test

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/emulator"
)

// hangUp is an address where every connection is counted and ended at once.
func hangUp(t *testing.T) (addr string, tries func() int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String(), n.Load
}

// requests counts what the NATS server gets from all its clients.
func (p *plant) requests() int64 {
	p.t.Helper()
	v, err := p.nats.Server().Varz(nil)
	require.NoError(p.t, err)
	return v.InMsgs
}

// TestAwayAndBack: NATS, the hub, or both go away in the middle of the traffic, by connections that end. /readyz says which, nobody spins meanwhile, and all comes back by itself: nothing is lost, the order is kept.
func TestAwayAndBack(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]away{
		"NATS gone": {nats: true},
		"hub gone":  {hub: true},
		"both gone": {nats: true, hub: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x.run(t)
		})
	}
}

// TestSilentAndBack is TestAwayAndBack with a connection to NATS that is silent (how the hub's is noticed after a minute is in
// hubservice); a test of its own, so that it starts with the first.
func TestSilentAndBack(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("silence is noticed after half a minute")
	}
	away{nats: true, silent: true}.run(t)
}

// away is what is not there, silent or by connections that end.
type away struct{ nats, hub, silent bool }

func (x away) run(t *testing.T) {
	t.Helper()
	p := runWaiting(t, "w1", "w2")
	p.send("odd", 0, 10, "w1", "w2")
	p.completed(10, "w1", "w2")
	p.settled() // else acks that are under way get lost with the connection
	natsDoor, natsTries := hangUp(t)
	hubDoor, hubTries := hangUp(t)
	if x.nats {
		if x.silent {
			p.toNATS.Stall()
		} else {
			p.toNATS.Target(natsDoor)
			p.toNATS.Cut()
		}
	}
	if x.hub {
		p.toHub.Target(hubDoor)
		p.toHub.Cut()
	}
	p.send("odd", 10, 100, "w1", "w2")
	var says []string
	if x.nats {
		says = append(says, p.toNATS.Addr())
	}
	if x.hub {
		says = append(says, "hub main: ")
	}
	p.notReadyWithin(2*deadline, says...)
	if !x.nats { // all of it is where it outlives the process
		require.Eventually(t, func() bool { return p.count("DOWNLINK_MAILBOX") >= 200 && p.acked() }, deadline, tick)
	}

	// Over some seconds: tries with growing pauses, and progress acks, leases and the like.
	const window = 3 * time.Second
	n, h, m := natsTries(), hubTries(), p.requests()
	require.Never(t, func() bool { return p.app.Ready() == nil }, window, tick)
	require.LessOrEqual(t, natsTries()-n, int64(30), "connections to NATS in %v", window)
	require.LessOrEqual(t, hubTries()-h, int64(15), "connections to the hub in %v", window)
	require.LessOrEqual(t, p.requests()-m, int64(200), "messages to NATS in %v", window)

	p.toNATS.Target(p.nats.Addr())
	p.toHub.Target(p.hub.AMQPAddr())
	p.toNATS.Flow()
	repeats := p.completed(110, "w1", "w2")
	require.LessOrEqual(t, repeats, 4, "only what was under way may come twice")
	waitReady(t, p.app)
	p.settled()
	require.Zero(t, p.deadLetters())
}

const answersYAML = `
version: 1
http: "127.0.0.1:0"
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true, rate: 2000}]
  routes:
    - {name: ask, subject: "ask.{device}", source: core, device: "{device}", message: {ack: full}}
    - {name: stored, subject: "cmd.stored.{device}", stream: COMMANDS, device: "{device}", message: {ack: full}}
    - {name: strict, subject: "cmd.strict.{device}", stream: COMMANDS, device: "{device}", allow: ["pump-*"]}
    - {name: none, subject: "cmd.none.>", stream: COMMANDS, drop: not wanted}
`

// TestAnswers: a request, and a stored message that says where, is answered when the hub has accepted, or when the device has
// completed; status, device and times are headers.
func TestAnswers(t *testing.T) {
	t.Parallel()
	p := runPlant(t, emulator.Options{}, func(url string) string { return fmt.Sprintf(answersYAML, url) })
	nc := p.nats.Conn(t)
	begun := time.Now().Add(-time.Second)
	check := func(m *nats.Msg, status, device string) {
		t.Helper()
		require.Equal(t, status, m.Header.Get("Downlink-Status"))
		require.Equal(t, device, m.Header.Get("Downlink-Device"))
		at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Downlink-At"))
		require.NoError(t, err)
		require.WithinRange(t, at, begun, time.Now().Add(time.Second))
		var r bridge.Receipt
		require.NoError(t, json.Unmarshal(m.Data, &r))
		require.Equal(t, status, r.Status)
		require.Equal(t, r.ID, m.Header.Get("Downlink-Message-Id"))
	}
	ask := func(subject, wait string) *nats.Msg {
		t.Helper()
		q := nats.NewMsg(subject)
		if wait != "" {
			q.Header.Set("Downlink-Wait", wait)
		}
		m, err := nc.RequestMsg(q, deadline)
		require.NoError(t, err)
		return m
	}
	check(ask("ask.h1", ""), "accepted", "h1")
	check(ask("ask.h1", "accepted"), "accepted", "h1")
	check(ask("ask.h1", "completed"), "completed", "h1")
	check(ask("ask.nobody", "completed"), "dead", "nobody")
	require.Equal(t, "bad-header", ask("ask.h1", "forever").Header.Get("Downlink-Reason"))

	// "full" is away: the hub has its message, the device does not.
	store := func(i int, subject, wait string) (inbox *nats.Subscription) {
		t.Helper()
		m := nats.NewMsg(subject)
		reply := nc.NewInbox() + "." + strconv.Itoa(i)
		m.Header.Set("Downlink-Reply-To", reply)
		if wait != "" {
			m.Header.Set("Downlink-Wait", wait)
		}
		sub, err := nc.SubscribeSync(reply)
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		publish(t, p.js, m)
		return sub
	}
	away := store(0, "cmd.stored.full", "completed")
	for i, x := range []struct{ subject, wait, status, device string }{
		{"cmd.stored.h1", "", "accepted", "h1"},
		{"cmd.stored.h1", "accepted", "accepted", "h1"},
		{"cmd.stored.h1", "completed", "completed", "h1"},
		{"cmd.stored.nobody", "completed", "dead", "nobody"},
		{"cmd.strict.h1", "", "dead", "h1"},
		{"cmd.none.h1", "", "dropped", ""},
	} {
		m, err := store(i+1, x.subject, x.wait).NextMsg(deadline)
		require.NoError(t, err, x.subject)
		check(m, x.status, x.device)
	}
	require.Eventually(t, func() bool { return p.hub.Counts("full").Accepted == 1 }, deadline, tick)
	pending, _, err := away.Pending()
	require.NoError(t, err)
	require.Zero(t, pending, "answered before the device had it")
	p.complete("full")
	m, err := away.NextMsg(deadline)
	require.NoError(t, err)
	check(m, "completed", "full")
	p.settled()
}
