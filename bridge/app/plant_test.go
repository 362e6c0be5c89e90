package app_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/app"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
)

// plant is a bridge as a process of its own would be, seen from outside: its NATS,
// its hub, its pages. Healthy devices h1 to h4 complete all at once; the others are away.
type plant struct {
	t    *testing.T
	nats *bridgetest.NATS
	js   jetstream.JetStream
	hub  *bridgetest.Hub // the one that the bridge uses now
	hubs []*bridgetest.Hub
	yaml string
	app  *app.App
	stop func()
	sent int // messages to each healthy device
	rule map[*bridgetest.Hub]int
	fair func() // ends what script began

	toNATS, toHub *bridgetest.Link // the bridge's ways there
}

// runPlant starts it all, with the configuration for the NATS server's URL.
func runPlant(t *testing.T, o emulator.Options, yaml func(url string) string) *plant {
	t.Helper()
	p := &plant{t: t, nats: bridgetest.RunNATS(t), rule: map[*bridgetest.Hub]int{}}
	p.js = p.nats.JetStream(t)
	p.nats.CreateStream(t, "COMMANDS", "cmd.>")
	p.use(p.newHub(o))
	p.toNATS = p.nats.Link(t)
	p.yaml = yaml(p.toNATS.URL())
	p.start()
	return p
}

func (p *plant) newHub(o emulator.Options) *bridgetest.Hub {
	p.t.Helper()
	o.Devices = slices.Concat([]string{"odd", "full"}, full[:], healthy, o.Devices)
	o.Virtual = []virtual.Rule{{Pattern: "full*", Behaviour: virtual.Behaviour{Kind: virtual.Offline}}, {Pattern: "*"}}
	o.Feedback = feedback.Rules{Every: 20 * time.Millisecond}
	h := bridgetest.RunHubWith(p.t, o)
	counting, err := fault.Parse("open=delay:1ms,times=always")
	require.NoError(p.t, err)
	p.rule[h] = h.Faults().Script(counting)
	p.hubs = append(p.hubs, h)
	return h
}

// otherHub is a hub with the same devices, and nothing wrong with it.
func (p *plant) otherHub() *bridgetest.Hub { return p.newHub(emulator.Options{}) }

// use has the next process send to this hub.
func (p *plant) use(h *bridgetest.Hub) {
	if p.hub != h {
		p.hub, p.toHub = h, bridgetest.RunLink(p.t, h.AMQPAddr())
	}
}

func (p *plant) start() {
	p.t.Helper()
	e := embeddedHub(p.hub)
	e.AMQPAddress = p.toHub.Addr()
	p.app, p.stop = startAt(p.t, e, p.yaml)
	waitReady(p.t, p.app)
}

// kill ends the process in the middle of all it does: it is cut off first, so that
// nothing it learns or does from then on has an effect.
func (p *plant) kill() {
	p.toHub.Down()
	p.toNATS.Down()
	p.stop()
	p.toHub.Up()
	p.toNATS.Up()
}

// restart ends the bridge's process in good order and starts the next one.
func (p *plant) restart(h *bridgetest.Hub) {
	p.t.Helper()
	p.stop()
	p.use(h)
	p.start()
}

// script has the hub misbehave, until mend is called at the latest.
func (p *plant) script(rules ...string) (mend func()) {
	p.t.Helper()
	var ids []int
	for _, text := range rules {
		r, err := fault.Parse(text)
		require.NoError(p.t, err)
		ids = append(ids, p.hub.Faults().Script(r))
	}
	return func() {
		for _, id := range ids {
			p.hub.Faults().Remove(id)
		}
	}
}

// opens is how many connections services have opened to the hub.
func (p *plant) opens() int {
	for _, r := range p.hub.Faults().Rules() {
		if r.ID == p.rule[p.hub] {
			return r.Hits
		}
	}
	require.Fail(p.t, "nobody counted the connections")
	return 0
}

// page is a page of the process.
func (p *plant) page(path string) (code int, body string) {
	p.t.Helper()
	r, err := http.Get("http://" + p.app.HTTPAddr() + path)
	require.NoError(p.t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(p.t, err)
	return r.StatusCode, string(b)
}

// status is the engine's part of /status, which must balance: of all that was
// received, each message has one fate, or waits.
func (p *plant) status() bridge.Status {
	p.t.Helper()
	_, body := p.page("/status")
	var s struct{ Bridge bridge.Status }
	require.NoError(p.t, json.Unmarshal([]byte(body), &s))
	b := s.Bridge
	require.Less(p.t, b.Waiting, uint64(1)<<40, "more fates than messages: %+v", b)
	return b
}

// notReady waits until /readyz says each of the texts.
func (p *plant) notReady(texts ...string) {
	p.t.Helper()
	p.notReadyWithin(deadline, texts...)
}

func (p *plant) notReadyWithin(d time.Duration, texts ...string) {
	p.t.Helper()
	var body string
	require.True(p.t, p.within(d, func() bool {
		var code int
		code, body = p.page("/readyz")
		return code == http.StatusServiceUnavailable && !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(body, s) })
	}), "wanted %q; have %q", texts, body)
}

// waitingLanes waits until so many devices wait.
func (p *plant) waitingLanes(n int) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.status().Hubs[0].LanesWaiting == n }, deadline, tick)
}

// refused waits until the hub has refused so many sends to a device.
func (p *plant) refused(device string, n uint64) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.hub.Counts(device).Refused >= n }, deadline, tick)
}

// acceptedWithin is for what must come soon.
func (p *plant) acceptedWithin(device string, n uint64, d time.Duration) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.hub.Counts(device).Accepted >= n }, d, tick)
}

// complete connects a device that completes all it gets.
func (p *plant) complete(device string) {
	p.t.Helper()
	edge := bridgetest.RunNATS(p.t)
	waitReady(p.t, runApp(p.t, p.hub, relayConfig(edge, device)))
}

// within polls until a condition holds.
func (p *plant) within(d time.Duration, holds func() bool) bool {
	for end := time.Now().Add(d); !holds(); time.Sleep(tick) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// flow publishes n messages for each healthy device.
func (p *plant) flow(n int) {
	p.t.Helper()
	for range n {
		p.sent++
		for _, d := range healthy {
			publish(p.t, p.js, &nats.Msg{Subject: "cmd.healthy." + d, Data: []byte(strconv.Itoa(p.sent))})
		}
	}
}

// flowed waits until the healthy devices have completed all that was published.
func (p *plant) flowed() {
	p.t.Helper()
	for _, d := range healthy {
		require.Eventually(p.t, func() bool { return len(p.seen(d)) >= p.sent }, deadline, tick, "%s", d)
	}
}

// seen are the numbers in the stream of what a device has completed, at all hubs, each once.
func (p *plant) seen(device string) (list []int) {
	known := map[string]bool{}
	for _, h := range p.hubs {
		for _, r := range h.Log(device) {
			if r.Outcome == c2d.Success && !known[r.MessageID] {
				known[r.MessageID] = true
				list = append(list, number(p.t, r.MessageID))
			}
		}
	}
	return list
}

// number is a message's in its stream, by its ID.
func number(t *testing.T, id string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Split(id, ":")[1])
	require.NoError(t, err, id)
	return n
}

// inOrder checks that the healthy devices had each message in order, and once; again:
// or repeated under its ID.
func (p *plant) inOrder(again bool) {
	p.t.Helper()
	for _, d := range healthy {
		seen := p.seen(d)
		require.Len(p.t, seen, p.sent)
		require.IsIncreasing(p.t, seen, d)
		n := 0
		for _, h := range p.hubs {
			n += int(h.Counts(d).Accepted)
		}
		if !again {
			require.Equal(p.t, p.sent, n, "%s had messages twice", d)
		}
	}
}

// settled waits until nothing waits anywhere: not at the source, not in the mailbox, not in the process.
func (p *plant) settled() {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		return p.acked() && p.count("DOWNLINK_MAILBOX") == 0 && p.status().Waiting == 0
	}, deadline, tick, "%+v", p.status())
	s := p.status()
	require.Equal(p.t, s.Received+s.Expanded+s.Restored, s.Accepted+s.Dead+s.Dropped+s.Replaced+s.Parked+s.Returned)
}

// acked reports whether the bridge has acked all that is in its source.
func (p *plant) acked() bool {
	c, err := p.js.Consumer(p.t.Context(), "COMMANDS", "downlink")
	return err == nil && c.CachedInfo().NumAckPending == 0 && c.CachedInfo().NumPending == 0
}

// count is how many messages a stream has; 0: it is not there.
func (p *plant) count(stream string) int {
	p.t.Helper()
	s, err := p.js.Stream(p.t.Context(), stream)
	if err != nil {
		require.ErrorIs(p.t, err, jetstream.ErrStreamNotFound)
		return 0
	}
	return int(s.CachedInfo().State.Msgs)
}

func (p *plant) deadLetters() int { return p.count("DOWNLINK_DEAD") }

// receipts waits for n receipts.
func (p *plant) receipts(n int) []bridge.Receipt {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.count("DOWNLINK_RECEIPTS") >= n }, deadline, tick)
	var list []bridge.Receipt
	for _, m := range read(p.t, p.js, "DOWNLINK_RECEIPTS", n) {
		var r bridge.Receipt
		require.NoError(p.t, json.Unmarshal(m.Data(), &r))
		list = append(list, r)
	}
	return list
}

// receiptsOf waits for the receipts of the devices, which are these statuses, and of nothing else but
// those of messages that others sent.
func (p *plant) receiptsOf(devices, statuses []string, attempts string) {
	p.t.Helper()
	told := map[string][]string{}
	require.Eventually(p.t, func() bool {
		told = map[string][]string{}
		n := 0
		for _, r := range p.receipts(p.count("DOWNLINK_RECEIPTS")) {
			if d := strings.TrimPrefix(r.Subject, "cmd.odd."); r.Text != bridge.TextForeign {
				if n := strconv.Itoa(r.Attempts); len(told[d]) == 0 && attempts != "" && n != attempts {
					require.Equal(p.t, attempts, n, "attempts told for %s", d)
				}
				told[d] = append(told[d], r.Status)
				n++
			}
		}
		return n >= len(devices)*len(statuses)
	}, deadline, tick)
	if len(statuses) == 0 {
		require.Empty(p.t, told)
		return
	}
	require.Len(p.t, told, len(devices))
	for _, d := range devices {
		require.ElementsMatch(p.t, statuses, told[d], "receipts of %s", d) // feedback may be told first
	}
}
