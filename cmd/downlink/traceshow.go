package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"downlink/bridge"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// traced is what `trace --json` prints of one message.
type traced struct {
	Query   string         `json:"query,omitempty"`
	Since   time.Time      `json:"since"` // nothing older was looked at
	Source  *traceSource   `json:"source,omitempty"`
	Again   string         `json:"again,omitempty"` // STREAM:SEQ that it was brought back as
	Targets []*traceTarget `json:"targets"`
	Note    string         `json:"note,omitempty"`
	Found   bool           `json:"found"`
	Now     string         `json:"now"` // one sentence
}

// traceSource is the message in its stream.
type traceSource struct {
	Stream   string    `json:"stream"`
	Sequence uint64    `json:"seq"`
	Subject  string    `json:"subject"`
	Time     time.Time `json:"time"`
	Size     int       `json:"size"`
	Redriven string    `json:"redriven,omitempty"` // the dead message that it was
}

func sourceOf(m *mapping.Input) *traceSource {
	if m == nil {
		return nil
	}
	s := &traceSource{Stream: m.Stream, Sequence: m.Sequence, Subject: m.Subject, Time: m.Time, Size: len(m.Payload)}
	if v := m.Header[natsio.RedrivenHeader]; len(v) > 0 {
		s.Redriven = v[0]
	}
	return s
}

// traceMessage tells the story of one message.
func (t *tracer) traceMessage(ctx context.Context, out io.Writer, text string, asJSON bool) error {
	s := &story{wanted: parseWanted(text)}
	if err := t.locate(ctx, s); err != nil {
		return err
	}
	err := t.collect(ctx, func(id, stream string, seq uint64, stored time.Time) *story {
		if s.is(id, stream, seq, stored) {
			return s
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := t.complete(ctx, s); err != nil {
		return err
	}
	s.finish()
	r := traced{Query: text, Since: t.since, Source: sourceOf(s.source), Targets: s.targets, Note: s.note, Found: s.source != nil || len(s.targets) > 0, Now: s.sentence(t.name, t.since)}
	if s.again != nil {
		r.Again = messagePlace(s.again.Stream, s.again.Sequence)
	}
	if asJSON {
		err = json.NewEncoder(out).Encode(r)
	} else {
		err = r.print(out)
	}
	if err == nil && !r.Found {
		return fmt.Errorf("no trace of %q", text)
	}
	return err
}

// complete looks up what the story refers to: the place in the mailbox, and what a redrive made of it.
func (t *tracer) complete(ctx context.Context, s *story) (err error) {
	lost := len(s.targets) == 0
	for _, target := range s.targets {
		if target.parked != nil {
			if target.place, target.of, err = t.queue(ctx, *target.parked); err != nil {
				return err
			}
			if target.until, err = t.trail.Deadline(ctx, target.parked); err != nil {
				return err
			}
		}
		dead := slices.ContainsFunc(target.Events, func(e traceEvent) bool { return e.state == bridge.StatusDead })
		lost = lost || dead && target.letter == nil
		if s.state == (natsio.StreamState{}) && s.wanted.stream == "" {
			s.wanted.stream, s.wanted.seq = target.stream, target.seq // known by its ID: where it came from
		}
	}
	if subject := s.subject(); lost && s.wanted.stream != "" && subject != "" {
		s.again, err = t.trail.Forward(ctx, s.wanted.stream, subject, s.wanted.seq)
	}
	return err
}

func (s *story) subject() string {
	if s.source != nil {
		return s.source.Subject
	}
	for _, t := range s.targets {
		if t.subject != "" {
			return t.subject
		}
	}
	return ""
}

// sentence is what the story ends with: of several targets, one sentence each.
func (s *story) sentence(name string, since time.Time) string {
	if len(s.targets) == 0 {
		return s.unseen(name, since)
	}
	var parts []string
	for _, t := range s.targets {
		who := "it"
		if t.Device != "" {
			who = "for " + t.Device
			if len(s.targets) > 1 && t.Route != "" {
				who += " by route " + t.Route
			}
		}
		parts = append(parts, who+": "+t.Now)
	}
	return strings.Join(parts, "\n")
}

func (r *traced) print(out io.Writer) error {
	if err := r.table(out); err != nil {
		return err
	}
	note := ""
	if r.Note != "" {
		note = visible(r.Note) + "\n"
	}
	_, err := fmt.Fprintf(out, "%s%s\n", note, shownPayload([]byte(r.Now)))
	return err
}

// table is nothing, not even a head, without a row.
func (r *traced) table(out io.Writer) error {
	if !r.Found {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tEVENT\tDEVICE\tROUTE\tDETAIL")
	if s := r.Source; s != nil {
		fmt.Fprintf(w, "%s\tpublished\t-\t-\t%s as %s (%d bytes)\n", at(s.Time), visible(s.Subject), messagePlace(s.Stream, s.Sequence), s.Size)
		if s.Redriven != "" {
			fmt.Fprintf(w, "\t\t\t\tbrought back from the dead letters, it was %s\n", visible(s.Redriven))
		}
	}
	r.events(w)
	fmt.Fprintln(w)
	return w.Flush()
}

func (r *traced) events(w io.Writer) {
	for _, t := range r.Targets {
		for _, e := range t.Events {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", at(e.At), visible(e.What), dash(t.Device), dash(t.Route), dash(e.Detail))
		}
	}
}

// tracedDevice is what `trace --device --json` prints.
type tracedDevice struct {
	Device   string         `json:"device"`
	Since    time.Time      `json:"since"`
	Messages []tracedOne    `json:"messages"`
	States   map[string]int `json:"states"` // how many messages are where
	Cut      int            `json:"cut,omitempty"`
	Open     []openStream   `json:"open"` // what has no fate yet, for whichever device
	Notes    []string       `json:"notes,omitempty"`
	Now      string         `json:"now"`
}

// tracedOne is one message of it.
type tracedOne struct {
	Stream   string `json:"stream,omitempty"`
	Sequence uint64 `json:"seq,omitempty"`
	Subject  string `json:"subject,omitempty"`
	*traceTarget
}

// traceDevice tells the stories of a device's messages.
func (t *tracer) traceDevice(ctx context.Context, out io.Writer, limit int, asJSON bool) error {
	stories := make(map[string]*story)
	var order []string
	// How far the streams are read comes first: what is settled after that has left its trace by the time that is looked for.
	r := tracedDevice{Device: t.device, Since: t.since, Messages: []tracedOne{}, States: map[string]int{}, Open: t.open(ctx)}
	known := make(map[string]bool)
	err := t.collect(ctx, func(id, stream string, seq uint64, _ time.Time) *story {
		if slices.ContainsFunc(r.Open, func(o openStream) bool { return o.Stream == stream && !o.settled(seq) }) {
			known[messagePlace(stream, seq)] = true
		}
		key := fmt.Sprintf("%s:%d:%s", stream, seq, id)
		s := stories[key]
		if s == nil {
			s = &story{}
			stories[key] = s
			order = append(order, key)
		}
		for len(stories) > 4*limit { // letters and receipts come one after the other, so that the latest are only known at the end
			delete(stories, order[0])
			order = order[1:]
			r.Cut++
		}
		return s
	})
	if err != nil {
		return err
	}
	for _, s := range stories {
		s.finish()
		for _, target := range s.targets {
			r.Messages = append(r.Messages, tracedOne{target.stream, target.seq, target.subject, target})
		}
	}
	if t.config != nil {
		waits, notes, err := t.waits(ctx, r.Open, known)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // what the lookups are made of may be out of reach here: the rest is worth telling
			notes = append(notes, "not all messages that wait for the device can be listed: "+err.Error())
		}
		r.Messages, r.Notes = append(r.Messages, waits...), notes
	}
	begin := func(m tracedOne) time.Time { return m.Events[0].At }
	slices.SortFunc(r.Messages, func(a, b tracedOne) int { return begin(a).Compare(begin(b)) })
	if n := len(r.Messages) - limit; n > 0 {
		r.Messages, r.Cut = r.Messages[n:], r.Cut+n
	}
	for _, m := range r.Messages {
		r.States[m.State]++
	}
	r.Now = r.sentence()
	if asJSON {
		err = json.NewEncoder(out).Encode(r)
	} else {
		err = r.print(out)
	}
	if err == nil && len(r.Messages) == 0 {
		return errors.New("no trace of messages for device " + t.device)
	}
	return err
}

func (r *tracedDevice) sentence() string {
	if len(r.Messages) == 0 {
		return fmt.Sprintf("no trace of a message for device %s since %s: no receipts (does its route ask for them: receipts: true, or message: {ack: full}?), no dead letters, nothing in the mailbox",
			r.Device, at(r.Since))
	}
	names := make([]string, 0, len(r.States))
	for state := range r.States {
		names = append(names, state)
	}
	slices.Sort(names)
	for i, state := range names {
		names[i] = fmt.Sprintf("%d %s", r.States[state], state)
	}
	text := fmt.Sprintf("device %s since %s: %d in all, now %s", r.Device, at(r.Since), len(r.Messages), strings.Join(names, ", "))
	if r.Cut > 0 {
		text += fmt.Sprintf(" (older ones left out: %d; --limit)", r.Cut)
	}
	return text
}

// opened says what of the source streams may be for the device as well, a line each.
func (r *tracedDevice) opened() (lines string) {
	for _, note := range r.Notes {
		lines += visible(note) + "\n"
	}
	for _, o := range r.Open {
		if text := o.sentence(r.Device, r.Since); text != "" {
			lines += visible(text) + "\n"
		}
	}
	return lines
}

func (r *tracedDevice) print(out io.Writer) error {
	if err := r.table(out); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s\n%s", visible(r.Now), r.opened())
	return err
}

func (r *tracedDevice) table(out io.Writer) error {
	if len(r.Messages) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIRST SEEN\tMESSAGE\tROUTE\tSUBJECT\tSTORY")
	for _, m := range r.Messages {
		steps := make([]string, len(m.Events))
		for i, e := range m.Events {
			steps[i] = e.What
		}
		steps[len(steps)-1] += " at " + at(m.Events[len(m.Events)-1].At)
		if m.State == stateHeld || m.State == stateUnread {
			steps = append(steps, map[string]string{stateHeld: "read, no fate yet", stateUnread: "not read yet"}[m.State])
		}
		place := m.ID
		if m.Stream != "" {
			place = messagePlace(m.Stream, m.Sequence)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", at(m.Events[0].At), dash(place), dash(m.Route), dash(m.Subject), dash(strings.Join(steps, ", ")))
	}
	fmt.Fprintln(w)
	return w.Flush()
}
