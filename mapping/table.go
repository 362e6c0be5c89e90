package mapping

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Table is a compiled list of routes. It is immutable: all methods are safe for concurrent use.
type Table struct {
	name     string
	routes   []*route            // all, in order
	bySource map[string][]*route // what a stream's messages ("": core NATS) may match, in order
	anywhere []*route            // what messages of any other stream may match: drops that name no source
	random   randomID
	scopes   sync.Pool
}

// route is a Route, compiled.
type route struct {
	name     string
	pattern  *pattern
	stream   string
	core     bool
	drop     string
	also     bool
	hub      string
	device   *template
	allow    []string
	fields   [5]systemField
	ttl      bool
	rule     *Route
	ack      Ack
	props    []propRule
	explicit []string // names of the explicit properties
	illegal  illegalAction
	relay    bool // envelope: relay
	charset  bool // the hub's documented one only
}

// The system properties that a template sets.
const (
	fieldMessageID = iota
	fieldCorrelationID
	fieldUserID
	fieldContentType
	fieldContentEncoding
)

type systemField struct {
	field string
	t     *template // nil: not set
}

// cloudScope is one message as templates see it.
type cloudScope struct {
	in      *Input
	pattern *pattern
	offs    []int
	header  map[string]any
	json    any
	decoded bool
	jsonErr error
}

func (s *cloudScope) reset() {
	*s = cloudScope{offs: s.offs[:0]}
}

func (s *cloudScope) ref(r *ref) (string, bool) {
	switch r.kind {
	case refCapture:
		return s.pattern.capture(r.index, s.in.Subject, s.offs), true
	case refHeader:
		return headerValue(s.in.Header, r.name)
	case refSubject:
		return s.in.Subject, true
	case refStream:
		return s.in.Stream, s.in.Stream != ""
	case refPayload:
		return string(s.in.Payload), true
	}
	return "", false
}

func (s *cloudScope) name(id string) (any, error) {
	switch id {
	case "subject":
		return s.in.Subject, nil
	case "header":
		if s.header == nil {
			s.header = make(map[string]any, len(s.in.Header))
			for name := range s.in.Header {
				if v, ok := headerValue(s.in.Header, name); ok {
					s.header[name] = v
				}
			}
		}
		return s.header, nil
	case "payload":
		return string(s.in.Payload), nil
	case "json":
		if !s.decoded {
			s.json, s.jsonErr = decodeJSON(s.in.Payload)
			s.decoded = true
		}
		if s.jsonErr != nil {
			return nil, fmt.Errorf("payload is %w", s.jsonErr)
		}
		return s.json, nil
	case "stream":
		if s.in.Stream == "" {
			return nil, nil
		}
		return s.in.Stream, nil
	case "sequence":
		return int(s.in.Sequence), nil
	case "time":
		return s.in.Time.UTC(), nil
	}
	for i := range s.pattern.captures {
		if s.pattern.captures[i].name == id {
			return s.pattern.capture(i, s.in.Subject, s.offs), nil
		}
	}
	return nil, nil // a variable of the expression's own
}

// Map returns what each matching route makes of the message, in order: the
// first match, and after a route with also: true the next one too. It returns
// nothing if no route takes the message. The envelopes' Body aliases in.Payload.
func (t *Table) Map(in *Input) []Result {
	routes, ok := t.bySource[in.Stream]
	if !ok {
		routes = t.anywhere
	}
	if len(routes) == 0 || reserved(in.Subject, t.name) {
		return nil
	}
	s, _ := t.scopes.Get().(*cloudScope)
	if s == nil {
		s = &cloudScope{offs: make([]int, 0, 16)}
	}
	s.in = in
	s.offs = splitSubject(in.Subject, s.offs[:0])
	var results []Result
	for _, r := range routes {
		if !r.pattern.match(in.Subject, s.offs) {
			continue
		}
		s.pattern = r.pattern
		if r.drop != "" {
			results = append(results, Result{Route: r.name, Drop: r.drop})
			break
		}
		m := &mapped{}
		if results == nil {
			results = m.results[:0]
		}
		results = append(results, t.one(r, s, m))
		if !r.also {
			break
		}
	}
	s.reset()
	t.scopes.Put(s)
	return results
}

// mapped is what nearly every message needs, in one allocation.
type mapped struct {
	results  [1]Result
	envelope Envelope
	props    [4]Property
}

func (t *Table) one(r *route, s *cloudScope, m *mapped) Result {
	if cameThrough(s.in.Header, t.name) {
		return Result{Route: r.name, Drop: string(ReasonLoop)}
	}
	if err := t.fill(&m.envelope, m.props[:0], r, s); err != nil {
		err.Route = r.name
		return Result{Route: r.name, Err: err}
	}
	return Result{Route: r.name, Envelope: &m.envelope}
}

// fill makes the envelope; props is empty room for its properties.
func (t *Table) fill(e *Envelope, props []Property, r *route, s *cloudScope) *RouteError {
	in := s.in
	if len(in.Payload) > MaxMessageSize { // before any expression looks at it
		return tooLarge(len(in.Payload))
	}
	device, err := r.deviceID(s)
	if err != nil {
		return err
	}
	e.Route, e.Hub, e.Device, e.Ack, e.Body = r.name, r.hub, device, r.ack, in.Payload
	if r.ttl {
		// The AMQP timestamp counts milliseconds (AMQP 1.0 §1.6.17).
		e.ExpiresAt = in.Time.Add(r.rule.Message.TTL).Truncate(1e6).UTC()
	}
	id := ""
	for i := range r.fields {
		f := &r.fields[i]
		if f.t == nil {
			continue
		}
		v, _, verr := f.t.eval(s)
		if verr != nil {
			return &RouteError{Field: f.field, Reason: verr.reason, Err: verr.err}
		}
		if i != fieldMessageID {
			if what, at := illegalSystem(i, v); what != "" {
				return &RouteError{Field: f.field, Reason: ReasonBadMessageID,
					Err: fmt.Errorf("has %s at byte %d, which the hub cannot carry", what, at+1)}
			}
		}
		switch i {
		case fieldMessageID:
			id = v
		case fieldCorrelationID:
			e.CorrelationID = v
		case fieldUserID:
			e.UserID = v
		case fieldContentType:
			e.ContentType = v
		case fieldContentEncoding:
			e.ContentEncoding = v
		}
	}
	if id == "" {
		id = t.defaultID(r, in)
	}
	var original string
	e.MessageID, original = legalMessageID(id)

	b := bag{documented: r.charset, props: props}
	for i := range r.props {
		if p := &r.props[i]; p.value != nil {
			if err := b.setRule(p, s, r.illegal); err != nil {
				return err
			}
		} else {
			b.copyHeaders(in.Header, p, r.explicit)
		}
	}
	b.addTrace(in.Header, r.explicit)
	if original != "" {
		b.addEncoded(propOriginal, original)
	}
	if r.relay {
		b.addEncoded(propSubject, in.Subject)
		if in.Sequence > 0 {
			b.add(propSeq, fmt.Sprint(in.Sequence))
		}
		b.addEncoded(propVia, via(in.Header[propVia], t.name))
	}
	if len(b.enc.b) > 0 {
		b.add(propEnc, b.enc.String())
	}
	if len(b.props) > 0 {
		e.Properties = b.props
	}
	if n := e.Size(); n > MaxMessageSize {
		return tooLarge(n)
	}
	return nil
}

func tooLarge(n int) *RouteError {
	return &RouteError{Field: "message", Reason: ReasonTooLarge,
		Err: fmt.Errorf("has at least %d bytes with its properties; the hub takes %d", n, MaxMessageSize)}
}

// illegalSystem is illegalText for a system property: content type and encoding
// are AMQP symbols, which are ASCII (AMQP 1.0 §1.6.22).
func illegalSystem(field int, v string) (string, int) {
	if field == fieldContentType || field == fieldContentEncoding {
		for i := 0; i < len(v); i++ {
			if v[i] >= 0x80 {
				return "a character outside ASCII", i
			}
		}
	}
	// Outer spaces are no matter for the hub, and the relay encodes them for NATS.
	inner := strings.TrimLeft(v, " ")
	what, at := illegalText(strings.TrimRight(inner, " "), false)
	return what, at + len(v) - len(inner)
}

func (r *route) deviceID(s scope) (string, *RouteError) {
	id, ok, verr := r.device.eval(s)
	if verr != nil {
		return "", &RouteError{Field: "device", Reason: verr.reason, Err: verr.err}
	}
	if !ok {
		return "", &RouteError{Field: "device", Reason: ReasonAbsent, Err: r.device.parts[0].absent().err}
	}
	if err := checkDeviceID(id); err != nil {
		return "", &RouteError{Field: "device", Reason: ReasonBadDevice, Err: err}
	}
	if len(r.allow) > 0 && !slices.ContainsFunc(r.allow, func(p string) bool { return glob(p, id) }) {
		return "", &RouteError{Field: "device", Reason: ReasonNotAllowed,
			Err: fmt.Errorf("%q is not in the route's allow list", id)}
	}
	return id, nil
}

func (t *Table) defaultID(r *route, in *Input) string {
	var buf [160]byte
	b := buf[:0]
	if in.Stream == "" {
		b = t.random.append(b)
	} else {
		b = appendDefaultID(b, in.Stream, in.Sequence, in.Time)
	}
	if r.also { // later routes may send this message too; one at most has no suffix
		b = append(b, ':')
		b = append(b, r.name...)
	}
	return string(b)
}

// cameThrough reports whether Downlink-Via names us.
func cameThrough(h map[string][]string, name string) bool {
	for _, v := range h[propVia] {
		for hop := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(hop) == name {
				return true
			}
		}
	}
	return false
}

// via adds a hop. What is no name of ours is left out.
func via(values []string, name string) string {
	var hops []string
	for _, v := range values {
		for hop := range strings.SplitSeq(v, ",") {
			if hop = strings.TrimSpace(hop); ownName(hop) == nil {
				hops = append(hops, hop)
			}
		}
	}
	return strings.Join(append(hops, name), ", ")
}

// Subjects returns the NATS subjects of the routes for a stream ("": core NATS), in
// order: those that name it, and the drops that name no source where they
// overlap one of those. Pass it to Cover for a consumer's filters.
func (t *Table) Subjects(stream string) []string {
	var named [][]string
	for _, r := range t.bySource[stream] {
		if r.core || r.stream != "" {
			named = append(named, strings.Split(r.pattern.filter, "."))
		}
	}
	var out []string
	for _, r := range t.bySource[stream] {
		if !r.core && r.stream == "" {
			f := strings.Split(r.pattern.filter, ".")
			if !slices.ContainsFunc(named, func(n []string) bool { return overlap(f, n) }) {
				continue
			}
		}
		if !slices.Contains(out, r.pattern.filter) {
			out = append(out, r.pattern.filter)
		}
	}
	return out
}
