package natsio

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

const (
	deadMaxAge   = 30 * 24 * time.Hour
	deadMaxBytes = 1 << 30
	headersMax   = 65535 // JetStream keeps a 16-bit length
)

// DeadLettersOptions configures DeadLetters. Conn is required.
type DeadLettersOptions struct {
	Conn *Conn
	// Name is the bridge's: stream <NAME>_DEAD, subjects <name>.dead.>. Default downlink.
	Name string
	// Create makes the stream if it does not exist.
	Create bool
	// Replicas of a stream that is created. Zero: as many as the one of Sources with most.
	Replicas int
	// Sources are the streams that messages come from.
	Sources []string
	// MaxAge and MaxBytes bound a stream that is created. Default 30 days and 1 GiB.
	MaxAge   time.Duration
	MaxBytes int64
	Logger   *slog.Logger
}

// DeadLetters keeps whole messages that can never be delivered, with the reason, in a
// stream. It implements bridge.DeadLetters. Safe for concurrent use.
type DeadLetters struct {
	o      DeadLettersOptions
	stream *ownStream
}

// NewDeadLetters checks the options. It does no I/O.
func NewDeadLetters(o DeadLettersOptions) (*DeadLetters, error) {
	if o.Name == "" {
		o.Name = "downlink"
	}
	if err := checkToken("name", o.Name); err != nil {
		return nil, err
	}
	if o.MaxAge == 0 {
		o.MaxAge = deadMaxAge
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = deadMaxBytes
	}
	return &DeadLetters{o: o, stream: &ownStream{
		conn: o.Conn, log: logger(o.Logger), use: "dead letters", cannot: "dead letters cannot be stored", prefix: deadPrefix(o.Name),
		config: jetstream.StreamConfig{
			Name: DeadStream(o.Name), Subjects: []string{DeadSubjects(o.Name)}, MaxAge: o.MaxAge, MaxBytes: o.MaxBytes, Discard: jetstream.DiscardNew,
		},
		create: o.Create, copies: copies{o.Replicas, o.Sources},
		err: errors.New("stream " + DeadStream(o.Name) + ": not checked yet"),
	}}, nil
}

// Stream is the stream's name.
func (d *DeadLetters) Stream() string { return DeadStream(d.o.Name) }

// Ready is nil if dead letters can be stored, as far as known without one. Otherwise it is one line.
func (d *DeadLetters) Ready() error { return d.stream.ready() }

// Run makes sure that the stream exists, again after each reconnect, until ctx is done. Without it
// the first Store does.
func (d *DeadLetters) Run(ctx context.Context) error {
	d.stream.run(ctx)
	return nil
}

// Store blocks until JetStream has acknowledged the dead letter, five seconds at most. Storing the
// same one again soon after does not store it twice.
func (d *DeadLetters) Store(ctx context.Context, letter bridge.DeadLetter) (err error) {
	defer func() {
		if ctx.Err() == nil {
			d.stream.note(err)
		}
	}()
	m := d.message(letter)
	d.fit(m, letter.Message, int(d.o.Conn.nc.MaxPayload()))
	err = d.publish(ctx, m)
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		if err := d.stream.ensure(ctx); err != nil {
			return err
		}
		err = d.publish(ctx, m)
	case largerThanStream(err):
		// A stream with a max_msg_size of its own: keep at least the reason.
		truncate(m, letter.Message, 0)
		err = d.publish(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("dead letter: subject %s: %w", m.Subject, apiError(err))
	}
	return nil
}

func (d *DeadLetters) publish(ctx context.Context, m *nats.Msg) error {
	_, err := d.o.Conn.publish(ctx, m)
	return err
}

func largerThanStream(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && tooLarge(api)
}

// message is the dead letter as it is stored, however large.
func (d *DeadLetters) message(l bridge.DeadLetter) *nats.Msg {
	in := l.Message
	m := &nats.Msg{
		Subject: deadPrefix(d.o.Name) + token(string(l.Reason)) + "." + token(l.Route),
		Header:  originalHeaders(in.Header),
		Data:    in.Payload,
	}
	set := func(name, value string) {
		if value != "" {
			m.Header[name] = []string{oneText(value)}
		}
	}
	set("Downlink-Format", "1")
	set("Downlink-Reason", string(l.Reason))
	set("Downlink-Condition", l.Condition)
	set("Downlink-Text", l.Text)
	set("Downlink-Device", l.Device)
	set("Downlink-Hub", l.Hub)
	set("Downlink-Route", l.Route)
	set("Downlink-Message-Id", l.MessageID)
	set("Downlink-Attempts", strconv.Itoa(l.Attempts))
	set("Downlink-At", stamp(l.At))
	set("Downlink-Subject", in.Subject)
	set("Downlink-Stream", in.Stream)
	if in.Stream != "" {
		set("Downlink-Seq", strconv.FormatUint(in.Sequence, 10))
	}
	set("Downlink-Time", stamp(in.Time))
	set(nats.MsgIdHdr, letterID(l))
	if in.BadHeader {
		truncate(m, in, len(m.Data)) // only its stream has the headers
	}
	return m
}

// letterID is the same for each try to store one message's fate at one target. A message from
// core NATS has no number; the moment of its death tells it from others like it.
func letterID(l bridge.DeadLetter) string {
	in := l.Message
	parts := []string{in.Stream, strconv.FormatUint(in.Sequence, 10), stamp(in.Time), l.Route, l.Hub, l.Device, l.MessageID}
	if l.Target != "" {
		parts = append(parts, l.Target)
	}
	if in.Stream == "" {
		parts = append(parts, in.Subject, string(in.Payload), stamp(l.At))
	}
	return "dead-" + digest(parts...)
}

// digest tells lists of texts apart.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// originalHeaders keeps a message's headers under names that mean nothing to JetStream or to us.
func originalHeaders(h map[string][]string) nats.Header {
	out := make(nats.Header, len(h)+16)
	for name, values := range h {
		if hasPrefixFold(name, "Nats-") || hasPrefixFold(name, "Downlink-") {
			name = "Downlink-Orig-" + name
		}
		name = headerName(name)
		out[name] = append(out[name], values...)
	}
	return out
}

// headerName percent-encodes what nats.go refuses in a header's name, although it receives it.
func headerName(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"()/,:;<=>?@[\]{}`, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// fit cuts what the server would refuse: original headers beyond 64 KiB, then the body.
func (d *DeadLetters) fit(m *nats.Msg, in *mapping.Input, maxPayload int) {
	if maxPayload <= 0 {
		maxPayload = 1 << 20 // not connected yet; the server's default
	}
	const mark = 256 // room for Downlink-Truncated
	cut := false
	if limit := min(headersMax, maxPayload) - mark; headerSize(m.Header) > limit {
		// The largest first, so that most stay; only original ones can be this large.
		names := slices.SortedFunc(maps.Keys(m.Header), func(a, b string) int {
			return headerSize(nats.Header{b: m.Header[b]}) - headerSize(nats.Header{a: m.Header[a]})
		})
		for _, name := range names {
			if headerSize(m.Header) <= limit {
				break
			}
			if name != nats.MsgIdHdr && (!strings.HasPrefix(name, "Downlink-") || strings.HasPrefix(name, "Downlink-Orig-")) {
				delete(m.Header, name)
				cut = true
			}
		}
	}
	if room := maxPayload - headerSize(m.Header) - mark; len(m.Data) > room {
		truncate(m, in, max(room, 0))
	} else if cut {
		truncate(m, in, len(m.Data))
	}
}

// truncate keeps n bytes of the body and says where the whole message is.
func truncate(m *nats.Msg, in *mapping.Input, n int) {
	m.Data = m.Data[:min(n, len(m.Data))]
	where := "core"
	if in.Stream != "" {
		where = in.Stream + ":" + strconv.FormatUint(in.Sequence, 10)
	}
	m.Header["Downlink-Truncated"] = []string{where}
}

// headerSize is a header's length on the wire.
func headerSize(h nats.Header) int {
	n := len("NATS/1.0\r\n") + len("\r\n")
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

// token is a subject's token of any text.
func token(s string) string {
	if s == "" {
		return "-"
	}
	return mapping.SubjectToken(s)
}

// oneText is a text without line ends, at most 1 KiB: it goes into a header.
func oneText(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\r' || r == '\n' || r == 0 }), " ")
	if len(s) > 1024 {
		s = strings.ToValidUTF8(s[:1024], "")
	}
	return strings.TrimSpace(s)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
