package natsio

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"downlink/bridge"
	"downlink/mapping"
)

const (
	formatHeader = "Downlink-Format"
	format       = "1" // what this version writes and reads
	origPrefix   = "Downlink-Orig-"
)

// ErrNoLetter is for a message that no bridge or relay stored as a dead letter.
var ErrNoLetter = errors.New("not a dead letter of downlink")

// Letter is a dead letter as it is stored.
type Letter struct {
	bridge.DeadLetter
	// Entry is its sequence in the stream of dead letters, and Stored when it came there.
	Entry  uint64
	Stored time.Time
	// ID is its Nats-Msg-Id: the same for each try to store one message's fate at one target.
	ID string
	// Truncated is where the whole message is, STREAM:SEQ or "core", if it did not fit into the letter; else "".
	Truncated string
	// Size is the length of the body in the letter. A list has no bodies, so Message.Payload is nil there.
	Size int
	// More are a relay's headers about its message: topic, content type and the like. A bridge's letter has none.
	More map[string][]string
	// Err is why the letter cannot be read; all but Entry, Stored and Size is empty
	// then. It wraps bridge.ErrFormat for one of a newer version, else ErrNoLetter.
	Err error
}

// OfRelay reports whether a relay stored it, from a device's side: there is no NATS subject that it came from.
func (l *Letter) OfRelay() bool { return l.Err == nil && l.Message.Subject == "" }

// letterFields are the headers that DeadLetters sets beside the original ones.
var letterFields = map[string]bool{
	formatHeader: true, "Downlink-Reason": true, "Downlink-Condition": true, "Downlink-Text": true, "Downlink-Device": true,
	"Downlink-Hub": true, "Downlink-Route": true, "Downlink-Message-Id": true, "Downlink-Attempts": true, "Downlink-At": true,
	"Downlink-Subject": true, "Downlink-Stream": true, "Downlink-Seq": true, "Downlink-Time": true, "Downlink-Truncated": true,
	nats.MsgIdHdr: true,
}

// ParseLetter reads what DeadLetters stored: its exact inverse, except that names of
// headers that nats.go cannot send stay percent-encoded, and that Reply is not
// stored. What is wrong with a letter is in its Err.
func ParseLetter(h map[string][]string, data []byte) *Letter {
	l := &Letter{Size: len(data)}
	if l.Err = l.parse(h, data); l.Err != nil {
		l.DeadLetter = bridge.DeadLetter{Message: &mapping.Input{}}
		l.ID, l.Truncated, l.More = "", "", nil
	}
	return l
}

func (l *Letter) parse(h map[string][]string, data []byte) error {
	get := nats.Header(h).Get
	if err := checkFormat(h); err != nil {
		return err
	}
	if get("Downlink-Reason") == "" {
		return fmt.Errorf("%w: it has no Downlink-Reason", ErrNoLetter)
	}
	in := &mapping.Input{Subject: get("Downlink-Subject"), Payload: data, Stream: get("Downlink-Stream")}
	l.DeadLetter = bridge.DeadLetter{
		Message: in, Route: get("Downlink-Route"), Hub: get("Downlink-Hub"), Device: get("Downlink-Device"),
		MessageID: get("Downlink-Message-Id"), Reason: mapping.Reason(get("Downlink-Reason")),
		Condition: get("Downlink-Condition"), Text: get("Downlink-Text"),
	}
	l.ID, l.Truncated = get(nats.MsgIdHdr), get("Downlink-Truncated")
	var errs [4]error
	l.Attempts, errs[0] = parseNumber(h, "Downlink-Attempts", strconv.Atoi)
	in.Sequence, errs[1] = parseNumber(h, "Downlink-Seq", parseSeq)
	l.At, errs[2] = parseNumber(h, "Downlink-At", parseStamp)
	in.Time, errs[3] = parseNumber(h, "Downlink-Time", parseStamp)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("%w: %s", ErrNoLetter, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for name, values := range h {
		original, wasOurs := strings.CutPrefix(name, origPrefix)
		switch {
		case wasOurs && original != "":
			add(&in.Header, original, values)
		case letterFields[name]:
		case hasPrefixFold(name, "Downlink-") && in.Subject == "":
			add(&l.More, name, values)
		default:
			add(&in.Header, name, values)
		}
	}
	return nil
}

func add(to *map[string][]string, name string, values []string) {
	if *to == nil {
		*to = make(map[string][]string)
	}
	(*to)[name] = append((*to)[name], values...)
}

// checkFormat tells what a newer version stored from what this one can read.
func checkFormat(h map[string][]string) error {
	switch v := nats.Header(h).Get(formatHeader); {
	case v == format:
		return nil
	case v == "":
		return fmt.Errorf("%w: it has no %s", ErrNoLetter, formatHeader)
	default:
		return fmt.Errorf("%w: %s %q", bridge.ErrFormat, formatHeader, v)
	}
}

func parseNumber[T any](h map[string][]string, name string, parse func(string) (T, error)) (v T, err error) {
	text := nats.Header(h).Get(name)
	if text == "" {
		return v, nil
	}
	if v, err = parse(text); err != nil {
		return v, fmt.Errorf("%s is %q", name, oneText(text))
	}
	return v, nil
}

func parseSeq(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

func parseStamp(s string) (time.Time, error) { return time.Parse(time.RFC3339Nano, s) }

// LetterFilter chooses dead letters. An empty field allows all; those that cannot be read match no filter by field.
type LetterFilter struct {
	Reason, Route, Device, Hub string
	// Since and Until bound when the letter was stored, both included.
	Since, Until time.Time
}

func (f LetterFilter) matches(l *Letter) bool {
	ok := func(want, have string) bool { return want == "" || want == have }
	return ok(f.Reason, string(l.Reason)) && ok(f.Route, l.Route) && ok(f.Device, l.Device) && ok(f.Hub, l.Hub)
}

// subject is what the server can filter by. A relay's letter has its device where a bridge's has its route.
func (f LetterFilter) subject(name string) string {
	reason, route := "*", ">"
	if f.Reason != "" {
		reason = token(f.Reason)
	}
	if f.Route != "" {
		route = token(f.Route)
	}
	return deadPrefix(name) + reason + "." + route
}

// Letters reads the stream of dead letters of one bridge or relay. Safe for concurrent use.
type Letters struct {
	conn *Conn
	name string
}

// NewLetters checks the name. It does no I/O.
func NewLetters(c *Conn, name string) (*Letters, error) {
	if err := checkToken("name", name); err != nil {
		return nil, err
	}
	return &Letters{conn: c, name: name}, nil
}

// Stream is the stream's name.
func (r *Letters) Stream() string { return DeadStream(r.name) }

// Each calls each for the letters that f chooses, in the order in which they were
// stored and without their bodies, until it returns false or an error. What is
// stored meanwhile is left out. Memory does not grow with the stream.
func (r *Letters) Each(ctx context.Context, f LetterFilter, each func(*Letter) (bool, error)) error {
	o := scanOptions{Stream: r.Stream(), Subjects: []string{f.subject(r.name)}, Since: f.Since, HeadersOnly: true}
	return r.conn.scan(ctx, o, func(m *storedMsg) (bool, error) {
		if !f.Until.IsZero() && m.Time.After(f.Until) {
			return false, nil
		}
		l := letterOf(m)
		if !f.matches(l) {
			return true, nil
		}
		return each(l)
	})
}

// Get reads one letter, whole. It is nil if there is none of this number.
func (r *Letters) Get(ctx context.Context, entry uint64) (*Letter, error) {
	m, err := r.conn.message(ctx, r.Stream(), entry)
	if m == nil || err != nil {
		return nil, err
	}
	return letterOf(m), nil
}

// Delete removes a letter. One that is gone already is no error.
func (r *Letters) Delete(ctx context.Context, entry uint64) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := r.conn.js.Stream(ctx, r.Stream())
	if err == nil {
		err = s.DeleteMsg(ctx, entry)
	}
	if err == nil {
		return nil
	}
	if m, e := r.conn.message(ctx, r.Stream(), entry); e == nil && m == nil {
		return nil
	}
	return r.conn.trouble(r.Stream(), "STREAM.MSG.DELETE.", err)
}

// Counts tells how many letters there are, by reason.
func (r *Letters) Counts(ctx context.Context) (map[mapping.Reason]uint64, error) {
	bySubject, err := r.conn.subjects(ctx, r.Stream(), DeadSubjects(r.name))
	if err != nil {
		return nil, err
	}
	counts := make(map[mapping.Reason]uint64)
	for subject, n := range bySubject {
		reason, _, _ := strings.Cut(strings.TrimPrefix(subject, deadPrefix(r.name)), ".")
		counts[mapping.Reason(reason)] += n // a reason is a token as it is
	}
	return counts, nil
}

func letterOf(m *storedMsg) *Letter {
	l := ParseLetter(m.Header, m.Data)
	l.Entry, l.Stored, l.Size = m.Seq, m.Time, m.Size
	return l
}

// Find reads a message of any stream; nil if it is not there.
func Find(ctx context.Context, c *Conn, stream string, seq uint64) (*mapping.Input, error) {
	if err := checkToken("stream", stream); err != nil {
		return nil, err
	}
	m, err := c.message(ctx, stream, seq)
	if m == nil || err != nil {
		return nil, err
	}
	return &mapping.Input{Subject: m.Subject, Header: m.Header, Payload: m.Data, Stream: stream, Sequence: m.Seq, Time: m.Time, BadHeader: m.BadHeader}, nil
}
