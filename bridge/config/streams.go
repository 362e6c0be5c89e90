package config

import (
	"time"

	"downlink/mapping"
)

func (p *problems) needsStream(path string, r *Route, set bool) {
	if set && r.Stream == "" && !p.has(parent(path)+".stream") {
		p.addf(path, "has no meaning without a stream; remove it, or add stream: NAME")
	}
}

func (p *problems) start(at, start string) {
	if start == "new" || start == "all" {
		return
	}
	if _, err := time.Parse(time.RFC3339, start); err != nil {
		p.addf(at, "%s is neither new, all nor an RFC 3339 time such as 2026-01-31T12:00:00Z", show(start))
	}
}

// starts checks that the routes of one stream agree: they share one durable.
func (p *problems) starts(b *Bridge) {
	first := make(map[string]int)
	for i, r := range b.Routes {
		f, ok := first[r.Stream]
		switch {
		case r.Stream == "" || r.Start == "" || p.has("bridge.routes["+itoa(i)+"].start"):
		case !ok:
			first[r.Stream] = i
		case b.Routes[f].Start != r.Start:
			p.addf("bridge.routes["+itoa(i)+"].start", "%s, but routes[%d] says %s for the same stream %s; they share one durable, say the same",
				show(r.Start), f, show(b.Routes[f].Start), r.Stream)
		}
	}
}

// created checks that the streams that are to be made have no subject in common: JetStream refuses the second one.
func (p *problems) created(b *Bridge, table *mapping.Table) {
	var streams []int // the first route of each that makes it
	subjects := make(map[string][]string)
	var all []string
	apart := 0
	for i, r := range b.Routes {
		if !r.Create || r.Stream == "" || subjects[r.Stream] != nil {
			continue
		}
		list := table.Subjects(r.Stream)
		streams, subjects[r.Stream], all = append(streams, i), list, append(all, list...)
		apart += len(mapping.Cover(list, len(list)))
	}
	if len(mapping.Cover(all, len(all))) == apart {
		return // as mostly; the rest takes each with each
	}
	for n, i := range streams {
		for _, j := range streams[:n] {
			first, second := b.Routes[j].Stream, b.Routes[i].Stream
			if mine, other, ok := inCommon(subjects[second], subjects[first]); ok {
				p.addf("bridge.routes["+itoa(i)+"].create", "stream %s would hold %s and stream %s, which routes[%d] makes, %s; a subject is in one stream: take both from one, or make the subjects differ",
					second, show(mine), first, j, show(other))
				break
			}
		}
	}
}

// inCommon finds two subjects that overlap.
func inCommon(a, b []string) (string, string, bool) {
	for _, x := range a {
		for _, y := range b {
			if len(mapping.Cover([]string{x, y}, 2)) == 1 {
				return x, y, true
			}
		}
	}
	return "", "", false
}

// minMailbox is room for a few of the largest messages.
const minMailbox = 1 << 20
