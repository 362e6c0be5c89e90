package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"downlink/bridge"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// story is all that is known of one message.
type story struct {
	wanted
	state    natsio.StreamState
	position *natsio.Position // of the bridge in its stream; nil: it never read it, or it is not known
	again    *mapping.Input   // what a redrive made of it
	targets  []*traceTarget
	note     string
}

// traceTarget is what is known of a message for one device. States follow each other
// in time; the last one is where it is.
type traceTarget struct {
	Hub    string       `json:"hub,omitempty"`
	Device string       `json:"device,omitempty"`
	Route  string       `json:"route,omitempty"`
	ID     string       `json:"message_id,omitempty"`
	State  string       `json:"state"` // a receipt's status, mailbox, or dead
	Now    string       `json:"now"`   // the sentence
	Events []traceEvent `json:"events"`

	subject, stream string
	seq             uint64
	letter          *natsio.Letter
	parked          *natsio.Parked
	place, of       int       // of parked
	until           time.Time // when it is too late to send parked; zero: never, or not known
}

// traceEvent is one thing that happened.
type traceEvent struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
	state  string    // what it makes of the target
}

// target finds or adds one.
func (s *story) target(hub, device, route, id string) *traceTarget {
	for _, t := range s.targets {
		if t.Hub == hub && t.Device == device && t.Route == route {
			t.ID = cmp.Or(t.ID, id)
			return t
		}
	}
	t := &traceTarget{Hub: hub, Device: device, Route: route, ID: id}
	s.targets = append(s.targets, t)
	return t
}

func (t *traceTarget) from(subject, stream string, seq uint64) {
	t.subject, t.stream, t.seq = cmp.Or(t.subject, subject), cmp.Or(t.stream, stream), cmp.Or(t.seq, seq)
}

const stateMailbox = "mailbox"

func (s *story) addLetter(l *natsio.Letter) {
	t := s.target(l.Hub, l.Device, l.Route, l.MessageID)
	t.from(l.Message.Subject, l.Message.Stream, l.Message.Sequence)
	t.letter = l
	t.add(traceEvent{l.Stored, "dead letter " + strconv.FormatUint(l.Entry, 10), reasonText(string(l.Reason), letterText(l)) + attempts(l.Attempts), bridge.StatusDead})
}

func (s *story) addParked(p natsio.Parked) {
	t := s.target(p.Hub, p.Device, p.Route, p.ID)
	t.from(p.Subject, p.Stream, p.Sequence)
	t.parked, t.until = &p, p.Expires
	t.add(traceEvent{p.At, "mailbox entry " + strconv.FormatUint(p.Entry, 10), "waits for its device" + attempts(p.Attempts), stateMailbox})
}

func (s *story) addReceipt(r bridge.Receipt) {
	t := s.target(r.Hub, r.Device, r.Route, r.ID)
	t.from(r.Subject, r.Stream, r.Sequence)
	text := r.Text
	if r.Condition != "" {
		text = strings.TrimSuffix(r.Condition+": "+text, ": ")
	}
	t.add(traceEvent{r.At, r.Status, reasonText(r.Reason, text) + attempts(r.Attempts), r.Status})
}

// add leaves out what is told twice: a letter and the receipt about it.
func (t *traceTarget) add(e traceEvent) {
	for _, have := range t.Events {
		if have.What == e.What && have.At.Equal(e.At) && have.Detail == e.Detail {
			return
		}
	}
	t.Events = append(t.Events, e)
}

func reasonText(reason, text string) string {
	return strings.TrimSuffix(strings.TrimPrefix(reason+": "+text, ": "), ": ")
}

func attempts(n int) string {
	if n < 2 {
		return ""
	}
	return fmt.Sprintf(" (%d attempts)", n)
}

// outcomes are what the hub's feedback tells of the device.
var outcomes = []string{
	bridge.StatusCompleted, bridge.StatusRejected, bridge.StatusExpired, bridge.StatusExceeded, bridge.StatusPurged, bridge.StatusUnknown,
}

func (e traceEvent) outcome() bool { return slices.Contains(outcomes, e.state) }

// finish puts each target's events in order and says where it is now.
func (s *story) finish() {
	for _, t := range s.targets {
		t.order()
		last := t.last()
		t.State = last.state
		t.Now = t.now(last, s.again)
	}
	slices.SortFunc(s.targets, func(a, b *traceTarget) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Route, b.Route), cmp.Compare(a.Hub, b.Hub))
	})
}

// order sorts the events by their times. The times of outcomes are the hub's, and a device may
// be faster than the hub's answer to the bridge: no outcome stands before the first accept.
func (t *traceTarget) order() {
	slices.SortStableFunc(t.Events, func(a, b traceEvent) int { return a.At.Compare(b.At) })
	accepted := slices.IndexFunc(t.Events, func(e traceEvent) bool { return e.state == bridge.StatusAccepted })
	if accepted < 0 {
		return
	}
	var early, rest []traceEvent
	for _, e := range t.Events[:accepted] {
		if e.outcome() {
			early = append(early, e)
		} else {
			rest = append(rest, e)
		}
	}
	t.Events = slices.Concat(rest, t.Events[accepted:accepted+1], early, t.Events[accepted+1:])
}

// last is the event that says where the message is: the device's outcome is final, whatever was
// stored later; among outcomes completed is, since of a repeat one is enough.
func (t *traceTarget) last() traceEvent {
	last := t.Events[len(t.Events)-1]
	for _, e := range t.Events {
		if e.outcome() && (!last.outcome() || last.state != bridge.StatusCompleted) {
			last = e
		}
	}
	return last
}

// now is the sentence that a story ends with, without its subject.
func (t *traceTarget) now(last traceEvent, again *mapping.Input) string {
	when := at(last.At)
	switch t.State {
	case bridge.StatusCompleted:
		return "delivered: the device completed it at " + when
	case bridge.StatusRejected:
		return "not delivered: the device rejected it at " + when
	case bridge.StatusExpired:
		return "not delivered: it expired in the hub's queue at " + when + ", before the device took it (was the device connected? a longer ttl waits longer)"
	case bridge.StatusExceeded:
		return "not delivered: the device was given it too often without completing it, and the hub gave up at " + when
	case bridge.StatusPurged:
		return "not delivered: somebody purged the device's queue at " + when
	case bridge.StatusUnknown:
		return "accepted by the hub; no feedback came by an hour after its expiry, so nobody knows what the device did with it"
	case bridge.StatusAccepted:
		return "accepted by the hub at " + when + ", outcome at the device not known yet (the hub tells it only for routes with message: {ack: full}, and once the device took it or it expired)"
	case bridge.StatusReplaced:
		return "replaced at " + when + " by a newer message of the same key while it waited"
	case bridge.StatusDropped:
		return "dropped at " + when + " (" + cmp.Or(last.Detail, "no reason given") + ")"
	case stateMailbox:
		text := fmt.Sprintf("waits in the mailbox as entry %d since %s", t.parked.Entry, when)
		if t.of > 0 {
			text = fmt.Sprintf("waits in the mailbox as entry %d (number %d of %d for the device) since %s", t.parked.Entry, t.place, t.of, when)
		}
		if !t.until.IsZero() && !time.Now().Before(t.until) {
			return text + "; it has expired (at " + at(t.until) + "), and becomes a dead letter when it is its turn"
		}
		return text + "; it goes out by itself, once those before it are gone and its device has room at the hub (downlink status shows the hub)"
	case bridge.StatusDead:
		if t.letter != nil {
			return fmt.Sprintf("dead letter %d: %s; %s", t.letter.Entry, reasonText(string(t.letter.Reason), letterText(t.letter)), deadRemedy(t.letter))
		}
		if again != nil {
			return fmt.Sprintf("was a dead letter (%s), and was brought back at %s as %s:%d (downlink trace %s:%d)", last.Detail, at(again.Time),
				again.Stream, again.Sequence, again.Stream, again.Sequence)
		}
		return "became a dead letter at " + when + " (" + last.Detail + "), which is not there any more: redriven, purged, or too old"
	}
	return "status " + t.State + " since " + when
}

// unseen is the sentence for a message that the bridge left nothing about.
func (s *story) unseen(name string, since time.Time) string {
	const ask = "no receipt was asked for; to know next time, give the route receipts: true, or message: {ack: full} for the outcome at the device as well"
	w := s.wanted
	place := fmt.Sprintf("%s:%d", w.stream, w.seq)
	p := s.position
	switch {
	case s.again != nil:
		return fmt.Sprintf("%s was brought back from the dead letters as %s:%d (downlink trace %s:%d)", place, s.again.Stream, s.again.Sequence, s.again.Stream, s.again.Sequence)
	case w.stream == "":
		return fmt.Sprintf("no trace of %q since %s: no receipt, no dead letter and nothing in the mailbox has this ID. Either it waits and has no fate yet; or %s; or it is older (--since), or it came to no bridge named %s on this NATS",
			w.text, at(since), ask, name)
	case w.source == nil && w.seq > s.state.Last:
		return fmt.Sprintf("no trace of %s: stream %s has never had it, its last message is %d", place, w.stream, s.state.Last)
	case w.source == nil && !s.state.KeepsSettled:
		return fmt.Sprintf("no trace of %s: stream %s removes a message once it is settled, so most likely the bridge had it and the hub accepted it or its route dropped it; %s", place, w.stream, ask)
	case w.source == nil:
		return fmt.Sprintf("no trace of %s: it is not in stream %s any more (its oldest is %d), and nothing that the bridge left tells of it: %s", place, w.stream, s.state.First, ask)
	case p == nil:
		return fmt.Sprintf("%s waits in its stream: no bridge named %s has ever read stream %s (there is no consumer %s): does it run, and is that its name (--name)?",
			place, name, w.stream, natsio.Durable(name))
	case !p.Takes(w.source.Subject):
		return fmt.Sprintf("%s is not read by the bridge: no route takes subject %s (it reads %s); add a route", place, w.source.Subject, strings.Join(p.Filters, ", "))
	case p.StartNew && w.source.Time.Before(p.Created):
		return fmt.Sprintf("%s is not read by the bridge: it was in the stream before the bridge first read that, at %s with start: new", place, at(p.Created))
	case w.seq > p.Delivered:
		return fmt.Sprintf("%s waits in its stream, not read yet: the bridge has read up to %d, at most %d messages are ahead of it (downlink status)", place, p.Delivered, w.seq-p.Delivered-1)
	case w.seq > p.Settled:
		return fmt.Sprintf("%s was read by the bridge, which holds %d messages without a fate: it waits for its device or is on its way to the hub (downlink status), or, if no receipt was asked for, was settled out of turn", place, p.Held)
	default:
		return fmt.Sprintf("%s was read and settled by the bridge: the hub accepted it, or its route dropped it, or no route took it; %s", place, ask)
	}
}
