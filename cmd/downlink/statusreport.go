package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// statusWatch looks at one bridge again and again.
type statusWatch struct {
	pages   *bridgePages
	trail   *natsio.Trail // nil: natsErr
	letters *natsio.Letters
	natsErr error
	config  *config.Config
	name    string

	last   time.Time // of the sample before
	before *pagesSeen
}

// statusReport is what `status --json` prints.
type statusReport struct {
	At      time.Time      `json:"at"`
	Name    string         `json:"name"`
	Running bool           `json:"running"` // its pages answer
	Ready   bool           `json:"ready"`
	Missing []string       `json:"missing,omitempty"` // why it is not ready, or why that is not known
	Version string         `json:"version,omitempty"`
	HTTP    string         `json:"http,omitempty"`
	NATS    string         `json:"nats_error,omitempty"` // why nothing durable is shown
	Backlog backlogStatus  `json:"backlog"`
	Hubs    []hubReport    `json:"hubs"`
	Streams []streamReport `json:"streams"`
	Dead    deadReport     `json:"dead"`
}

// backlogStatus is what is still to be sent. What could not be asked for is missing.
type backlogStatus struct {
	Unread   uint64  `json:"unread"`    // in the source streams
	Mailbox  uint64  `json:"mailbox"`   // in the mailbox
	InMemory uint64  `json:"in_memory"` // of the bridge; if it is down, what comes again from the streams
	Total    uint64  `json:"total"`
	Whole    bool    `json:"whole"`                   // false: not all of it could be asked for
	Rate     float64 `json:"rate"`                    // messages that the hubs accepted a second, as measured
	Pace     float64 `json:"pace,omitempty"`          // messages a second that the hubs take
	Drain    float64 `json:"drain_seconds,omitempty"` // at the pace, else at the rate
}

type hubReport struct {
	Name         string      `json:"name"`
	State        string      `json:"state"`
	Cause        string      `json:"cause,omitempty"`
	Until        time.Time   `json:"until,omitzero"`
	Connected    *bool       `json:"connected,omitempty"`
	Since        time.Time   `json:"since,omitzero"`
	Reconnects   int         `json:"reconnects"`
	InFlight     int         `json:"in_flight"`
	Window       int         `json:"window"`
	Lanes        int         `json:"lanes"`
	LanesWaiting int         `json:"lanes_waiting"`
	Waiting      int         `json:"waiting"`
	Pace         *paceStatus `json:"pace,omitempty"`
}

type streamReport struct {
	Name     string `json:"name"`
	Unread   uint64 `json:"unread"`
	Held     int    `json:"held"` // given to the bridge, not settled
	Messages uint64 `json:"messages"`
	Owned    *bool  `json:"owned,omitempty"` // by the process that was asked; missing: it does not say
	Owner    string `json:"owner,omitempty"` // another process that has it
	Error    string `json:"error,omitempty"`
}

func (s streamReport) note() string {
	if s.Error == "" && s.Owner != "" {
		return "this process stands by for " + s.Owner
	}
	return s.Error
}

type deadReport struct {
	Total   uint64                    `json:"total"`
	Reasons map[mapping.Reason]uint64 `json:"reasons,omitempty"`
}

// sample remembers what a rate begins from.
func (w *statusWatch) sample(ctx context.Context) {
	if w.pages.base == "" {
		return
	}
	if s, err := w.pages.look(ctx); err == nil {
		w.before, w.last = s, time.Now()
	}
}

func (w *statusWatch) report(ctx context.Context) *statusReport {
	r := &statusReport{At: time.Now().UTC(), Name: w.name, HTTP: w.pages.base, Hubs: []hubReport{}, Streams: []streamReport{}, Backlog: backlogStatus{Whole: true}}
	now := w.fromPages(ctx, r)
	w.fromNATS(ctx, r)
	b := &r.Backlog
	if now != nil {
		b.InMemory = now.engine.Waiting
		for i := range r.Streams {
			s := &r.Streams[i]
			if l, ok := now.streams[s.Name]; ok {
				s.Owned, s.Owner = &l.Owned, l.Owner
			}
		}
	}
	b.Total = b.Unread + b.Mailbox + b.InMemory
	if speed := cmp.Or(b.Pace, b.Rate); speed > 0 {
		b.Drain = float64(b.Total) / speed
	}
	return r
}

func (w *statusWatch) fromPages(ctx context.Context, r *statusReport) *pagesSeen {
	if w.pages.base == "" {
		r.Missing = []string{"the file says http: off, so that the bridge cannot be asked whether it is ready"}
		return nil
	}
	s, err := w.pages.look(ctx)
	at := time.Now()
	if err != nil {
		r.Missing = []string{err.Error()}
		w.before = nil
		return nil
	}
	r.Running, r.Ready, r.Missing, r.Version = true, s.ready, s.missing, s.version
	if w.before != nil && s.engine.Accepted >= w.before.engine.Accepted {
		r.Backlog.Rate = float64(s.engine.Accepted-w.before.engine.Accepted) / at.Sub(w.last).Seconds()
	}
	w.before, w.last = s, at
	unpaced := false
	for _, h := range s.engine.Hubs {
		report := hubReport{Name: h.Name, State: h.State, Cause: h.Cause, Until: h.Until, InFlight: h.InFlight, Window: h.Window,
			Lanes: h.Lanes, LanesWaiting: h.LanesWaiting, Waiting: h.Waiting, Pace: h.pace()}
		if l, ok := s.links[h.Name]; ok {
			report.Connected, report.Since, report.Reconnects = &l.Connected, l.Since, l.Reconnects
		}
		if report.Pace != nil && report.Pace.Rate > 0 {
			r.Backlog.Pace += report.Pace.Rate
		} else {
			unpaced = true
		}
		r.Hubs = append(r.Hubs, report)
	}
	if unpaced {
		r.Backlog.Pace = 0 // one that takes any rate, or says none
	}
	return s
}

// fromNATS adds what outlives the bridge.
func (w *statusWatch) fromNATS(ctx context.Context, r *statusReport) {
	err := w.natsErr
	if err == nil {
		err = w.durable(ctx, r)
	}
	if err != nil {
		r.NATS, r.Backlog.Whole = err.Error(), false
	}
}

func (w *statusWatch) durable(ctx context.Context, r *statusReport) error {
	names, err := sourceStreams(ctx, w.trail, w.config)
	if err != nil {
		return err
	}
	for _, name := range names {
		s := streamReport{Name: name}
		state, err := w.trail.State(ctx, name)
		var p *natsio.Position
		if err == nil {
			p, err = w.trail.Position(ctx, name)
		}
		switch {
		case err != nil:
			s.Error = err.Error()
			r.Backlog.Whole = false
		case p == nil:
			s.Messages, s.Error = state.Messages, "no bridge named "+w.name+" has read it yet"
		default:
			s.Messages, s.Unread, s.Held = state.Messages, p.Unread, p.Held
		}
		r.Backlog.Unread += s.Unread
		if s.Held > 0 {
			r.Backlog.InMemory += uint64(s.Held)
		}
		r.Streams = append(r.Streams, s)
	}
	var missing *natsio.MissingError
	mailbox, err := w.trail.State(ctx, natsio.MailboxStream(w.name))
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	r.Backlog.Mailbox = mailbox.Messages
	dead, err := w.letters.Counts(ctx)
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	r.Dead.Reasons = dead
	for _, n := range dead {
		r.Dead.Total += n
	}
	return nil
}

func (r *statusReport) encode(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

func (r *statusReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "ready"
	switch {
	case !r.Running:
		state = "not known to run"
	case !r.Ready:
		state = "NOT READY"
	}
	fmt.Fprintf(w, "bridge\t%s: %s\n", visible(r.Name), state)
	for _, line := range r.Missing {
		fmt.Fprintf(w, "\t%s\n", visible(line))
	}
	if r.NATS != "" {
		fmt.Fprintf(w, "NATS\t%s\n", visible(strings.TrimPrefix(r.NATS, "NATS: ")))
	}
	b := r.Backlog
	fmt.Fprintf(w, "backlog\t%d messages: %d not read yet, %d in the mailbox, %d in memory%s\n", b.Total, b.Unread, b.Mailbox, b.InMemory, r.partly())
	fmt.Fprintf(w, "rate\t%s\n", r.rate())
	fmt.Fprintf(w, "drained in\t%s\n", r.drain())
	fmt.Fprintf(w, "dead letters\t%s\n", r.Dead.text(r.NATS != ""))
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Hubs) > 0 {
		fmt.Fprintln(w, "\nHUB\tSTATE\tLINK\tIN FLIGHT\tLANES\tWAITING LANES\tIN MEMORY\tPACE")
	}
	for _, h := range r.Hubs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d of %d\t%d\t%d\t%d\t%s\n", dash(h.Name), dash(h.stateText()), h.link(), h.InFlight, h.Window, h.Lanes, h.LanesWaiting, h.Waiting, h.paceText())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Streams) > 0 {
		fmt.Fprintln(w, "\nSTREAM\tNOT READ YET\tHELD\tMESSAGES\tNOTE")
	}
	for _, s := range r.Streams {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", dash(s.Name), s.Unread, s.Held, s.Messages, dash(s.note()))
	}
	return w.Flush()
}

func (r *statusReport) partly() string {
	switch {
	case !r.Backlog.Whole:
		return " (as far as it could be asked for)"
	case !r.Running:
		return " (of a bridge that is down: what comes again from the streams)"
	}
	return ""
}

func (r *statusReport) rate() string {
	if !r.Running {
		return "not known: the bridge does not answer"
	}
	text := fmt.Sprintf("%.1f messages a second accepted by the hubs", r.Backlog.Rate)
	if r.Backlog.Pace > 0 {
		text += fmt.Sprintf(", of %.1f that they take", r.Backlog.Pace)
	}
	return text
}

func (r *statusReport) drain() string {
	b := r.Backlog
	switch {
	case b.Total == 0 && b.Whole:
		return "nothing to do"
	case b.Drain > 0 && b.Pace > 0:
		return spell(b.Drain) + " at the hubs' pace"
	case b.Drain > 0:
		return spell(b.Drain) + " at this rate"
	}
	return "not known: nothing goes out now, and the hubs' pace is not known"
}

// spell is a number of seconds for people.
func spell(seconds float64) string {
	const most = 100 * 365 * 24 * 3600
	if seconds > most {
		return "more than a hundred years"
	}
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Minute {
		return max(d.Round(time.Second), time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

func (d deadReport) text(unknown bool) string {
	if unknown {
		return "not known"
	}
	if d.Total == 0 {
		return "0"
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(d.Reasons)) {
		parts = append(parts, fmt.Sprintf("%d %s", d.Reasons[reason], visible(string(reason))))
	}
	return fmt.Sprintf("%d: %s (downlink dead ls)", d.Total, strings.Join(parts, ", "))
}

func (h hubReport) stateText() string {
	text := h.State
	if h.Cause != "" {
		text += ": " + h.Cause
	}
	if !h.Until.IsZero() {
		text += ", until " + at(h.Until)
	}
	return text
}

func (h hubReport) link() string {
	switch {
	case h.Connected == nil:
		return "-"
	case *h.Connected:
		return "connected"
	}
	return "NOT CONNECTED since " + at(h.Since)
}

func (h hubReport) paceText() string {
	p := h.Pace
	if p == nil {
		return "-"
	}
	text := fmt.Sprintf("%.1f/s", p.Rate)
	if p.Rate == 0 {
		return visible(p.Source) // unlimited
	}
	if p.Source != "" {
		text += " (" + visible(p.Source) + ")"
	}
	if p.Limit > 0 {
		text += fmt.Sprintf(", %d of %d used today", p.Used, p.Limit)
	}
	return text
}
