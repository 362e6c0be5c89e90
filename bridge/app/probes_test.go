package app_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/virtual"
)

// Probes that general stream processors fail: they give up the connection over
// one rejected message, take released for accepted, or lose the order.
const (
	probeMessages = 20_000
	probeDevices  = 1_000
)

// probe is a bridge with 20,000 messages, number i for device i modulo 1,000, and a hub whose devices complete at once.
type probe struct {
	t   *testing.T
	hub *bridgetest.Hub
	js  jetstream.JetStream
	// opened is the rule that counts the connections that services open.
	opened int
}

// runProbe publishes the messages, bad for a device of its own in the middle, and starts the bridge.
func runProbe(t *testing.T, bad bool, rules ...fault.Rule) *probe {
	t.Helper()
	devices := []string{"berlin-bad"}
	for i := range probeDevices {
		devices = append(devices, "berlin-d"+strconv.Itoa(i))
	}
	p := &probe{t: t, hub: bridgetest.RunHubWith(t, emulator.Options{Devices: devices, Virtual: []virtual.Rule{{Pattern: "*"}}})}
	for _, r := range rules {
		p.hub.Faults().Script(r)
	}
	counting, err := fault.Parse("open=delay:1ms,times=always")
	require.NoError(t, err)
	p.opened = p.hub.Faults().Script(counting)
	srv := bridgetest.RunNATS(t)
	p.js = srv.JetStream(t)
	srv.CreateStream(t, "COMMANDS", "cmd.>")
	for i := range probeMessages {
		device := "d" + strconv.Itoa(i%probeDevices)
		if bad && i == probeMessages/2 {
			device = "bad"
		}
		_, err := p.js.PublishAsync("cmd.berlin."+device+".reboot", []byte(strconv.Itoa(i)), jetstream.WithStallWait(deadline))
		require.NoError(t, err)
	}
	<-p.js.PublishAsyncComplete()
	runApp(t, p.hub, fmt.Sprintf(strings.Replace(bridgeYAML, "create: true", "start: all", 1), srv.URL()))
	return p
}

// completed waits until the devices have so many messages, and checks that they
// came in order, over one connection, and that the stream's are all settled.
func (p *probe) completed(want int) {
	p.t.Helper()
	count := func() (n int) {
		for i := range probeDevices {
			n += int(p.hub.Counts("berlin-d" + strconv.Itoa(i)).Completed)
		}
		return n
	}
	require.Eventually(p.t, func() bool { return count() >= want }, 2*deadline, 10*tick, "have %d of %d", count(), want)
	require.Equal(p.t, want, count())
	require.Eventually(p.t, func() bool {
		c, err := p.js.Consumer(p.t.Context(), "COMMANDS", "downlink")
		return err == nil && c.CachedInfo().NumAckPending == 0 && c.CachedInfo().NumPending == 0
	}, 2*deadline, 10*tick)

	last := map[string]int{}
	for _, r := range p.hub.Log("") {
		number, err := strconv.Atoi(strings.Split(r.MessageID, ":")[1])
		require.NoError(p.t, err, r.MessageID)
		require.Greater(p.t, number, last[r.Device], "order of %s", r.Device)
		last[r.Device] = number
	}
	for _, r := range p.hub.Faults().Rules() {
		if r.ID == p.opened {
			require.Equal(p.t, 1, r.Hits, "connections")
			return
		}
	}
	require.Fail(p.t, "nobody counted the connections")
}

// stored is how many messages a stream holds; 0 if there is no such stream.
func (p *probe) stored(stream string) uint64 {
	s, err := p.js.Stream(p.t.Context(), stream)
	if err != nil {
		require.ErrorIs(p.t, err, jetstream.ErrStreamNotFound)
		return 0
	}
	return s.CachedInfo().State.Msgs
}

// TestProbeRejected: one message of 20,000 that the hub always rejects costs that message and nothing else.
func TestProbeRejected(t *testing.T) {
	t.Parallel()
	for _, condition := range []string{"amqp:not-allowed", "amqp:internal-error"} {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			if condition == "amqp:internal-error" && testing.Short() {
				t.Skip("is sent eight times with longer and longer pauses, which takes 13 s")
			}
			r, err := fault.Parse("transfer=reject:" + condition + ",times=always,device=berlin-bad")
			require.NoError(t, err)
			p := runProbe(t, true, r)
			p.completed(probeMessages - 1)
			require.Zero(t, p.hub.Counts("berlin-bad").Accepted)
			// In this order: it is stored as a dead letter before it leaves the mailbox.
			require.NotZero(t, p.stored("DOWNLINK_MAILBOX")+p.stored("DOWNLINK_DEAD"), "what is acked is stored")
			require.Eventually(t, func() bool { return p.stored("DOWNLINK_DEAD") > 0 }, 2*deadline, 10*tick)
			dead, err := p.js.Stream(t.Context(), "DOWNLINK_DEAD")
			require.NoError(t, err)
			require.Eventually(t, func() bool { // meanwhile it may have waited in the mailbox
				info, err := dead.Info(t.Context())
				return err == nil && info.State.Msgs == 1
			}, 2*deadline, 10*tick)
			m, err := dead.GetMsg(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(probeMessages/2), string(m.Data))
		})
	}
}

// TestProbeReleased: of 20,000 messages the hub hands back 20, which are sent again.
func TestProbeReleased(t *testing.T) {
	t.Parallel()
	const released = 20
	var rules []fault.Rule
	for i := range released {
		r, err := fault.Parse(fmt.Sprintf("transfer=release,device=berlin-d%d", i*probeDevices/released))
		require.NoError(t, err)
		rules = append(rules, r)
	}
	p := runProbe(t, false, rules...)
	p.completed(probeMessages)
	require.Len(t, p.hub.Faults().Rules(), 1, "every message that was to be released was")
}
