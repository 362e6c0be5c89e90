package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/hubdevice"
	"downlink/mapping"
)

type listenFlags struct {
	device  identityFlags
	count   int
	timeout time.Duration
	asJSON  bool
	yes     bool
}

func newListenCmd(s streams, logs *logFlags) *cobra.Command {
	f := &listenFlags{}
	cmd := &cobra.Command{
		Use:   "listen DEVICE",
		Short: "Connect as a device and print what it receives",
		Long: `Connect as the device and print each cloud-to-device message, until Ctrl-C or
--count. Each is completed (PUBACK) after it is printed: the hub removes it.

A hub lets a device be connected once: whoever was connected as this device is
disconnected. On a real hub the command therefore asks first; --yes answers.

Without a flag or variable that says which device, it uses the embedded hub
that runs on this machine (downlink hub).`,
		Example: `  downlink listen pump7
  downlink listen pump7 --count 1 --json --data-dir ./hub
  downlink listen pump7 --device-connection-string-file /run/secrets/device --yes`,
		Args: exactArgs("DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := logs.logger(s.err, "warn", "")
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), s, args[0], log)
		},
	}
	f.device.register(cmd, "device", "mqtt-address", "8883")
	fs := cmd.Flags()
	fs.IntVar(&f.count, "count", 0, "end after so many messages (default: never)")
	fs.DurationVar(&f.timeout, "timeout", 0, "give up if --count messages did not come in this time (default: never)")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object a line")
	fs.BoolVarP(&f.yes, "yes", "y", false, "do not ask before a real device is disconnected from a real hub")
	return cmd
}

func (f *listenFlags) run(ctx context.Context, s streams, device string, log *slog.Logger) error {
	switch {
	case device == "":
		return usagef("DEVICE is empty")
	case f.count < 0:
		return usagef("--count: %d is less than 0", f.count)
	case f.timeout < 0:
		return usagef("--timeout: %s is not a time to wait", f.timeout)
	}
	a, err := f.device.resolve(ctx, device)
	if err != nil {
		return err
	}
	client, err := hubdevice.New(hubdevice.Options{
		ConnectionString: a.connectionString, Address: a.address, RootCAs: a.rootCAs, Logger: log,
	})
	if err != nil {
		return asUsage(err)
	}
	if client.Device() != device {
		return usagef("the connection string is for device %q, not for %q", client.Device(), device)
	}
	if !a.ours && !f.yes && !local(a) {
		if err := confirm(s, device, target(a)); err != nil {
			return err
		}
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	// The connection outlives ctx until the last PUBACK is on its way.
	stop, _ := background(context.WithoutCancel(ctx), client.Run)
	n, err := f.receive(ctx, s, client, target(a))
	state := client.Ready()
	err = errors.Join(err, stop())
	switch {
	case err != nil:
		return err
	case f.count == 0 || n == f.count:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		if state != nil && n == 0 {
			return fmt.Errorf("listen %s: nothing came within %s: %w", device, f.timeout, state)
		}
		return fmt.Errorf("listen %s: %d of %d messages came within %s", device, n, f.count, f.timeout)
	}
	return fmt.Errorf("listen %s: stopped after %d of %d messages", device, n, f.count)
}

// receive prints until count messages came or ctx ended, and returns how many it printed.
func (f *listenFlags) receive(ctx context.Context, s streams, client *hubdevice.Client, where string) (int, error) {
	stop, _ := background(ctx, func(ctx context.Context) error {
		announce(ctx, s.err, client, where)
		return nil
	})
	defer stop()
	for n := 0; ; {
		if f.count > 0 && n == f.count {
			return n, nil
		}
		m, err := client.Receive(ctx)
		if ctx.Err() != nil {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("listen %s: %w", client.Device(), err)
		}
		if f.asJSON {
			err = json.NewEncoder(s.out).Encode(deviceEvent(m.C2D(), time.Now()))
		} else {
			err = printC2D(s.out, m.C2D())
		}
		if err != nil {
			return n, err // not printed, so not completed: the hub keeps it
		}
		m.Ack()
		n++
	}
}

// announce tells once that the connection stands, or after some seconds why it does not.
func announce(ctx context.Context, w io.Writer, client *hubdevice.Client, where string) {
	err := waitReady(ctx, 5*time.Second, client.Ready)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		fmt.Fprintf(w, "listening as %s at %s: %s; still trying, Ctrl-C ends\n", client.Device(), where, err)
	default:
		fmt.Fprintf(w, "listening as %s at %s; Ctrl-C ends\n", client.Device(), where)
	}
}

// target is the host that listen connects to.
func target(a access) string {
	if a.address != "" {
		return a.address
	}
	if g := part(a.connectionString, "GatewayHostName"); g != "" {
		return g
	}
	return part(a.connectionString, "HostName")
}

// local reports whether the hub is on this machine, where no real hub is.
func local(a access) bool {
	host := target(a)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// confirm asks on the terminal. Without one it refuses: nobody would see the question.
func confirm(s streams, device, where string) error {
	if !terminal(s.in) {
		return usagef("listen would disconnect %s, if it is connected to %s now, and take its messages: give --yes if that is meant", device, where)
	}
	return askFirst(s, device, where)
}

func askFirst(s streams, device, where string) error {
	fmt.Fprintf(s.err, "If %s is connected to %s now, it will be disconnected, and its messages come here instead. Continue? [y/N] ", device, where)
	line, err := bufio.NewReader(s.in).ReadString('\n')
	if err != nil && line == "" {
		return fmt.Errorf("no answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not confirmed: nothing was done")
}

// c2dMessage is a message as `listen --json` prints it. A property without any
// value is null.
type c2dMessage struct {
	Device          string             `json:"device"`
	MessageID       string             `json:"message_id,omitempty"`
	CorrelationID   string             `json:"correlation_id,omitempty"`
	UserID          string             `json:"user_id,omitempty"`
	ContentType     string             `json:"content_type,omitempty"`
	ContentEncoding string             `json:"content_encoding,omitempty"`
	To              string             `json:"to,omitempty"`
	Expires         string             `json:"expires,omitempty"`
	Ack             string             `json:"ack,omitempty"`
	Properties      map[string]*string `json:"properties"`
	Payload         *string            `json:"payload,omitempty"`
	PayloadBase64   []byte             `json:"payload_base64,omitempty"`
	Topic           string             `json:"topic"`
	ReceivedAt      time.Time          `json:"received_at"`
}

func deviceEvent(c *mapping.C2D, at time.Time) c2dMessage {
	e := c2dMessage{
		Device: c.Device, MessageID: c.MessageID, CorrelationID: c.CorrelationID, UserID: c.UserID,
		ContentType: c.ContentType, ContentEncoding: c.ContentEncoding, To: c.To, Expires: c.Expires, Ack: c.Ack,
		Properties: make(map[string]*string, len(c.Properties)), Topic: c.Topic, ReceivedAt: at.UTC(),
	}
	for _, p := range c.Properties {
		if p.Null {
			e.Properties[p.Name] = nil
		} else {
			e.Properties[p.Name] = &p.Value
		}
	}
	e.Payload, e.PayloadBase64 = jsonPayload(c.Body)
	return e
}

func printC2D(w io.Writer, c *mapping.C2D) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", c.Device)
	for _, l := range []struct{ name, value string }{
		{"message-id", c.MessageID}, {"correlation-id", c.CorrelationID}, {"user-id", c.UserID},
		{"content-type", c.ContentType}, {"content-encoding", c.ContentEncoding}, {"expires", c.Expires}, {"ack", c.Ack},
	} {
		if l.value != "" {
			fmt.Fprintf(&b, "  %s: %s\n", l.name, visible(l.value))
		}
	}
	for _, p := range c.Properties {
		if p.Null {
			fmt.Fprintf(&b, "  %s\n", visible(p.Name))
		} else {
			fmt.Fprintf(&b, "  %s=%s\n", visible(p.Name), visible(p.Value))
		}
	}
	fmt.Fprintf(&b, "%s\n\n", shownPayload(c.Body))
	_, err := io.WriteString(w, b.String())
	return err
}
