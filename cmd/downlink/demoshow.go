package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"downlink/bridge/app"
)

// demoShow prints the demo's events. Safe for concurrent use.
type demoShow interface {
	ready(demoReady) error
	published(demoPublished) error
	delivered(demoDelivered) error
	dead(demoDead) error
	hints() error
	done(demoDone) error
}

type demoReady struct {
	Event     string            `json:"event"`
	CloudNATS string            `json:"cloud_nats"`
	EdgeNATS  string            `json:"edge_nats"`
	HTTP      string            `json:"http,omitempty"`
	Hub       map[string]string `json:"hub,omitempty"` // the embedded hub's addresses and data directory
}

type demoPublished struct {
	Event    string      `json:"event"`
	Subject  string      `json:"subject"`
	Stream   string      `json:"stream"`
	Sequence uint64      `json:"seq"`
	Headers  nats.Header `json:"headers"`
	Payload  string      `json:"payload"`
}

type demoDelivered struct {
	Event         string      `json:"event"`
	Subject       string      `json:"subject"` // empty: not published in this demo
	Device        string      `json:"device"`
	EdgeSubject   string      `json:"edge_subject"`
	MessageID     string      `json:"message_id"`
	Headers       nats.Header `json:"headers"`
	Payload       *string     `json:"payload,omitempty"`
	PayloadBase64 []byte      `json:"payload_base64,omitempty"`
	LatencyMS     float64     `json:"latency_ms"`
	Repeat        bool        `json:"repeat,omitempty"`
}

type demoDead struct {
	Event         string      `json:"event"`
	Subject       string      `json:"subject"`
	Device        string      `json:"device"`
	Route         string      `json:"route"`
	Reason        string      `json:"reason"`
	Condition     string      `json:"condition,omitempty"`
	Text          string      `json:"text,omitempty"`
	DeadSubject   string      `json:"dead_subject"`
	Headers       nats.Header `json:"headers"`
	Payload       *string     `json:"payload,omitempty"`
	PayloadBase64 []byte      `json:"payload_base64,omitempty"`
}

type demoDone struct {
	Event     string  `json:"event"`
	OK        bool    `json:"ok"`
	Delivered int     `json:"delivered"`
	Dead      int     `json:"dead"`
	ElapsedMS float64 `json:"elapsed_ms"`
}

func newDemoReady(a *app.App, hub *embeddedHub) demoReady {
	r := demoReady{CloudNATS: a.BridgeNATSURL(), EdgeNATS: a.RelayNATSURL()}
	if addr := a.HTTPAddr(); addr != "" {
		r.HTTP = "http://" + addr
	}
	if hub != nil {
		r.Hub = map[string]string{"amqps": hub.AMQPAddr(), "mqtts": hub.MQTTAddr(), "https": hub.HTTPAddr(), "ca_file": hub.CAFile(), "data_dir": hub.dir}
	}
	return r
}

func newDemoShow(s streams, asJSON bool, plan demoPlan) demoShow {
	if asJSON {
		return &demoJSON{enc: json.NewEncoder(s.out)}
	}
	t := &demoText{out: s.out, colour: terminal(s.out) && os.Getenv("NO_COLOR") == "", plan: plan}
	for _, c := range append([]demoCommand{plan.unknown}, plan.commands...) {
		t.widths[0] = max(t.widths[0], len(c.subject))
	}
	return t
}

// demoJSON prints one object a line.
type demoJSON struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (j *demoJSON) encode(v any) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.enc.Encode(v)
}

func (j *demoJSON) ready(e demoReady) error         { e.Event = "ready"; return j.encode(e) }
func (j *demoJSON) published(e demoPublished) error { e.Event = "published"; return j.encode(e) }
func (j *demoJSON) delivered(e demoDelivered) error { e.Event = "delivered"; return j.encode(e) }
func (j *demoJSON) dead(e demoDead) error           { e.Event = "dead"; return j.encode(e) }
func (j *demoJSON) hints() error                    { return nil }
func (j *demoJSON) done(e demoDone) error           { e.Event = "done"; return j.encode(e) }

// demoText prints one aligned line for each fate.
type demoText struct {
	out    io.Writer
	colour bool
	plan   demoPlan
	start  demoReady
	widths [3]int // of the columns so far, for the alignment
}

func (t *demoText) ready(e demoReady) error {
	t.start = e
	hub := "the hub you gave"
	if e.Hub != nil {
		hub = "embedded hub (AMQP " + e.Hub["amqps"] + ", MQTT " + e.Hub["mqtts"] + ")"
	}
	_, err := fmt.Fprintf(t.out, "cloud NATS %s → bridge → %s → relay → edge NATS %s\n\n", e.CloudNATS, hub, e.EdgeNATS)
	return err
}

func (t *demoText) published(demoPublished) error { return nil }

func (t *demoText) delivered(e demoDelivered) error {
	subject, latency := e.Subject, fmt.Sprintf("%.1f ms", e.LatencyMS)
	if subject == "" {
		subject, latency = "(not from this demo)", ""
	}
	if e.Repeat {
		latency = "(again)"
	}
	return t.line(subject, e.Device, e.EdgeSubject, strings.Join(properties(e.Headers), " "), latency)
}

func (t *demoText) dead(e demoDead) error {
	why := e.Text
	if why == "" {
		why = e.Condition
	}
	return t.line(e.Subject, e.Device, "dead letter "+e.Reason, visible(why), "")
}

// line prints the columns, each as wide as its widest cell so far.
func (t *demoText) line(subject, device, target, rest, latency string) error {
	cells := [3]string{visible(subject), visible(device), visible(target)}
	for i := range cells {
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cells[i]))
		cells[i] += strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cells[i]))
	}
	if t.colour && latency != "" {
		latency = "\x1b[2m" + latency + "\x1b[0m"
	}
	text := strings.TrimRight(fmt.Sprintf("%s → %s → %s  %s  %s", cells[0], cells[1], cells[2], rest, latency), " ")
	_, err := fmt.Fprintln(t.out, text)
	return err
}

func (t *demoText) hints() error {
	me := invocation(os.Args[0])
	var b strings.Builder
	first := t.plan.commands[0]
	fmt.Fprintf(&b, "\nIt keeps running (Ctrl-C ends it). Try in a second shell:\n")
	fmt.Fprintf(&b, "  %s sub 'edge.>' --server %s\n", me, t.start.EdgeNATS)
	fmt.Fprintf(&b, "  %s pub %s '{\"delay\":1}' -H X-User=me --server %s\n", me, shellQuote(first.subject), t.start.CloudNATS)
	fmt.Fprintf(&b, "  %s pub %s --server %s\n", me, shellQuote(t.plan.unknown.subject), t.start.CloudNATS)
	fmt.Fprintf(&b, "  %s sub '%s' --server %s\n", me, t.plan.dead, t.start.CloudNATS)
	if t.start.Hub != nil {
		fmt.Fprintf(&b, "  %s send berlin-pump7 --data hello -p verb=hello --data-dir %s\n", me, shellQuote(t.start.Hub["data_dir"]))
	}
	if t.start.HTTP != "" {
		fmt.Fprintf(&b, "  curl %s/status\n", t.start.HTTP)
	}
	b.WriteString("\n")
	_, err := io.WriteString(t.out, b.String())
	return err
}

func (t *demoText) done(e demoDone) error {
	letters := "dead letters"
	if e.Dead == 1 {
		letters = "dead letter"
	}
	_, err := fmt.Fprintf(t.out, "\n%d delivered, %d %s, %.1f s\n", e.Delivered, e.Dead, letters, e.ElapsedMS/1000)
	return err
}

// invocation is how to start this program from a shell. `go run` builds into a
// directory that is gone afterwards, so there it is `go run` itself.
func invocation(arg0 string) string {
	dir := filepath.ToSlash(filepath.Dir(arg0))
	if strings.Contains(dir, "/go-build") {
		return "go run ./cmd/downlink"
	}
	if strings.ContainsRune(filepath.ToSlash(arg0), '/') {
		return shellQuote(arg0)
	}
	return filepath.Base(arg0)
}
