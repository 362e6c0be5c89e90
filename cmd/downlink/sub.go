package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

func newSubCmd(s streams, logs *logFlags) *cobra.Command {
	var (
		conn   natsFlags
		count  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "sub SUBJECT",
		Short: "Print what arrives on a NATS subject",
		Long: `Print each message on SUBJECT (wildcards allowed) with its headers, until Ctrl-C
or --count. It listens only: it takes no message from any stream.`,
		Example: `  downlink sub 'edge.>'
  downlink sub 'downlink.dead.>' --json --server nats://127.0.0.1:4222
  downlink sub 'edge.berlin-pump7.*' --count 1 --context site-berlin`,
		Args: exactArgs("SUBJECT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 0 {
				return usagef("--count: %d is less than 0", count)
			}
			if strings.ContainsAny(args[0], " \t\r\n") || strings.Contains("."+args[0]+".", "..") {
				return usagef("subject %q: empty tokens and spaces are not allowed", args[0])
			}
			if strings.Contains("."+args[0], ".>.") {
				return usagef("subject %q: \">\" is only allowed as the last token", args[0])
			}
			log, err := logs.logger(s.err, "warn", "")
			if err != nil {
				return err
			}
			return subscribe(cmd.Context(), s, &conn, args[0], count, asJSON, log)
		},
	}
	conn.register(cmd)
	cmd.Flags().IntVar(&count, "count", 0, "end after so many messages (default: never)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func subscribe(ctx context.Context, s streams, flags *natsFlags, subject string, count int, asJSON bool, log *slog.Logger) error {
	conn, err := flags.connect(ctx, "downlink sub", log)
	if err != nil {
		return err
	}
	defer conn.Close()
	nc := conn.NATS()
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subject, err)
	}
	if err := nc.FlushTimeout(flags.connectTimeout); err != nil {
		return fmt.Errorf("subscribe %s: no answer from the server: %w", subject, err)
	}
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return fmt.Errorf("subscribe %s: %w", subject, err)
	}
	fmt.Fprintf(s.err, "listening on %s at %s; Ctrl-C ends\n", subject, nc.ConnectedUrlRedacted())
	for n := 1; ; n++ {
		msg, err := sub.NextMsgWithContext(ctx)
		switch {
		case ctx.Err() != nil && count == 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("stopped after %d of %d messages", n-1, count)
		case err != nil:
			return fmt.Errorf("subscribe %s: %w", subject, err)
		}
		if asJSON {
			err = json.NewEncoder(s.out).Encode(natsEvent(msg))
		} else {
			err = printNATS(s.out, msg)
		}
		if err != nil || n == count {
			return err
		}
	}
}

// natsMessage is a message as `sub --json` prints it. A payload that is not
// UTF-8 is given in base64 instead.
type natsMessage struct {
	Subject       string              `json:"subject"`
	Headers       map[string][]string `json:"headers,omitempty"`
	Reply         string              `json:"reply,omitempty"`
	Payload       *string             `json:"payload,omitempty"`
	PayloadBase64 []byte              `json:"payload_base64,omitempty"`
}

func natsEvent(m *nats.Msg) natsMessage {
	e := natsMessage{Subject: m.Subject, Headers: m.Header, Reply: m.Reply}
	e.Payload, e.PayloadBase64 = jsonPayload(m.Data)
	return e
}

// jsonPayload gives a payload as text, or as bytes (which JSON encodes in base64) if it is no text.
func jsonPayload(b []byte) (*string, []byte) {
	if utf8.Valid(b) {
		text := string(b)
		return &text, nil
	}
	return nil, b
}

func printNATS(w io.Writer, m *nats.Msg) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", m.Subject)
	names := make([]string, 0, len(m.Header))
	for name := range m.Header {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		for _, value := range m.Header[name] {
			fmt.Fprintf(&b, "  %s: %s\n", name, visible(value))
		}
	}
	fmt.Fprintf(&b, "%s\n\n", shownPayload(m.Data))
	_, err := io.WriteString(w, b.String())
	return err
}

// shownPayload is a payload for people: text as it is, anything else quoted, so
// that no message can send control sequences to a terminal.
func shownPayload(b []byte) string {
	if !utf8.Valid(b) {
		return fmt.Sprintf("%d bytes: %q", len(b), b)
	}
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		lines[i] = visible(l)
	}
	return strings.Join(lines, "\n")
}

// visible replaces control characters, except tabs, by their escapes.
func visible(s string) string {
	clean := true
	for _, r := range s {
		if r != '\t' && (r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	quoted := fmt.Sprintf("%q", s)
	return quoted[1 : len(quoted)-1]
}
