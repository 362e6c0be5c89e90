package soak

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"downlink/cmd/downlink/process"
)

// Report is what a run has shown.
type Report struct {
	Seed       uint64         `json:"seed"`
	Sabotage   string         `json:"sabotage,omitempty"`
	Devices    int            `json:"devices"`
	Rate       float64        `json:"messages_per_second"` // as ordered
	Duration   time.Duration  `json:"-"`                   // of the traffic
	Settled    time.Duration  `json:"-"`                   // how long it took to come to rest
	Seconds    float64        `json:"seconds"`
	SettleTime float64        `json:"settle_seconds"`
	Faults     map[string]int `json:"faults"`
	Published  int            `json:"published"`
	Tries      int            `json:"publish_tries"`
	Targets    int            `json:"targets"` // of these messages
	Fates      map[string]int `json:"fates"`   // of the targets
	Edge       int            `json:"at_edge"` // messages in the edge stream
	Repeats    Repeats        `json:"repeats"`
	// Receipts is how many receipts were checked; Unchecked says why none were.
	Receipts   int         `json:"receipts"`
	Unchecked  string      `json:"receipts_not_checked,omitempty"`
	Violations []Violation `json:"violations"` // the first ones, with their trails
	Violated   int         `json:"violated"`   // all of them
}

// OK reports whether every promise was kept.
func (r *Report) OK() bool { return r.Violated == 0 }

const (
	listed = 20 // violations that are listed
	traced = 2  // of each rule, those that have a trail
)

func (r *Report) fill(c *checker, tries int, lives []*process.Process) {
	r.Seconds, r.SettleTime = r.Duration.Seconds(), r.Settled.Seconds()
	r.Faults, r.Fates = make(map[string]int), make(map[string]int)
	for _, d := range c.e.disturbances {
		r.Faults[d.Kind]++
	}
	for _, t := range c.targets {
		r.Fates[t.fate]++
	}
	r.Published, r.Tries, r.Targets, r.Edge = len(c.e.published), tries, len(c.targets), len(c.e.edge)
	r.Repeats, r.Receipts, r.Violated = c.repeats, c.checked, len(c.violations)
	if !c.e.hasReceipts {
		r.Unchecked = "no receipts stream"
	}
	r.Violations = []Violation{}
	trails := make(map[string]int)
	for _, v := range c.violations {
		trace := v.target != nil && trails[v.Rule] < traced
		if trace {
			trails[v.Rule]++
			v.Trail = c.trail(v.target, lives)
		}
		if trace || len(r.Violations) < listed { // so that no rule is missing
			r.Violations = append(r.Violations, v)
		}
	}
}

// WriteText writes it for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "soak: %v of %.4g messages a second for %d devices, seed %d", r.Duration.Round(time.Second), r.Rate, r.Devices, r.Seed)
	if r.Sabotage != "" {
		fmt.Fprintf(&b, ", sabotage %s", r.Sabotage)
	}
	b.WriteString("\n\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(what string, n any, rest ...any) { fmt.Fprintf(t, "  %s\t%v\t%s\n", what, n, fmt.Sprint(rest...)) }
	section(t, "Faults", r.Faults)
	fmt.Fprintln(t, "Messages")
	row("published", r.Published, fmt.Sprintf("%d tries", r.Tries))
	row("targets", r.Targets, "places where one of them was to go")
	section(t, "Fates", r.Fates)
	fmt.Fprintln(t, "Repeats")
	row("accepted again by the hub", r.Repeats.Hub, fmt.Sprintf("bound %d", r.Repeats.HubBound))
	row("stored again at the edge", r.Repeats.Edge, fmt.Sprintf("bound %d", r.Repeats.EdgeBound))
	fmt.Fprintln(t, "Rates")
	row("published a second", fmt.Sprintf("%.1f", float64(r.Published)/r.Seconds))
	row("at the edge a second", fmt.Sprintf("%.1f", float64(r.Edge)/(r.Seconds+r.SettleTime)), "settling included")
	row("settled in", fmt.Sprintf("%.1f s", r.SettleTime))
	fmt.Fprintln(t, "Receipts")
	if r.Unchecked != "" {
		row("not checked", "", r.Unchecked)
	} else {
		row("checked", r.Receipts)
	}
	t.Flush()
	r.writeResult(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func section(w io.Writer, name string, counts map[string]int) {
	fmt.Fprintln(w, name)
	if len(counts) == 0 {
		fmt.Fprintln(w, "  none")
	}
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(w, "  %s\t%d\t\n", key, counts[key])
	}
}

func (r *Report) writeResult(b *strings.Builder) {
	if r.OK() {
		fmt.Fprintf(b, "\nEvery promise was kept.\n")
		return
	}
	fmt.Fprintf(b, "\n%d VIOLATIONS, seed %d\n", r.Violated, r.Seed)
	for _, v := range r.Violations {
		fmt.Fprintf(b, "\n  %s", v.Rule)
		if v.Message != "" {
			fmt.Fprintf(b, ": message %s for %s", v.Message, v.Device)
		}
		fmt.Fprintf(b, ": %s\n", v.Text)
		for _, line := range v.Trail {
			fmt.Fprintf(b, "      %s\n", line)
		}
	}
	if more := r.Violated - len(r.Violations); more > 0 {
		fmt.Fprintf(b, "\n  and %d more\n", more)
	}
}
