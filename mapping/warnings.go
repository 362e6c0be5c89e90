package mapping

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Warnings are what Compile found legal but hardly meant, in the order of the
// routes, with paths as those of its errors.
func (t *Table) Warnings() []*FieldError {
	var all []*FieldError
	used := map[string]bool{}
	for i := range t.routes {
		r := &t.routes[i]
		for _, name := range r.rule.Use {
			used[name] = true
		}
		warn := func(field, format string, args ...any) {
			all = append(all, &FieldError{Path: fmt.Sprintf("routes[%d].%s", i, field), Err: fmt.Errorf(format, args...)})
		}
		if r.when != nil && r.when.fixed && !r.when.fixedTo {
			warn("when", "%q: no message ever gets here, since it is never true; remove the route", r.rule.When)
			continue
		}
		if j := t.shadow(int32(i)); j != noRoute {
			earlier := t.routes[j]
			what := fmt.Sprintf("no message ever gets here: routes[%d] (%s) takes all of them; put this route before it, or set also: true there", j, earlier.name)
			if r.rest != earlier.rest {
				what = fmt.Sprintf("no message ever gets here: routes[%d] (%s) takes all of them, and leaves nothing for a default", j, earlier.name)
			}
			warn("subject", "%q: %s", r.pattern.source, what)
		}
		m := &r.rule.Message
		if m.MaxAge > 0 && m.TTL > 0 && m.MaxAge >= m.TTL {
			warn("message.max_age", "%s changes nothing: ttl ends a message after %s", DurationText(m.MaxAge), DurationText(m.TTL))
		}
		for _, f := range [...]struct{ field, text string }{
			{"message.message_id", m.MessageID}, {"message.correlation_id", m.CorrelationID},
			{"message.user_id", m.UserID}, {"message.content_type", m.ContentType}, {"message.content_encoding", m.ContentEncoding},
			{"coalesce", r.rule.Coalesce},
		} {
			if hint := doubledBraces(f.text); hint != "" {
				warn(f.field, "%s", hint)
			}
		}
		all = append(all, oddProperties(fmt.Sprintf("routes[%d]", i), r.rule.Properties)...)
	}
	for i, tmpl := range t.templates {
		at := fmt.Sprintf("templates[%d]", i)
		if !used[tmpl.Name] {
			all = append(all, &FieldError{Path: at + ".name", Err: fmt.Errorf("%q: no route uses it", tmpl.Name)})
		}
		all = append(all, oddProperties(at, tmpl.Properties)...)
	}
	return all
}

// oddProperties are the warnings about a list of properties.
func oddProperties(at string, rules []PropertyRule) []*FieldError {
	var all []*FieldError
	for i, p := range rules {
		if hint := doubledBraces(p.Value); hint != "" {
			all = append(all, &FieldError{Path: fmt.Sprintf("%s.properties[%d].value", at, i), Err: errors.New(hint)})
		}
		if p.Strip != "" && !canBegin(p.Headers, p.Strip) {
			all = append(all, &FieldError{Path: fmt.Sprintf("%s.properties[%d].strip", at, i),
				Err: fmt.Errorf("%q: no header that matches %q begins with it, so nothing is stripped (letter case counts)", p.Strip, p.Headers)})
		}
	}
	return all
}

// shadow is the route that leaves nothing to route i; noRoute if there is none.
func (t *Table) shadow(i int32) int32 {
	r := &t.routes[i]
	m := t.anywhere
	if r.core || r.stream != "" {
		m = t.sources[r.stream]
	}
	takesAll := func(j int32) bool { return !t.routes[j].also && r.leftNothingBy(&t.routes[j]) }
	if !r.rest {
		return m.main.cover(r.pattern, i, takesAll)
	}
	// A default route comes after all others, and one that goes on leaves it nothing either.
	if j := m.main.cover(r.pattern, noRoute, func(j int32) bool { return r.leftNothingBy(&t.routes[j]) }); j != noRoute {
		return j
	}
	return m.rest.cover(r.pattern, i, takesAll)
}

// leftNothingBy reports whether a route whose subject takes all of r's takes every message of r: it has no condition,
// or r's own. A condition's names are those of its subject, so that both must be the same.
func (r *route) leftNothingBy(earlier *route) bool {
	if earlier.when == nil || earlier.when.fixed {
		return earlier.when == nil || earlier.when.fixedTo
	}
	return r.when != nil && r.rule.When == earlier.rule.When && r.pattern.source == earlier.pattern.source
}

// Warnings are what CompileRelay found legal but hardly meant.
func (m *RelayMap) Warnings() []*FieldError {
	if hint := doubledBraces(m.source); hint != "" {
		return []*FieldError{{Path: "publish.subject", Err: errors.New(hint)}}
	}
	return nil
}

var doubled = regexp.MustCompile(`(?:^|[^{])\{\{\s*([.$]?[A-Za-z_][A-Za-z0-9_.]*)\s*\}\}(?:[^}]|$)`)

// doubledBraces tells somebody who writes {{x}}, as Go templates, Helm and Jinja
// want it, what that means here; "" if the text has nothing of the kind.
func doubledBraces(text string) string {
	m := doubled.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	name := strings.TrimLeft(m[1], ".$")
	return fmt.Sprintf("%q: doubled braces stand for literal ones: {{%s}} is the text {%s}; write {%s} for a value", text, name, name, name)
}

// canBegin reports whether some text that the pattern takes begins with prefix.
func canBegin(pattern, prefix string) bool {
	before, _, star := strings.Cut(pattern, "*")
	if strings.HasPrefix(before, prefix) {
		return true
	}
	return star && strings.HasPrefix(prefix, before)
}
