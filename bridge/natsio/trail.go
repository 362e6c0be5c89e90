package natsio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

// Trail reads what a bridge leaves on NATS about its messages: receipts, mailbox
// entries, and how far it has read a stream. It changes nothing. Safe for concurrent use.
type Trail struct {
	conn *Conn
	name string
}

// NewTrail checks the bridge's name. It does no I/O.
func NewTrail(c *Conn, name string) (*Trail, error) {
	if err := checkToken("name", name); err != nil {
		return nil, err
	}
	return &Trail{c, name}, nil
}

// Receipts calls each for the receipts stored since then, of one device or (if it is "")
// of all, in the order in which they were stored, until it returns an error. A bridge that never stored one has none.
func (t *Trail) Receipts(ctx context.Context, device string, since time.Time, each func(bridge.Receipt) error) error {
	if _, err := t.State(ctx, ReceiptStream(t.name)); err != nil {
		return absent(err)
	}
	return ReadReceipts(ctx, t.conn, ReceiptFilter{Name: t.name, Device: device, Since: since}, func(r StoredReceipt) error { return each(r.Receipt) })
}

// Parked is an entry of the mailbox, as far as its headers tell.
type Parked struct {
	Entry              uint64 // its number in the mailbox
	ID                 string
	Device, Hub, Route string
	Stream             string
	Sequence           uint64
	Time               time.Time // when it was stored at its source
	Subject            string
	At                 time.Time // when it came into the mailbox first
	Attempts           int
	Expires            time.Time
	Size               int   // of what is stored, in bytes, without its headers
	Err                error // why its headers cannot be read; wraps bridge.ErrFormat for a newer version's
}

// Mailbox calls each for the entries of the mailbox stored since then, of one
// device and one source stream or of all ("" each), in order, until it returns false or an error. A bridge
// that never had to keep anything has none.
func (t *Trail) Mailbox(ctx context.Context, device, stream string, since time.Time, each func(Parked) (bool, error)) error {
	return absent(eachParked(ctx, t.conn, t.name, ParkedFilter{Device: device, Stream: stream, Since: since}, each))
}

// Deadline is when it is too late to send an entry: by its ttl, or by max_age, which its headers do not
// tell. Zero: never. What is not there any more, or cannot be read, has the one of its headers.
func (t *Trail) Deadline(ctx context.Context, p *Parked) (time.Time, error) {
	m, err := t.conn.message(ctx, MailboxStream(t.name), p.Entry)
	if m == nil || err != nil {
		return p.Expires, absent(err)
	}
	parcel, err := decodeEntry(m.Header, m.Data)
	if err != nil {
		return p.Expires, nil
	}
	return parcel.Envelope.Deadline(), nil
}

func parseParked(m *storedMsg) Parked {
	p := Parked{Entry: m.Seq, Size: m.Size}
	if p.Err = checkFormat(m.Header); p.Err != nil {
		return p
	}
	get := m.Header.Get
	p.ID, p.Device, p.Hub, p.Route = get("Downlink-Message-Id"), get("Downlink-Device"), get("Downlink-Hub"), get("Downlink-Route")
	p.Stream, p.Subject = get("Downlink-Stream"), get("Downlink-Subject")
	var errs [5]error
	p.Sequence, errs[0] = parseNumber(m.Header, "Downlink-Seq", parseSeq)
	p.Time, errs[1] = parseNumber(m.Header, "Downlink-Time", parseStamp)
	p.At, errs[2] = parseNumber(m.Header, "Downlink-At", parseStamp)
	p.Expires, errs[3] = parseNumber(m.Header, "Downlink-Expires", parseStamp)
	p.Attempts, errs[4] = parseNumber(m.Header, "Downlink-Attempts", strconv.Atoi)
	p.Err = errors.Join(errs[:]...)
	if p.At.IsZero() {
		p.At = m.Time
	}
	return p
}

// Position is how far a bridge has read a stream.
type Position struct {
	Consumer  string
	Created   time.Time
	StartNew  bool     // it began behind what was there when it was created
	Filters   []string // the subjects that it reads; empty: all
	Delivered uint64   // the last sequence that the bridge was given
	Settled   uint64   // all up to this sequence are settled
	Unread    uint64   // of its subjects
	Held      int      // given to the bridge and not settled
}

// Takes reports whether the bridge reads a subject.
func (p *Position) Takes(subject string) bool {
	return len(p.Filters) == 0 || slices.ContainsFunc(p.Filters, func(f string) bool { return matches(f, subject) })
}

// Position asks how far the bridge has read a stream; nil if it never began to. A
// stream that is not there is a *MissingError.
func (t *Trail) Position(ctx context.Context, stream string) (*Position, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	c, err := t.conn.js.Consumer(ctx, stream, Durable(t.name))
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return nil, nil
	case err != nil:
		return nil, t.conn.trouble(stream, "CONSUMER.INFO.", err)
	}
	info := c.CachedInfo()
	filters := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		filters = []string{info.Config.FilterSubject}
	}
	return &Position{
		Consumer: info.Name, Created: info.Created, StartNew: info.Config.DeliverPolicy == jetstream.DeliverNewPolicy, Filters: filters,
		Delivered: info.Delivered.Stream, Settled: info.AckFloor.Stream, Unread: info.NumPending, Held: info.NumAckPending,
	}, nil
}

// StreamState is what a stream holds.
type StreamState struct {
	Messages, Bytes, First, Last uint64
	Subjects                     uint64 // how many there are
	// KeepsSettled is false for a stream that removes a message once it is settled (work queue, interest).
	KeepsSettled bool
}

// State asks what a stream holds. A stream that is not there is a *MissingError.
func (t *Trail) State(ctx context.Context, stream string) (StreamState, error) {
	if err := checkToken("stream", stream); err != nil {
		return StreamState{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := t.conn.js.Stream(ctx, stream)
	if err != nil {
		return StreamState{}, t.conn.trouble(stream, "STREAM.INFO.", err)
	}
	i := s.CachedInfo()
	return StreamState{
		Messages: i.State.Msgs, Bytes: i.State.Bytes, First: i.State.FirstSeq, Last: i.State.LastSeq, Subjects: i.State.NumSubjects,
		KeepsSettled: i.Config.Retention == jetstream.LimitsPolicy,
	}, nil
}

// Messages calls each for the messages of a stream from a sequence on, of some subjects or (if there are
// none) of all, until it returns an error. It is for streams that keep what is settled.
func (t *Trail) Messages(ctx context.Context, stream string, subjects []string, from uint64, each func(*mapping.Input) error) error {
	return t.conn.scan(ctx, scanOptions{Stream: stream, Subjects: subjects, From: from}, func(m *storedMsg) (bool, error) {
		in := &mapping.Input{Subject: m.Subject, Header: m.Header, Payload: m.Data, Stream: stream, Sequence: m.Seq, Time: m.Time, BadHeader: m.BadHeader}
		return true, each(in)
	})
}

// Streams lists the streams that the bridge reads, by its consumers. It asks about every stream of the account.
func (t *Trail) Streams(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*apiTimeout)
	defer cancel()
	var found []string
	names := t.conn.js.StreamNames(ctx)
	for name := range names.Name() {
		p, err := t.Position(ctx, name)
		if err != nil {
			return nil, err
		}
		if p != nil {
			found = append(found, name)
		}
	}
	if err := names.Err(); err != nil {
		if denied := t.conn.deniedOf(func(_, subject string) bool { return subject == t.conn.api+"STREAM.NAMES" }); denied != "" {
			return nil, errors.New("missing NATS permission: " + denied)
		}
		return nil, fmt.Errorf("streams: %w", apiError(err))
	}
	slices.Sort(found)
	return found, nil
}

// forward bounds how many messages of one subject Forward looks at.
const forward = 10_000

// Forward finds the message that a redrive made of a dead one: the first behind it
// in its stream that says so. nil: there is none among the next 10,000 of its subject.
func (t *Trail) Forward(ctx context.Context, stream, subject string, seq uint64) (*mapping.Input, error) {
	was := stream + ":" + strconv.FormatUint(seq, 10)
	for range forward {
		m, err := t.conn.nextMessage(ctx, stream, seq+1, subject)
		if m == nil || err != nil {
			return nil, absent(err)
		}
		if nats.Header(m.Header).Get(RedrivenHeader) == was {
			return &mapping.Input{Subject: m.Subject, Header: m.Header, Payload: m.Data, Stream: stream, Sequence: m.Seq, Time: m.Time}, nil
		}
		seq = m.Seq
	}
	return nil, nil
}

func tokenOrAny(s string) string {
	if s == "" {
		return "*"
	}
	return token(s)
}

// absent takes a stream that is not there for one that holds nothing.
func absent(err error) error {
	var missing *MissingError
	if errors.As(err, &missing) {
		return nil
	}
	return err
}
