package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/mapping"
)

// edgeDuplicates is how long an edge stream that we create remembers message IDs.
const edgeDuplicates = 48 * time.Hour

// settleDown is how long a failed connection is still listened to, so that what was stored
// is not stored twice.
const settleDown = time.Second

// OrderedPublisher publishes to JetStream, many at once, and keeps the order of
// the calls through any failure: after one it stops, connects anew and sends again from
// the first publication without an ack. Publications with an ID are stored once
// within the stream's duplicate window; others may repeat. What cannot be stored
// now (no stream for the subject, stream full) waits, and Ready says so.
//
// While a window is in flight a full stream with discard: new may refuse a large message and take a
// smaller one behind it. If the Stream option names such a stream, one is sent at a time.
type OrderedPublisher struct {
	box      *outbox
	subjects []string // of the stream, as the session found it; Run's goroutine
	refusing bool     // JetStream refused or did not answer, and has taken nothing since; Run's goroutine
}

// NewOrderedPublisher checks the options. It does no I/O; Run does.
func NewOrderedPublisher(o PublisherOptions) (*OrderedPublisher, error) {
	if o.Stream != "" {
		if err := checkToken("stream", o.Stream); err != nil {
			return nil, err
		}
	}
	if o.Create && (o.Stream == "" || len(o.Subjects) == 0) {
		return nil, errors.New("nats: to create a stream takes its name and subjects")
	}
	return &OrderedPublisher{box: newOutbox(o)}, nil
}

// Publish queues a publication and blocks while the window is full. If it returns
// nil, done is called exactly once, in the order of the calls and without overlap: nil
// when JetStream has acknowledged it, a *bridge.Error of class Refused if this
// one can never be stored, ctx's error of Run at shutdown. done must not block.
// The publication must not change afterwards. Safe for concurrent use.
func (p *OrderedPublisher) Publish(ctx context.Context, pub *mapping.Publication, done func(error)) error {
	return p.box.publish(ctx, pub, done)
}

// Ready is nil while publications get through. Otherwise it is one line with the cause.
func (p *OrderedPublisher) Ready() error { return p.box.ready() }

// Run publishes until ctx is done. It returns nil.
func (p *OrderedPublisher) Run(ctx context.Context) error {
	return p.box.run(ctx, p.session)
}

// session publishes on one connection until something fails. A nil error: the connection is gone.
func (p *OrderedPublisher) session(ctx context.Context, l *link) error {
	window := p.box.o.Window
	if p.box.o.Stream != "" {
		discardsNew, err := p.stream(ctx, l)
		if err != nil {
			return err
		}
		if discardsNew {
			window = 1
		}
	}
	inbox := l.nc.NewInbox()
	acks := make(chan *nats.Msg, 2*p.box.o.Window)
	if _, err := l.nc.ChanSubscribe(inbox+".*", acks); err != nil {
		return connError(l.at.servers, err)
	}
	// The first one goes alone, then twice as many with each ack: what is refused now (stream full, or
	// not there yet after a restart) must not be overtaken by what is not, a moment later.
	limit := 1
	if !p.refusing || p.box.idle() {
		p.box.well()
	}
	tick := time.NewTicker(answerTimeout / 10)
	defer tick.Stop()
	prepare := func(number uint64, m *nats.Msg) { m.Reply = inbox + "." + strconv.FormatUint(number, 36) }
	for {
		if err := p.box.send(l, limit, prepare); err != nil {
			p.windUp(acks, 0)
			return err
		}
		p.box.report()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.closed:
			p.windUp(acks, 0)
			return nil
		case err := <-l.errs:
			return p.refuse(acks, err)
		case <-p.box.work:
		case m := <-acks:
			if err := p.acked(m); err != nil {
				return p.refuse(acks, err)
			}
			p.refusing = false
			p.box.well()
			limit = min(2*limit, window)
		case now := <-tick.C:
			if at, ok := p.box.oldest(); ok && now.Sub(at) > answerTimeout {
				return p.refuse(acks, fmt.Errorf("%s: no ack from JetStream in %v", l.at.servers, answerTimeout))
			}
		}
	}
}

// refuse ends a session in which JetStream did not take a publication.
func (p *OrderedPublisher) refuse(acks <-chan *nats.Msg, err error) error {
	p.refusing = true
	p.windUp(acks, settleDown)
	return err
}

// windUp takes the acks that have arrived or do so for a while, so that as little as possible is sent twice.
func (p *OrderedPublisher) windUp(acks <-chan *nats.Msg, wait time.Duration) {
	deadline := time.After(wait)
	for waiting := true; waiting; {
		if _, waiting = p.box.oldest(); !waiting {
			break
		}
		select {
		case m := <-acks:
			_ = p.acked(m) // of several failures the first one counts
		default:
			select {
			case m := <-acks:
				_ = p.acked(m)
			case <-deadline:
				waiting = false
			}
		}
	}
	p.box.report()
}

// acked takes one answer. An error is about more than this one publication.
func (p *OrderedPublisher) acked(m *nats.Msg) error {
	number, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 36, 64)
	if err != nil {
		return nil // not ours
	}
	subject := p.box.landed(number)
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		err := fmt.Errorf("no stream stores subject %s", subject)
		if !p.outside(subject) {
			return err
		}
		err = fmt.Errorf("%w; the subjects of stream %s are %s", err, p.box.o.Stream, strings.Join(p.subjects, ", "))
		p.box.answer(number, refused(mapping.ReasonBadSubject, err))
		return nil
	}
	var ack struct {
		Stream string              `json:"stream"`
		Error  *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &ack); {
	case err != nil, ack.Error == nil && ack.Stream == "":
		return fmt.Errorf("subject %s: the answer is not JetStream's: a service listens on it beside the stream", subject)
	case ack.Error == nil:
		p.box.answer(number, nil) // a duplicate is stored as well
	case tooLarge(ack.Error):
		p.box.answer(number, refused(mapping.ReasonTooLarge, fmt.Errorf("stream %s: %s", ack.Stream, ack.Error.Description)))
	default:
		where := ""
		if ack.Stream != "" {
			where = "stream " + ack.Stream + ": "
		}
		return fmt.Errorf("subject %s: %s%s", subject, where, ack.Error.Description)
	}
	return nil
}

// outside reports whether a subject is none of our stream's, as the stream was when this session
// began. A property of one message may have led there: it must not hold up all others. With no
// stream named, or for a subject that the stream should have, the server may just have
// started: then the publication waits.
func (p *OrderedPublisher) outside(subject string) bool {
	return len(p.subjects) > 0 && !slices.ContainsFunc(p.subjects, func(s string) bool { return matches(s, subject) })
}

// reaches reports whether our stream stores any subject of a pattern.
func (p *OrderedPublisher) reaches(pattern string) bool {
	return slices.ContainsFunc(p.subjects, func(s string) bool { return collide(s, pattern) })
}

// tooLarge reports the errors that are the message's own: over the stream's max_msg_size,
// headers over 64 KiB.
func tooLarge(e *jetstream.APIError) bool {
	return e.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum || e.ErrorCode == headersTooLarge
}

// headersTooLarge is the server's JSStreamHeaderExceedsMaximumErr.
const headersTooLarge jetstream.ErrorCode = 10097

// stream finds or creates the stream. discardsNew: it refuses what does not fit.
func (p *OrderedPublisher) stream(ctx context.Context, l *link) (discardsNew bool, _ error) {
	js, _, err := l.at.jetStream(l.nc)
	if err != nil {
		return false, err
	}
	o := p.box.o
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := js.Stream(ctx, o.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !o.Create {
			return false, &StreamMissingError{Stream: o.Stream, Subjects: o.Subjects}
		}
		cfg := Stream{Name: o.Stream, Subjects: o.Subjects, Duplicates: edgeDuplicates}.config()
		if cfg.MaxAge = o.MaxAge; o.MaxAge > 0 {
			cfg.Duplicates = min(cfg.Duplicates, o.MaxAge) // the server wants it so
		}
		if o.MaxBytes > 0 {
			cfg.MaxBytes, cfg.Discard = o.MaxBytes, jetstream.DiscardNew
		}
		s, err = js.CreateStream(ctx, cfg)
	}
	if err != nil {
		return false, fmt.Errorf("stream %s: %w", o.Stream, apiError(err))
	}
	cfg := s.CachedInfo().Config
	p.subjects = cfg.Subjects
	if len(o.Subjects) > 0 && !slices.ContainsFunc(o.Subjects, p.reaches) {
		return false, fmt.Errorf("stream %s stores %s, but what is published has subjects %s: add one to the stream, or publish to others",
			o.Stream, strings.Join(cfg.Subjects, ", "), strings.Join(o.Subjects, ", "))
	}
	return cfg.Discard == jetstream.DiscardNew && (cfg.MaxBytes > 0 || cfg.MaxMsgs > 0 || cfg.MaxMsgsPerSubject > 0), nil
}

// landed takes a publication as no longer under way, and returns its subject for messages to people.
func (b *outbox) landed(number uint64) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if number < b.base || number-b.base >= uint64(len(b.queue)) {
		return "?"
	}
	e := b.queue[number-b.base]
	b.land(e)
	return e.msg.Subject
}
