package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sort"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/natsio"
)

func newDeadCmd(s streams, logs *logFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Look at dead letters, bring them back, or delete them",
		Long: `Look at the dead letters of a bridge, which are the messages that could not be
delivered, each whole and with its reason; bring them back once the reason is
mended; or delete them. They are in the stream <NAME>_DEAD of the bridge's NATS.`,
		Example: `  downlink dead ls -c bridge.yaml --since 1h
  downlink dead show 17
  downlink dead redrive --reason device-not-found --device berlin-pump7
  downlink dead purge --until 7d --yes`,
		Args: onlyCommands,
		RunE: func(*cobra.Command, []string) error { return usagef("which one? try: downlink dead ls") },
	}
	cmd.AddCommand(newDeadListCmd(s, logs), newDeadShowCmd(s, logs), newDeadRedriveCmd(s, logs), newDeadPurgeCmd(s, logs))
	return cmd
}

// deadFlags choose dead letters.
type deadFlags struct {
	store        storeFlags
	filter       natsio.LetterFilter
	since, until string
	limit        int
	all          bool
	asJSON       bool
}

func (f *deadFlags) register(cmd *cobra.Command, limit int) {
	f.store.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.filter.Reason, "reason", "", "only those with this reason, such as device-not-found")
	fs.StringVar(&f.filter.Route, "route", "", "only those of this route")
	fs.StringVar(&f.filter.Device, "device", "", "only those for this device")
	fs.StringVar(&f.filter.Hub, "hub", "", "only those for this hub")
	fs.StringVar(&f.since, "since", "", "only those stored since then: how long ago (90m, 7d), or a time")
	fs.StringVar(&f.until, "until", "", "only those stored until then")
	fs.IntVar(&f.limit, "limit", limit, "how many at most, the oldest first; 0: all")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object a line")
}

// open checks the flags and connects.
func (f *deadFlags) open(ctx context.Context, log *slog.Logger) (_ *stores, _ *natsio.Letters, err error) {
	if f.limit < 0 {
		return nil, nil, usagef("--limit: %d is below 0", f.limit)
	}
	now := time.Now()
	if f.filter.Since, err = moment("--since", f.since, now); err != nil {
		return nil, nil, err
	}
	if f.filter.Until, err = moment("--until", f.until, now); err != nil {
		return nil, nil, err
	}
	if !f.filter.Until.IsZero() && f.filter.Until.Before(f.filter.Since) {
		return nil, nil, usagef("--until is before --since: nothing lies between")
	}
	st, err := f.store.open(ctx, "downlink dead", log)
	if err != nil {
		return nil, nil, err
	}
	letters, err := natsio.NewLetters(st.conn, st.name)
	if err != nil {
		st.conn.Close()
		return nil, nil, asUsage(err)
	}
	return st, letters, nil
}

// chosen reads the numbers on the command line, or insists on a filter.
func (f *deadFlags) chosen(cmd *cobra.Command, args []string) ([]uint64, error) {
	filters := f.filter != natsio.LetterFilter{} || f.since != "" || f.until != ""
	switch {
	case len(args) > 0 && (filters || f.all):
		return nil, usagef("%s: give numbers or filters, not both", cmd.CommandPath())
	case filters && f.all:
		return nil, usagef("%s: give filters or --all, not both", cmd.CommandPath())
	case len(args) == 0 && !filters && !f.all:
		return nil, usagef("%s: which ones? give numbers (downlink dead ls), filters, or --all", cmd.CommandPath())
	}
	var entries []uint64
	for _, arg := range args {
		n, err := letterNumber(arg)
		if err != nil {
			return nil, err
		}
		entries = append(entries, n)
	}
	return entries, nil
}

func letterNumber(arg string) (uint64, error) {
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("%q is not the number of a dead letter; downlink dead ls shows them in its first column", arg)
	}
	return n, nil
}

func newDeadListCmd(s streams, logs *logFlags) *cobra.Command {
	f := &deadFlags{}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List dead letters, the oldest first",
		Long: `List dead letters, the oldest first. SEQ is the number that show, redrive and
purge take; SUBJECT is where the message was published.`,
		Example: `  downlink dead ls -c bridge.yaml
  downlink dead ls --reason device-not-found --since 1h --json --server nats://127.0.0.1:4222`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, letters, err := f.open(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			return missingStore(f.list(cmd.Context(), s.out, letters), st.name, "dead letters")
		},
	}
	f.register(cmd, 100)
	return cmd
}

// tableRows is how many rows are aligned with each other: a long list must not wait for its end.
const tableRows = 1000

func (f *deadFlags) list(ctx context.Context, out io.Writer, letters *natsio.Letters) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(out)
	n, more := 0, false
	err := letters.Each(ctx, f.filter, func(l *natsio.Letter) (bool, error) {
		if more = f.limit > 0 && n == f.limit; more {
			return false, nil
		}
		n++
		if f.asJSON {
			return true, enc.Encode(letterJSON(l, false))
		}
		if n == 1 {
			fmt.Fprintln(w, "SEQ\tTIME\tREASON\tROUTE\tDEVICE\tSUBJECT\tATTEMPTS\tTEXT")
		}
		if l.Err != nil {
			fmt.Fprintf(w, "%d\t%s\t?\t-\t-\t-\t-\t%s\n", l.Entry, at(l.Stored), visible(l.Err.Error()))
		} else {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", l.Entry, at(l.Stored), dash(string(l.Reason)), dash(l.Route), dash(l.Device),
				dash(l.Message.Subject), l.Attempts, dash(letterText(l)))
		}
		if n%tableRows == 0 {
			return true, w.Flush()
		}
		return true, nil
	})
	if err == nil && !f.asJSON {
		if n == 0 {
			fmt.Fprintln(w, "no dead letters"+f.narrowed())
		}
		if more {
			fmt.Fprintln(w, "… and more: --limit, --since, or a filter")
		}
	}
	return errors.Join(err, w.Flush())
}

func (f *deadFlags) narrowed() string {
	if f.filter != (natsio.LetterFilter{}) {
		return " like that"
	}
	return ""
}

func letterText(l *natsio.Letter) string {
	text := l.Text
	if l.Condition != "" {
		text = l.Condition + ": " + text
	}
	if l.Truncated != "" {
		text += " (cut)"
	}
	return text
}

// deadLetter is a dead letter as --json prints it. A payload that is not UTF-8 is
// given in base64 instead.
type deadLetter struct {
	Entry     uint64              `json:"seq"`
	Stored    time.Time           `json:"stored"`
	Error     string              `json:"error,omitempty"` // why it cannot be read; then nothing else is set
	Reason    string              `json:"reason,omitempty"`
	Condition string              `json:"condition,omitempty"`
	Text      string              `json:"text,omitempty"`
	Route     string              `json:"route,omitempty"`
	Hub       string              `json:"hub,omitempty"`
	Device    string              `json:"device,omitempty"`
	MessageID string              `json:"message_id,omitempty"`
	Attempts  int                 `json:"attempts"`
	At        time.Time           `json:"at,omitzero"`
	Truncated string              `json:"truncated,omitempty"` // where the whole message is
	Message   *deadMessage        `json:"message,omitempty"`
	Relay     map[string][]string `json:"relay,omitempty"`
}

// deadMessage is the original message.
type deadMessage struct {
	Subject  string              `json:"subject,omitempty"`
	Stream   string              `json:"stream,omitempty"` // none: core NATS
	Sequence uint64              `json:"seq,omitempty"`
	Time     time.Time           `json:"time,omitzero"`
	Size     int                 `json:"size"`
	Headers  map[string][]string `json:"headers,omitempty"`
	Payload  *string             `json:"payload,omitempty"`
	Base64   []byte              `json:"payload_base64,omitempty"`
}

func letterJSON(l *natsio.Letter, whole bool) deadLetter {
	j := deadLetter{Entry: l.Entry, Stored: l.Stored}
	if l.Err != nil {
		j.Error = l.Err.Error()
		return j
	}
	m := l.Message
	j.Reason, j.Condition, j.Text, j.Route, j.Hub, j.Device = string(l.Reason), l.Condition, l.Text, l.Route, l.Hub, l.Device
	j.MessageID, j.Attempts, j.At, j.Truncated, j.Relay = l.MessageID, l.Attempts, l.At, l.Truncated, l.More
	j.Message = &deadMessage{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time, Size: l.Size}
	if whole {
		j.Message.Headers = m.Header
		j.Message.Payload, j.Message.Base64 = jsonPayload(m.Payload)
	}
	return j
}

func newDeadShowCmd(s streams, logs *logFlags) *cobra.Command {
	var (
		store       storeFlags
		asJSON, raw bool
	)
	cmd := &cobra.Command{
		Use:   "show SEQ",
		Short: "Show one dead letter with the original message",
		Long: `Show one dead letter: why it died and what to do about it, and the original
message with its headers and its body. --raw writes the body alone, byte for byte.`,
		Example: `  downlink dead show 17 -c bridge.yaml
  downlink dead show 17 --raw > firmware.bin`,
		Args: exactArgs("SEQ"),
		RunE: func(cmd *cobra.Command, args []string) error {
			entry, err := letterNumber(args[0])
			if err != nil {
				return err
			}
			if raw && asJSON {
				return usagef("--raw and --json: give one")
			}
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, err := store.open(cmd.Context(), "downlink dead", log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			letters, err := natsio.NewLetters(st.conn, st.name)
			if err != nil {
				return asUsage(err)
			}
			l, err := letters.Get(cmd.Context(), entry)
			switch {
			case err != nil:
				return missingStore(err, st.name, "dead letters")
			case l == nil:
				return fmt.Errorf("no dead letter %d in stream %s: it was never there, or it was redriven, purged or too old; downlink dead ls lists them", entry, letters.Stream())
			case asJSON:
				return json.NewEncoder(s.out).Encode(letterJSON(l, true))
			case l.Err != nil:
				return fmt.Errorf("dead letter %d: %w", entry, l.Err)
			case raw:
				_, err := s.out.Write(l.Message.Payload)
				return err
			}
			return showLetter(s.out, l)
		},
	}
	store.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&raw, "raw", false, "write the body alone, as it is")
	return cmd
}

func showLetter(out io.Writer, l *natsio.Letter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, visible(value))
		}
	}
	m := l.Message
	row("dead letter", fmt.Sprint(l.Entry))
	row("stored", at(l.Stored))
	row("reason", string(l.Reason))
	row("condition", l.Condition)
	row("text", l.Text)
	row("remedy", deadRemedy(l))
	row("route", l.Route)
	row("hub", l.Hub)
	row("device", l.Device)
	row("message id", l.MessageID)
	row("attempts", fmt.Sprint(l.Attempts))
	row("subject", m.Subject)
	if !l.OfRelay() {
		row("from", messagePlace(m.Stream, m.Sequence))
		row("published", at(m.Time))
	}
	if l.Truncated != "" {
		row("cut", fmt.Sprintf("only %d bytes of the body are here; the whole message: %s", l.Size, l.Truncated))
	}
	row("body", fmt.Sprintf("%d bytes", l.Size))
	for _, part := range []struct {
		title string
		h     map[string][]string
	}{{"headers", m.Header}, {"from the relay", l.More}} {
		if len(part.h) > 0 {
			fmt.Fprintf(w, "%s\n", part.title)
		}
		for _, name := range sortedNames(part.h) {
			for _, value := range part.h[name] {
				fmt.Fprintf(w, "  %s: %s\n", visible(name), visible(value))
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s\n", shownPayload(m.Payload))
	return err
}

func sortedNames(h map[string][]string) []string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// messagePlace is STREAM:SEQ, or core NATS.
func messagePlace(stream string, seq uint64) string {
	if stream == "" {
		return "core NATS"
	}
	return stream + ":" + strconv.FormatUint(seq, 10)
}

// deadRemedy says what to do about a dead letter.
func deadRemedy(l *natsio.Letter) string {
	redrive := fmt.Sprintf("downlink dead redrive %d", l.Entry)
	switch l.Reason {
	case bridge.ReasonDeviceNotFound:
		return fmt.Sprintf("register device %s at hub %s, then %s; or have the route wait for it: device_not_found: retry", l.Device, l.Hub, redrive)
	case bridge.ReasonExpired:
		return "if it is still of use: " + redrive + " (its time to live begins anew); a longer ttl or max_age waits longer"
	case bridge.ReasonBreaksLink:
		return "the hub closed the connection at it each time: look at its size and properties before " + redrive
	case bridge.ReasonRefused, bridge.ReasonUnknownCondition:
		return "the hub refused it: mend what its text says, then " + redrive
	case bridge.ReasonNoRoute:
		return "add a route for its subject, then " + redrive
	case bridge.ReasonUnreadable:
		return "an entry of the mailbox that is damaged, or that somebody else put there: its body is all that is left (downlink dead show); have the message published again"
	case "loop":
		return "it came through this bridge before: look at who publishes it again"
	case "overflow":
		return "more came from core NATS than may wait for its device: " + redrive + ", or publish to a stream"
	case "not-allowed":
		return "the route's allow does not name its device: widen it if that is meant, then " + redrive
	case "too-large":
		return "the hub takes 64 KB a message: send less, or a link to it"
	}
	if l.OfRelay() {
		return "mend what its text says; the hub has completed it, so have it sent again"
	}
	return "mend what its text says in the route or at the publisher, then " + redrive
}
