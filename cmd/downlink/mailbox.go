package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/natsio"
)

func newMailboxCmd(s streams, logs *logFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mailbox",
		Short: "Look at what waits for devices in the mailbox, or take it out",
		Long: `Look at what waits for devices beyond what the bridge holds in memory, or take it
out. It is in the stream <NAME>_MAILBOX of the bridge's NATS, one box for each
device and source stream, and goes to the device in order, by itself.`,
		Example: `  downlink mailbox ls -c bridge.yaml
  downlink mailbox show --device berlin-pump7
  downlink mailbox purge --device berlin-pump7 --yes`,
		Args: onlyCommands,
		RunE: func(*cobra.Command, []string) error { return usagef("which one? try: downlink mailbox ls") },
	}
	cmd.AddCommand(newMailboxListCmd(s, logs), newMailboxShowCmd(s, logs), newMailboxPurgeCmd(s, logs))
	return cmd
}

// mailboxFlags choose entries of the mailbox.
type mailboxFlags struct {
	store  storeFlags
	filter natsio.ParkedFilter
	asJSON bool
}

func (f *mailboxFlags) register(cmd *cobra.Command) {
	f.store.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.filter.Hub, "hub", "", "only what waits for devices of this hub")
	fs.StringVar(&f.filter.Device, "device", "", "only what waits for this device")
	fs.StringVar(&f.filter.Stream, "stream", "", "only what came from this source stream")
	fs.StringVar(&f.filter.Route, "route", "", "only what came by this route")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object a line")
}

func (f *mailboxFlags) filtered() bool { return f.filter != natsio.ParkedFilter{} }

// open connects. The mailbox is not made if it is not there.
func (f *mailboxFlags) open(ctx context.Context, log *slog.Logger) (*stores, *natsio.Mailbox, error) {
	st, err := f.store.open(ctx, "downlink mailbox", log)
	if err != nil {
		return nil, nil, err
	}
	m, err := natsio.NewMailbox(natsio.MailboxOptions{Conn: st.conn, Name: st.name})
	if err != nil {
		st.conn.Close()
		return nil, nil, asUsage(err)
	}
	return st, m, nil
}

// missingMailbox words that there is no mailbox.
func missingMailbox(err error, name string) error {
	var missing *natsio.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	return fmt.Errorf("no mailbox yet: %w", missingStore(err, name, "anything that waits"))
}

func newMailboxListCmd(s streams, logs *logFlags) *cobra.Command {
	f := &mailboxFlags{}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the devices that something waits for",
		Long: `List the devices that something waits for in the mailbox: how many messages of
which source stream, how many bytes, and when the oldest one was published.`,
		Example: `  downlink mailbox ls -c bridge.yaml
  downlink mailbox ls --hub main --json --server nats://127.0.0.1:4222`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, m, err := f.open(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			boxes, err := f.boxes(cmd.Context(), m)
			if err != nil {
				return missingMailbox(err, st.name)
			}
			return f.list(s.out, boxes, time.Now())
		},
	}
	f.register(cmd)
	return cmd
}

// mailboxBox is what waits for one device, of one source stream.
type mailboxBox struct {
	Hub     string    `json:"hub"`
	Device  string    `json:"device"`
	Stream  string    `json:"stream"`
	Entries int       `json:"entries"`
	Bytes   int64     `json:"bytes"`           // of what is stored, without its headers
	Oldest  time.Time `json:"oldest,omitzero"` // when it was published
	First   uint64    `json:"first"`           // the number of the entry that is next
	Unread  int       `json:"unreadable,omitempty"`
}

func (f *mailboxFlags) boxes(ctx context.Context, m *natsio.Mailbox) ([]*mailboxBox, error) {
	type key struct{ hub, device, stream string }
	known := make(map[key]*mailboxBox)
	var list []*mailboxBox
	err := m.Each(ctx, f.filter, func(p natsio.Parked) (bool, error) {
		k := key{p.Hub, p.Device, p.Stream}
		b := known[k]
		if b == nil {
			b = &mailboxBox{Hub: p.Hub, Device: p.Device, Stream: p.Stream, First: p.Entry}
			known[k] = b
			list = append(list, b)
		}
		b.Entries++
		b.Bytes += int64(p.Size)
		switch {
		case p.Err != nil:
			b.Unread++
		case b.Oldest.IsZero() || p.Time.Before(b.Oldest):
			b.Oldest = p.Time
		}
		return true, nil
	})
	slices.SortFunc(list, func(a, b *mailboxBox) int {
		return cmp.Or(cmp.Compare(a.Hub, b.Hub), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Stream, b.Stream))
	})
	return list, err
}

func (f *mailboxFlags) list(out io.Writer, boxes []*mailboxBox, now time.Time) error {
	if f.asJSON {
		enc := json.NewEncoder(out)
		for _, b := range boxes {
			if err := enc.Encode(b); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(boxes) == 0 {
		like := ""
		if f.filtered() {
			like = " like that"
		}
		fmt.Fprintln(w, "nothing waits in the mailbox"+like)
		return w.Flush()
	}
	fmt.Fprintln(w, "HUB\tDEVICE\tSTREAM\tENTRIES\tBYTES\tOLDEST\tAGE\tNEXT")
	for i, b := range boxes {
		unread := ""
		if b.Unread > 0 {
			unread = fmt.Sprintf(" (%d unreadable)", b.Unread)
		}
		age := "-"
		if !b.Oldest.IsZero() {
			age = now.Sub(b.Oldest).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d%s\t%d\t%s\t%s\t%d\n", dash(b.Hub), dash(b.Device), dash(b.Stream), b.Entries, unread, b.Bytes, at(b.Oldest), age, b.First)
		if (i+1)%tableRows == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

func entryNumber(arg string) (uint64, error) {
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("%q is not the number of an entry; downlink mailbox ls shows each device's next one in its last column", arg)
	}
	return n, nil
}
