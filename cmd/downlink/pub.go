package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

func newPubCmd(s streams, logs *logFlags) *cobra.Command {
	var (
		conn    natsFlags
		headers []string
		count   int
		request bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "pub SUBJECT [DATA|-]",
		Short: "Publish on NATS",
		Long: `Publish a message on NATS. DATA is the payload; "-" reads it from standard input,
without DATA it is empty.

It returns as soon as the server has the message, which may be before a stream
has stored it. With --request it waits for the answer and prints it: from a
route with "source: core" that is the outcome at the hub, from a subject that a
stream stores it is the stream's publish ack.`,
		Example: `  downlink pub cmd.berlin.pump7.reboot '{"delay":5}' -H X-User=ann
  downlink pub cmd.berlin.pump7.reboot --request --server nats://127.0.0.1:4222
  downlink pub cmd.berlin.pump7.firmware - --creds app.creds < firmware.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("SUBJECT", "DATA")(cmd, args)
			}
			return exactArgs("SUBJECT")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			msg := &nats.Msg{Subject: args[0]}
			var err error
			if msg.Header, err = parseHeaders(headers); err != nil {
				return err
			}
			for name := range msg.Header {
				if !headerName.MatchString(name) {
					return usagef("--header %q: a header's name has ASCII letters, digits and ! # $ %% & ' * + - . ^ _ ` | ~", name)
				}
			}
			if err := checkPublishSubject(args[0]); err != nil {
				return err
			}
			if count < 1 {
				return usagef("--count: %d is less than 1", count)
			}
			if timeout <= 0 {
				return usagef("--timeout: %s is not a time to wait", timeout)
			}
			if len(args) == 2 {
				if msg.Data, err = payload(s, args[1]); err != nil {
					return err
				}
			}
			log, err := logs.logger(s.err, "error", "")
			if err != nil {
				return err
			}
			return publish(cmd.Context(), s, &conn, msg, count, request, timeout, log)
		},
	}
	conn.register(cmd)
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header NAME=VALUE, repeatable")
	cmd.Flags().IntVar(&count, "count", 1, "publish it so many times")
	cmd.Flags().BoolVar(&request, "request", false, "wait for the answer and print it")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for the server, and for each answer")
	return cmd
}

func publish(ctx context.Context, s streams, flags *natsFlags, msg *nats.Msg, count int, request bool, timeout time.Duration, log *slog.Logger) error {
	conn, err := flags.connect(ctx, "downlink pub", log)
	if err != nil {
		return err
	}
	defer conn.Close()
	nc := conn.NATS()
	if request {
		for range count {
			if err := ask(ctx, s, nc, msg, timeout); err != nil {
				return err
			}
		}
		return nil
	}
	for range count {
		if err := nc.PublishMsg(msg); err != nil {
			return fmt.Errorf("publish %s: %w", msg.Subject, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("publish %s: no answer from the server: %w", msg.Subject, err)
	}
	// A refused publish is only told asynchronously, but before the flush's answer.
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return fmt.Errorf("publish %s: %w", msg.Subject, err)
	}
	times := ""
	if count > 1 {
		times = fmt.Sprintf(" %d times", count)
	}
	fmt.Fprintf(s.out, "published %s (%d bytes)%s\n", msg.Subject, len(msg.Data), times)
	return nil
}

func ask(ctx context.Context, s streams, nc *nats.Conn, msg *nats.Msg, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := nc.RequestMsgWithContext(ctx, msg)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("request %s: nobody listens there: does a bridge with a \"source: core\" route for it run?", msg.Subject)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("request %s: no answer within %s", msg.Subject, timeout)
	case err != nil:
		return fmt.Errorf("request %s: %w", msg.Subject, err)
	}
	_, err = fmt.Fprintf(s.out, "%s\n", reply.Data)
	return err
}

// headerName is what nats.go publishes.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// parseHeaders reads NAME=VALUE. A NATS header's line cannot hold CR or LF.
func parseHeaders(pairs []string) (nats.Header, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	h := nats.Header{}
	for _, p := range pairs {
		name, value, ok := strings.Cut(p, "=")
		switch {
		case !ok || name == "":
			return nil, usagef("--header %q: write NAME=VALUE", p)
		case strings.ContainsAny(name, ": \r\n\t"):
			return nil, usagef("--header %q: a header's name has no spaces and no colon", p)
		case strings.ContainsAny(value, "\r\n"):
			return nil, usagef("--header %q: a header's value is one line", name)
		}
		h.Add(name, value)
	}
	return h, nil
}

func checkPublishSubject(subject string) error {
	for token := range strings.SplitSeq(subject, ".") {
		switch {
		case token == "" || strings.ContainsAny(token, " \t\r\n"):
			return usagef("subject %q: empty tokens and spaces are not allowed", subject)
		case token == "*" || token == ">":
			return usagef("subject %q: cannot publish to a wildcard", subject)
		}
	}
	return nil
}

// payload is the argument itself; "-" is all of standard input.
func payload(s streams, arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	b, err := io.ReadAll(s.in)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return b, nil
}
