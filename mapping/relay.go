package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr/types"
)

// The headers of a publication beside the application properties. Subject, Seq
// and Via are the properties of the same names.
const (
	headerDevice          = "Downlink-Device"
	headerMessageID       = "Downlink-Message-Id"
	headerCorrelationID   = "Downlink-Correlation-Id"
	headerUserID          = "Downlink-User-Id"
	headerContentType     = "Downlink-Content-Type"
	headerContentEncoding = "Downlink-Content-Encoding"
	headerExpires         = "Downlink-Expires"
	headerEnc             = "Downlink-Enc"
	headerNull            = "Downlink-Null"
	headerInert           = "Downlink-Prop-"
)

// relayRoute is the Route of a relay's errors.
const relayRoute = "relay"

// maxSubject bounds a subject: nats-server closes a connection whose PUB line,
// reply subject included, is over 4096 bytes (max_control_line).
const maxSubject = 2048

// RelayMap is the compiled mapping of the device side. It is immutable: Map is safe for concurrent use.
type RelayMap struct {
	name    string
	source  string    // the template's text
	subject *template // nil: the default
	uses    bool      // the template splices the original subject
	allow   [][]string
	covers  []string // see Subjects
}

// relaySide is what a relay's expressions can name.
var relaySide = &side{
	splice: true,
	env: types.Map{
		"device": types.String, "property": types.TypeOf(map[string]any{}), "subject": types.Any,
		"message": types.Map{
			"id": types.Any, "correlation_id": types.Any, "user_id": types.Any, "content_type": types.Any,
			"content_encoding": types.Any, "to": types.Any, "expires": types.Any, "ack": types.Any,
		},
	},
	simple:  map[string]ref{"device": {kind: refDevice}, "subject": {kind: refSubject}},
	lookups: map[string]refKind{"property": refProperty, "message": refMessage},
}

// CompileRelay checks the options and makes a RelayMap of them. The error joins
// a *FieldError for every mistake found, with paths such as "publish.subject".
func CompileRelay(o RelayOptions) (*RelayMap, error) {
	m := &RelayMap{name: o.Name, source: o.Subject, covers: []string{"edge.>"}} // of the default subject
	var errs []error
	bad := func(path string, err error) { errs = append(errs, &FieldError{Path: path, Err: err}) }
	if m.name == "" {
		m.name = defaultName
	}
	if err := ownName(m.name); err != nil {
		bad("name", err)
	}
	for i, s := range o.AllowSubjects {
		if err := m.addAllowed(s); err != nil {
			bad(fmt.Sprintf("allow_subjects[%d]", i), err)
		}
	}
	if o.Subject == "" {
		if err := m.checkFirst("edge"); err != nil {
			bad("publish.subject", fmt.Errorf("the default, edge.{device}: %w", err))
		}
	} else {
		if err := m.setSubject(o.Subject, len(o.AllowSubjects) > 0); err != nil {
			bad("publish.subject", err)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return m, nil
}

func (m *RelayMap) addAllowed(s string) error {
	if strings.ContainsAny(s, "{}") {
		return fmt.Errorf("%q: has a capture; use * and >", s)
	}
	p, err := parsePattern(s)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(p.filter, ".")
	if err := m.checkFirst(first); err != nil {
		return fmt.Errorf("%q: %w", s, err)
	}
	m.allow = append(m.allow, strings.Split(p.filter, "."))
	return nil
}

func (m *RelayMap) setSubject(text string, allowed bool) error {
	t, err := compileTemplate(text, relaySide)
	if err != nil {
		return err
	}
	// What the text alone decides: each expression stands for one legal byte.
	const hole = "\x00"
	var b strings.Builder
	for i := range t.parts {
		p := &t.parts[i]
		if p.kind == partText {
			b.WriteString(p.text)
			continue
		}
		b.WriteString(hole)
		if p.splice && slices.Contains(p.prog.reads, "subject") {
			m.uses = true
		}
	}
	for i, tok := range strings.Split(b.String(), ".") {
		plain := strings.ReplaceAll(tok, hole, "")
		switch {
		case tok == "":
			return fmt.Errorf("%q: token %d is empty; remove the extra dot", text, i+1)
		case strings.ContainsAny(plain, "*>"):
			return fmt.Errorf("%q: has a wildcard; a message is published to one subject", text)
		}
		if err := tokenChars(plain); err != nil {
			return fmt.Errorf("%q: token %d %w", text, i+1, err)
		}
		if i > 0 {
			continue
		}
		if plain == tok || strings.HasPrefix(tok, "$") {
			if err := m.checkFirst(tok); err != nil {
				return fmt.Errorf("%q: %w", text, err)
			}
		}
	}
	if m.uses && !allowed {
		return fmt.Errorf("%q: splices the original subject, which the sender chooses; say in allow_subjects which ones it may be, or write {subject} for one encoded token", text)
	}
	m.subject = t
	m.covers = []string{coverOf(strings.Split(b.String(), "."), hole)}
	return nil
}

// coverOf is the subject with wildcards that takes whatever a template yields: its
// text up to the first token with an expression, which may splice several tokens.
func coverOf(tokens []string, hole string) string {
	for i, tok := range tokens {
		if strings.Contains(tok, hole) {
			return strings.Join(append(slices.Clone(tokens[:i]), ">"), ".")
		}
	}
	return strings.Join(tokens, ".")
}

// Subjects returns subjects with wildcards that cover all that Map can publish to,
// none of them a subset of another: what a stream must store.
func (m *RelayMap) Subjects() []string {
	all := slices.Clone(m.covers)
	for _, a := range m.allow {
		all = append(all, strings.Join(a, "."))
	}
	return Cover(all, len(all))
}

// checkFirst refuses a first token that leads to NATS itself or to our own subjects.
func (m *RelayMap) checkFirst(tok string) error {
	switch {
	case strings.HasPrefix(tok, "$") || tok == "_INBOX":
		return errors.New("subjects under $… and _INBOX belong to NATS itself")
	case tok == m.name:
		other := "edge"
		if m.name == other {
			other = "site"
		}
		return fmt.Errorf("subjects under %s belong to the relay of that name; begin with another token, such as %s, or rename the relay", m.name, other)
	}
	return nil
}

// checkSubject says why nothing may be published to a subject.
func (m *RelayMap) checkSubject(s string) error {
	if len(s) > maxSubject {
		return fmt.Errorf("has %d bytes; at most %d are allowed", len(s), maxSubject)
	}
	first := true
	for tok := range strings.SplitSeq(s, ".") {
		if tok == "" {
			return errors.New("has an empty token")
		}
		if strings.ContainsAny(tok, "*>") {
			return errors.New("has a wildcard")
		}
		if err := tokenChars(tok); err != nil {
			return err
		}
		if first {
			if err := m.checkFirst(tok); err != nil {
				return err
			}
			first = false
		}
	}
	return nil
}

// received is one C2D message as the relay's template sees it, its encoding undone.
type received struct {
	c        *C2D
	props    []Property // the application's, and inert ones
	subject  string
	seq      string
	via      string
	original string
	m        machine
}

func (r *received) machine() *machine { return &r.m }

func readC2D(c *C2D) *received {
	r := &received{c: c, props: make([]Property, 0, len(c.Properties))}
	var list map[string]bool
	for i := range c.Properties {
		if p := &c.Properties[i]; p.Name == propEnc && !p.Null {
			list = parseEncList(p.Value)
			break
		}
	}
	for _, p := range c.Properties {
		if p.Name == propEnc && list != nil {
			continue
		}
		if name, ok := list[p.Name]; ok {
			p = undo(p, name)
		}
		if !p.Null && r.takeOwn(p) {
			continue
		}
		r.props = append(r.props, p)
	}
	return r
}

// undo decodes a listed property; what does not decode stays as it came.
func undo(p Property, name bool) Property {
	v, ok := percentDecode(p.Value)
	n := p.Name
	if ok && name {
		n, ok = percentDecode(p.Name)
		ok = ok && n != ""
	}
	if ok {
		p.Name, p.Value = n, v
	}
	return p
}

// takeOwn takes a property that a bridge adds; false if it is not one, or not as a bridge writes it.
func (r *received) takeOwn(p Property) bool {
	var to *string
	switch p.Name {
	case propSubject:
		to = &r.subject
	case propSeq:
		if p.Value == "" || strings.Trim(p.Value, "0123456789") != "" {
			return false
		}
		to = &r.seq
	case propVia:
		if via([]string{p.Value}, "x") != p.Value+", x" {
			return false
		}
		to = &r.via
	case propOriginal:
		to = &r.original
	default:
		return false
	}
	if *to != "" || p.Value == "" {
		return false
	}
	*to = p.Value
	return true
}

// property returns a property's one value: several are joined by ", ". False: absent, or null.
func (r *received) property(name string) (string, bool) {
	var values []string
	for i := range r.props {
		if p := &r.props[i]; p.Name == name && !p.Null {
			values = append(values, p.Value)
		}
	}
	return strings.Join(values, ", "), len(values) > 0
}

func (r *received) message(field string) string {
	switch field {
	case "id":
		return r.c.MessageID
	case "correlation_id":
		return r.c.CorrelationID
	case "user_id":
		return r.c.UserID
	case "content_type":
		return r.c.ContentType
	case "content_encoding":
		return r.c.ContentEncoding
	case "to":
		return r.c.To
	case "expires":
		return r.c.Expires
	case "ack":
		return r.c.Ack
	}
	return ""
}

func (r *received) ref(f *ref) (string, bool) {
	switch f.kind {
	case refDevice:
		return r.c.Device, true
	case refProperty:
		return r.property(f.name)
	case refMessage:
		v := r.message(f.name)
		return v, v != ""
	case refSubject:
		return r.subject, r.subject != ""
	}
	return "", false
}

func (r *received) name(id string) (any, error) {
	text := func(v string) any {
		if v == "" {
			return nil
		}
		return v
	}
	switch id {
	case "device":
		return r.c.Device, nil
	case "subject":
		return text(r.subject), nil
	case "property":
		lists := make(map[string][]string, len(r.props))
		for i := range r.props {
			if p := &r.props[i]; !p.Null {
				lists[p.Name] = append(lists[p.Name], p.Value)
			}
		}
		m := make(map[string]any, len(lists))
		for name, values := range lists {
			m[name] = strings.Join(values, ", ")
		}
		return m, nil
	case "message":
		m := map[string]any{}
		for field := range relaySide.env["message"].(types.Map) {
			m[field] = text(r.message(field))
		}
		return m, nil
	}
	return nil, nil
}

// Map makes the publication of a C2D message. The error is a *RouteError with
// ReasonAbsent, ReasonExpression, ReasonBadSubject or ReasonNotAllowed: the
// message can never be published. The publication's Data aliases c.Body.
func (m *RelayMap) Map(c *C2D) (Publication, error) {
	r := readC2D(c)
	subject, err := m.subjectFor(r)
	if err != nil {
		return Publication{}, err
	}
	return Publication{Subject: subject, Header: m.header(r), Data: c.Body, ID: publicationID(c)}, nil
}

func (m *RelayMap) subjectFor(r *received) (string, error) {
	fail := func(reason Reason, err error) error {
		return &RouteError{Route: relayRoute, Field: "publish.subject", Reason: reason, Err: err}
	}
	if !m.uses && m.allowed(r.subject) {
		return r.subject, nil
	}
	var subject string
	if m.subject == nil {
		subject = "edge." + SubjectToken(r.c.Device)
		if verb, _ := r.property("verb"); verb != "" {
			subject += "." + SubjectToken(verb)
		}
	} else {
		var err *valueError
		var ends []int
		if subject, ends, err = m.eval(r); err != nil {
			return "", fail(err.reason, err.err)
		}
		if err := m.emptyToken(subject, ends); err != nil {
			return "", fail(ReasonBadSubject, err)
		}
	}
	if err := m.checkSubject(subject); err != nil {
		return "", fail(ReasonBadSubject, err)
	}
	if m.uses && r.subject != "" && !m.allowed(r.subject) {
		return "", fail(ReasonNotAllowed, errors.New("the original subject is not in allow_subjects"))
	}
	return subject, nil
}

// allowed reports whether the message's own subject may be published under.
func (m *RelayMap) allowed(subject string) bool {
	return subject != "" && len(m.allow) > 0 && m.checkSubject(subject) == nil &&
		slices.ContainsFunc(m.allow, func(p []string) bool { return matchSubject(p, subject) })
}

// eval writes the subject: each value one token, or spliced. It also tells where each part of the template ends in it.
func (m *RelayMap) eval(r *received) (string, []int, *valueError) {
	var b strings.Builder
	ends := make([]int, 0, len(m.subject.parts))
	for i := range m.subject.parts {
		p := &m.subject.parts[i]
		v, ok, err := p.eval(r)
		switch {
		case err != nil:
			return "", nil, err
		case !ok:
			return "", nil, p.absent()
		case p.kind == partText || p.splice:
			b.WriteString(v)
		default:
			b.WriteString(SubjectToken(v))
		}
		ends = append(ends, b.Len())
	}
	return b.String(), ends, nil
}

// emptyToken finds a token without a letter, and which part of the template left it so.
func (m *RelayMap) emptyToken(subject string, ends []int) error {
	at := 0
	for tok := range strings.SplitSeq(subject, ".") {
		if tok != "" {
			at += len(tok) + 1
			continue
		}
		begin := 0
		for i, end := range ends {
			p := &m.subject.parts[i]
			switch {
			case p.kind == partText || at < begin || at > end:
			case begin < end:
				return fmt.Errorf("has an empty token within the value of {%s...}", p.text)
			default:
				return fmt.Errorf("has an empty token, since {%s} is empty; ?? replaces only what is absent: write {VALUE in [nil, \"\"] ? \"none\" : VALUE}", p.text)
			}
			begin = end
		}
	}
	return nil
}
