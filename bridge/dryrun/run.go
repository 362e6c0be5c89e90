package dryrun

import (
	"fmt"
	"slices"

	"downlink/mapping"
)

// Result is how a case went.
type Result struct {
	*Case
	Diffs []Diff // none: as expected
	Why   string // why a route that was expected does not take the message; one line
}

// Run runs every case, in order.
func (f *File) Run() []Result {
	list := make([]Result, len(f.Cases))
	for i := range f.Cases {
		c := &f.Cases[i]
		list[i] = Result{Case: c, Diffs: c.compare(f.plan.facts(c))}
		if len(list[i].Diffs) > 0 && !c.edge {
			list[i].Why = f.plan.why(c)
		}
	}
	return list
}

// why says why the first route that a case expects does not take its message; "" if all do.
func (p *Plan) why(c *Case) string {
	in := p.input(c)
	x := p.table.Explain(&in)
	for i := range c.want {
		for _, w := range c.want[i].fields {
			if w.name != "route" || w.text == "" {
				continue
			}
			n := slices.IndexFunc(x.Routes, func(t mapping.Tried) bool { return t.Route == w.text })
			switch {
			case n < 0:
				return "the configuration has no route " + w.text
			case !x.Routes[n].Matched:
				why := x.Routes[n].Why
				if x.Note != "" {
					why = x.Note
				}
				return "route " + w.text + " does not take it: " + why
			}
		}
	}
	return ""
}

// input is a case's message with all that it does not say itself.
func (p *Plan) input(c *Case) mapping.Input {
	in := c.in
	if c.source != "core" && in.Stream == "" {
		in.Stream, _ = p.Source(&in)
	}
	if in.Stream == "" {
		in.Sequence = 0
	}
	return in
}

// Unreached lists the routes of the configuration that no case's message came to, in their order.
func (f *File) Unreached() []string {
	reached := map[string]bool{}
	for i := range f.Cases {
		if c := &f.Cases[i]; !c.edge {
			for _, got := range f.plan.facts(c) {
				reached[got.texts["route"]] = true
			}
		}
	}
	var list []string
	for _, name := range f.plan.routes {
		if !reached[name] {
			list = append(list, name)
		}
	}
	return list
}

// facts is what becomes of a case's message.
func (p *Plan) facts(c *Case) []facts {
	if c.edge {
		return []facts{p.edgeFacts(&c.c2d)}
	}
	in := p.input(c)
	outcomes := p.Map(&in)
	list := make([]facts, len(outcomes))
	for i := range outcomes {
		list[i] = factsOf(&outcomes[i], &in)
		if e := outcomes[i].envelope; e != nil && p.relay != nil {
			edge := p.edgeFacts(received(e))
			list[i].edge = &edge
		}
	}
	return list
}

func (c *Case) compare(got []facts) []Diff {
	if c.expect == nil {
		return []Diff{{"expect", absent, sayAll(got) + "; --update writes it"}}
	}
	if len(c.want) != len(got) {
		return []Diff{{"outcomes", fmt.Sprint(len(c.want)), fmt.Sprintf("%d: %s", len(got), sayAll(got))}}
	}
	var diffs []Diff
	for i := range c.want {
		prefix := ""
		if len(c.want) > 1 {
			prefix = fmt.Sprintf("expect[%d].", i)
		}
		diffs = append(diffs, c.want[i].compare(prefix, got[i])...)
	}
	return diffs
}

func sayAll(list []facts) string {
	const most = 5
	text := ""
	for i := range list {
		if i == most {
			return text + fmt.Sprintf(", and %d more", len(list)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += list[i].say()
	}
	return text
}
