package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/natsio"
)

func newMailboxShowCmd(s streams, logs *logFlags) *cobra.Command {
	f := &mailboxFlags{}
	raw, limit := false, 10
	cmd := &cobra.Command{
		Use:   "show [ENTRY]",
		Short: "Show what waits: one entry, or those of a device",
		Long: `Show one entry of the mailbox, or those that a device waits for, the next one
first: the message as the hub will get it, the headers of the original, and the
body. --raw writes the body of one entry alone, byte for byte.`,
		Example: `  downlink mailbox show 17 -c bridge.yaml
  downlink mailbox show --device berlin-pump7 --limit 1
  downlink mailbox show 17 --raw > firmware.bin`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("ENTRY")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && f.filter.Device == "":
				return usagef("which one? give the number of an entry (downlink mailbox ls), or --device")
			case len(args) > 0 && f.filtered():
				return usagef("give the number of an entry or filters, not both")
			case raw && f.asJSON:
				return usagef("--raw and --json: give one")
			case raw && len(args) == 0:
				return usagef("--raw: give the number of one entry")
			case limit < 0:
				return usagef("--limit: %d is below 0", limit)
			}
			show := &entryShow{out: s.out, asJSON: f.asJSON, raw: raw}
			var entry uint64
			if len(args) > 0 {
				var err error
				if entry, err = entryNumber(args[0]); err != nil {
					return err
				}
			}
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, m, err := f.open(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			show.mailbox = m
			if entry > 0 {
				return missingMailbox(show.one(cmd.Context(), entry), st.name)
			}
			return missingMailbox(show.chosen(cmd.Context(), f.filter, limit), st.name)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "write the body alone, as it is")
	cmd.Flags().IntVar(&limit, "limit", limit, "how many of a device at most; 0: all")
	return cmd
}

// entryShow prints entries of the mailbox.
type entryShow struct {
	mailbox     *natsio.Mailbox
	out         io.Writer
	asJSON, raw bool
}

func (e *entryShow) one(ctx context.Context, entry uint64) error {
	p, err := e.mailbox.Read(ctx, entry)
	var unread *natsio.EntryError
	switch {
	case errors.As(err, &unread) && e.raw:
		_, err := e.out.Write(p.Message.Payload)
		return err
	case err != nil:
		return err
	case p == nil:
		return fmt.Errorf("no entry %d in stream %s: it was never there, or it was delivered or purged; downlink mailbox ls lists what waits", entry, e.mailbox.Stream())
	case e.raw:
		_, err := e.out.Write(p.Envelope.Body)
		return err
	}
	return e.print(p, nil)
}

func (e *entryShow) chosen(ctx context.Context, f natsio.ParkedFilter, limit int) error {
	n, more := 0, false
	err := e.mailbox.Each(ctx, f, func(parked natsio.Parked) (bool, error) {
		if more = limit > 0 && n == limit; more {
			return false, nil
		}
		p, err := e.mailbox.Read(ctx, parked.Entry)
		var unread *natsio.EntryError
		if p == nil || err != nil && !errors.As(err, &unread) {
			return err == nil, err // delivered meanwhile
		}
		if n > 0 && !e.asJSON {
			fmt.Fprintln(e.out)
		}
		n++
		return true, e.print(p, err)
	})
	if err != nil || e.asJSON {
		return err
	}
	if n == 0 {
		_, err = fmt.Fprintln(e.out, "nothing waits in the mailbox like that")
	} else if more {
		_, err = fmt.Fprintln(e.out, "\n… and more: --limit")
	}
	return err
}

// entryJSON is an entry as --json prints it. A payload that is not UTF-8 is given
// in base64 instead.
type entryJSON struct {
	Entry           uint64              `json:"entry"`
	Error           string              `json:"error,omitempty"` // why it cannot be read
	Hub             string              `json:"hub,omitempty"`
	Device          string              `json:"device,omitempty"`
	Route           string              `json:"route,omitempty"`
	MessageID       string              `json:"message_id,omitempty"`
	CorrelationID   string              `json:"correlation_id,omitempty"`
	UserID          string              `json:"user_id,omitempty"`
	ContentType     string              `json:"content_type,omitempty"`
	ContentEncoding string              `json:"content_encoding,omitempty"`
	Ack             string              `json:"ack,omitempty"`
	Expires         time.Time           `json:"expires,omitzero"`
	SendBy          time.Time           `json:"send_by,omitzero"`
	Priority        int                 `json:"priority,omitempty"`
	Coalesce        string              `json:"coalesce,omitempty"`
	Properties      []entryPropertyJSON `json:"properties,omitempty"`
	Attempts        int                 `json:"attempts"`
	Since           time.Time           `json:"since"` // when it was stored
	Message         deadMessage         `json:"message"`
}

type entryPropertyJSON struct {
	Name  string  `json:"name"`
	Value *string `json:"value"` // null: it has none
}

func (e *entryShow) print(p *bridge.Parcel, unread error) error {
	if e.asJSON {
		return json.NewEncoder(e.out).Encode(jsonEntry(p, unread))
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, visible(value))
		}
	}
	m := p.Message
	row("entry", fmt.Sprint(p.Entry))
	if unread != nil {
		row("unreadable", unread.Error())
		row("stored", at(p.At))
		row("subject", m.Subject)
	} else {
		v := p.Envelope
		row("hub", v.Hub)
		row("device", v.Device)
		row("route", v.Route)
		row("message id", v.MessageID)
		row("correlation id", v.CorrelationID)
		row("user id", v.UserID)
		row("content type", v.ContentType)
		row("content encoding", v.ContentEncoding)
		row("ack", string(v.Ack))
		if !v.ExpiresAt.IsZero() {
			row("expires", at(v.ExpiresAt))
		}
		if !v.SendBy.IsZero() {
			row("send by", at(v.SendBy))
		}
		if v.Priority != 0 {
			row("priority", fmt.Sprint(v.Priority))
		}
		row("coalesce", v.Coalesce)
		row("subject", m.Subject)
		row("from", messagePlace(m.Stream, m.Sequence))
		row("published", at(m.Time))
		row("waits since", at(p.At))
		row("attempts", fmt.Sprint(p.Attempts))
		if len(v.Properties) > 0 {
			fmt.Fprintln(w, "properties")
		}
		for _, q := range v.Properties {
			if q.Null {
				fmt.Fprintf(w, "  %s\n", visible(q.Name))
			} else {
				fmt.Fprintf(w, "  %s: %s\n", visible(q.Name), visible(q.Value))
			}
		}
	}
	row("body", fmt.Sprintf("%d bytes", len(m.Payload)))
	if len(m.Header) > 0 {
		fmt.Fprintln(w, "headers")
	}
	for _, name := range sortedNames(m.Header) {
		for _, value := range m.Header[name] {
			fmt.Fprintf(w, "  %s: %s\n", visible(name), visible(value))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.out, "\n%s\n", shownPayload(m.Payload))
	return err
}

func jsonEntry(p *bridge.Parcel, unread error) entryJSON {
	m := p.Message
	j := entryJSON{Entry: p.Entry, Attempts: p.Attempts, Since: p.At}
	j.Message = deadMessage{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time, Size: len(m.Payload), Headers: m.Header}
	j.Message.Payload, j.Message.Base64 = jsonPayload(m.Payload)
	if unread != nil {
		j.Error = unread.Error()
		return j
	}
	v := p.Envelope
	j.Hub, j.Device, j.Route, j.MessageID, j.CorrelationID, j.UserID = v.Hub, v.Device, v.Route, v.MessageID, v.CorrelationID, v.UserID
	j.ContentType, j.ContentEncoding, j.Ack, j.Expires, j.SendBy = v.ContentType, v.ContentEncoding, string(v.Ack), v.ExpiresAt, v.SendBy
	j.Priority, j.Coalesce = v.Priority, v.Coalesce
	for _, q := range v.Properties {
		property := entryPropertyJSON{Name: q.Name}
		if !q.Null {
			property.Value = &q.Value
		}
		j.Properties = append(j.Properties, property)
	}
	return j
}
