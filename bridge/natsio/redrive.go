package natsio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
)

// RedrivenHeader says on a message that was brought back from the dead letters
// which one it was: STREAM:SEQ, or "core".
const RedrivenHeader = "Downlink-Redriven"

// RedriveOptions configures a Redriver. Conn and Letters are required.
type RedriveOptions struct {
	Conn    *Conn
	Letters *Letters
	// Answer is how long a bridge may take to answer for a message that came from core NATS. Default 30s.
	Answer time.Duration
}

// Redriver publishes dead letters where their messages came from, so that they go
// through the mapping and its allow lists again. Not safe for concurrent use.
type Redriver struct {
	o       RedriveOptions
	streams map[string]*jetstream.StreamInfo
}

// NewRedriver returns a Redriver. It does no I/O.
func NewRedriver(o RedriveOptions) *Redriver {
	if o.Answer <= 0 {
		o.Answer = 30 * time.Second
	}
	return &Redriver{o: o, streams: map[string]*jetstream.StreamInfo{}}
}

// Redriven is what became of one letter.
type Redriven struct {
	Letter *Letter
	// To is STREAM:SEQ of the message now, or "core".
	To string
	// Repeat: it was there already, brought back before; nothing was published.
	Repeat bool
	// Status is the bridge's answer for a message that came from core NATS; else "".
	Status string
}

// RefusedError is for a letter that cannot be brought back as it is. The others can.
type RefusedError struct {
	Entry uint64
	Err   error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("dead letter %d: %s", e.Entry, e.Err) }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// place is what the order of letters needs of one.
type place struct {
	entry, seq uint64
	time       int64
}

// Order lists the entries that f chooses, at most limit (0: all), in the order in
// which their messages were stored at their source: several workers store letters, so theirs may differ.
// It takes 24 bytes of memory a letter.
func (r *Redriver) Order(ctx context.Context, f LetterFilter, limit int) ([]uint64, error) {
	var places []place
	err := r.o.Letters.Each(ctx, f, func(l *Letter) (bool, error) {
		places = append(places, placeOf(l))
		return limit == 0 || len(places) < limit, nil
	})
	if err != nil {
		return nil, err
	}
	return inOrder(places), nil
}

// Arrange puts entries in the order that Order gives. Those that are not there come first.
func (r *Redriver) Arrange(ctx context.Context, entries []uint64) ([]uint64, error) {
	places := make([]place, 0, len(entries))
	for _, entry := range entries {
		l, err := r.o.Letters.Get(ctx, entry)
		if err != nil {
			return nil, err
		}
		p := place{entry: entry}
		if l != nil {
			p = placeOf(l)
		}
		places = append(places, p)
	}
	return slices.Compact(inOrder(places)), nil
}

// placeOf: one that cannot be read, or has no time of its own, stands where it is among the letters.
func placeOf(l *Letter) place {
	p := place{entry: l.Entry, time: l.Stored.UnixNano()}
	if l.Err == nil && !l.Message.Time.IsZero() {
		p.seq, p.time = l.Message.Sequence, l.Message.Time.UnixNano()
	}
	return p
}

func inOrder(places []place) []uint64 {
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.seq, b.seq), cmp.Compare(a.entry, b.entry))
	})
	entries := make([]uint64, len(places))
	for i, p := range places {
		entries[i] = p.entry
	}
	return entries
}

// Check reads a letter and says whether it can be brought back, as RefusedError if
// not. To is the stream then, or "core". It changes nothing.
func (r *Redriver) Check(ctx context.Context, entry uint64) (Redriven, error) {
	done, _, err := r.prepare(ctx, entry)
	return done, err
}

// Redrive brings one letter back and deletes it. It blocks until its stream has
// acknowledged the message or, for one from core NATS, a bridge has answered. The letter is
// deleted only then, so that a failure between may bring it back again: within the
// duplicate window of its stream that is recognised, and stored once.
func (r *Redriver) Redrive(ctx context.Context, entry uint64) (Redriven, error) {
	done, m, err := r.prepare(ctx, entry)
	if err != nil {
		return done, err
	}
	l := done.Letter
	if l.Message.Stream == "" {
		done.Status, err = r.ask(ctx, l, m)
	} else {
		done.To, done.Repeat, err = r.publish(ctx, l, m)
	}
	if err != nil {
		return done, err
	}
	if err := r.o.Letters.Delete(ctx, entry); err != nil {
		return done, fmt.Errorf("dead letter %d is back as %s, but cannot be deleted: %w", entry, done.To, err)
	}
	return done, nil
}

// prepare reads the letter and makes the message to publish.
func (r *Redriver) prepare(ctx context.Context, entry uint64) (to Redriven, m *nats.Msg, err error) {
	l, err := r.o.Letters.Get(ctx, entry)
	to.Letter = l
	if err != nil {
		return to, nil, err
	}
	refuse := func(format string, args ...any) (Redriven, *nats.Msg, error) {
		return to, nil, &RefusedError{entry, fmt.Errorf(format, args...)}
	}
	switch {
	case l == nil:
		return refuse("stream %s has none of this number", r.o.Letters.Stream())
	case l.Err != nil:
		return refuse("%w: left as it is", l.Err)
	case l.OfRelay():
		return refuse("a relay stored it, and the hub has completed its message: there is no source to bring it back to")
	}
	in := *l.Message
	if l.Reason == bridge.ReasonUnreadable {
		return refuse("it is an entry of the mailbox as it was stored, which could not be read: have its message published again")
	}
	if err := checkSubject(in.Subject); err != nil {
		return refuse("%w", err)
	}
	if l.Truncated != "" {
		whole, err := r.whole(ctx, l)
		if err != nil {
			return to, nil, err
		}
		in.Header, in.Payload = whole.Header, whole.Data
	}
	to.To = "core"
	if in.Stream != "" {
		to.To = in.Stream
		if err := r.checkStream(ctx, l); err != nil {
			return to, nil, err
		}
	}
	m = &nats.Msg{Subject: in.Subject, Header: redriveHeaders(in.Header, in.Stream == ""), Data: in.Payload}
	m.Header[RedrivenHeader] = []string{"core"}
	if in.Stream != "" {
		m.Header[RedrivenHeader] = []string{in.Stream + ":" + strconv.FormatUint(in.Sequence, 10)}
		m.Header[nats.MsgIdHdr] = []string{redriveID(l)}
	}
	if size, limit := int64(len(m.Data)+headerSize(m.Header)), r.o.Conn.nc.MaxPayload(); limit > 0 && size > limit {
		return refuse("with the headers that it needs it has %d bytes, more than the server's max_payload of %d", size, limit)
	}
	return to, m, nil
}

// redriveHeaders gives a message its headers back. Those of Nats-* stay under the
// name that they had among the dead letters: JetStream obeys them, newer servers
// more of them than we know, and their publisher meant the first time: Nats-Rollup would wipe the
// stream, Nats-Expected-* refuse the message, Nats-Msg-Id swallow it, Nats-TTL delete it. Those of
// Downlink-* do nothing on NATS, and the bridge needs them (Downlink-Via ends loops). For
// core, Redrive itself waits for the answer instead of the first publisher.
func redriveHeaders(h map[string][]string, core bool) nats.Header {
	out := make(nats.Header, len(h)+2)
	for name, values := range h {
		name = headerName(name)
		inert := hasPrefixFold(name, "Nats-")
		if core && (strings.EqualFold(name, "Downlink-Wait") || strings.EqualFold(name, "Downlink-Reply-To")) {
			inert = true
		}
		if inert {
			name = origPrefix + name
		}
		out[name] = append(out[name], values...)
	}
	return out
}

// redriveID is the same for all letters of one message: several targets of it may have died.
func redriveID(l *Letter) string {
	return "redrive-" + digest(l.Message.Stream, strconv.FormatUint(l.Message.Sequence, 10), stamp(l.Message.Time))
}

// whole fetches the message that did not fit into its letter.
func (r *Redriver) whole(ctx context.Context, l *Letter) (*storedMsg, error) {
	cut := fmt.Sprintf("it is cut (%d bytes of the body are here)", l.Size)
	if l.Message.Stream == "" {
		return nil, &RefusedError{l.Entry, errors.New(cut + " and came from core NATS, where nobody keeps the rest: have it published again")}
	}
	at := fmt.Sprintf("%s:%d", l.Message.Stream, l.Message.Sequence)
	m, err := r.o.Conn.message(ctx, l.Message.Stream, l.Message.Sequence)
	if missing := (*MissingError)(nil); errors.As(err, &missing) {
		return nil, &RefusedError{l.Entry, fmt.Errorf("%s, and %w any more: have it published again", cut, err)}
	}
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, &RefusedError{l.Entry, fmt.Errorf("%s, and %s is gone from its stream: have it published again", cut, at)}
	}
	if m.Subject != l.Message.Subject || !m.Time.Equal(l.Message.Time) {
		return nil, &RefusedError{l.Entry, fmt.Errorf("%s, and %s is another message now (the stream was made anew): have it published again", cut, at)}
	}
	if m.BadHeader {
		return nil, &RefusedError{l.Entry, fmt.Errorf("the headers of %s cannot be read: have it published again with legal ones", at)}
	}
	return m, nil
}

// checkStream refuses what the source stream would not store as it is.
func (r *Redriver) checkStream(ctx context.Context, l *Letter) error {
	name, subject := l.Message.Stream, l.Message.Subject
	refuse := func(format string, args ...any) error { return &RefusedError{l.Entry, fmt.Errorf(format, args...)} }
	info := r.streams[name]
	if info == nil {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		if err := checkToken("stream", name); err != nil {
			return refuse("%w", err)
		}
		s, err := r.o.Conn.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return refuse("its source %w any more: create it, or have the message published again elsewhere", &MissingError{name})
		}
		if err != nil {
			return r.o.Conn.trouble(name, "STREAM.INFO.", err)
		}
		info = s.CachedInfo()
		r.streams[name] = info
	}
	cfg := info.Config
	switch {
	case cfg.Mirror != nil:
		return refuse("its source stream %s is a mirror of %s: nothing can be published into it", name, cfg.Mirror.Name)
	case !slices.ContainsFunc(cfg.Subjects, func(p string) bool { return matches(p, subject) }):
		return refuse("stream %s does not store subject %s (it stores %s): add the subject to the stream, or have the message published again elsewhere",
			name, subject, strings.Join(cfg.Subjects, ", "))
	case cfg.SubjectTransform != nil && (cfg.SubjectTransform.Source == "" || matches(cfg.SubjectTransform.Source, subject)):
		return refuse("stream %s transforms subjects, and would store %s under another one: have the message published again", name, subject)
	}
	return nil
}

// Window is how long a repeat is recognised in a stream that something was brought back to; 0 if that is not known.
func (r *Redriver) Window(stream string) time.Duration {
	if info := r.streams[stream]; info != nil {
		return info.Config.Duplicates
	}
	return 0
}

func (r *Redriver) publish(ctx context.Context, l *Letter, m *nats.Msg) (to string, repeat bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	ack, err := r.o.Conn.js.PublishMsg(ctx, m)
	switch {
	case largerThanStream(err):
		return "", false, &RefusedError{l.Entry, fmt.Errorf("stream %s does not take messages of its size: %w", l.Message.Stream, oneLine{err})}
	case err != nil:
		denied := r.o.Conn.deniedOf(func(op, subject string) bool { return op == "publish" && subject == m.Subject })
		if denied != "" {
			return "", false, errors.New("missing NATS permission: " + denied)
		}
		return "", false, fmt.Errorf("dead letter %d: publish %s: %w", l.Entry, m.Subject, apiError(err))
	case ack.Stream != l.Message.Stream:
		return "", false, fmt.Errorf("dead letter %d: stream %s took it as %d, not %s where it came from: the streams were changed meanwhile; the letter stays",
			l.Entry, ack.Stream, ack.Sequence, l.Message.Stream)
	}
	return ack.Stream + ":" + strconv.FormatUint(ack.Sequence, 10), ack.Duplicate, nil
}

// ask publishes a message of core NATS as a request and waits for a bridge's
// answer: without one nobody may have it, and the letter must stay.
func (r *Redriver) ask(ctx context.Context, l *Letter, m *nats.Msg) (status string, err error) {
	nc := r.o.Conn.nc
	m.Reply = nc.NewInbox()
	sub, err := nc.SubscribeSync(m.Reply)
	if err != nil {
		return "", oneLine{err}
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishMsg(m); err != nil {
		return "", fmt.Errorf("dead letter %d: publish %s: %w", l.Entry, m.Subject, oneLine{err})
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.Answer)
	defer cancel()
	for {
		answer, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) || err == nil && len(answer.Data) == 0 && answer.Header.Get("Status") == "503" {
			return "", &RefusedError{l.Entry, fmt.Errorf("nobody listens on %s: does a bridge with a \"source: core\" route for it run?", m.Subject)}
		}
		if err != nil {
			if denied := r.o.Conn.deniedOf(func(op, subject string) bool { return op == "publish" && subject == m.Subject }); denied != "" {
				return "", errors.New("missing NATS permission: " + denied)
			}
			return "", fmt.Errorf("dead letter %d: no bridge answered on %s within %s: the message may have gone out all the same, the letter stays", l.Entry, m.Subject, r.o.Answer)
		}
		if status := answer.Header.Get("Downlink-Status"); status != "" {
			if status == bridge.StatusDropped {
				return status, &RefusedError{l.Entry, fmt.Errorf("the bridge dropped its message (%s); the letter stays", cmp.Or(answer.Header.Get("Downlink-Reason"), "no reason given"))}
			}
			return status, nil // dead again: then there is a newer letter
		}
	}
}
