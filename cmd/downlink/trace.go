package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/config"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

func newTraceCmd(s streams, logs *logFlags) *cobra.Command {
	var (
		store  storeFlags
		device string
		since  string
		limit  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "trace (ID | STREAM:SEQ | --device DEVICE)",
		Short: "Tell what became of a message, and where it is now",
		Long: `Tell the whole story of a message: when it was published, what the bridge and the
hub did with it, what the device made of it, and where it is now. It is told from
what is on NATS: the source stream, receipts, the mailbox and dead letters; the
bridge need not run.

ID is the message ID at the hub and the device; STREAM:SEQ is what the publisher's
ack from JetStream says. Both may be narrowed with --device. --device alone tells
the stories of all messages for that device, and how many of each source stream
have no fate yet; which of them are for the device takes the configuration (-c).

What the hub accepted is only known afterwards if receipts were asked for: by the
route (receipts: true), or with the outcome at the device (message: {ack: full}).`,
		Example: `  downlink trace COMMANDS:4711 -c bridge.yaml
  downlink trace order-17 --device berlin-pump7 --since 7d
  downlink trace --device berlin-pump7 --since 1h --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("ID")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && device == "" {
				return usagef("trace: which message? give its ID, STREAM:SEQ, or --device")
			}
			if len(args) == 1 && strings.TrimSpace(args[0]) == "" {
				return usagef("trace: ID is empty")
			}
			if limit < 1 {
				return usagef("--limit: %d is below 1", limit)
			}
			from, err := moment("--since", since, time.Now())
			if err != nil {
				return err
			}
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, err := store.open(cmd.Context(), "downlink trace", log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			t, err := newTracer(st)
			if err != nil {
				return err
			}
			x := &explainer{store: store, conn: st}
			t.tables = func(ctx context.Context, r *explained) (mapping.Lookups, error) { return x.tables(ctx, st.config, r) }
			t.device, t.since, t.sinceGiven = device, from, cmd.Flags().Changed("since")
			if len(args) == 0 {
				return t.traceDevice(cmd.Context(), s.out, limit, asJSON)
			}
			return t.traceMessage(cmd.Context(), s.out, args[0], asJSON)
		},
	}
	store.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&device, "device", "", "the device; narrows the search, or on its own: all its messages")
	fs.StringVar(&since, "since", "24h", "how far back to look: how long ago (1h, 7d), or a time; not used where the message itself is found in its stream")
	fs.IntVar(&limit, "limit", 1000, "with --device alone: how many messages to tell of, the latest ones")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// tracer finds what is known of messages.
type tracer struct {
	name       string
	config     *config.Config // nil without -c
	conn       *natsio.Conn
	trail      *natsio.Trail
	letters    *natsio.Letters
	tables     func(context.Context, *explained) (mapping.Lookups, error) // reads the lookups of config
	device     string
	since      time.Time
	sinceGiven bool
}

func newTracer(st *stores) (*tracer, error) {
	trail, err := natsio.NewTrail(st.conn, st.name)
	if err != nil {
		return nil, asUsage(err)
	}
	letters, err := natsio.NewLetters(st.conn, st.name)
	if err != nil {
		return nil, asUsage(err)
	}
	return &tracer{name: st.name, config: st.config, conn: st.conn, trail: trail, letters: letters}, nil
}

// wanted is the message that was asked for.
type wanted struct {
	text   string
	stream string // of STREAM:SEQ and of default IDs; "": known by its ID alone
	seq    uint64
	stored time.Time // of a default ID
	byID   bool      // the ID must be this one (or this one with a route behind it)
	source *mapping.Input
}

// parseWanted reads an ID. A default one is <stream>:<seq>:<stored time, base 36>[:<route>].
func parseWanted(text string) wanted {
	w := wanted{text: text, byID: true}
	parts := strings.Split(text, ":")
	if len(parts) < 2 || parts[0] == "" {
		return w
	}
	seq, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || seq == 0 {
		return w
	}
	if len(parts) == 2 {
		return wanted{text: text, stream: parts[0], seq: seq}
	}
	if ns, err := strconv.ParseInt(parts[2], 36, 64); err == nil && len(parts[2]) >= 10 {
		w.stream, w.seq, w.stored = parts[0], seq, time.Unix(0, ns)
	}
	return w
}

// is reports whether something that the bridge left is about the message.
func (w *wanted) is(id, stream string, seq uint64, stored time.Time) bool {
	if w.byID && (id == w.text || strings.HasPrefix(id, w.text+":")) {
		return true
	}
	if w.byID && w.source == nil || stream == "" || stream != w.stream || seq != w.seq {
		return false
	}
	if w.byID && id != "" && len(strings.Split(w.text, ":")) > 3 {
		return false // one target was asked for, by its route
	}
	return w.source == nil || stored.IsZero() || stored.Equal(w.source.Time)
}

// locate finds the message in its stream, and how far the bridge has read that.
func (t *tracer) locate(ctx context.Context, s *story) error {
	w := &s.wanted
	if w.stream == "" {
		return nil
	}
	state, err := t.trail.State(ctx, w.stream)
	var missing *natsio.MissingError
	if errors.As(err, &missing) {
		if !w.byID {
			w.byID = true // an ID may look like STREAM:SEQ
			s.note = fmt.Sprintf("there is no stream %s on this NATS, so %q was looked for as a message ID", w.stream, w.text)
		}
		w.stream, w.seq = "", 0
		return nil
	}
	if err != nil {
		return err
	}
	s.state = state
	m, err := natsio.Find(ctx, t.conn, w.stream, w.seq)
	if err != nil {
		return err
	}
	switch {
	case m == nil:
	case !w.stored.IsZero() && !m.Time.Equal(w.stored):
		s.note = fmt.Sprintf("%s:%d is another message now: the stream was made anew", w.stream, w.seq)
	default:
		w.source = m
	}
	if s.position, err = t.trail.Position(ctx, w.stream); err != nil {
		return err
	}
	if w.source != nil && !t.sinceGiven {
		t.since = w.source.Time.Add(-time.Second) // nothing about it is older
	} else if !w.stored.IsZero() && !t.sinceGiven {
		t.since = w.stored.Add(-time.Second)
	}
	return nil
}

// collect reads dead letters, the mailbox and receipts.
func (t *tracer) collect(ctx context.Context, want func(id, stream string, seq uint64, stored time.Time) *story) error {
	err := t.letters.Each(ctx, natsio.LetterFilter{Device: t.device, Since: t.since}, func(l *natsio.Letter) (bool, error) {
		if l.Err != nil || l.OfRelay() {
			return true, nil
		}
		if s := want(l.MessageID, l.Message.Stream, l.Message.Sequence, l.Message.Time); s != nil {
			s.addLetter(l)
		}
		return true, nil
	})
	var missing *natsio.MissingError
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	err = t.trail.Mailbox(ctx, t.device, "", t.since, func(p natsio.Parked) (bool, error) {
		if p.Err != nil {
			return true, nil
		}
		if s := want(p.ID, p.Stream, p.Sequence, p.Time); s != nil {
			s.addParked(p)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	return t.trail.Receipts(ctx, t.device, t.since, func(r bridge.Receipt) error {
		if s := want(r.ID, r.Stream, r.Sequence, time.Time{}); s != nil {
			s.addReceipt(r)
		}
		return nil
	})
}

// queue finds the place of an entry among those of its device and source stream.
func (t *tracer) queue(ctx context.Context, p natsio.Parked) (place, of int, err error) {
	err = t.trail.Mailbox(ctx, p.Device, p.Stream, time.Time{}, func(other natsio.Parked) (bool, error) {
		if other.Err == nil && other.Hub == p.Hub {
			of++
			if other.Entry <= p.Entry {
				place++
			}
		}
		return true, nil
	})
	return place, of, err
}
