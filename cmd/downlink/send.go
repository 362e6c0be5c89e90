package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nuid"
	"github.com/spf13/cobra"

	"downlink/bridge"
	"downlink/bridge/hubservice"
	"downlink/mapping"
)

type sendFlags struct {
	hub        identityFlags
	data       string
	properties []string
	ttl        time.Duration
	ack        string
	device     string
	message    mapping.MessageRule
	envelope   *mapping.Envelope // made of all that
	timeout    time.Duration
	asJSON     bool
}

func newSendCmd(s streams, logs *logFlags) *cobra.Command {
	f := &sendFlags{}
	cmd := &cobra.Command{
		Use:   "send DEVICE",
		Short: "Send one cloud-to-device message straight to the hub",
		Long: `Send one cloud-to-device message straight to the hub, without NATS and without
any mapping, and print what the hub said. It works with a real hub and with the
embedded one.

Without a flag or variable that says which hub, it uses the embedded hub that
runs on this machine (downlink hub).`,
		Example: `  downlink send pump7 --data reboot -p verb=reboot --ttl 1h --ack full
  downlink send pump7 --data @firmware.json --content-type application/json \
    --hub-connection-string-file /run/secrets/hub
  echo on | downlink send pump7 --data - -c downlink.yaml --json`,
		Args: exactArgs("DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.device = args[0]
			if f.device == "" {
				return usagef("DEVICE is empty")
			}
			log, err := logs.logger(s.err, "error", "")
			if err != nil {
				return err
			}
			if logs.level == "" {
				log = slog.New(slog.DiscardHandler) // its errors are in the one that the command ends with
			}
			return f.run(cmd.Context(), s, log)
		},
	}
	f.hub.register(cmd, "hub", "amqp-address", "5671")
	fs := cmd.Flags()
	fs.StringVar(&f.data, "data", "", "payload: a text, @FILE, or - for standard input")
	fs.StringArrayVarP(&f.properties, "property", "p", nil, "application property NAME=VALUE, repeatable")
	fs.DurationVar(&f.ttl, "ttl", 0, "how long the hub keeps it, up to 48h (default: as the hub is configured)")
	fs.StringVar(&f.ack, "ack", "none", "feedback to ask of the hub: none, positive, negative or full")
	fs.StringVar(&f.message.MessageID, "message-id", "", "message ID (default: a random one)")
	fs.StringVar(&f.message.CorrelationID, "correlation-id", "", "correlation ID")
	fs.StringVar(&f.message.UserID, "user-id", "", "user ID")
	fs.StringVar(&f.message.ContentType, "content-type", "", "content type, such as application/json")
	fs.StringVar(&f.message.ContentEncoding, "content-encoding", "", "content encoding, such as utf-8")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for the hub's answer")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object")
	return cmd
}

func (f *sendFlags) run(ctx context.Context, s streams, log *slog.Logger) error {
	if err := f.fill(s, time.Now()); err != nil {
		return err
	}
	a, err := f.hub.resolve(ctx, "")
	if err != nil {
		return err
	}
	o := a.service()
	o.Logger = log
	client, err := hubservice.New(o)
	if err != nil {
		return asUsage(err)
	}
	stop, _ := background(ctx, client.Run)
	defer stop()
	err = f.send(ctx, client)
	return f.report(s, err)
}

// send waits for the hub's decision. The client waits for ever for a hub that
// cannot be reached; what it says of its state is then the better error.
func (f *sendFlags) send(ctx context.Context, client *hubservice.Client) error {
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	refused := make(chan error, 1)
	go func() {
		if err := refusal(limited, client.Ready); err != nil {
			refused <- err
			cancel()
		}
	}()
	err := client.Send(limited, f.envelope)
	if errors.Is(err, context.Canceled) {
		select {
		case err := <-refused:
			return fmt.Errorf("not sent: %w", err)
		default:
			return errors.New("interrupted: the hub may have taken the message")
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if state := client.Ready(); state != nil {
			return fmt.Errorf("not sent within %s: %w", f.timeout, state)
		}
		return fmt.Errorf("no answer from the hub within %s: it may have taken the message", f.timeout)
	}
	return err
}

// refusal waits until the hub refuses the credential, which waiting longer does
// not mend, and returns that; nil once ctx ends.
func refusal(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		state := ready()
		if e, ok := errors.AsType[*bridge.Error](state); ok && e.Class == bridge.Unauthorized {
			return state
		}
	}
}

// sendResult is what `send --json` prints.
type sendResult struct {
	Status    string     `json:"status"` // accepted, refused, unknown
	Device    string     `json:"device"`
	MessageID string     `json:"message_id"`
	Expires   *time.Time `json:"expires,omitempty"`
	Ack       string     `json:"ack,omitempty"`
	Condition string     `json:"condition,omitempty"`
	Error     string     `json:"error,omitempty"`
	Remedy    string     `json:"remedy,omitempty"`
}

func (f *sendFlags) report(s streams, err error) error {
	e := f.envelope
	r := sendResult{Status: "accepted", Device: e.Device, MessageID: e.MessageID, Ack: string(e.Ack)}
	if !e.ExpiresAt.IsZero() {
		r.Expires = &e.ExpiresAt
	}
	if err != nil {
		r.Status, r.Error = "unknown", err.Error()
		var refusal *bridge.Error
		if errors.As(err, &refusal) {
			r.Condition, r.Remedy = refusal.Condition, remedy(refusal.Class, e.Device)
			if refusal.Class != bridge.LinkLost {
				r.Status = "refused"
			}
		}
	}
	if f.asJSON {
		if jsonErr := json.NewEncoder(s.out).Encode(r); jsonErr != nil {
			return jsonErr
		}
	}
	if err != nil {
		if r.Remedy != "" {
			return fmt.Errorf("send %s (%s): %w; %s", e.Device, e.MessageID, err, r.Remedy)
		}
		return fmt.Errorf("send %s (%s): %w", e.Device, e.MessageID, err)
	}
	if f.asJSON {
		return nil
	}
	line := fmt.Sprintf("accepted: the hub queued message %s for %s", e.MessageID, e.Device)
	if r.Expires != nil {
		line += ", until " + r.Expires.UTC().Format(time.RFC3339)
	}
	if e.Ack != mapping.AckNone {
		line += ", feedback asked: " + string(e.Ack)
	}
	_, err = fmt.Fprintln(s.out, line)
	return err
}

// remedy says what a refusal means and what to do about it.
func remedy(class bridge.Class, device string) string {
	switch class {
	case bridge.NoDevice:
		return fmt.Sprintf("the hub has no device %q: create it there, or start downlink hub with --device %s or --any-device", device, device)
	case bridge.QueueFull:
		return fmt.Sprintf("device %s already has as many undelivered messages as the hub keeps (50): let it connect and take them, or purge its queue", device)
	case bridge.Throttled:
		return "the hub takes no more for now: try again later, or add units"
	case bridge.Paused:
		return "the hub's quota for today is used up, or it is suspended: look at it in the portal"
	case bridge.Unauthorized:
		return "the credential was refused: it needs the ServiceConnect right and the key that is valid now"
	case bridge.Refused:
		return "this message can never succeed as it is"
	case bridge.Resend, bridge.Unknown:
		return "try again"
	case bridge.LinkLost:
		return "the connection broke before the answer: the hub may have taken it; the same --message-id makes a repeat recognisable"
	}
	return ""
}

// fill turns the flags into the envelope.
func (f *sendFlags) fill(s streams, now time.Time) error {
	if f.timeout <= 0 {
		return usagef("--timeout: %s is not a time to wait", f.timeout)
	}
	if f.ttl < 0 {
		return usagef("--ttl: %s is in the past", f.ttl)
	}
	payload, err := body(s, f.data)
	if err != nil {
		return err
	}
	rules, err := parseProperties(f.properties)
	if err != nil {
		return err
	}
	if f.message.MessageID == "" {
		f.message.MessageID = nuid.Next()
	}
	m := f.message
	m.TTL, m.Ack = f.ttl, f.ack
	for _, text := range []*string{&m.MessageID, &m.CorrelationID, &m.UserID, &m.ContentType, &m.ContentEncoding} {
		*text = literal(*text)
	}
	f.envelope, err = envelope(f.device, m, rules, payload, now)
	return err
}

// envelope has mapping make the envelope, as a route of literal texts: what a
// bridge would refuse is refused here, for the same reason.
func envelope(device string, m mapping.MessageRule, properties []mapping.PropertyRule, payload []byte, now time.Time) (*mapping.Envelope, error) {
	const subject = "send"
	table, err := mapping.Compile([]mapping.Route{{
		Name: "send", Subject: subject, Source: "core", Device: literal(device), Message: m, Properties: properties,
	}}, mapping.TableOptions{Name: "downlink", Hubs: []mapping.HubOptions{{Name: "hub"}}})
	if err != nil {
		return nil, asUsage(sendError(err))
	}
	results := table.Map(&mapping.Input{Subject: subject, Payload: payload, Time: now})
	switch {
	case len(results) != 1:
		return nil, errors.New("send: no message came out of the mapping")
	case results[0].Err != nil:
		return nil, usagef("%s: %w", sendField(results[0].Err.Field), results[0].Err.Err)
	case results[0].Envelope == nil:
		return nil, fmt.Errorf("send: the mapping dropped the message: %s", results[0].Drop)
	}
	return results[0].Envelope, nil
}

// literal escapes the braces that would begin an expression.
func literal(s string) string {
	return strings.NewReplacer("{", "{{", "}", "}}").Replace(s)
}

// sendError words the mistakes that mapping found in the terms of the command line.
func sendError(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the joined list itself
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, sendError(e))
		}
		return errors.Join(all...)
	}
	var field *mapping.FieldError
	if errors.As(err, &field) {
		text := field.Err.Error()
		// What a route could do about it, and send has not.
		text, _, _ = strings.Cut(text, "; illegal_values: ")
		text, _, _ = strings.Cut(text, " (envelope: relay ")
		return fmt.Errorf("%s: %s", sendField(field.Path), text)
	}
	return err
}

// sendField names the flag that a route's field came from.
func sendField(path string) string {
	path = strings.TrimPrefix(path, "routes[0].")
	path = strings.TrimPrefix(path, "message.")
	switch {
	case path == "device":
		return "DEVICE"
	case strings.HasPrefix(path, "properties"):
		return "--property"
	case path == "payload" || path == "message" || path == "":
		return "the message"
	}
	return "--" + strings.ReplaceAll(path, "_", "-")
}

// body is --data: a text, @FILE, or - for standard input.
func body(s streams, data string) ([]byte, error) {
	switch {
	case data == "-":
		b, err := io.ReadAll(s.in)
		if err != nil {
			return nil, fmt.Errorf("--data -: standard input: %w", err)
		}
		return b, nil
	case strings.HasPrefix(data, "@"):
		b, err := os.ReadFile(data[1:])
		if err != nil {
			return nil, usagef("--data: %w", err)
		}
		return b, nil
	}
	return []byte(data), nil
}

func parseProperties(pairs []string) ([]mapping.PropertyRule, error) {
	var rules []mapping.PropertyRule
	seen := make(map[string]bool)
	for _, p := range pairs {
		name, value, ok := strings.Cut(p, "=")
		switch {
		case !ok || name == "":
			return nil, usagef("--property %q: write NAME=VALUE", p)
		case seen[name]:
			return nil, usagef("--property %s: given twice", name)
		}
		seen[name] = true
		rules = append(rules, mapping.PropertyRule{Name: name, Value: literal(value)})
	}
	return rules, nil
}
