package mapping

import (
	"fmt"
	"slices"
	"strings"
)

// The properties that a bridge adds and a relay reads, by exact name.
const (
	propEnc      = "downlink-enc"
	propSubject  = "Downlink-Subject"
	propSeq      = "Downlink-Seq"
	propVia      = "Downlink-Via"
	propOriginal = "Downlink-Original-Message-Id"
)

// traceHeaders are the W3C trace context; the capitals are what Go's
// http.Header makes of the names.
var traceHeaders = []string{"traceparent", "Traceparent", "tracestate", "Tracestate"}

// headerValue is a header's one value: several are joined by ", ". False: absent.
func headerValue(h map[string][]string, name string) (string, bool) {
	v := h[name]
	switch len(v) {
	case 0:
		return "", false
	case 1:
		return v[0], true
	}
	return strings.Join(v, ", "), true
}

// propRule is one compiled entry of a route's properties.
type propRule struct {
	field   string // its place, for messages
	name    string // explicit
	value   *template
	headers string // or a pattern of headers to copy
	strip   string
}

type illegalAction uint8

const (
	illegalDead illegalAction = iota
	illegalEncode
	illegalOmit
)

// bag collects an envelope's properties: unique names, and the list of what is encoded.
type bag struct {
	props      []Property
	documented bool
	size       int
	enc        encList
	seen       map[string]struct{} // once there are many
}

func (b *bag) has(name string) bool {
	if b.seen != nil {
		_, ok := b.seen[name]
		return ok
	}
	for i := range b.props {
		if b.props[i].Name == name {
			return true
		}
	}
	return false
}

// add appends a property whose name and value are legal, unless there is one of that name.
func (b *bag) add(name, value string) bool {
	if b.has(name) {
		return false
	}
	b.props = append(b.props, Property{Name: name, Value: value})
	b.size += len(name) + len(value)
	if b.seen != nil {
		b.seen[name] = struct{}{}
	} else if len(b.props) > 32 {
		b.seen = make(map[string]struct{}, 2*len(b.props))
		for i := range b.props {
			b.seen[b.props[i].Name] = struct{}{}
		}
	}
	return true
}

// addEncoded appends a property, encoded where it must be.
func (b *bag) addEncoded(name, value string) {
	wire, encName := encodeName(name, b.documented)
	what, _ := illegalText(value, b.documented)
	if encName || what != "" {
		if b.add(wire, encodeText(value, b.documented)) {
			b.enc.add(wire, encName)
		}
		return
	}
	b.add(name, value)
}

// copyHeaders appends the headers that match a pattern. explicit are the names
// that the route sets itself.
func (b *bag) copyHeaders(h map[string][]string, p *propRule, explicit []string) {
	var buf [16]string
	names := buf[:0]
	for name, v := range h {
		if len(v) > 0 && name != "" && glob(p.headers, name) && !inert(name) {
			names = append(names, name)
		}
	}
	// In the order of their names: maps have none, and a resend must be byte-identical.
	slices.Sort(names)
	for _, name := range names {
		to := name
		if s := strings.TrimPrefix(name, p.strip); s != "" {
			to = s
		}
		if inert(to) || slices.ContainsFunc(explicit, func(e string) bool { return strings.EqualFold(e, to) }) {
			continue
		}
		v, _ := headerValue(h, name)
		b.addEncoded(to, v)
		if b.size > MaxMessageSize {
			return // too large already; the rest only costs time
		}
	}
}

// addTrace appends the trace context, unless the route took care of it.
func (b *bag) addTrace(h map[string][]string, explicit []string) {
	if len(h) == 0 {
		return
	}
	for _, name := range traceHeaders {
		v, ok := headerValue(h, name)
		if !ok || slices.ContainsFunc(explicit, func(e string) bool { return strings.EqualFold(e, name) }) ||
			slices.ContainsFunc(b.props, func(p Property) bool { return strings.EqualFold(p.Name, name) }) {
			continue
		}
		b.addEncoded(name, v)
	}
}

// setRule appends an explicit property.
func (b *bag) setRule(p *propRule, s scope, illegal illegalAction) *RouteError {
	v, ok, err := p.value.eval(s)
	if err != nil {
		return &RouteError{Field: p.field + ".value", Reason: err.reason, Err: err.err}
	}
	if !ok {
		return nil
	}
	what, at := illegalText(v, b.documented)
	if what == "" {
		b.add(p.name, v)
		return nil
	}
	switch illegal {
	case illegalOmit:
	case illegalEncode:
		if b.add(p.name, encodeText(v, b.documented)) {
			b.enc.add(p.name, false)
		}
	default:
		return &RouteError{Field: p.field + ".value", Reason: ReasonBadProperty,
			Err: fmt.Errorf("property %q has %s at byte %d; illegal_values: encode carries it encoded, omit leaves it out", p.name, what, at+1)}
	}
	return nil
}

// checkPropertyName checks an explicit property's name at load.
func checkPropertyName(name string, documented bool) error {
	if strings.ContainsAny(name, "{}") {
		return fmt.Errorf("%q: a property's name is plain text without braces; only its value has expressions", name)
	}
	if hubsOwn(name) {
		return fmt.Errorf("%q: the hub reads iothub-* and $.* itself; use message: for what it can set (ack, message_id, …)", name)
	}
	if hasPrefixFold(name, "Downlink-") {
		return fmt.Errorf("%q: Downlink-* is for Downlink's own properties; choose another name (envelope: relay adds the original subject, number and via)", name)
	}
	if what, at := illegalText(name, documented); what != "" {
		return fmt.Errorf("%q: has %s at byte %d, which the hub cannot carry in a property's name", name, what, at+1)
	}
	return nil
}
