package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// templates checks the sets by themselves; what depends on a route's captures is checked where they are used.
func (c *compiler) templates() {
	for i, t := range c.o.Templates {
		path := fmt.Sprintf("templates[%d]", i)
		if t.Name == "" {
			c.fail(path+".name", errors.New("is missing; routes name it in use"))
		}
		if j := slices.IndexFunc(c.o.Templates[:i], func(e Template) bool { return e.Name == t.Name }); j >= 0 {
			c.fail(path+".name", fmt.Errorf("%q is the name of templates[%d] too; give each template its own", t.Name, j))
		}
		for j, p := range t.Properties {
			if _, err := scanTemplate(p.Value); err != nil {
				at := fmt.Sprintf("%s.properties[%d].value", path, j)
				c.fail(at, err)
				c.seen[at] = true
			}
		}
	}
}

// properties compiles the entries of the templates that the route uses, then its own.
func (c *compiler) properties(r *route, rule *Route, tmpl func(text string) (*template, error)) {
	own := make([]string, 0, len(rule.Properties))
	for i := range rule.Properties {
		if p := &rule.Properties[i]; p.Headers == "" {
			own = append(own, p.Name)
		}
	}
	for i, name := range rule.Use {
		at := fmt.Sprintf("use[%d]", i)
		j := slices.IndexFunc(c.o.Templates, func(t Template) bool { return t.Name == name })
		switch {
		case j < 0:
			c.bad(at, "%q is not among the templates: %s", name, templateNames(c.o.Templates))
			continue
		case slices.Contains(rule.Use[:i], name):
			c.bad(at, "%q is used twice; remove one", name)
			continue
		}
		t := &c.o.Templates[j]
		for k := range t.Properties {
			p := &t.Properties[k]
			if p.Headers == "" && slices.ContainsFunc(own, func(o string) bool { return strings.EqualFold(o, p.Name) }) {
				continue // the route says it better
			}
			c.property(r, rule, p, fmt.Sprintf("templates[%d].properties[%d]", j, k), func(field, format string, args ...any) {
				if !c.seen[field] { // and not one for each route that uses it
					c.seen[field] = true
					c.fail(field, fmt.Errorf(format+" (as used by "+c.path+")", args...))
				}
			}, tmpl)
		}
	}
	for i := range rule.Properties {
		c.property(r, rule, &rule.Properties[i], fmt.Sprintf("properties[%d]", i), c.bad, tmpl)
	}
}

func templateNames(templates []Template) string {
	var names []string
	for _, t := range templates {
		names = append(names, fmt.Sprintf("%q", t.Name))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// property compiles one entry, which stands at field.
func (c *compiler) property(r *route, rule *Route, p *PropertyRule, field string, bad func(field, format string, args ...any), tmpl func(text string) (*template, error)) {
	pr := propRule{field: field, name: p.Name, headers: p.Headers, strip: p.Strip}
	switch {
	case p.Headers != "" && (p.Name != "" || p.Value != ""):
		bad(field, "has headers and name or value; make them two entries")
		return
	case p.Headers != "":
		if inert(p.Headers) {
			bad(field+".headers", "%q: Nats-* and Downlink-* headers are never copied; choose other headers", p.Headers)
		}
	case p.Name == "":
		bad(field+".name", `is missing; give name and value, or headers: with a pattern such as "X-*"`)
		return
	default:
		if p.Strip != "" {
			bad(field+".strip", "%q belongs to headers; remove it", p.Strip)
		}
		if err := checkPropertyName(p.Name, r.charset); err != nil {
			bad(field+".name", "%w", err)
		}
		if slices.ContainsFunc(r.explicit, func(e string) bool { return strings.EqualFold(e, p.Name) }) {
			bad(field+".name", "%q is set twice (SDKs fold its letter case); remove one", p.Name)
		}
		r.explicit = append(r.explicit, p.Name)
		var err error
		if pr.value, err = tmpl(p.Value); err != nil {
			bad(field+".value", "%w", err)
		}
		if pr.value == nil {
			return
		}
		if text, ok := pr.value.literal(); ok && (rule.IllegalValues == "" || rule.IllegalValues == "dead") {
			if what, at := illegalText(text, r.charset); what != "" {
				bad(field+".value", "%q: has %s at byte %d, which the hub cannot carry; illegal_values: encode carries it encoded", text, what, at+1)
			}
		}
	}
	r.props = append(r.props, pr)
}
