package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/natsio"
)

func newDeadRedriveCmd(s streams, logs *logFlags) *cobra.Command {
	f := &deadFlags{}
	var dryRun bool
	var answer time.Duration
	cmd := &cobra.Command{
		Use:   "redrive [SEQ...]",
		Short: "Bring dead letters back to where their messages came from",
		Long: `Publish the original messages of dead letters again, into the stream or on the
core NATS subject that they came from, and delete the letters. They go through the
mapping and its allow lists again, behind what is there by now, under new numbers
and so, unless the route sets message_id, under new message IDs. A message that had
several targets (also:) goes to all of them again.

One after the other, in the order in which the messages were published, so that
each device sees them in order. A letter is deleted once its message is stored; one
that cannot come back stays, and is named. Headers come back as they were, except
Nats-*: JetStream would obey them, so they stay Downlink-Orig-Nats-*.

Run twice, or killed and run again, it brings no message twice, as long as the
source stream recognises repeats (its duplicate window: two minutes, unless it is
set). A run that was killed and is repeated later may bring one message twice: the
last one that it published. Core NATS recognises no repeats: there a bridge has to
answer before the letter is deleted, and one that was killed in between repeats it.`,
		Example: `  downlink dead redrive 17 18 -c bridge.yaml
  downlink dead redrive --reason device-not-found --device berlin-pump7 --dry-run
  downlink dead redrive --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if answer <= 0 {
				return usagef("--timeout: %s is not a time to wait", answer)
			}
			entries, err := f.chosen(cmd, args)
			if err != nil {
				return err
			}
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, letters, err := f.open(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			r := natsio.NewRedriver(natsio.RedriveOptions{Conn: st.conn, Letters: letters, Answer: answer})
			if len(args) > 0 {
				entries, err = r.Arrange(cmd.Context(), entries)
			} else {
				entries, err = r.Order(cmd.Context(), f.filter, f.limit)
			}
			if err != nil {
				return missingStore(err, st.name, "dead letters")
			}
			run := &redriveRun{r: r, out: s.out, dryRun: dryRun, asJSON: f.asJSON}
			return run.all(cmd.Context(), entries)
		},
	}
	f.register(cmd, 0)
	cmd.Flags().BoolVar(&f.all, "all", false, "all dead letters")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().DurationVar(&answer, "timeout", 30*time.Second, "how long a bridge may take to answer for a message of core NATS")
	return cmd
}

// redriveRun is one run of dead redrive.
type redriveRun struct {
	r              *natsio.Redriver
	out            io.Writer
	dryRun, asJSON bool
	back, stay     int
}

// redriveResult is what `dead redrive --json` prints of each letter.
type redriveResult struct {
	Entry   uint64 `json:"seq"`
	Subject string `json:"subject,omitempty"`
	Device  string `json:"device,omitempty"`
	To      string `json:"to,omitempty"`     // STREAM:SEQ, or core; with --dry-run the stream
	Repeat  bool   `json:"repeat,omitempty"` // it was there already
	Status  string `json:"status,omitempty"` // the bridge's answer for one of core NATS
	DryRun  bool   `json:"dry_run,omitempty"`
	Error   string `json:"error,omitempty"`
}

// all goes on after a letter that cannot come back, and ends at the first other
// failure: what is behind it must not overtake it.
func (run *redriveRun) all(ctx context.Context, entries []uint64) error {
	for i, entry := range entries {
		one := run.r.Redrive
		if run.dryRun {
			one = run.r.Check
		}
		done, err := one(ctx, entry)
		var refused *natsio.RefusedError
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("%w (%d brought back; %d left, this one included)", err, run.back, len(entries)-i)
		}
		if err := run.tell(entry, done, refused); err != nil {
			return err
		}
	}
	if !run.asJSON {
		verb := "brought back"
		if run.dryRun {
			verb = "would be brought back"
		}
		if _, err := fmt.Fprintf(run.out, "%d %s, %d stay\n", run.back, verb, run.stay); err != nil {
			return err
		}
	}
	if run.stay > 0 {
		return fmt.Errorf("%d of %d dead letters cannot be brought back", run.stay, len(entries))
	}
	return nil
}

func (run *redriveRun) tell(entry uint64, done natsio.Redriven, refused *natsio.RefusedError) error {
	j := redriveResult{Entry: entry, To: done.To, Repeat: done.Repeat, Status: done.Status, DryRun: run.dryRun}
	if done.Letter != nil {
		j.Subject, j.Device = done.Letter.Message.Subject, done.Letter.Device
	}
	if refused != nil {
		run.stay++
		j.To, j.Error = "", refused.Err.Error()
	} else {
		run.back++
	}
	if run.asJSON {
		return json.NewEncoder(run.out).Encode(j)
	}
	var err error
	switch {
	case refused != nil:
		_, err = fmt.Fprintf(run.out, "%d stays: %s\n", entry, visible(j.Error))
	case run.dryRun:
		_, err = fmt.Fprintf(run.out, "%d %s would go to %s\n", entry, visible(j.Subject), j.To)
	case j.Repeat:
		_, err = fmt.Fprintf(run.out, "%d %s is back as %s already\n", entry, visible(j.Subject), j.To)
	case j.Status != "":
		_, err = fmt.Fprintf(run.out, "%d %s was published; the bridge answers: %s\n", entry, visible(j.Subject), visible(j.Status))
	default:
		_, err = fmt.Fprintf(run.out, "%d %s is back as %s\n", entry, visible(j.Subject), j.To)
	}
	return err
}

func newDeadPurgeCmd(s streams, logs *logFlags) *cobra.Command {
	f := &deadFlags{}
	yes := false
	cmd := &cobra.Command{
		Use:   "purge [SEQ...]",
		Short: "Delete dead letters",
		Long: `Delete dead letters, and the messages in them with them. Without --yes it only
counts them. Those that a newer version of downlink stored stay.`,
		Example: `  downlink dead purge --until 7d
  downlink dead purge --reason expired --yes
  downlink dead purge 17 18 --yes -c bridge.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			entries, err := f.chosen(cmd, args)
			if err != nil {
				return err
			}
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			st, letters, err := f.open(cmd.Context(), log)
			if err != nil {
				return err
			}
			defer st.conn.Close()
			p := &purgeRun{letters: letters, yes: yes}
			if len(args) > 0 {
				err = p.numbers(cmd.Context(), entries)
			} else {
				err = p.filtered(cmd.Context(), f.filter, f.limit)
			}
			if err != nil {
				return missingStore(err, st.name, "dead letters")
			}
			return p.report(s.out, f.asJSON)
		},
	}
	f.register(cmd, 0)
	cmd.Flags().BoolVar(&f.all, "all", false, "all dead letters")
	cmd.Flags().BoolVar(&yes, "yes", false, "delete them")
	return cmd
}

// purgeRun is one run of dead purge.
type purgeRun struct {
	letters                 *natsio.Letters
	yes                     bool
	purged, unread, missing int
}

func (p *purgeRun) one(ctx context.Context, l *natsio.Letter) error {
	if l.Err != nil {
		p.unread++
		return nil
	}
	if p.yes {
		if err := p.letters.Delete(ctx, l.Entry); err != nil {
			return fmt.Errorf("%w (%d purged)", err, p.purged)
		}
	}
	p.purged++
	return nil
}

func (p *purgeRun) numbers(ctx context.Context, entries []uint64) error {
	for _, entry := range entries {
		l, err := p.letters.Get(ctx, entry)
		if err != nil {
			return err
		}
		if l == nil {
			p.missing++
			continue
		}
		if err := p.one(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (p *purgeRun) filtered(ctx context.Context, f natsio.LetterFilter, limit int) error {
	return p.letters.Each(ctx, f, func(l *natsio.Letter) (bool, error) {
		err := p.one(ctx, l)
		return limit == 0 || p.purged < limit, err
	})
}

func (p *purgeRun) report(out io.Writer, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(out).Encode(struct {
			Purged  int  `json:"purged"`
			DryRun  bool `json:"dry_run,omitempty"`
			Stay    int  `json:"stay,omitempty"`    // stored by a newer version, or by somebody else
			Missing int  `json:"missing,omitempty"` // no such number
		}{p.purged, !p.yes, p.unread, p.missing})
	} else {
		verb := "purged"
		if !p.yes {
			verb = "would be purged"
		}
		text := fmt.Sprintf("%d %s", p.purged, verb)
		if p.unread > 0 {
			text += fmt.Sprintf(", %d stay: stored by a newer version of downlink, or by somebody else", p.unread)
		}
		if p.missing > 0 {
			text += fmt.Sprintf(", %d not there", p.missing)
		}
		_, err = fmt.Fprintln(out, text)
	}
	switch {
	case err != nil:
		return err
	case !p.yes && p.purged > 0:
		return usagef("nothing was deleted: give --yes to delete them")
	case p.missing > 0:
		return fmt.Errorf("%d of the numbers given are no dead letters in stream %s", p.missing, p.letters.Stream())
	}
	return nil
}
