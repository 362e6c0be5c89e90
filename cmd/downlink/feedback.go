package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/natsio"
)

// receiptStatuses are all that a receipt can have, in the order of a message's life.
var receiptStatuses = []string{
	bridge.StatusAccepted, bridge.StatusDead, bridge.StatusDropped, bridge.StatusReplaced, bridge.StatusCompleted,
	bridge.StatusRejected, bridge.StatusExpired, bridge.StatusExceeded, bridge.StatusPurged, bridge.StatusUnknown,
}

func newFeedbackCmd(s streams, logs *logFlags) *cobra.Command {
	var (
		store  storeFlags
		f      natsio.ReceiptFilter
		since  string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "feedback",
		Short: "Print what became of messages: the receipts that a bridge stored",
		Long: `Print the receipts that a bridge has stored on NATS, one a line: what the bridge
did with each message, and what the hub then told of it. With --follow it goes on
until Ctrl-C. It reads a stream: it takes nothing from the hub's feedback queue, and it
is no device.

A bridge stores receipts of routes that ask for them (message.ack, receipts: true)
and for publishers that wait for an answer.`,
		Example: `  downlink feedback -c bridge.yaml --since 10m
  downlink feedback --follow --device berlin-pump7
  downlink feedback --since 0 --status delivery-count-exceeded --json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Status != "" && !slices.Contains(receiptStatuses, f.Status) {
				return usagef("--status: %q is none of %s", f.Status, strings.Join(receiptStatuses, ", "))
			}
			var err error
			if since != "0" {
				if f.Since, err = moment("--since", since, time.Now()); err != nil {
					return err
				}
			}
			log, err := logs.ifAsked(s.err)
			if f.Follow {
				log, err = logs.logger(s.err, "warn", "") // a connection that is lost meanwhile ends nothing, and should be seen
			}
			if err != nil {
				return err
			}
			return printFeedback(cmd.Context(), s, &store, f, asJSON, log)
		},
	}
	store.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.Hub, "hub", "", "only of this hub, by its name in the configuration")
	fs.StringVar(&f.Device, "device", "", "only of this device")
	fs.StringVar(&f.Status, "status", "", "only with this status: "+strings.Join(receiptStatuses, ", "))
	fs.StringVar(&since, "since", "1h", "only what was stored since then: how long ago (90m, 7d), or a time; 0: everything")
	fs.BoolVar(&f.Follow, "follow", false, "go on with what comes, until Ctrl-C")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func printFeedback(ctx context.Context, s streams, flags *storeFlags, f natsio.ReceiptFilter, asJSON bool, log *slog.Logger) error {
	st, err := flags.open(ctx, "downlink feedback", log)
	if err != nil {
		return err
	}
	defer st.conn.Close()
	f.Name = st.name
	n := 0
	err = natsio.ReadReceipts(ctx, st.conn, f, func(r natsio.StoredReceipt) error {
		n++
		if asJSON {
			return json.NewEncoder(s.out).Encode(r)
		}
		return printReceipt(s.out, r)
	})
	switch {
	case f.Follow && ctx.Err() != nil:
		return nil
	case err == nil && n == 0 && !asJSON:
		fmt.Fprintln(s.err, "no receipt")
	}
	return err
}

// printReceipt prints a receipt as one line for people.
func printReceipt(w io.Writer, r natsio.StoredReceipt) error {
	words := []string{r.At.UTC().Format("2006-01-02T15:04:05.000Z"), r.Status, orDash(r.Device), orDash(r.ID)}
	for _, more := range []struct{ name, value string }{
		{"hub", r.Hub}, {"route", r.Route}, {"subject", r.Subject}, {"reason", r.Reason}, {"condition", r.Condition},
	} {
		if more.value != "" {
			words = append(words, more.name+"="+more.value)
		}
	}
	if r.Stream != "" {
		words = append(words, fmt.Sprintf("from=%s:%d", r.Stream, r.Sequence))
	}
	if r.Text != "" {
		words = append(words, "("+r.Text+")")
	}
	_, err := fmt.Fprintln(w, visible(strings.Join(words, "  ")))
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
