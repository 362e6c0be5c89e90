package dryrun

import "fmt"

// Result is how a case went.
type Result struct {
	*Case
	Diffs []Diff // none: as expected
}

// Run runs every case, in order.
func (f *File) Run() []Result {
	list := make([]Result, len(f.Cases))
	for i := range f.Cases {
		c := &f.Cases[i]
		list[i] = Result{c, c.compare(f.plan.facts(c))}
	}
	return list
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
	in := c.in
	switch {
	case c.source == "core":
		in.Sequence = 0
	case in.Stream == "":
		if in.Stream, _ = p.Source(&in); in.Stream == "" {
			in.Sequence = 0
		}
	}
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
