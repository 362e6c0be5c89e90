package soak

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// What the parts of a run are called on NATS.
const (
	bridgeName = "soak"
	siteName   = "site"
	monitor    = site + "-monitor"
	site       = "s1"
	keyHeader  = "X-Soak" // DEVICE/NUMBER, the publisher's own name of a message

	streamCommands = "COMMANDS"
	streamAlerts   = "ALERTS"
	streamEdge     = "EDGE"
	streamDead     = "SOAK_DEAD"
	streamMailbox  = "SOAK_MAILBOX"
	streamReceipts = "SOAK_RECEIPTS"
	consumerName   = "downlink-soak"
)

// role says who takes a device's messages.
type role int

const (
	healthy  role = iota // a relay that is up whenever no fault says otherwise
	away                 // a relay that is often away for longer than the hub's queue lasts
	taking               // the hub's own device, which takes everything
	coming               // the hub's own, which connects and disconnects
	refusing             // the hub's own, which rejects everything
	unknown              // no device: the hub does not know it
	watching             // healthy, and only gets copies of the others' alarms
)

// device is one device of a run.
type device struct {
	name string // its token in subjects
	id   string
	role role
}

// atEdge reports whether a relay takes its messages.
func (d device) atEdge() bool { return d.role == healthy || d.role == away || d.role == watching }

// cast is the devices of a run: the first ones play a part, the others are
// healthy. The last one is the monitor, to which nobody publishes.
func cast(n int) []device {
	parts := []struct {
		name string
		role role
	}{{"away1", away}, {"away2", away}, {"taking", taking}, {"coming", coming}, {"refusing", refusing}, {"nobody", unknown}}
	var all []device
	for i := range n {
		name, r := fmt.Sprintf("pump%02d", i), healthy
		if i < len(parts) {
			name, r = parts[i].name, parts[i].role
		}
		all = append(all, device{name, site + "-" + name, r})
	}
	return append(all, device{"monitor", monitor, watching})
}

// minDevices leaves some that are simply healthy.
const minDevices = 9

// kind is a message's kind, by which the routes tell them apart.
type kind struct {
	verb    string
	weight  int
	stream  string
	ttl     bool   // it may expire
	dropped bool   // a route drops it
	copied  bool   // the monitor gets it, too
	ack     bool   // the route asks for feedback
	route   string // the one that takes it
}

var kinds = []kind{
	{verb: "set", weight: 45, stream: streamCommands, route: "commands"},
	{verb: "read", weight: 20, stream: streamCommands, route: "reads", ack: true},
	{verb: "soon", weight: 10, stream: streamCommands, route: "soon", ttl: true},
	{verb: "note", weight: 5, stream: streamCommands, route: "notes", dropped: true},
	{verb: "alarm", weight: 10, stream: streamCommands, route: "commands", copied: true},
	{verb: "alert", weight: 10, stream: streamAlerts, route: "alerts", ack: true},
}

func kindOf(verb string) (kind, bool) {
	for _, k := range kinds {
		if k.verb == verb {
			return k, true
		}
	}
	return kind{}, false
}

// routes are the bridge's routes for them, in YAML below bridge.routes.
const routes = `    - name: notes
      subject: "cmd.*.*.note"
      drop: a note
    - name: monitor
      subject: "cmd.{site}.{device}.alarm"
      stream: COMMANDS
      start: all
      also: true
      device: "{site}-monitor"
      properties:
        - {name: verb, value: alarm}
        - {headers: "X-*"}
    - name: reads
      subject: "cmd.{site}.{device}.read"
      stream: COMMANDS
      start: all
      device: "{site}-{device}"
      envelope: relay
      message:
        correlation_id: '{header["X-Soak"]}'
        content_type: application/octet-stream
        ack: full
      properties:
        - {name: verb, value: read}
        - {headers: "X-*"}
    - name: soon
      subject: "cmd.{site}.{device}.soon"
      stream: COMMANDS
      start: all
      device: "{site}-{device}"
      message: {ttl: 20s}
      properties:
        - {name: verb, value: soon}
        - {headers: "X-*"}
    - name: commands
      subject: "cmd.{site}.{device}.{verb}"
      stream: COMMANDS
      start: all
      device: "{site}-{device}"
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "X-*"}
    - name: alerts
      subject: "alert.{site}.{device}"
      stream: ALERTS
      start: all
      device: "{site}-{device}"
      message: {ack: full}
      properties:
        - {name: verb, value: alert}
        - {headers: "X-*"}
`

// publication is a message that the run published, or is about to.
type publication struct {
	Key    string `json:"key"` // DEVICE/NUMBER
	Device string `json:"device"`
	Number int    `json:"number"` // of its device, from 0
	Verb   string `json:"verb"`
	Stored        // as JetStream acknowledged it
}

// message is the message with this number of a device: the same for the same seed.
func (p *publication) message(seed uint64) *nats.Msg {
	header, body := Content(seed^hash(p.Device), uint64(p.Number))
	header[keyHeader] = []string{p.Key}
	subject := "cmd." + site + "." + p.Device + "." + p.Verb
	if p.Verb == "alert" {
		subject = "alert." + site + "." + p.Device
	}
	return &nats.Msg{Subject: subject, Header: header, Data: body}
}

func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// Content makes headers that are awkward and legal, and a binary body; of the
// same numbers the same ones. Header X-Number is n.
func Content(seed, n uint64) (nats.Header, []byte) {
	r := rand.New(rand.NewPCG(seed, n))
	header := nats.Header{
		"X-Number":             {strconv.FormatUint(n, 10)},
		"X-Percent":            {"100% %41 %zz %25 50%"},
		"X-Unicode":            {"Grüße, 世界 ñ e\u0301 \U0001F680 " + strconv.Itoa(r.IntN(1e6))},
		"X-Marks":              {`a=b&c=d;e/f?g#h+i,"j"'k'\l|m<n>:~ $.x`},
		"X-Tab":                {"a\tb  c"},
		"X-Empty":              {""},
		"X-case":               {"lower"},
		"X-CASE":               {"upper"},
		"X-%41!#$&'*+.^_`|~-7": {"a name"},
	}
	if n%5 == 0 {
		alphabet := []rune("abc XYZ%+&=/ äß世\U0001F680")
		var long strings.Builder
		for range 500 + r.IntN(1500) {
			long.WriteRune(alphabet[r.IntN(len(alphabet))])
		}
		header["X-Long"] = []string{strings.Trim(long.String(), " ")}
	}
	size := r.IntN(500)
	switch n % 20 {
	case 3, 13:
		size = 0
	case 7:
		size = 40_000 + r.IntN(2_000)
	}
	body := make([]byte, size)
	if n%10 == 5 {
		return header, body // all of it 0
	}
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	return header, body
}
