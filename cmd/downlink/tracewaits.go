package main

import (
	"context"
	"fmt"
	"time"

	"downlink/bridge/dryrun"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// waitsBound is how many messages of a stream, the last ones, are mapped to find those for a device.
const waitsBound = 10_000

// The states of a message that has no fate yet and is not in the mailbox.
const (
	stateHeld   = "held"   // read by the bridge
	stateUnread = "unread" // by the bridge
)

// openStream is what of a source stream has no fate yet, for whichever device it is.
type openStream struct {
	Stream string `json:"stream,omitempty"`
	Held   int    `json:"held"`   // read by the bridge
	Unread uint64 `json:"unread"` // by the bridge, of its subjects
	// Listed is the first sequence from which on those for the device are among the messages; 0: they are not.
	Listed uint64 `json:"listed_from,omitempty"`
	Error  string `json:"error,omitempty"`

	position *natsio.Position
}

// open asks what of each source stream has no fate yet. What cannot be told fails nothing else.
func (t *tracer) open(ctx context.Context) []openStream {
	names, err := sourceStreams(ctx, t.trail, t.config)
	if err != nil {
		return []openStream{{Error: err.Error()}}
	}
	list := []openStream{}
	for _, name := range names {
		o := openStream{Stream: name}
		p, err := t.trail.Position(ctx, name)
		switch {
		case err != nil:
			o.Error = err.Error()
		case p == nil:
			o.Error = "no bridge named " + t.name + " has read it yet"
		default:
			o.Held, o.Unread, o.position = max(p.Held, 0), p.Unread, p
		}
		list = append(list, o)
	}
	return list
}

// empty reports whether all of the stream has its fate, as far as it is known.
func (o *openStream) empty() bool { return o.Held == 0 && o.Unread == 0 }

// settled reports whether a message is settled by what the bridge's consumer says.
func (o *openStream) settled(seq uint64) bool { return o.position == nil || seq <= o.position.Settled }

// sentence is empty if all of the stream has its fate.
func (o *openStream) sentence(device string, since time.Time) string {
	switch {
	case o.Stream == "":
		return "how many messages have no fate yet cannot be told: " + o.Error
	case o.Error != "":
		return "stream " + o.Stream + ": how many messages have no fate yet cannot be told: " + o.Error
	case o.empty():
		return ""
	}
	text := fmt.Sprintf("stream %s: messages that are read and have no fate yet: %d, not read yet: %d; ", o.Stream, o.Held, o.Unread)
	switch {
	case o.Listed == 0:
		return text + fmt.Sprintf("some may be for %s (downlink trace %s:SEQ tells of one)", device, o.Stream)
	case !o.settled(o.Listed - 1):
		return text + fmt.Sprintf("those for %s since %s are listed from %s on, ones before that are not", device, at(since), messagePlace(o.Stream, o.Listed))
	}
	return text + fmt.Sprintf("those for %s since %s are listed", device, at(since))
}

// waits finds, by the configuration, the device's messages that have no fate yet. known are those that something
// tells of. What was found before an error is returned with it.
func (t *tracer) waits(ctx context.Context, streams []openStream, known map[string]bool) (found []tracedOne, notes []string, err error) {
	var plan *dryrun.Plan
	for i := range streams {
		o := &streams[i]
		if o.position == nil || o.empty() {
			continue
		}
		state, err := t.trail.State(ctx, o.Stream)
		if err != nil {
			return found, notes, err
		}
		if !state.KeepsSettled {
			continue // to read it would take another consumer, which such a stream does not have or waits for
		}
		if plan == nil {
			if plan, notes, err = t.plan(ctx); err != nil {
				return found, notes, err
			}
		}
		from := o.position.Settled + 1
		if state.Last > waitsBound {
			from = max(from, state.Last-waitsBound+1)
		}
		err = t.trail.Messages(ctx, o.Stream, o.position.Filters, from, func(in *mapping.Input) error {
			if in.Time.Before(t.since) || known[messagePlace(in.Stream, in.Sequence)] || o.position.StartNew && in.Time.Before(o.position.Created) {
				return nil
			}
			for _, out := range plan.Map(in) {
				if out.Device == t.device && out.Fate != dryrun.FateDropped {
					found = append(found, waiting(o, in, out))
				}
			}
			return nil
		})
		if err != nil {
			return found, notes, err
		}
		o.Listed = from
	}
	return found, notes, nil
}

// plan is the configuration's mapping, with its lookups as they are now.
func (t *tracer) plan(ctx context.Context) (*dryrun.Plan, []string, error) {
	var read explained
	tables, err := t.tables(ctx, &read)
	if err != nil {
		return nil, nil, err
	}
	var notes []string
	for _, l := range read.Lookups {
		if l.Problem != "" {
			notes = append(notes, fmt.Sprintf("lookup %s was not read, so messages that wait and need it are not listed: %s", l.Name, l.Problem))
		}
	}
	plan, err := dryrun.New(t.config, tables, false)
	return plan, notes, err
}

// waiting is one message that has no fate yet.
func waiting(o *openStream, in *mapping.Input, out dryrun.Outcome) tracedOne {
	target := &traceTarget{Device: out.Device, Route: out.Route, State: stateUnread, Now: "waits in its stream, not read yet", Events: []traceEvent{{At: in.Time, What: "published"}}}
	if m := out.Message; m != nil {
		target.Hub, target.ID = m.Hub, m.MessageID
	}
	if in.Sequence <= o.position.Delivered {
		target.State, target.Now = stateHeld, "was read by the bridge: it waits for its device or is on its way to the hub"
		if out.Message == nil || !out.Message.Receipts {
			target.Now += ", or, as it has no receipts, was settled out of turn"
		}
	}
	return tracedOne{in.Stream, in.Sequence, in.Subject, target}
}
