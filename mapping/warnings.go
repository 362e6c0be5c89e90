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
	for i, r := range t.routes {
		warn := func(field, format string, args ...any) {
			all = append(all, &FieldError{Path: fmt.Sprintf("routes[%d].%s", i, field), Err: fmt.Errorf(format, args...)})
		}
		for j, earlier := range t.routes[:i] {
			if earlier.shadows(r) {
				warn("subject", "%q: no message ever gets here: routes[%d] (%s) takes all of them; put this route before it, or set also: true there", r.rule.Subject, j, earlier.name)
				break
			}
		}
		m := &r.rule.Message
		for _, f := range [...]struct{ field, text string }{
			{"message.message_id", m.MessageID}, {"message.correlation_id", m.CorrelationID},
			{"message.user_id", m.UserID}, {"message.content_type", m.ContentType}, {"message.content_encoding", m.ContentEncoding},
		} {
			if hint := doubledBraces(f.text); hint != "" {
				warn(f.field, "%s", hint)
			}
		}
		for j, p := range r.rule.Properties {
			if hint := doubledBraces(p.Value); hint != "" {
				warn(fmt.Sprintf("properties[%d].value", j), "%s", hint)
			}
			if p.Strip != "" && !canBegin(p.Headers, p.Strip) {
				warn(fmt.Sprintf("properties[%d].strip", j), "%q: no header that matches %q begins with it, so nothing is stripped (letter case counts)", p.Strip, p.Headers)
			}
		}
	}
	return all
}

// shadows reports whether r leaves nothing to a route behind it.
func (r *route) shadows(later *route) bool {
	everywhere := !r.core && r.stream == ""
	return !r.also && (everywhere || r.core == later.core && r.stream == later.stream) &&
		subset(strings.Split(later.pattern.filter, "."), strings.Split(r.pattern.filter, "."))
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
