package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/natsio"
)

func newMailboxPurgeCmd(s streams, logs *logFlags) *cobra.Command {
	f := &mailboxFlags{}
	var all, yes, noDead bool
	cmd := &cobra.Command{
		Use:   "purge [ENTRY...]",
		Short: "Take messages out of the mailbox",
		Long: `Take messages out of the mailbox, so that they are not delivered. Each one becomes
a dead letter with reason purged, which downlink dead redrive brings back;
--no-dead deletes it for good. The bridge may run meanwhile: what it has
under way is still delivered. Without --yes it only counts them. What cannot be
read stays, unless its number is given; what a newer version stored always does.`,
		Example: `  downlink mailbox purge --device berlin-pump7
  downlink mailbox purge --route firmware --stream COMMANDS --yes
  downlink mailbox purge 17 18 --yes -c bridge.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && (f.filtered() || all):
				return usagef("%s: give numbers or filters, not both", cmd.CommandPath())
			case f.filtered() && all:
				return usagef("%s: give filters or --all, not both", cmd.CommandPath())
			case len(args) == 0 && !f.filtered() && !all:
				return usagef("%s: which ones? give numbers (downlink mailbox ls), filters, or --all", cmd.CommandPath())
			}
			entries := make([]uint64, len(args))
			for i, arg := range args {
				var err error
				if entries[i], err = entryNumber(arg); err != nil {
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
			p := &mailboxPurge{mailbox: m, yes: yes}
			if !noDead {
				if p.dead, err = st.deadLetters(); err != nil {
					return asUsage(err)
				}
			}
			if len(args) > 0 {
				err = p.numbers(cmd.Context(), entries)
			} else {
				err = m.Each(cmd.Context(), f.filter, func(parked natsio.Parked) (bool, error) {
					return true, p.one(cmd.Context(), parked.Entry, false)
				})
			}
			if err != nil {
				if p.purged > 0 && yes {
					err = fmt.Errorf("%w (%d purged before that)", err, p.purged)
				}
				return missingMailbox(err, st.name)
			}
			return p.report(s.out, f.asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "all that waits")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&noDead, "no-dead", false, "delete them for good, without dead letters")
	return cmd
}

// deadLetters is where the bridge keeps them. The stream is made as the bridge would do it.
func (s *stores) deadLetters() (*natsio.DeadLetters, error) {
	o := natsio.DeadLettersOptions{Conn: s.conn, Name: s.name, Create: true}
	if s.config != nil {
		c := s.config.Bridge.Storage
		o.Create, o.MaxAge, o.MaxBytes = c.Create == nil || *c.Create, c.DeadMaxAge, c.DeadMaxBytes
	}
	return natsio.NewDeadLetters(o)
}

// mailboxPurge is one run of mailbox purge.
type mailboxPurge struct {
	mailbox                *natsio.Mailbox
	dead                   *natsio.DeadLetters // nil: for good
	yes                    bool
	purged, stay, notThere int
}

func (p *mailboxPurge) numbers(ctx context.Context, entries []uint64) error {
	for _, entry := range entries {
		if err := p.one(ctx, entry, true); err != nil {
			return err
		}
	}
	return nil
}

// one gives an entry its fate: first the dead letter, then it is gone. chosen: by its number.
func (p *mailboxPurge) one(ctx context.Context, entry uint64, chosen bool) error {
	parcel, err := p.mailbox.Read(ctx, entry)
	var unread *natsio.EntryError
	switch {
	case errors.As(err, &unread):
		if !chosen || errors.Is(err, bridge.ErrFormat) {
			p.stay++
			return nil
		}
	case err != nil:
		return err
	case parcel == nil:
		if chosen {
			p.notThere++
		} // else it was delivered meanwhile
		return nil
	}
	if p.yes {
		if p.dead != nil {
			if err := p.dead.Store(ctx, purgedLetter(parcel)); err != nil {
				return err
			}
		}
		if err := p.mailbox.Delete(ctx, entry); err != nil {
			return err
		}
	}
	p.purged++
	return nil
}

func purgedLetter(p *bridge.Parcel) bridge.DeadLetter {
	l := bridge.DeadLetter{
		Message: p.Message, Reason: natsio.ReasonPurged, Text: "taken out of the mailbox by hand", Attempts: p.Attempts, At: time.Now().UTC(),
	}
	if v := p.Envelope; v != nil {
		l.Route, l.Hub, l.Device, l.MessageID = v.Route, v.Hub, v.Device, v.MessageID
	}
	return l
}

func (p *mailboxPurge) report(out io.Writer, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(out).Encode(struct {
			Purged  int  `json:"purged"`
			DryRun  bool `json:"dry_run,omitempty"`
			Stay    int  `json:"stay,omitempty"`    // cannot be read
			Missing int  `json:"missing,omitempty"` // no such number
		}{p.purged, !p.yes, p.stay, p.notThere})
	} else {
		text := fmt.Sprintf("%d purged", p.purged)
		if !p.yes {
			text = fmt.Sprintf("%d would be purged", p.purged)
		}
		if p.yes && p.dead != nil && p.purged > 0 {
			text += "; downlink dead ls --reason purged lists them"
		}
		if p.stay > 0 {
			text += fmt.Sprintf("; %d stay: stored by a newer version of downlink, or by somebody else", p.stay)
		}
		if p.notThere > 0 {
			text += fmt.Sprintf("; %d not there", p.notThere)
		}
		_, err = fmt.Fprintln(out, text)
	}
	switch {
	case err != nil:
		return err
	case !p.yes && p.purged > 0:
		return usagef("nothing was purged: give --yes to do it")
	case p.notThere > 0:
		return fmt.Errorf("%d of the numbers given are not in stream %s: delivered or purged meanwhile, or never there", p.notThere, p.mailbox.Stream())
	}
	return nil
}
