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
		conn   natsFlags
		f      natsio.ReceiptFilter
		since  time.Duration
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
		Example: `  downlink feedback --since 10m
  downlink feedback --follow --device berlin-pump7
  downlink feedback --since 0 --status delivery-count-exceeded --json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since < 0 {
				return usagef("--since: %s is less than 0", since)
			}
			if f.Status != "" && !slices.Contains(receiptStatuses, f.Status) {
				return usagef("--status: %q is none of %s", f.Status, strings.Join(receiptStatuses, ", "))
			}
			if f.Name == "" || strings.ContainsAny(f.Name, " \t.*>/\\") {
				return usagef("--name: %q cannot be a bridge's name", f.Name)
			}
			if since > 0 {
				f.Since = time.Now().Add(-since)
			}
			log, err := logs.logger(s.err, "warn", "")
			if err != nil {
				return err
			}
			return printFeedback(cmd.Context(), s, &conn, f, asJSON, log)
		},
	}
	conn.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.Name, "name", "downlink", "the bridge's name, as in its configuration")
	fs.StringVar(&f.Hub, "hub", "", "only of this hub, by its name in the configuration")
	fs.StringVar(&f.Device, "device", "", "only of this device")
	fs.StringVar(&f.Status, "status", "", "only with this status: "+strings.Join(receiptStatuses, ", "))
	fs.DurationVar(&since, "since", time.Hour, "only what was stored so lately; 0: everything")
	fs.BoolVar(&f.Follow, "follow", false, "go on with what comes, until Ctrl-C")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func printFeedback(ctx context.Context, s streams, flags *natsFlags, f natsio.ReceiptFilter, asJSON bool, log *slog.Logger) error {
	conn, err := flags.connect(ctx, "downlink feedback", log)
	if err != nil {
		return err
	}
	defer conn.Close()
	n := 0
	err = natsio.ReadReceipts(ctx, conn, f, func(r natsio.StoredReceipt) error {
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
