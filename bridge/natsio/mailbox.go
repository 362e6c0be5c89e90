package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

const (
	mailboxDuplicates = 2 * time.Minute // how long a repeated Append is recognised
	noKey             = "-"             // the last token of an entry without a coalescing key
	keyTokenMax       = 256             // a longer one is hashed: a server takes 4 KiB of subject and inbox, then it hangs up
	subjectMax        = 3072
)

// MailboxOptions configures a Mailbox. Conn is required.
type MailboxOptions struct {
	Conn *Conn
	// Name is the bridge's: stream <NAME>_MAILBOX, subjects <name>.mailbox.>. Default downlink.
	Name string
	// Create makes the stream if it does not exist.
	Create bool
	// Replicas of a stream that is created. Zero: as many as the one of Sources with most.
	Replicas int
	// Sources are the streams that messages come from, and Hubs where they go. With both, Ready tells of entries
	// of others, which nobody drains.
	Sources, Hubs []string
	// MaxBytes bounds a stream that is created. Zero: no bound of its own.
	MaxBytes int64
	Logger   *slog.Logger
}

// Mailbox keeps what waits, one stream for all boxes of a bridge. It implements
// bridge.Mailbox. An entry's subject is <name>.mailbox.<hub>.<device>.<stream>.<key>,
// each token percent-encoded, the key "-" if there is none; entry.go has the rest of
// it. Safe for concurrent use: calls for different boxes share the connection and do
// not wait for each other.
type Mailbox struct {
	o      MailboxOptions
	stream *ownStream

	looked bool // for strays; only Run's goroutine asks
	mu     sync.Mutex
	strays map[stray]uint64
}

// NewMailbox checks the options. It does no I/O.
func NewMailbox(o MailboxOptions) (*Mailbox, error) {
	if o.Name == "" {
		o.Name = "downlink"
	}
	if err := checkToken("name", o.Name); err != nil {
		return nil, err
	}
	m := &Mailbox{o: o, stream: &ownStream{
		conn: o.Conn, log: logger(o.Logger), use: "the mailbox", cannot: "the mailbox cannot be used", prefix: mailboxPrefix(o.Name),
		config: jetstream.StreamConfig{
			Name: MailboxStream(o.Name), Subjects: []string{MailboxSubjects(o.Name)}, MaxBytes: o.MaxBytes,
			Discard: jetstream.DiscardNew, AllowDirect: true, Duplicates: mailboxDuplicates,
		},
		create: o.Create, copies: copies{o.Replicas, o.Sources},
		err: errors.New("stream " + MailboxStream(o.Name) + ": not checked yet"),
	}}
	m.stream.check = m.check
	return m, nil
}

// check refuses a stream that would lose entries without a fate, or take none.
func (m *Mailbox) check(c jetstream.StreamConfig) error {
	edit := func(flags string) string { return "`nats stream edit " + c.Name + " " + flags + "`" }
	switch bounded := c.MaxBytes > 0 || c.MaxMsgs > 0 || c.MaxMsgsPerSubject > 0; {
	case !contains(c.Subjects, MailboxSubjects(m.o.Name)):
		return fmt.Errorf("it stores %s: %s", strings.Join(c.Subjects, ", "), edit("--subjects '"+MailboxSubjects(m.o.Name)+"'"))
	case c.Retention != jetstream.LimitsPolicy:
		return fmt.Errorf("its retention is %s, not limits: delete it, and it is made anew", strings.ToLower(c.Retention.String()))
	case c.MaxAge > 0:
		return fmt.Errorf("its max age of %s would delete what waits: %s", c.MaxAge, edit("--max-age 0"))
	case bounded && c.Discard != jetstream.DiscardNew:
		return fmt.Errorf("it makes room by deleting what waits: %s", edit("--discard new"))
	case c.MaxMsgsPerSubject > 0 && !c.DiscardNewPerSubject:
		return fmt.Errorf("it deletes what waits beyond %d messages per subject: %s", c.MaxMsgsPerSubject, edit("--max-msgs-per-subject -1"))
	case c.DenyDelete || c.Sealed:
		return errors.New("it forbids to delete messages: delete it, and it is made anew")
	}
	return nil
}

func contains(patterns []string, subject string) bool {
	for _, p := range patterns {
		if p == subject || p == ">" || strings.HasSuffix(p, ".>") && strings.HasPrefix(subject, strings.TrimSuffix(p, ">")) {
			return true
		}
	}
	return false
}

// Stream is the stream's name.
func (m *Mailbox) Stream() string { return m.stream.config.Name }

// Ready is nil if the mailbox can be used, as far as known. Otherwise it is one line.
func (m *Mailbox) Ready() error {
	if err := m.stream.ready(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.straysError(m.strays)
}

// Run makes sure that the stream exists, again after each reconnect, and looks for entries that nobody
// drains, until ctx is done. Without it the first call that misses the stream makes it.
func (m *Mailbox) Run(ctx context.Context) error {
	keepEnsured(ctx, m.o.Conn, func(ctx context.Context) error {
		if err := m.stream.ensure(ctx); err != nil {
			return err
		}
		return m.findStrays(ctx)
	})
	return nil
}

// subject is where an entry of a box with this key is stored.
func (m *Mailbox) subject(b bridge.Box, key string) string {
	return m.boxPrefix(b) + coalesceToken(key)
}

func (m *Mailbox) boxPrefix(b bridge.Box) string {
	return mailboxPrefix(m.o.Name) + mapping.SubjectToken(b.Hub) + "." + mapping.SubjectToken(b.Device) + "." + mapping.SubjectToken(b.Stream) + "."
}

// coalesceToken is the last token of an entry's subject. A hash, behind a "%" that no encoded text has there,
// stands for a very long key.
func coalesceToken(key string) string {
	switch key {
	case "":
		return noKey
	case noKey:
		return "%2D"
	}
	if t := mapping.SubjectToken(key); len(t) <= keyTokenMax {
		return t
	}
	return "%_" + digest(key)
}

// Append stores p behind all else in its box and sets p.Entry. It blocks for at most five seconds, until
// JetStream has acknowledged it. See bridge.Mailbox.
func (m *Mailbox) Append(ctx context.Context, p *bridge.Parcel) (repeat bool, err error) {
	defer func() {
		if ctx.Err() == nil && !errors.Is(err, bridge.ErrUnstorable) {
			m.stream.note(err)
		}
	}()
	p.Entry = 0
	msg, err := m.message(p)
	if err != nil {
		return false, err
	}
	if err := m.o.Conn.usable(); err != nil {
		return false, err
	}
	if err := m.stream.unfit(); err != nil {
		return false, err
	}
	ack, err := m.o.Conn.publish(ctx, msg)
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		if err := m.stream.ensure(ctx); err != nil {
			return false, err
		}
		ack, err = m.o.Conn.publish(ctx, msg)
	}
	switch {
	case errors.Is(err, nats.ErrMaxPayload), largerThanStream(err):
		return false, fmt.Errorf("mailbox: %d bytes are more than the server or stream %s takes: %w", len(msg.Data)+headerSize(msg.Header), m.Stream(), bridge.ErrUnstorable)
	case err != nil:
		return false, fmt.Errorf("mailbox: stream %s: %w", m.Stream(), apiError(err))
	case ack.Stream != m.Stream():
		return false, fmt.Errorf("mailbox: stream %s stores %s, not stream %s", ack.Stream, MailboxSubjects(m.o.Name), m.Stream())
	case ack.Duplicate:
		return true, nil
	}
	p.Entry = ack.Sequence
	return false, nil
}

// message is a parcel as it is stored.
func (m *Mailbox) message(p *bridge.Parcel) (*nats.Msg, error) {
	e, in := p.Envelope, p.Message
	header, body, err := encodeEntry(p)
	if err != nil {
		return nil, fmt.Errorf("mailbox: %w: %w", bridge.ErrUnstorable, err)
	}
	if e.Hub == "" || e.Device == "" || in.Stream == "" {
		return nil, fmt.Errorf("mailbox: hub %q, device %q, stream %q: none may be empty: %w", e.Hub, e.Device, in.Stream, bridge.ErrUnstorable)
	}
	subject := m.subject(bridge.Box{Hub: e.Hub, Device: e.Device, Stream: in.Stream}, e.Coalesce)
	if len(subject) > subjectMax {
		return nil, fmt.Errorf("mailbox: its subject of %d bytes is too long: %w", len(subject), bridge.ErrUnstorable)
	}
	header[nats.MsgIdHdr] = []string{"box-" + digest(in.Stream, strconv.FormatUint(in.Sequence, 10), stamp(in.Time), e.Route, e.Hub, e.Device, e.MessageID)}
	return &nats.Msg{Subject: subject, Header: header, Data: body}, nil
}

// Next returns the first entry of a box above a sequence of the mailbox, or nil if there is none. With an
// error that is about the entry (it wraps bridge.ErrFormat, or it is an *EntryError) comes a parcel
// that has Entry, and as Message what is stored, with the mailbox as its stream; its Envelope is nil.
func (m *Mailbox) Next(ctx context.Context, b bridge.Box, above uint64) (*bridge.Parcel, error) {
	raw, err := m.get(ctx, m.boxPrefix(b)+"*", above+1)
	if raw == nil || err != nil {
		return nil, err
	}
	return m.parcel(raw)
}

// Waiting lists the entries of a box with this coalescing key below a sequence of the mailbox, in order.
// What cannot be read is left out; Next tells of it.
func (m *Mailbox) Waiting(ctx context.Context, b bridge.Box, key string, below uint64) ([]*bridge.Parcel, error) {
	var list []*bridge.Parcel
	for above := uint64(0); above+1 < below; {
		raw, err := m.get(ctx, m.subject(b, key), above+1)
		if err != nil {
			return nil, err
		}
		if raw == nil || raw.Sequence >= below {
			break
		}
		above = raw.Sequence
		if p, err := m.parcel(raw); err == nil && p.Envelope.Coalesce == key {
			list = append(list, p)
		}
	}
	return list, nil
}

// EntryError is about an entry of the mailbox that cannot be read. It stays where it is.
type EntryError struct {
	Stream string
	Entry  uint64
	Err    error
}

func (e *EntryError) Error() string {
	return fmt.Sprintf("mailbox: stream %s: entry %d: %v", e.Stream, e.Entry, e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

// parcel decodes a stored entry.
func (m *Mailbox) parcel(raw *jetstream.RawStreamMsg) (*bridge.Parcel, error) {
	p, err := decodeEntry(raw.Header, raw.Data)
	if err == nil {
		// Copied here by hand, or damaged: whose turn it is goes by the subject.
		if want := m.subject(bridge.Box{Hub: p.Envelope.Hub, Device: p.Envelope.Device, Stream: p.Message.Stream}, p.Envelope.Coalesce); want != raw.Subject {
			err = fmt.Errorf("its subject is %s, but its headers say %s", raw.Subject, want)
		}
	}
	if err != nil {
		return &bridge.Parcel{Entry: raw.Sequence, At: raw.Time, Message: &mapping.Input{
			Subject: raw.Subject, Header: raw.Header, Payload: raw.Data, Stream: m.Stream(), Sequence: raw.Sequence, Time: raw.Time,
		}}, &EntryError{m.Stream(), raw.Sequence, err}
	}
	p.Entry = raw.Sequence
	return p, nil
}

// Delete removes an entry whose fate is durable. It blocks until it is gone; one that is gone already is no error.
func (m *Mailbox) Delete(ctx context.Context, entry uint64) error {
	if entry == 0 {
		return nil
	}
	// Without no_erase the server overwrites the message with random bytes first.
	body, err := json.Marshal(struct {
		Seq     uint64 `json:"seq"`
		NoErase bool   `json:"no_erase"`
	}{entry, true})
	if err != nil {
		panic(err) // plain fields
	}
	var answer struct {
		Success bool `json:"success"`
	}
	err = m.request(ctx, apiTimeout, "STREAM.MSG.DELETE.", body, &answer)
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && (api.ErrorCode == sequenceNotFound || api.ErrorCode == messageDeleteFailed && m.gone(ctx, entry)):
		return nil
	case err != nil:
		return fmt.Errorf("mailbox: stream %s: delete entry %d: %w", m.Stream(), entry, apiError(err))
	case !answer.Success:
		return fmt.Errorf("mailbox: stream %s: delete entry %d: the server did not do it", m.Stream(), entry)
	}
	return nil
}

// gone reports whether an entry is surely not there. The server has one code for this and for what went wrong.
func (m *Mailbox) gone(ctx context.Context, entry uint64) bool {
	body, err := json.Marshal(getRequest{Seq: entry})
	if err != nil {
		panic(err) // plain fields
	}
	raw, err := m.leader(ctx, body)
	return raw == nil && err == nil
}

// The server's JSSequenceNotFoundErrF and JSStreamMsgDeleteFailedF.
const (
	sequenceNotFound    jetstream.ErrorCode = 10043
	messageDeleteFailed jetstream.ErrorCode = 10057
)
