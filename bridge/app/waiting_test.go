package app_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
)

const waitingYAML = `
version: 1
http: "127.0.0.1:0"
shutdown_grace: 1ms
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true, rate: 2000}]
  routes:
    - {name: odd, subject: "cmd.odd.{device}", stream: COMMANDS, device: "{device}"}
    - {name: newest, subject: "cmd.newest.{device}", stream: COMMANDS, device: "{device}", receipts: true, coalesce: '{header["Key"]}'}
    - {name: fresh, subject: "cmd.fresh.{device}", stream: COMMANDS, device: "{device}", receipts: true, message: {max_age: 3s}}
    - {name: short, subject: "cmd.short.{device}", stream: COMMANDS, device: "{device}", message: {ttl: 3s}}
    - {name: any, subject: "cmd.any.{device}", stream: COMMANDS, device: "{device}", order: none}
    - {name: urgent, subject: "cmd.urgent.{device}", stream: COMMANDS, device: "{device}", priority: 5}
    - {name: group, subject: "cmd.group", stream: COMMANDS, devices: '{header["To"]}', allow: ["*"]}
    - {name: copy, subject: "cmd.both.{device}", stream: COMMANDS, device: "archive", also: true}
    - {name: both, subject: "cmd.both.{device}", stream: COMMANDS, device: "{device}"}
`

func runWaiting(t *testing.T, devices ...string) *plant {
	t.Helper()
	return runPlant(t, emulator.Options{Devices: devices}, func(url string) string { return fmt.Sprintf(waitingYAML, url) })
}

// send publishes one message for each device, in turn, n times; the bodies are numbers from first on.
func (p *plant) send(route string, first, n int, devices ...string) {
	p.t.Helper()
	for i := range n {
		for _, d := range devices {
			publish(p.t, p.js, &nats.Msg{Subject: "cmd." + route + "." + d, Data: fmt.Appendf(nil, "%04d", first+i)})
		}
	}
}

// completed waits until each device has completed n messages, and returns how many the hub accepted beyond that.
func (p *plant) completed(n int, devices ...string) (repeats int) {
	p.t.Helper()
	for _, d := range devices {
		ok := p.within(2*deadline, func() bool { return len(p.seen(d)) >= n })
		require.True(p.t, ok, "%s has %v of %d; %+v; %d in the mailbox; %v", d, p.seen(d), n, p.status(), p.count("DOWNLINK_MAILBOX"), p.app.Ready())
		require.IsIncreasing(p.t, p.seen(d), d)
		require.Len(p.t, p.seen(d), n, d)
		repeats += int(p.hub.Counts(d).Accepted) - n
	}
	return repeats
}

// underWay is how many messages of all the hub has accepted while the killed process had not settled them yet where they
// come from: sends, deletes and acks that were on their way.
func (p *plant) underWay(all int, devices ...string) int {
	p.t.Helper()
	c, err := p.js.Consumer(p.t.Context(), "COMMANDS", "downlink")
	require.NoError(p.t, err)
	n := p.count("DOWNLINK_MAILBOX") + c.CachedInfo().NumAckPending + int(c.CachedInfo().NumPending) - all
	for _, d := range devices {
		n += int(p.hub.Counts(d).Accepted)
	}
	return n
}

// TestWaitingSurvivesAKill: whatever messages wait for, those beyond a lane's bound go to the mailbox and the stream is read on; the
// process is killed while it puts them there, and, with a full queue, again while the next one takes them
// out. Nothing is lost, each device's order is kept, and at most what was under way is repeated.
func TestWaitingSurvivesAKill(t *testing.T) {
	t.Parallel()
	for reason, rule := range map[string]string{
		"full queue":   "transfer=reject:amqp:resource-limit-exceeded,times=always",
		"throttle":     "transfer=throttle,times=always",
		"quota":        "transfer=reject:com.microsoft:quota-exceeded,times=always",
		"unauthorized": "transfer=reject:amqp:unauthorized-access,times=always",
		"hub away":     "",
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			devices := []string{"w1", "w2", "w3"}
			p := runWaiting(t, devices...)
			mend := p.toHub.Up
			if rule == "" {
				p.toHub.Down()
			} else {
				mend = p.script(rule)
			}
			const before, meanwhile = 100, 30
			p.send("odd", 0, before, devices...)
			require.Eventually(t, func() bool { return p.count("DOWNLINK_MAILBOX") >= before }, deadline, time.Millisecond)
			p.kill()
			require.Zero(t, len(p.seen("w1")))
			p.send("odd", before, meanwhile, devices...)
			mend()
			p.start()
			underWay := 0
			if reason == "full queue" {
				require.Eventually(t, func() bool { return len(p.seen("w1")) > before/4 }, 2*deadline, time.Millisecond)
				p.kill()
				underWay = p.underWay(len(devices)*(before+meanwhile), devices...)
				p.start()
			}
			repeats := p.completed(before+meanwhile, devices...)
			require.LessOrEqual(t, repeats, underWay, "messages came again")
			p.settled()
			require.Zero(t, p.deadLetters())
		})
	}
}

// TestNewestOnly: of what waits with one key the newest is sent, be it in the lane or in the mailbox; of each that was
// replaced there is a receipt.
func TestNewestOnly(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "w1", "w2")
	mend := p.script("transfer=reject:amqp:resource-limit-exceeded,times=always")
	point := func(device, value string) {
		publish(t, p.js, &nats.Msg{Subject: "cmd.newest." + device, Data: []byte(value), Header: nats.Header{"Key": {"valve"}}})
	}
	for i := range 5 { // in the lane
		point("w1", strconv.Itoa(i))
	}
	p.send("odd", 0, 70, "w2")
	require.Eventually(t, func() bool { return p.count("DOWNLINK_MAILBOX") == 70 }, deadline, tick)
	for i := range 5 { // in the mailbox
		point("w2", strconv.Itoa(i))
	}
	p.send("odd", 70, 3, "w2")
	require.Eventually(t, func() bool { return p.count("DOWNLINK_RECEIPTS") == 8 }, deadline, tick)
	require.Eventually(t, func() bool { return p.count("DOWNLINK_MAILBOX") == 74 }, deadline, tick)
	mend()
	p.completed(1, "w1")
	p.completed(74, "w2")
	p.settled()
	told := map[string][]string{}
	for _, r := range p.receipts(10) {
		told[r.Device] = append(told[r.Device], r.Status)
	}
	want := []string{"replaced", "replaced", "replaced", "replaced", "accepted"}
	require.Equal(t, map[string][]string{"w1": want, "w2": want}, told)
	require.EqualValues(t, 8, p.status().Replaced)
	require.Equal(t, 5, p.seen("w1")[0], "the newest")
	require.Contains(t, p.seen("w2"), 5+70+5)
}

// TestNewestOnlyOnceTheHubIsBack: while the hub is away nothing is under way, so that nothing stale comes first when it is back.
func TestNewestOnlyOnceTheHubIsBack(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "w1")
	p.toHub.Down()
	require.Eventually(t, func() bool { return p.status().Hubs[0].State == "disconnected" }, deadline, tick)
	for i := range 5 {
		publish(t, p.js, &nats.Msg{Subject: "cmd.newest.w1", Data: []byte(strconv.Itoa(i)), Header: nats.Header{"Key": {"valve"}}})
	}
	require.Eventually(t, func() bool { return p.status().Replaced == 4 }, deadline, tick)
	p.toHub.Up()
	p.completed(1, "w1")
	p.settled()
	require.Equal(t, []int{5}, p.seen("w1"))
}

// TestTooOldInTheMailbox: what waits there past its time becomes a dead letter while its device still has no room.
func TestTooOldInTheMailbox(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "w1", "w2", "w3")
	mend := p.script("transfer=reject:amqp:resource-limit-exceeded,times=always")
	p.send("odd", 0, 70, "w3")
	p.send("fresh", 0, 80, "w1")
	p.send("short", 0, 80, "w2")
	require.Eventually(t, func() bool { return p.deadLetters() == 160 }, deadline, tick)
	last := map[string]int{}
	for _, m := range read(t, p.js, "DOWNLINK_DEAD", 160) {
		require.Equal(t, "expired", m.Headers().Get("Downlink-Reason"))
		last[m.Headers().Get("Downlink-Device")]++
	}
	require.Equal(t, map[string]int{"w1": 80, "w2": 80}, last)
	for _, r := range p.receipts(80) {
		require.Equal(t, "w1 dead expired", r.Device+" "+r.Status+" "+r.Reason)
	}
	mend()
	p.completed(70, "w3")
	p.settled()
	require.Zero(t, p.hub.Counts("w1").Accepted+p.hub.Counts("w2").Accepted)
}

// TestTooOldWhileTheHubIsAway: what waits for the connection, its turn having come, has a time as well. It is not sent
// once that is over, and told while the hub is still away.
func TestTooOldWhileTheHubIsAway(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "w1", "w2", "w3")
	p.toHub.Down()
	p.send("fresh", 0, 3, "w1")
	p.send("short", 0, 3, "w2")
	p.send("odd", 0, 3, "w3")
	require.Eventually(t, func() bool { return p.deadLetters() == 6 }, deadline, tick)
	for _, m := range read(t, p.js, "DOWNLINK_DEAD", 6) {
		require.Equal(t, "expired", m.Headers().Get("Downlink-Reason"))
	}
	p.toHub.Up()
	p.completed(3, "w3")
	p.settled()
	require.Zero(t, p.hub.Counts("w1").Accepted+p.hub.Counts("w2").Accepted)
}

// TestUrgentFirst: of two devices with waiting messages the one of the route with priority is served first.
func TestUrgentFirst(t *testing.T) {
	t.Parallel()
	p := runPlant(t, emulator.Options{Devices: []string{"w1", "w2"}}, func(url string) string {
		return strings.Replace(fmt.Sprintf(waitingYAML, url), "rate: 2000", "rate: 2000, window: 1", 1)
	})
	p.toHub.Down()
	for i := range 40 {
		p.send("odd", i, 1, "w1")
		p.send("urgent", i, 1, "w2")
	}
	require.Eventually(t, func() bool { return p.status().Received >= 80 }, deadline, tick)
	p.toHub.Up()
	p.completed(40, "w1")
	p.completed(40, "w2")
	others := 0
	for _, r := range p.hub.Log("")[:40] {
		if r.Device == "w1" {
			others++
		}
	}
	require.LessOrEqual(t, others, 1+40/8, "every eighth turn is the others'; and one may have been on its way when the link broke")
	p.settled()
}

// TestNoOrder: what needs none is sent while an earlier message of its device is still on its way.
func TestNoOrder(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "w1", "w2")
	mend := p.script("transfer=delay:2s,times=always")
	p.send("odd", 0, 100, "w1")
	require.Eventually(t, func() bool { // between two of them there is none for a moment
		s := p.status()
		require.LessOrEqual(t, s.Hubs[0].InFlight, 1)
		return s.Received >= 100 && s.Hubs[0].InFlight == 1 // more if it lost the stream for a while
	}, deadline, tick)
	p.send("any", 0, 100, "w2")
	require.Eventually(t, func() bool { return p.status().Hubs[0].InFlight > 5 }, deadline, tick)
	mend()
	p.completed(100, "w1")
	require.Eventually(t, func() bool { return len(p.seen("w2")) == 100 }, deadline, tick)
	p.settled()
	require.EqualValues(t, 100, p.hub.Counts("w2").Accepted)
}

// TestGroupAcrossAKill: of a message to several devices, by a group or by several routes, one is unknown and one has no room when the
// process is killed; the next one sends to that one alone.
func TestGroupAcrossAKill(t *testing.T) {
	t.Parallel()
	p := runWaiting(t, "g1", "g2", "g3", "g4", "archive")
	mend := p.script("transfer=reject:amqp:resource-limit-exceeded,times=always,device=g3", "transfer=reject:amqp:resource-limit-exceeded,times=always,device=g4")
	publish(t, p.js, &nats.Msg{Subject: "cmd.group", Header: nats.Header{"To": {"g1,nobody,g2,g3"}}})
	p.send("both", 0, 1, "g4")
	done := []string{"g1", "g2", "archive"}
	for _, d := range done {
		require.Eventually(t, func() bool { return len(p.seen(d)) == 1 }, deadline, tick)
	}
	require.Eventually(t, func() bool { return p.acked() && p.count("DOWNLINK_MAILBOX") == 2 && p.deadLetters() == 1 }, deadline, tick)
	p.kill()
	mend()
	p.start()
	p.completed(1, "g3", "g4")
	p.settled()
	require.Zero(t, p.completed(1, slices.Concat(done, []string{"g3", "g4"})...), "sent again")
	require.Equal(t, 1, p.deadLetters())
	require.Equal(t, "nobody", read(t, p.js, "DOWNLINK_DEAD", 1)[0].Headers().Get("Downlink-Device"))
}
