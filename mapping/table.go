package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Table is a compiled list of routes. It is immutable: all methods are safe for concurrent use.
type Table struct {
	name     string
	routes   []route             // all, in order
	sources  map[string]*matcher // what a stream's messages ("": core NATS) may match
	anywhere *matcher            // what messages of any other stream may match: drops that name no source
	hubs     map[string]HubOptions

	templates []Template // for warnings
	random    randomID
	scopes    sync.Pool
}

// route is a Route, compiled.
type route struct {
	*action
	name string
	when *condition // nil: always
	also bool
	rest bool // default: for what no other route took
	core bool
	*definition
}

// definition is what of a route its messages need not look at.
type definition struct {
	drop    string
	stream  string
	pattern *pattern
	rule    *Route
}

// action is what a route makes of a message. Routes that differ in their subjects and names
// alone share one: it is compiled once, and near when it is needed.
type action struct {
	captures  []capture
	drops     bool // and the rest is not set
	hub       string
	chooseHub *template // or an expression
	device    *template
	devices   *template // or several
	perTarget bool      // something but the device depends on target
	allow     []string
	deny      []string
	fields    [len(fieldNames)]*template // nil: not set
	ttl       time.Duration
	maxAge    time.Duration
	priority  int
	receipts  bool
	ack       Ack
	unordered bool
	coalesce  *template // nil: not coalesced
	props     []propRule
	explicit  []string // names of the explicit properties
	illegal   illegalAction
	relay     bool // envelope: relay
	charset   bool // the hub's documented one only
}

// The system properties that a template sets.
const (
	fieldMessageID = iota
	fieldCorrelationID
	fieldUserID
	fieldContentType
	fieldContentEncoding
)

var fieldNames = [...]string{"message.message_id", "message.correlation_id", "message.user_id", "message.content_type", "message.content_encoding"}

// Map returns what each matching route makes of the message, in order: the
// first match, and after a route with also: true the next one too. It returns
// nothing if no route takes the message. A route with devices gives one result a
// device, and one alone if it has none. The envelopes' Body aliases in.Payload.
func (t *Table) Map(in *Input) []Result {
	m := t.sources[in.Stream]
	if m == nil {
		m = t.anywhere
	}
	if reserved(in.Subject, t.name) {
		return nil
	}
	s, _ := t.scopes.Get().(*cloudScope)
	if s == nil {
		s = &cloudScope{offs: make([]int, 0, 16)}
	}
	s.in = in
	s.offs = splitSubject(in.Subject, s.offs[:0])
	results := t.walk(&m.main, s)
	if len(results) == 0 {
		results = t.walk(&m.rest, s)
	}
	s.reset()
	t.scopes.Put(s)
	return results
}

// walk applies the routes that take the message, until one that does not say also.
func (t *Table) walk(routes *trie, s *cloudScope) []Result {
	var results []Result
	for i := int32(-1); ; {
		if i = routes.next(s.in.Subject, s.offs, i); i == noRoute {
			return results
		}
		r := &t.routes[i]
		s.route = r
		takes, err := r.takes(s)
		switch {
		case err != nil:
			results = append(results, t.undecided(r, s, err))
		case takes:
			results = t.apply(r, s, results)
		default:
			continue
		}
		if !r.also {
			return results
		}
	}
}

// takes reports whether the route's condition holds.
func (r *route) takes(s *cloudScope) (bool, *RouteError) {
	if r.when == nil {
		return true, nil
	}
	if s.in.BadHeader && r.when.header {
		return false, r.badHeaders()
	}
	ok, err := r.when.holds(s)
	if err != nil {
		return false, &RouteError{Route: r.name, Field: "when", Reason: err.reason, Err: err.err}
	}
	return ok, nil
}

// undecided is what becomes of a message whose condition failed. To go on to a later
// route would send it where it may not belong.
func (t *Table) undecided(r *route, s *cloudScope, err *RouteError) Result {
	if cameThrough(s.in.Header, t.name) {
		return t.ended(r, s, Result{Route: r.name, Drop: string(ReasonLoop)})
	}
	return t.ended(r, s, Result{Route: r.name, Err: err})
}

// apply adds what a route that matches makes of the message.
func (t *Table) apply(r *route, s *cloudScope, results []Result) []Result {
	switch {
	case r.drops:
		return append(results, t.ended(r, s, Result{Route: r.name, Drop: r.drop}))
	case r.devices != nil:
		return t.several(r, s, results)
	}
	m := &mapped{}
	if results == nil {
		results = m.results[:0]
	}
	return append(results, t.one(r, s, m))
}

// mapped is what nearly every message needs, in one allocation.
type mapped struct {
	results  [1]Result
	envelope Envelope
	props    [4]Property
}

func (t *Table) one(r *route, s *cloudScope, m *mapped) Result {
	res := Result{Route: r.name}
	if res.Drop, res.Err = t.before(r, s); res.Drop != "" || res.Err != nil {
		if res.Err != nil && !r.device.reads(payloadNames) && !(s.in.BadHeader && r.device.reads(headerNames)) {
			res.Device, _ = r.deviceID(s) // or nobody would find it who asks what became of the device's messages
		}
		return t.ended(r, s, res)
	}
	var err *RouteError
	if res.Device, err = r.deviceID(s); err == nil {
		err = t.fill(&m.envelope, m.props[:0], r, s, res.Device)
	}
	if err != nil {
		return t.failed(r, s, res, err)
	}
	res.Envelope = &m.envelope
	return res
}

func (t *Table) failed(r *route, s *cloudScope, res Result, err *RouteError) Result {
	err.Route = r.name
	res.Err = err
	return t.ended(r, s, res)
}

// ended adds who wants to know of a message that ends here.
func (t *Table) ended(r *route, s *cloudScope, res Result) Result {
	replyTo, asked := t.replyTo(r, s.in)
	if asked || r.receipts || r.ack != AckNone {
		res.Asked = &Asked{ReplyTo: replyTo}
	}
	return res
}

// before finds what keeps a message from every device, before any expression looks at it.
func (t *Table) before(r *route, s *cloudScope) (drop string, err *RouteError) {
	if cameThrough(s.in.Header, t.name) {
		return string(ReasonLoop), nil
	}
	if s.in.BadHeader {
		return "", r.badHeaders()
	}
	if n := len(s.in.Payload); n > MaxMessageSize {
		err = tooLarge(n)
		err.Route = r.name
	}
	return "", err
}

// badHeaders is for a message whose headers cannot be read: without them it would be taken for one that has none.
func (r *route) badHeaders() *RouteError {
	return &RouteError{Route: r.name, Field: "header", Reason: ReasonBadHeader,
		Err: errors.New("the headers cannot be read; each is one line, a name, a colon and a value")}
}

// fill makes the envelope for a device; props is empty room for its properties.
func (t *Table) fill(e *Envelope, props []Property, r *route, s *cloudScope, device string) *RouteError {
	in := s.in
	s.target = device
	e.Route, e.Hub, e.Device, e.Ack, e.Body = r.name, r.hub, device, r.ack, in.Payload
	documented := r.charset
	if r.chooseHub != nil {
		h, err := t.hub(r, s)
		if err != nil {
			return err
		}
		e.Hub, documented = h.Name, h.DocumentedCharset
	}
	if err := t.deliver(r, e, s); err != nil {
		return err
	}
	id := ""
	for i := range r.fields {
		f := r.fields[i]
		if f == nil {
			continue
		}
		v, _, verr := f.eval(s)
		if verr != nil {
			return &RouteError{Field: fieldNames[i], Reason: verr.reason, Err: verr.err}
		}
		if i != fieldMessageID {
			if what, at := illegalSystem(i, v); what != "" {
				return &RouteError{Field: fieldNames[i], Reason: ReasonBadMessageID,
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

	b := bag{documented: documented, props: props}
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
	return checkSize(e)
}

// checkSize refuses before the wire what can never get to its device.
func checkSize(e *Envelope) *RouteError {
	n := e.Size()
	if n > MaxMessageSize {
		return tooLarge(n)
	}
	if n-len(e.Body) < MaxTopic/6 { // at most five bytes for one, and some hundred for all
		return nil
	}
	if n := e.TopicSize(); n > MaxTopic {
		return &RouteError{Field: "message", Reason: ReasonTooLarge,
			Err: fmt.Errorf("has properties that make an MQTT topic of %d bytes; a topic has at most %d", n, MaxTopic)}
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
	if err := r.checkDevice("device", id); err != nil {
		if err.Reason == ReasonBadDevice {
			id = "" // it may be anything
		}
		return id, err
	}
	return id, nil
}

// checkDevice is what every device must pass, however it was chosen.
func (r *route) checkDevice(field, id string) *RouteError {
	if err := checkDeviceID(id); err != nil {
		return &RouteError{Field: field, Reason: ReasonBadDevice, Err: err}
	}
	if !r.allowed(id) {
		return &RouteError{Field: field, Reason: ReasonNotAllowed, Err: fmt.Errorf("%q is not among the devices that the route allows", id)}
	}
	return nil
}

func (r *route) allowed(id string) bool {
	matches := func(p string) bool { return glob(p, id) }
	return (len(r.allow) == 0 || slices.ContainsFunc(r.allow, matches)) && !slices.ContainsFunc(r.deny, matches)
}

// hub is the one that the route's expression chooses.
func (t *Table) hub(r *route, s scope) (HubOptions, *RouteError) {
	name, ok, verr := r.chooseHub.eval(s)
	switch {
	case verr != nil:
		return HubOptions{}, &RouteError{Field: "hub", Reason: verr.reason, Err: verr.err}
	case !ok:
		return HubOptions{}, &RouteError{Field: "hub", Reason: ReasonAbsent, Err: r.chooseHub.parts[0].absent().err}
	}
	h, ok := t.hubs[name]
	if !ok {
		return HubOptions{}, &RouteError{Field: "hub", Reason: ReasonUnknownHub, Err: errors.New("names none of the configured hubs")}
	}
	return h, nil
}

func (t *Table) defaultID(r *route, in *Input) string {
	var buf [160]byte
	b := buf[:0]
	if in.Stream == "" {
		b = t.random.append(b)
	} else {
		b = appendDefaultID(b, in.Stream, in.Sequence, in.Time)
	}
	if r.also || r.devices != nil { // later routes may send this message too; one at most has no suffix
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
// order: those that name it, and then the drops that name no source where they
// overlap one of those. Pass it to Cover for a consumer's filters.
func (t *Table) Subjects(stream string) []string {
	m := t.sources[stream]
	if m == nil {
		return nil
	}
	return m.subjects()
}
