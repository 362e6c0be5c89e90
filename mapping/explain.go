package mapping

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Explanation is how a Table came to its results for one message. Unlike errors
// and results, it shows values from the message.
type Explanation struct {
	// Note says why no route is tried at all; "" if they are.
	Note string `json:"note,omitempty"`
	// Routes has every route, in order.
	Routes []Tried `json:"routes"`
	// Results are those of Map. For what an envelope takes of the hub's MaxMessageSize, see its Size.
	Results []Result `json:"-"`
}

// Tried is one route as one message met it.
type Tried struct {
	Route   string `json:"route"`
	Subject string `json:"subject,omitempty"`
	Matched bool   `json:"matched"`
	Why     string `json:"why,omitempty"` // why it did not match, one line
	// Captures are what the subject's captures took, in order, if the subject is the route's.
	Captures []Named `json:"captures,omitempty"`
	// Condition is what the route's when gave: true, false, or an error, which makes the message the route's.
	Condition *Value `json:"condition,omitempty"`
	// Values has every expression of a route that matched and delivers, in the order of its fields. For a group: with the
	// first device that has an envelope as the target.
	Values []Value `json:"values,omitempty"`
}

// Named is a name with its value.
type Named struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Value is what one expression gave. Exactly one of Text, List, Absent and Err says it.
type Value struct {
	Field      string   `json:"field"` // such as "device", "properties[1].value"
	Expression string   `json:"expression"`
	Text       *string  `json:"text,omitempty"`
	List       []string `json:"list,omitempty"`
	Absent     bool     `json:"absent,omitempty"` // nil
	Err        string   `json:"error,omitempty"`
}

// Explain is Map with the reasons. It is for people who look at one message, and
// takes its time.
func (t *Table) Explain(in *Input) *Explanation {
	x := &Explanation{}
	if reserved(in.Subject, t.name) {
		x.Note = "subjects under $… and _INBOX, and the bridge's own, never match"
	}
	s := &cloudScope{in: in, offs: splitSubject(in.Subject, nil)}
	x.Routes = make([]Tried, len(t.routes))
	taken := ""
	for _, rest := range []bool{false, true} {
		if rest && taken == "" && len(x.Results) > 0 {
			taken = x.Results[0].Route
		}
		for i := range t.routes {
			r := &t.routes[i]
			if r.rest != rest {
				continue
			}
			x.Routes[i] = Tried{Route: r.name, Subject: r.rule.Subject}
			switch {
			case x.Note != "":
				x.Routes[i].Why = "not tried"
			case taken != "":
				x.Routes[i].Why = "not tried: " + taken + " took the message"
			case t.try(r, s, x, &x.Routes[i]) && !r.also:
				taken = r.name
			}
		}
	}
	return x
}

// Sources returns where a message of this subject, headers and payload would have to come from for
// a route to take it, in the order of the routes: names of streams, and "" for core NATS. A default route counts
// only if no other takes it; if none does, those count whose subject alone is the
// message's. Routes that name no source say nothing of it. in.Stream does not matter.
func (t *Table) Sources(in *Input) []string {
	if reserved(in.Subject, t.name) {
		return nil
	}
	probe := *in
	s := &cloudScope{in: &probe, offs: splitSubject(in.Subject, nil)}
	for _, takes := range []func(*route) bool{
		func(r *route) bool { return !r.rest && r.wants(s) },
		func(r *route) bool { return r.rest && r.wants(s) },
		func(*route) bool { return true },
	} {
		var list []string
		for i := range t.routes {
			r := &t.routes[i]
			if r.stream == "" && !r.core || slices.Contains(list, r.stream) {
				continue
			}
			probe.Stream = r.stream
			if r.whyNot(s) == "" && takes(r) {
				list = append(list, r.stream)
			}
		}
		if len(list) > 0 {
			return list
		}
	}
	return nil
}

// wants is takes of a route whose subject is the message's; a condition that fails makes the message the route's.
func (r *route) wants(s *cloudScope) bool {
	s.route = r
	takes, err := r.takes(s)
	return takes || err != nil
}

// try reports whether a route takes the message.
func (t *Table) try(r *route, s *cloudScope, x *Explanation, tried *Tried) bool {
	if tried.Why = r.whyNot(s); tried.Why != "" {
		return false
	}
	s.route = r
	tried.Captures = r.captured(s)
	if r.when != nil {
		tried.Condition = &Value{Field: "when", Expression: oneLine(r.rule.When)}
		takes, err := r.takes(s)
		if err != nil {
			tried.Condition.Err = strings.TrimPrefix(err.Err.Error(), "{"+oneLine(r.rule.When)+"}: ")
			tried.Matched = true
			x.Results = append(x.Results, t.undecided(r, s, err))
			return true
		}
		text := strconv.FormatBool(takes)
		tried.Condition.Text = &text
		if !takes {
			tried.Why = "when is not true"
			return false
		}
	}
	tried.Matched = true
	x.Results = t.apply(r, s, x.Results)
	if !r.drops {
		s.target = firstTarget(x.Results, r.name)
		tried.Values = r.values(s)
	}
	return true
}

// whyNot says why a route does not take a message; "" if it does.
func (r *route) whyNot(s *cloudScope) string {
	switch in := s.in; {
	case r.core && in.Stream != "":
		return "takes core NATS, not stream " + in.Stream
	case r.stream != "" && in.Stream == "":
		return "takes stream " + r.stream + ", not core NATS"
	case r.stream != "" && in.Stream != r.stream:
		return "takes stream " + r.stream + ", not " + in.Stream
	}
	return r.pattern.mismatch(s.in.Subject, s.offs)
}

// mismatch says where a subject is not the pattern's; "" if it is.
func (p *pattern) mismatch(subject string, offs []int) string {
	n := len(offs) - 1
	for i := range p.tokens {
		t := &p.tokens[i]
		if i >= n {
			return fmt.Sprintf("the subject has %d tokens, the route's more", n)
		}
		if t.kind == tokenRest {
			return ""
		}
		if tok := subject[offs[i] : offs[i+1]-1]; t.kind == tokenText && tok != t.text {
			return fmt.Sprintf("token %d is %q, not %q", i+1, tok, t.text)
		}
	}
	if n > len(p.tokens) {
		return fmt.Sprintf("the subject has %d tokens, the route's %d", n, len(p.tokens))
	}
	return ""
}

func (r *route) captured(s *cloudScope) []Named {
	var list []Named
	for _, c := range r.captures {
		list = append(list, Named{c.name, c.of(s.in.Subject, s.offs)})
	}
	return list
}

func firstTarget(results []Result, route string) string {
	for _, res := range results {
		if res.Route == route && res.Envelope != nil {
			return res.Device
		}
	}
	return ""
}

// values evaluates every expression of the route.
func (r *route) values(s *cloudScope) []Value {
	var list []Value
	add := func(field string, t *template) {
		if t == nil {
			return
		}
		for i := range t.parts {
			if p := &t.parts[i]; p.kind != partText {
				list = append(list, p.explain(field, s))
			}
		}
	}
	add("device", r.device)
	add("devices", r.devices)
	add("hub", r.chooseHub)
	for i := range r.fields {
		add(fieldNames[i], r.fields[i])
	}
	add("coalesce", r.coalesce)
	for i := range r.props {
		add(r.props[i].field+".value", r.props[i].value)
	}
	return list
}

func (p *part) explain(field string, s scope) Value {
	x := Value{Field: field, Expression: p.text}
	one := template{parts: []part{*p}}
	v, ok, verr := one.value(s)
	switch list, isList := asList(v); {
	case verr != nil:
		// Without the expression, which stands beside it.
		x.Err = strings.TrimPrefix(verr.Error(), "{"+p.text+"}: ")
	case !ok:
		x.Absent = true
	case isList:
		x.List = []string{}
		for _, e := range list {
			text, _, err := valueText(e)
			if err != nil {
				text = fmt.Sprintf("(%v)", err)
			}
			x.List = append(x.List, text)
		}
	default:
		text, _, err := valueText(v)
		if err != nil {
			x.Err = err.Error()
			break
		}
		x.Text = &text
	}
	return x
}
