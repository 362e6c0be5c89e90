package dryrun

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
	"downlink/mapping"
)

// expectation is one expected outcome, as the file says it.
type expectation struct {
	node   *yaml.Node
	fields []wanted
}

// wanted is one field of it.
type wanted struct {
	name  string
	node  *yaml.Node
	text  string
	names []string // of properties or headers
	lists map[string][]value
	edge  *expectation // of edge
}

var (
	outcomeKeys = []string{
		"route", "device", "drop", "dead", "error", "hub", "message_id", "correlation_id", "user_id", "content_type", "content_encoding", "ack", "ttl", "expires",
		"max_age", "priority", "order", "coalesce", "receipts", "reply_to", "wait", "properties", "body", "edge",
	}
	notSentKeys = []string{"route", "device", "drop", "dead", "error"}
	edgeKeys    = []string{"subject", "dead", "error", "headers", "body"}
	anyOf       = map[string][]string{
		"ack": {"none", "positive", "negative", "full"}, "order": {"device", "none"}, "receipts": {"true", "false"}, "wait": {"accepted", "completed", ""},
	}
)

func (r *reader) expectations(n *yaml.Node, path string, edge bool) []expectation {
	if n.Kind != yaml.SequenceNode {
		return []expectation{r.expectation(n, path, edge)}
	}
	if edge || len(n.Content) == 0 {
		r.fail(n, path, "one outcome belongs here: its keys and values")
	}
	var list []expectation
	for i, item := range n.Content {
		list = append(list, r.expectation(item, fmt.Sprintf("%s[%d]", path, i), edge))
	}
	return list
}

func (r *reader) expectation(n *yaml.Node, path string, edge bool) expectation {
	e := expectation{node: n}
	keys := outcomeKeys
	if edge {
		keys = edgeKeys
	}
	given := map[string]*yaml.Node{}
	r.section(n, path, keys, func(key, v *yaml.Node, at string) {
		given[key.Value] = key
		w := wanted{name: key.Value, node: v}
		switch {
		case whole(key.Value):
			w.names, w.lists = r.values(v, at, false)
		case key.Value == "edge":
			inner := r.expectation(v, at, true)
			w.edge = &inner
		default:
			w.text = r.text(v, at)
			r.checkWanted(&w, at)
		}
		e.fields = append(e.fields, w)
	})
	if given["drop"] != nil && given["dead"] != nil {
		r.fail(given["dead"], path+".dead", "set as well as drop; a message has one fate")
	}
	if given["error"] != nil && given["dead"] == nil {
		r.fail(given["error"], path+".error", "goes with dead: and its reason")
	}
	if given["drop"] != nil || given["dead"] != nil {
		for _, name := range keys {
			if given[name] != nil && !slices.Contains(notSentKeys, name) {
				r.fail(given[name], join(path, name), "a message that is dropped or dead has none; remove it")
			}
		}
	}
	return e
}

// whole reports whether a field is compared name by name, and nothing may be missing.
func whole(name string) bool { return name == "properties" || name == "headers" }

// checkWanted finds what no outcome can ever have.
func (r *reader) checkWanted(w *wanted, path string) {
	var err error
	switch w.name {
	case "ttl", "max_age":
		if w.text != "" {
			_, err = config.ParseDuration(w.text)
		}
	case "expires":
		if w.text != "" {
			if _, terr := time.Parse(time.RFC3339Nano, w.text); terr != nil {
				err = fmt.Errorf("%q is not a time such as 2026-01-02T15:04:05Z", w.text)
			}
		}
	case "priority":
		if _, nerr := strconv.Atoi(w.text); nerr != nil {
			err = fmt.Errorf("%q is not a whole number", w.text)
		}
	case "drop", "dead":
		if w.text == "" {
			err = fmt.Errorf("the reason is missing")
		}
	}
	if known := anyOf[w.name]; known != nil && !slices.Contains(known, w.text) {
		err = fmt.Errorf("%q is none of %s", w.text, strings.TrimSuffix(strings.Join(known, ", "), ", "))
	}
	if err != nil {
		r.fail(w.node, path, "%w", err)
	}
}

// fate is the one that an expectation is about.
func (e *expectation) fate() string {
	for _, w := range e.fields {
		switch w.name {
		case "drop":
			return FateDropped
		case "dead":
			return FateDead
		}
	}
	return FateSent
}

// facts is an outcome in the words of an expectation. A text that is not there is "".
type facts struct {
	fate   string
	stream string // where the message came from
	texts  map[string]string
	lists  map[string]map[string][]string // properties or headers
	edge   *facts                         // what the relay makes of it, if there is one
}

func factsOf(o *Outcome, in *mapping.Input) facts {
	f := facts{fate: o.Fate, stream: in.Stream, texts: map[string]string{"route": o.Route, "device": o.Device}}
	switch o.Fate {
	case FateDropped:
		f.texts["drop"] = o.Reason
		return f
	case FateDead:
		f.texts["dead"], f.texts["error"] = o.Reason, o.Error
		return f
	}
	m := o.Message
	for name, text := range map[string]string{
		"hub": m.Hub, "message_id": m.MessageID, "correlation_id": m.CorrelationID, "user_id": m.UserID, "content_type": m.ContentType,
		"content_encoding": m.ContentEncoding, "ack": m.Ack, "priority": strconv.Itoa(m.Priority), "order": m.Order,
		"coalesce": strings.TrimPrefix(m.Coalesce, o.Route+":"), "receipts": strconv.FormatBool(m.Receipts), "reply_to": m.ReplyTo, "wait": m.Wait,
		"body": string(o.envelope.Body),
	} {
		f.texts[name] = text
	}
	if m.Ack == "" {
		f.texts["ack"] = "none"
	}
	if m.Expires != nil {
		f.texts["expires"] = m.Expires.UTC().Format(time.RFC3339Nano)
		f.texts["ttl"] = config.FormatDuration(m.Expires.Sub(in.Time.Truncate(time.Millisecond)))
	}
	if m.SendBy != nil {
		f.texts["max_age"] = config.FormatDuration(m.SendBy.Sub(in.Time))
	}
	props := map[string][]string{}
	for _, p := range m.Properties {
		props[p.Name] = []string{p.Value}
	}
	f.lists = map[string]map[string][]string{"properties": props}
	return f
}

// edgeFacts is factsOf for the other direction.
func (p *Plan) edgeFacts(c *mapping.C2D) facts {
	pub, err := p.relay.Map(c)
	var dead *mapping.RouteError
	if errors.As(err, &dead) {
		return facts{fate: FateDead, texts: map[string]string{"dead": string(dead.Reason), "error": dead.Field + ": " + dead.Err.Error()}}
	}
	return facts{fate: FateSent, texts: map[string]string{"subject": pub.Subject, "body": string(pub.Data)}, lists: map[string]map[string][]string{"headers": pub.Header}}
}

// received is a message as its device gets it from the hub (IoT Hub, "Communicate
// with an IoT hub using the MQTT protocol").
func received(e *mapping.Envelope) *mapping.C2D {
	c := &mapping.C2D{
		Device: e.Device, MessageID: e.MessageID, CorrelationID: e.CorrelationID, UserID: e.UserID, ContentType: e.ContentType, ContentEncoding: e.ContentEncoding,
		To: "/devices/" + url.QueryEscape(e.Device) + "/messages/devicebound", Ack: string(e.Ack), Properties: e.Properties, Body: e.Body,
	}
	if !e.ExpiresAt.IsZero() {
		c.Expires = e.ExpiresAt.UTC().Format("2006-01-02T15:04:05.0000000Z")
	}
	return c
}

// Diff is one field that is not as expected.
type Diff struct {
	Field     string // such as device, or expect[1].properties.verb
	Want, Got string // quoted where they are texts
}

const absent = "(absent)"

func (w *wanted) same(got string) bool {
	switch w.name {
	case "error":
		return strings.Contains(got, w.text)
	case "ttl", "max_age":
		if w.text == "" || got == "" {
			return w.text == got
		}
		a, _ := config.ParseDuration(w.text)
		b, _ := config.ParseDuration(got)
		return a == b
	case "expires":
		a, aerr := time.Parse(time.RFC3339Nano, w.text)
		b, berr := time.Parse(time.RFC3339Nano, got)
		return (aerr == nil) == (berr == nil) && a.Equal(b)
	case "priority":
		a, _ := strconv.Atoi(w.text)
		return strconv.Itoa(a) == got
	}
	return w.text == got
}

// compare lists what is not as expected.
func (e *expectation) compare(prefix string, got facts) []Diff {
	if want := e.fate(); want != got.fate {
		return []Diff{{prefix + "fate", e.say(want), got.say()}}
	}
	var diffs []Diff
	for i := range e.fields {
		w := &e.fields[i]
		if w.edge != nil {
			diffs = append(diffs, w.edge.compare(prefix+"edge.", *got.edge)...)
			continue
		}
		if !whole(w.name) {
			if text := got.texts[w.name]; !w.same(text) {
				want := strconv.Quote(w.text)
				if w.name == "error" {
					want = "a text with " + want
				}
				diffs = append(diffs, Diff{prefix + w.name, want, strconv.Quote(text)})
			}
			continue
		}
		names := slices.Clone(w.names)
		for name := range got.lists[w.name] {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			var want []string
			for _, v := range w.lists[name] {
				want = append(want, v.text)
			}
			if have := got.lists[w.name][name]; !slices.Equal(want, have) {
				diffs = append(diffs, Diff{prefix + w.name + "." + name, quoted(want), quoted(have)})
			}
		}
	}
	return diffs
}

func quoted(list []string) string {
	if list == nil {
		return absent
	}
	if len(list) == 1 {
		return strconv.Quote(list[0])
	}
	return fmt.Sprintf("%q", list)
}

func (e *expectation) say(fate string) string {
	for _, w := range e.fields {
		if w.name == "drop" || w.name == "dead" {
			return fate + " (" + w.text + ")"
		}
	}
	return fate
}

func (f *facts) say() string {
	text := f.fate
	if reason := f.texts["drop"] + f.texts["dead"]; reason != "" {
		text += " (" + reason + ")"
	}
	if f.texts["error"] != "" {
		text += ": " + f.texts["error"]
	}
	if f.fate == FateSent && f.texts["device"] != "" {
		text += " to " + f.texts["device"]
	}
	return text
}
