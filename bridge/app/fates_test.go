package app_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/throttle"
)

// fate is a row of the table of fates (fate.go), and how to provoke it in a hub.
type fate struct {
	name   string
	hub    string // added to the hub's configuration
	bridge string // added to the bridge's
	route  string // added to the route "odd"
	setup  func(o *emulator.Options)
	faults []string
	// prepare is called before the odd messages are published.
	prepare func(p *plant)
	// headers and body are those of the odd messages; odd names their devices, default one message for "odd".
	headers map[string]string
	body    []byte
	odd     []string

	// state waits until it can be seen that the row is acted upon; default: until the odd messages' last receipts.
	state func(p *plant)
	// wide: it concerns the whole hub. Others may wait until what is wrong has been mended.
	wide bool
	// mend ends what the message waits for.
	mend func(p *plant)

	// What became of each odd message.
	reason, condition, text string // of its dead letter; without a reason there is none
	attempts                string // told by receipt and dead letter; "": any number
	receipts                []string
	dropped                 bool

	opens int  // connections in the end; 0: 1
	again bool // answers may get lost: messages may be repeated, under their IDs
	slow  bool // left out with -short
}

var healthy = []string{"h1", "h2", "h3", "h4"}

const fatesYAML = `
version: 1
http: "127.0.0.1:0"
shutdown_grace: 1s
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true, rate: 2000%s}]
%s
  routes:
    - {name: healthy, subject: "cmd.healthy.{device}", stream: COMMANDS, device: "{device}"}
    - name: odd
      subject: "cmd.odd.{device}"
      stream: COMMANDS
      device: "{device}"
      when: 'header["Take"] != "no"'
      receipts: true
%s
`

var fates = []fate{
	{name: "accepted", route: "message: {ack: full}", receipts: []string{"accepted", "completed"}},
	{
		name: "queue full, until feedback tells of room", route: "message: {ack: full}", odd: []string{"full"}, slow: true,
		prepare: fill("full"),
		// The pauses between probes, 8 s and more by now, are so long that only feedback explains what comes in time.
		state:    func(p *plant) { p.waitingLanes(1); p.refused("full", 5) },
		mend:     func(p *plant) { p.complete("full"); p.acceptedWithin("full", 51, 7*time.Second) },
		receipts: []string{"accepted", "completed"},
	},
	{
		name: "queue full, without feedback", odd: []string{"full"}, prepare: fill("full"),
		state: func(p *plant) { p.waitingLanes(1); p.refused("full", 1) },
		mend:  purge("full"), receipts: []string{"accepted"},
	},
	{
		name: "eight full queues in a row", odd: full[:], prepare: fill(full[:]...),
		state: func(p *plant) { p.waitingLanes(len(full)) },
		mend:  purge(full[:]...), receipts: []string{"accepted"},
	},
	{
		name: "unknown device", odd: []string{"nobody"}, reason: "device-not-found", condition: "amqp:not-found", text: "404001",
		attempts: "1", receipts: []string{"dead"},
	},
	{
		name: "unknown device that is awaited", odd: []string{"nobody"}, route: "device_not_found: retry",
		state: func(p *plant) { p.waitingLanes(1); require.Zero(p.t, p.deadLetters()) },
		mend:  func(p *plant) { require.NoError(p.t, p.hub.CreateDevice("nobody")) }, receipts: []string{"accepted"},
	},
	{
		name: "too large", body: make([]byte, c2d.MaxMessageSize+1), reason: "too-large", text: "65536", attempts: "0", receipts: []string{"dead"},
	},
	{
		name: "too large with its properties", body: make([]byte, c2d.MaxMessageSize-10), headers: map[string]string{"P": "0123456789"},
		route: `properties: [{name: p, value: '{header["P"]}'}]`, reason: "too-large", text: "65536", attempts: "0", receipts: []string{"dead"},
	},
	{
		name: "bad property", headers: map[string]string{"P": "a\xffb"}, route: `properties: [{name: p, value: '{header["P"]}'}]`,
		reason: "bad-property", text: "p", attempts: "0", receipts: []string{"dead"},
	},
	{
		name: "bad expression", headers: map[string]string{"N": "x"}, route: `properties: [{name: n, value: '{string(int(header["N"]))}'}]`,
		reason: "bad-expression", text: `int(header["N"])`, attempts: "0", receipts: []string{"dead"},
	},
	{
		name: "not allowed", route: `allow: ["pump-*"]`, reason: "not-allowed", text: `"odd"`, attempts: "0", receipts: []string{"dead"},
	},
	{name: "no route, dropped", headers: map[string]string{"Take": "no"}, dropped: true},
	{
		name: "no route, kept", bridge: "  unmatched: dead", headers: map[string]string{"Take": "no"}, reason: "no-route",
		text: `"cmd.odd.odd"`, attempts: "0",
	},
	{
		name: "refused by the hub", faults: []string{"transfer=reject:amqp:not-allowed,device=odd,text=not today"}, reason: "refused",
		condition: "amqp:not-allowed", text: "not today", attempts: "1", receipts: []string{"dead"},
	},
	{
		name: "too large by the hub", faults: []string{"transfer=reject:amqp:link:message-size-exceeded,device=odd,text=big"}, reason: "too-large",
		condition: "amqp:link:message-size-exceeded", text: "big", attempts: "1", receipts: []string{"dead"},
	},
	{
		name: "bad argument by the hub", faults: []string{"transfer=reject:com.microsoft:argument-error,device=odd,text=wrong"}, reason: "bad-property",
		condition: "com.microsoft:argument-error", text: "wrong", attempts: "1", receipts: []string{"dead"},
	},
	{name: "throttled", faults: []string{"transfer=throttle,times=2,device=odd"}, receipts: []string{"accepted"}, attempts: "3", wide: true},
	{
		name: "daily quota, as resource limit", setup: quota(throttle.ResourceLimit), wide: true,
		state: func(p *plant) { p.notReady("hub main: paused until", "amqp:resource-limit-exceeded", "403002") },
		mend:  func(p *plant) { p.restart(p.otherHub()) }, receipts: []string{"accepted"},
	},
	{
		name: "daily quota, by its name", setup: quota(throttle.QuotaExceeded), wide: true,
		state: func(p *plant) { p.notReady("hub main: paused until", "com.microsoft:quota-exceeded") },
		mend:  func(p *plant) { p.restart(p.otherHub()) }, receipts: []string{"accepted"},
	},
	{
		name: "daily quota, as configured", hub: ", daily_messages: 60", wide: true,
		state: func(p *plant) { p.notReady("hub main: quota until", "T00:00:00Z") },
		mend: func(p *plant) {
			p.yaml = strings.Replace(p.yaml, "daily_messages: 60", "daily_messages: 6000", 1)
			p.restart(p.hub)
		}, receipts: []string{"accepted"}, opens: 2,
	},
	{
		name: "hub suspended", faults: []string{"transfer=reject:com.microsoft:iot-hub-suspended,device=odd,text=asleep"}, wide: true,
		state: func(p *plant) { p.notReady("hub main: paused until", "com.microsoft:iot-hub-suspended", "asleep") },
		mend:  func(p *plant) { p.restart(p.hub) }, receipts: []string{"accepted"}, opens: 2,
	},
	{name: "released", faults: []string{"transfer=release,times=3,device=odd"}, receipts: []string{"accepted"}, attempts: "4"},
	{name: "modified", faults: []string{"transfer=modify,times=3,device=odd"}, receipts: []string{"accepted"}, attempts: "4"},
	{
		name: "connection lost", faults: []string{"transfer=drop,device=odd"}, receipts: []string{"accepted"}, attempts: "2", opens: 2, again: true, wide: true,
	},
	{
		name: "answer lost with the connection", faults: []string{"transfer=drop,device=odd,after"}, receipts: []string{"accepted"}, attempts: "2", opens: 2,
		again: true, wide: true,
	},
	{
		name: "breaks the link", faults: []string{"transfer=drop,times=always,device=odd"}, reason: "breaks-link", attempts: "3", receipts: []string{"dead"},
		opens: 4, again: true, wide: true,
	},
	{
		// Until it has been seen in readiness, where one refusal shows for a second or two.
		name: "unauthorized", faults: []string{"transfer=reject:amqp:unauthorized-access,times=always,device=odd,text=who are you"}, wide: true,
		state: func(p *plant) { p.notReady("hub main: unauthorized until", "amqp:unauthorized-access", "who are you") },
		mend:  func(p *plant) { p.fair() }, receipts: []string{"accepted"},
	},
	{
		name: "expired", route: "message: {max_age: 700ms}", odd: []string{"full"}, prepare: fill("full"), reason: "expired", receipts: []string{"dead"},
	},
	{
		name: "unknown condition that passes", faults: []string{"transfer=reject:amqp:internal-error,times=3,device=odd"}, receipts: []string{"accepted"}, attempts: "4",
	},
	{
		name: "unknown condition that stays", faults: []string{"transfer=reject:com.microsoft:brand-new,times=always,device=odd,text=surprise"}, slow: true,
		reason: "unknown-condition", condition: "com.microsoft:brand-new", text: "surprise", attempts: "8", receipts: []string{"dead"},
	},
}

// TestEveryFate: each row of the table, by the hub's own doing, is what becomes of the message; it is told by receipt
// and dead letter, and other devices' messages are delivered meanwhile: in order, once, in time, over the same connection.
func TestEveryFate(t *testing.T) {
	t.Parallel()
	for _, f := range fates {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if f.slow && testing.Short() {
				t.Skip("waits for pauses that grow")
			}
			f.run(t)
		})
	}
}

func (f *fate) run(t *testing.T) {
	odd := f.odd
	if odd == nil {
		odd = []string{"odd"}
	}
	o := emulator.Options{}
	if f.setup != nil {
		f.setup(&o)
	}
	p := runPlant(t, o, func(url string) string {
		return fmt.Sprintf(fatesYAML, url, f.hub, f.bridge, indent(f.route))
	})
	p.fair = p.script(f.faults...)
	if f.prepare != nil {
		f.prepare(p)
	}
	p.flow(8)
	for _, d := range odd {
		m := nats.NewMsg("cmd.odd." + d)
		m.Data = f.body
		if m.Data == nil {
			m.Data = []byte("odd")
		}
		for k, v := range f.headers {
			m.Header[k] = []string{v}
		}
		publish(t, p.js, m)
	}
	p.flow(8)
	if f.state != nil {
		f.state(p)
	} else if f.receipts != nil {
		p.receipts(len(odd) * len(f.receipts))
	}
	begun := time.Now()
	p.flow(8)
	if !f.wide {
		p.flowed()
		require.Less(t, time.Since(begun), deadline, "the others wait for the odd one") // as a rule it is milliseconds
	}
	if f.mend != nil {
		f.mend(p)
	}
	p.flowed()
	p.receiptsOf(odd, f.receipts, f.attempts)
	p.letters(f, odd)
	p.settled()
	if f.attempts == "0" {
		require.Zero(t, p.hub.Counts("odd").Sends, "on the wire")
	}
	p.inOrder(f.again)
	s := p.status()
	require.Equal(t, f.dropped, s.Dropped > 0)
	require.Equal(t, max(1, f.opens), p.opens(), "connections")
}

// letters checks the dead letters of the odd messages, and that there are no others.
func (p *plant) letters(f *fate, odd []string) {
	p.t.Helper()
	if f.reason == "" {
		require.Zero(p.t, p.deadLetters())
		return
	}
	for i, m := range read(p.t, p.js, "DOWNLINK_DEAD", len(odd)) {
		h := m.Headers()
		require.Equal(p.t, f.reason, h.Get("Downlink-Reason"))
		require.Equal(p.t, f.condition, h.Get("Downlink-Condition"))
		require.Contains(p.t, h.Get("Downlink-Text"), f.text)
		require.NotEmpty(p.t, h.Get("Downlink-Text"))
		require.Equal(p.t, "cmd.odd."+odd[i], h.Get("Downlink-Subject"))
		require.NotEmpty(p.t, h.Get("Downlink-At"))
		if f.attempts != "" {
			require.Equal(p.t, f.attempts, h.Get("Downlink-Attempts"))
		}
		if f.reason != "no-route" {
			require.Equal(p.t, "odd", h.Get("Downlink-Route"))
			if len(f.body) <= c2d.MaxMessageSize { // else no expression has looked at it
				require.Equal(p.t, odd[i], h.Get("Downlink-Device"))
			}
		}
		body := f.body
		if body == nil {
			body = []byte("odd")
		}
		require.Equal(p.t, body, m.Data())
		for k, v := range f.headers {
			require.Equal(p.t, []string{v}, h[k])
		}
	}
	require.EqualValues(p.t, len(odd), p.deadLetters())
}

var full = [8]string{"full-1", "full-2", "full-3", "full-4", "full-5", "full-6", "full-7", "full-8"}

// fill leaves no room in the devices' queues.
func fill(devices ...string) func(*plant) {
	return func(p *plant) {
		for _, d := range devices {
			for i := range c2d.QueueDepth {
				m := c2dMessage(d, fmt.Sprintf("%s-%d", d, i), nil)
				m.Ack = "full"
				require.NoError(p.t, p.hub.Enqueue(m))
			}
		}
	}
}

func purge(devices ...string) func(*plant) {
	return func(p *plant) {
		for _, d := range devices {
			_, err := p.hub.PurgeDevice(d)
			require.NoError(p.t, err)
		}
	}
}

// quota has the hub say that the day's messages are used up soon after the start.
func quota(condition string) func(*emulator.Options) {
	return func(o *emulator.Options) {
		o.Throttle = throttle.Options{Tier: throttle.S3, Units: 10, Daily: 20, QuotaCondition: condition}
	}
}

func indent(route string) string {
	if route == "" {
		return ""
	}
	return "      " + route
}
