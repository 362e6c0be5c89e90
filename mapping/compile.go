package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/expr-lang/expr/types"
)

const (
	defaultName = "downlink"
	maxTTL      = 48 * time.Hour // IoT Hub developer guide, "Cloud-to-device configuration options": defaultTtl at most 2 days
)

// Compile checks routes and makes a Table of them. The error joins a *FieldError
// for every mistake found, with paths such as "routes[2].device".
func Compile(routes []Route, o TableOptions) (*Table, error) {
	c := &compiler{o: o, names: map[string]int{}, seen: map[string]bool{}, actions: map[string]*action{}}
	if c.o.Name == "" {
		c.o.Name = defaultName
	}
	if err := ownName(c.o.Name); err != nil {
		c.fail("name", err)
	}
	for i, h := range o.Hubs {
		if slices.ContainsFunc(o.Hubs[:i], func(e HubOptions) bool { return e.Name == h.Name }) {
			c.fail(fmt.Sprintf("hubs[%d].name", i), fmt.Errorf("%q is used twice; give each hub its own name", h.Name))
		}
	}
	c.templates()
	t := &Table{name: c.o.Name, sources: map[string]*matcher{}, anywhere: &matcher{}, hubs: map[string]HubOptions{}}
	for _, h := range o.Hubs {
		t.hubs[h.Name] = h
	}
	t.random.r = o.Rand
	for _, tmpl := range o.Templates {
		tmpl.Properties = slices.Clone(tmpl.Properties)
		t.templates = append(t.templates, tmpl)
	}
	t.routes = make([]route, len(routes))
	for i := range routes {
		c.route(&t.routes[i], i, &routes[i])
	}
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	for i := range t.routes {
		if r := &t.routes[i]; r.core {
			t.sources[""] = &matcher{}
		} else if r.stream != "" {
			t.sources[r.stream] = &matcher{}
		}
	}
	for i := range t.routes {
		r := &t.routes[i]
		if r.core || r.stream != "" {
			t.sources[r.stream].add(r, int32(i))
			continue
		}
		t.anywhere.add(r, int32(i))
		for _, m := range t.sources {
			m.add(r, int32(i))
		}
	}
	return t, nil
}

// compiler collects mistakes.
type compiler struct {
	o     TableOptions
	names map[string]int // route names and where they are
	errs  []error
	path  string
	seen  map[string]bool // places in templates that have had their error

	actions map[string]*action // what routes share
}

func (c *compiler) fail(path string, err error) {
	c.errs = append(c.errs, &FieldError{Path: path, Err: err})
}

// bad records a mistake in a field of the current route.
func (c *compiler) bad(field, format string, args ...any) {
	c.fail(c.path+"."+field, fmt.Errorf(format, args...))
}

func (c *compiler) route(r *route, i int, rule *Route) {
	c.path = fmt.Sprintf("routes[%d]", i)
	copied := *rule
	copied.Allow, copied.Deny = slices.Clone(rule.Allow), slices.Clone(rule.Deny)
	*r = route{name: rule.Name, also: rule.Also, rest: rule.Default, definition: &definition{drop: rule.Drop, rule: &copied}}
	if r.name == "" {
		r.name = fmt.Sprintf("route-%d", i+1)
	}
	if err := checkRouteName(r.name); err != nil {
		c.bad("name", "%w", err)
	}
	if j, ok := c.names[r.name]; ok {
		c.bad("name", "%q is the name of routes[%d] too; give each route its own", r.name, j)
	}
	c.names[r.name] = i

	subject := rule.Subject
	if subject == "" && rule.Default && rule.Stream != "" {
		subject = ">"
	}
	p, err := parsePattern(subject)
	if err == nil {
		err = checkRouteSubject(p.filter, c.o.Name)
	}
	if err != nil {
		c.bad("subject", "%w", err)
	}
	if p == nil {
		p = &pattern{} // the rest is still checked
	}
	r.pattern, r.action = p, &action{captures: p.captures, drops: rule.Drop != ""}
	c.source(r, rule)
	if rule.When != "" && err == nil {
		var werr error
		if r.when, werr = compileCondition(rule.When, cloudSide(p, c.o)); werr != nil {
			c.bad("when", "%w", werr)
		}
	}
	if rule.Drop != "" {
		c.dropOnly(rule)
		return
	}
	if err != nil {
		c.deliver(r, &copied, p, false)
		return
	}
	key := sameAction(&copied, p)
	if same := c.actions[key]; same != nil {
		r.action = same
	} else {
		before := len(c.errs)
		if c.deliver(r, &copied, p, true); len(c.errs) == before { // else let the next one have its errors too
			c.actions[key] = r.action
		}
	}
}

// sameAction is the same for two rules if and only if they make the same of a message.
func sameAction(rule *Route, p *pattern) string {
	same := *rule
	same.Name, same.Subject, same.Stream, same.Source, same.When, same.Also, same.Default = "", "", "", "", "", false, false
	return fmt.Sprintf("%v %#v", p.captures, same)
}

func checkRouteName(name string) error {
	if len(name) > 128 {
		return fmt.Errorf("has %d bytes; at most 128 are allowed", len(name))
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.TrimSpace(name) != name {
		return fmt.Errorf("%q: must be one line of text without outer spaces", name)
	}
	return nil
}

func (c *compiler) source(r *route, rule *Route) {
	switch {
	case rule.Source != "" && rule.Source != "core":
		c.bad("source", `%q: the only source is "core"; a JetStream stream is named by stream`, rule.Source)
	case rule.Source != "" && rule.Stream != "":
		c.bad("source", `%q and stream %q exclude each other; keep one`, rule.Source, rule.Stream)
	case rule.Source == "" && rule.Stream == "" && rule.Drop == "":
		c.bad("stream", `is missing; name the JetStream stream (stream: COMMANDS, at least once) or say source: core (at most once)`)
	case rule.Stream != "" && (strings.ContainsAny(rule.Stream, `.*>/\`) || tokenChars(rule.Stream) != nil):
		c.bad("stream", `%q is no name of a stream; it has no spaces and none of . * > / \`, rule.Stream)
	}
	r.core = rule.Source == "core"
	r.stream = rule.Stream
}

// dropOnly refuses what a route that drops cannot use.
func (c *compiler) dropOnly(rule *Route) {
	if strings.TrimSpace(rule.Drop) == "" || !utf8.ValidString(rule.Drop) || strings.ContainsFunc(rule.Drop, unicode.IsControl) {
		c.bad("drop", "%q: must be one line of text, the reason", rule.Drop)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"also", rule.Also}, {"hub", rule.Hub != ""}, {"device", rule.Device != ""}, {"devices", rule.Devices != ""}, {"allow", len(rule.Allow) > 0}, {"deny", len(rule.Deny) > 0},
		{"use", len(rule.Use) > 0}, {"priority", rule.Priority != 0}, {"order", rule.Order != ""}, {"coalesce", rule.Coalesce != ""}, {"receipts", rule.Receipts},
		{"message", rule.Message != MessageRule{}}, {"properties", len(rule.Properties) > 0},
		{"illegal_values", rule.IllegalValues != ""}, {"envelope", rule.Envelope != ""},
	} {
		if f.set {
			c.bad(f.name, "has no use in a route that drops; remove it, or drop")
		}
	}
}

// deliver compiles the rest of a route. Without a good subject its captures are
// unknown, so that expressions would only give errors that follow from the first.
func (c *compiler) deliver(r *route, rule *Route, p *pattern, subject bool) {
	r.allow, r.deny = rule.Allow, rule.Deny
	r.ttl, r.maxAge, r.priority, r.receipts = rule.Message.TTL, rule.Message.MaxAge, rule.Priority, rule.Receipts
	choosing, sending := cloudSide(p, c.o), cloudSide(p, c.o)
	sending.addTarget()
	compile := func(text string, names *side, as func(string, *side) (*template, error)) (*template, error) {
		if !subject {
			_, err := scanTemplate(text)
			return nil, err
		}
		return as(text, names)
	}
	value := func(text string) (*template, error) {
		t, err := compile(text, sending, compileTemplate)
		r.perTarget = r.perTarget || t != nil && t.idents["target"]
		return t, err
	}
	tmpl := func(field, text string) *template {
		t, err := value(text)
		if err != nil {
			c.bad(field, "%w", err)
		}
		return t
	}
	choose := func(field, text string, as func(string, *side) (*template, error)) *template {
		t, err := compile(text, choosing, as)
		if err != nil {
			c.bad(field, "%w", err)
		}
		return t
	}
	c.hub(r, rule, tmpl)

	switch {
	case rule.Device != "" && rule.Devices != "":
		c.bad("devices", "is set as well as device; keep one of the two")
	case rule.Devices != "":
		if r.devices = choose("devices", rule.Devices, compileList); r.devices != nil {
			c.devices(r)
		}
	case rule.Device == "":
		c.bad("device", `is missing; give the device ID, such as "{device}", or drop: with a reason`)
	default:
		if r.device = choose("device", rule.Device, compileTemplate); r.device != nil {
			c.device(r)
		}
	}
	for _, list := range [...]struct {
		field    string
		patterns []string
	}{{"allow", rule.Allow}, {"deny", rule.Deny}} {
		for i, a := range list.patterns {
			if a == "" || !inClass(a, classID) {
				c.bad(fmt.Sprintf("%s[%d]", list.field, i), `%q can match no device ID; use a pattern such as "berlin-*"`, a)
			}
		}
	}

	m := &rule.Message
	for i, text := range [...]string{m.MessageID, m.CorrelationID, m.UserID, m.ContentType, m.ContentEncoding} {
		if text == "" {
			continue
		}
		t := tmpl(fieldNames[i], text)
		r.fields[i] = t
		if t == nil || i == fieldMessageID {
			continue
		}
		if text, ok := t.literal(); ok {
			if what, at := illegalSystem(i, text); what != "" {
				c.bad(fieldNames[i], "%q: has %s at byte %d, which the hub cannot carry", text, what, at+1)
			}
		}
	}
	switch {
	case m.TTL < 0:
		c.bad("message.ttl", "%s is negative; give a duration such as 1h", DurationText(m.TTL))
	case m.TTL > maxTTL:
		c.bad("message.ttl", "%s is more than the hub keeps a message; at most %s", DurationText(m.TTL), DurationText(maxTTL))
	}
	if m.MaxAge < 0 {
		c.bad("message.max_age", "%s is negative; give a duration such as 10m", DurationText(m.MaxAge))
	}
	switch rule.Order {
	case "", "device":
	case "none":
		r.unordered = true
	default:
		c.bad("order", "%q: must be device or none", rule.Order)
	}
	if rule.Coalesce != "" {
		r.coalesce = tmpl("coalesce", rule.Coalesce)
	}
	switch m.Ack {
	case "", "none":
	case string(AckPositive), string(AckNegative), string(AckFull):
		r.ack = Ack(m.Ack)
	default:
		c.bad("message.ack", "%q: must be none, positive, negative or full", m.Ack)
	}

	c.properties(r, rule, value)
	switch rule.IllegalValues {
	case "", "dead":
	case "encode":
		r.illegal = illegalEncode
	case "omit":
		r.illegal = illegalOmit
	default:
		c.bad("illegal_values", "%q: must be encode, omit or dead", rule.IllegalValues)
	}
	switch rule.Envelope {
	case "", "plain":
	case "relay":
		r.relay = true
	default:
		c.bad("envelope", "%q: must be plain or relay", rule.Envelope)
	}
}

// hub finds the route's hub, or compiles the expression that chooses one.
func (c *compiler) hub(r *route, rule *Route, tmpl func(field, text string) *template) {
	if rule.Hub == "" {
		if len(c.o.Hubs) > 0 {
			r.setHub(c.o.Hubs[0])
		}
		return
	}
	for _, h := range c.o.Hubs {
		if h.Name == rule.Hub {
			r.setHub(h)
			return
		}
	}
	if strings.Contains(rule.Hub, "{") {
		r.chooseHub = tmpl("hub", rule.Hub)
		if hint := doubledBraces(rule.Hub); hint != "" && r.chooseHub != nil {
			c.bad("hub", "%s", hint) // braces are in no hub's name
		}
		for _, h := range c.o.Hubs {
			r.charset = r.charset || h.DocumentedCharset // explicit names must do for each
		}
		return
	}
	c.bad("hub", "%q is not among the hubs: %s", rule.Hub, hubNames(c.o.Hubs))
}

func (r *route) setHub(h HubOptions) { r.hub, r.charset = h.Name, h.DocumentedCharset }

func hubNames(hubs []HubOptions) string {
	var names []string
	for _, h := range hubs {
		names = append(names, fmt.Sprintf("%q", h.Name))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// devices checks what of a list of devices is known at load.
func (c *compiler) devices(r *route) {
	if hint := doubledBraces(r.rule.Devices); hint != "" {
		c.bad("devices", "%s", hint) // braces are in no device ID
		return
	}
	if text, ok := r.devices.literal(); ok {
		ids := splitDevices(text)
		if len(ids) == 0 {
			c.bad("devices", "%q names no device", text)
		}
		for _, id := range ids {
			if err := checkDeviceID(id); err != nil {
				c.bad("devices", "%q: %w", id, err)
			} else if !r.allowed(id) {
				c.bad("devices", "%q is not among the devices that the route allows", id)
			}
		}
		return
	}
	c.needsAllow(r, "devices", r.devices)
}

func (c *compiler) device(r *route) {
	if text, ok := r.device.literal(); ok {
		if hint := doubledBraces(r.rule.Device); hint != "" {
			c.bad("device", "%s", hint) // which also tells why the rest of it is no device ID
		} else if err := checkDeviceID(text); err != nil {
			c.bad("device", "%q: %w", text, err)
		} else if !r.allowed(text) {
			c.bad("device", "%q is not among the devices that the route allows", text)
		}
		return
	}
	for _, p := range r.device.parts {
		if p.kind != partText || inClass(p.text, classID) {
			continue
		}
		if hint := doubledBraces(r.rule.Device); hint != "" {
			c.bad("device", "%s", hint)
		} else {
			c.bad("device", "%q: %q is not legal in a device ID; legal are ASCII letters, digits and - : . + %% _ # * ? ! ( ) , = @ ; $ '", r.rule.Device, p.text)
		}
		break
	}
	c.needsAllow(r, "device", r.device)
}

// The names whose values the publisher chooses freely.
var (
	headerNames  = []string{"header", "headers", "cloudevent"}
	payloadNames = []string{"payload", "json"}
)

func (c *compiler) needsAllow(r *route, field string, t *template) {
	for _, id := range slices.Concat(headerNames, payloadNames) {
		if t.idents[id] && len(r.allow) == 0 {
			c.bad("allow", `is missing: %s depends on %s, which the publisher chooses; list the devices that the route may reach, such as allow: ["berlin-*"], or ["*"] for all`, field, id)
			break
		}
	}
}

// cloudSide is what a route's expressions can name.
func cloudSide(p *pattern, o TableOptions) *side {
	s := &side{
		hasTables: true, tableNames: o.LookupNames, tables: o.Lookups,
		env: types.Map{
			"subject": types.String, "header": types.TypeOf(map[string]any{}), "payload": types.String, "json": types.Any,
			"stream": types.Any, "sequence": types.Int, "time": types.TypeOf(time.Time{}), "cloudevent": types.TypeOf(map[string]any{}),
			"headers": types.TypeOf(map[string][]string{}),
		},
		simple: map[string]ref{
			"subject": {kind: refSubject}, "stream": {kind: refStream}, "payload": {kind: refPayload},
		},
		lookups: map[string]refKind{"header": refHeader, "cloudevent": refEvent},
	}
	for i, c := range p.captures {
		s.env[c.name] = types.String
		s.simple[c.name] = ref{kind: refCapture, index: i}
	}
	return s
}

// addTarget adds the device that is sent to, which is known once it is chosen.
func (s *side) addTarget() {
	s.env["target"] = types.String
	s.simple["target"] = ref{kind: refTarget}
}
