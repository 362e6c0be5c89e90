package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"downlink/bridge/dryrun"
	"downlink/mapping"
)

// mostRoutes is how many routes are listed one by one without --all.
const mostRoutes = 40

// mostOutcomes is how many targets of a group are shown in full.
const mostOutcomes = 10

func (r *explained) print(out io.Writer, all bool) error {
	var b strings.Builder
	m := &r.Message
	from := sourceName("")
	if m.Source != sourceCore {
		from = "stream " + m.Source
		if m.Stored {
			from = messagePlace(m.Source, m.Sequence) + ", stored " + at(m.Time)
		}
	}
	fmt.Fprintf(&b, "%s from %s: %s, %s\n", cell(m.Subject), from, several(m.Size, "byte"), several(len(m.Headers), "header"))
	names := make([]string, 0, len(m.Headers))
	for name := range m.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	w := table(&b)
	for _, name := range names {
		for _, v := range m.Headers[name] {
			fmt.Fprintf(w, "  %s\t%s\n", cell(name), cell(v))
		}
	}
	flush(w)
	if len(r.Lookups) > 0 {
		b.WriteString("\nLOOKUPS\n")
		w = table(&b)
		for _, l := range r.Lookups {
			what := several(l.Keys, "key")
			if l.Problem != "" {
				what = "NOT READ: " + l.Problem
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\n", l.Name, l.From, cell(what))
		}
		flush(w)
	}
	r.printRoutes(&b, all)
	for i := range r.Routes {
		if t := &r.Routes[i]; t.Matched && len(t.Captures)+len(t.Values) > 0 {
			printValues(&b, t)
		}
	}
	for i := range r.Outcomes {
		if i == mostOutcomes && !all {
			fmt.Fprintf(&b, "\n… and %s more (--all)\n", several(len(r.Outcomes)-i, "outcome"))
			break
		}
		printOutcome(&b, &r.Outcomes[i])
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n")
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", cell(note))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// cell is a text in a table: what controls a terminal, or the table, by its escapes.
func cell(s string) string { return strings.ReplaceAll(visible(s), "\t", `\t`) }

func table(b *strings.Builder) *tabwriter.Writer { return tabwriter.NewWriter(b, 0, 0, 2, ' ', 0) }

// flush ends a table. A strings.Builder takes everything.
func flush(w *tabwriter.Writer) { _ = w.Flush() }

func (r *explained) printRoutes(b *strings.Builder, all bool) {
	b.WriteString("\nROUTES\n")
	w := table(b)
	left := 0
	for i := range r.Routes {
		t := &r.Routes[i]
		met := t.Matched || t.Condition != nil || len(t.Captures) > 0
		if !all && len(r.Routes) > mostRoutes && !met {
			left++
			continue
		}
		verdict := "no: " + t.Why
		if t.Matched {
			verdict = "takes it"
		} else if strings.HasPrefix(t.Why, "not tried") {
			verdict = t.Why
		}
		if c := t.Condition; c != nil {
			verdict += " (when " + c.Expression + " is " + shownValue(c) + ")"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", cell(t.Route), dash(t.Subject), cell(verdict))
	}
	flush(w)
	if left > 0 {
		fmt.Fprintf(b, "  … and %s more that do not take it (--all)\n", several(left, "route"))
	}
}

func printValues(b *strings.Builder, t *mapping.Tried) {
	fmt.Fprintf(b, "\nROUTE %s\n", cell(t.Route))
	w := table(b)
	for _, c := range t.Captures {
		fmt.Fprintf(w, "  capture\t{%s}\t%s\n", c.Name, cell(strconv.Quote(c.Value)))
	}
	for i := range t.Values {
		v := &t.Values[i]
		fmt.Fprintf(w, "  %s\t{%s}\t%s\n", v.Field, cell(v.Expression), cell(shownValue(v)))
	}
	flush(w)
}

// shownValue tells absent from empty, and a text from a list.
func shownValue(v *mapping.Value) string {
	switch {
	case v.Err != "":
		return "error: " + v.Err
	case v.Absent:
		return "absent"
	case v.Text == nil:
		return fmt.Sprintf("%q", v.List)
	case v.Field == "when":
		return *v.Text
	}
	return strconv.Quote(*v.Text)
}

func printOutcome(b *strings.Builder, o *dryrun.Outcome) {
	head := "OUTCOME"
	if o.Route != "" {
		head += " of route " + cell(o.Route)
	}
	if o.Device != "" {
		head += " for device " + cell(o.Device)
	}
	m := o.Message
	if m == nil {
		fmt.Fprintf(b, "\n%s: %s, reason %s\n", head, map[string]string{dryrun.FateDead: "dead letter", dryrun.FateDropped: "dropped"}[o.Fate], cell(o.Reason))
		if o.Error != "" {
			fmt.Fprintf(b, "  %s\n", cell(o.Error))
		}
		if o.Route == "" {
			b.WriteString("  no route takes it (unmatched: drop or dead says what becomes of it)\n")
		}
		return
	}
	fmt.Fprintf(b, "\n%s: sent to hub %s\n", head, m.Hub)
	w := table(b)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %s\t%s\n", name, cell(value))
		}
	}
	row("message ID", m.MessageID)
	row("correlation ID", m.CorrelationID)
	row("user ID", m.UserID)
	row("content type", m.ContentType)
	row("content encoding", m.ContentEncoding)
	row("ack", m.Ack)
	if m.Expires != nil {
		row("expires", at(*m.Expires))
	}
	if m.SendBy != nil {
		row("to be sent by", at(*m.SendBy))
	}
	if m.Priority != 0 {
		row("priority", strconv.Itoa(m.Priority))
	}
	if m.Order == "none" {
		row("order", "none: others may overtake it")
	}
	row("coalesce", m.Coalesce)
	if m.Receipts {
		row("receipts", "published")
	}
	if m.ReplyTo != "" {
		wait := m.Wait
		if wait == "" {
			wait = "accepted"
		}
		row("answer", "to "+m.ReplyTo+" once "+wait)
	}
	for _, p := range m.Properties {
		fmt.Fprintf(w, "  property\t%s = %s\n", cell(p.Name), cell(strconv.Quote(p.Value)))
	}
	row("body", several(m.BodyBytes, "byte")+", as published")
	row("size", fmt.Sprintf("%d bytes of %d, %d left", m.Size, mapping.MaxMessageSize, m.BytesLeft))
	row("MQTT topic", fmt.Sprintf("%d bytes of %d, %d left", m.TopicSize, mapping.MaxTopic, m.TopicBytesLeft))
	flush(w)
}
