package natsio

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	scanBatch    = 256              // messages in memory at once
	scanInactive = 10 * time.Minute // for whoever reads a long list slowly
	fetchWait    = 2 * time.Second  // for what the server counted
	sizeHeader   = "Nats-Msg-Size"  // the server's, instead of a body that was not asked for
)

// MissingError says that a stream is not there.
type MissingError struct{ Stream string }

func (e *MissingError) Error() string { return "stream " + e.Stream + " does not exist" }

// storedMsg is a message of a stream.
type storedMsg struct {
	Subject string
	Header  nats.Header
	Data    []byte // nil if only headers were asked for
	Size    int    // of the body
	Seq     uint64
	Time    time.Time
	// BadHeader: it has headers that cannot be read. Header is empty then.
	BadHeader bool
}

// scanOptions say what to read of a stream.
type scanOptions struct {
	Stream      string
	Subjects    []string // filters
	From        uint64   // the first sequence; 0: any
	Since       time.Time
	HeadersOnly bool
}

// scan calls each for the messages of a stream, in order, until it returns false or
// an error, or until it has seen what was there when it began. It reads by a
// consumer of its own that leaves the stream as it is, some messages at a time.
func (c *Conn) scan(ctx context.Context, o scanOptions, each func(*storedMsg) (bool, error)) error {
	last, err := c.lastSeq(ctx, o.Stream)
	if err != nil || last == 0 {
		return err
	}
	failures := 0
	for {
		next, more, err := c.scanPart(ctx, o, last, each)
		var part *partError
		switch {
		case err == nil && !more:
			return nil
		case errors.As(err, &part):
			if next > o.From {
				failures = 0
			}
			if failures++; failures > 3 || ctx.Err() != nil || c.deniedAPI(o.Stream, "CONSUMER.") != nil {
				return c.trouble(o.Stream, "CONSUMER.", part.err)
			}
		case err != nil:
			return err
		}
		o.From, o.Since = next, time.Time{}
	}
}

// partError is a failure of the reading, not of who reads.
type partError struct{ err error }

func (e *partError) Error() string { return e.err.Error() }

// scanPart reads with one consumer. more: go on with another one at next.
func (c *Conn) scanPart(ctx context.Context, o scanOptions, last uint64, each func(*storedMsg) (bool, error)) (next uint64, more bool, err error) {
	next = o.From
	cfg := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: scanInactive,
		MemoryStorage: true, Replicas: 1, HeadersOnly: o.HeadersOnly, FilterSubjects: o.Subjects,
	}
	switch {
	case o.From > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, o.From
	case !o.Since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &o.Since
	}
	asked, cancel := context.WithTimeout(ctx, apiTimeout)
	cons, err := c.js.CreateConsumer(asked, o.Stream, cfg)
	cancel()
	if err != nil {
		return next, false, &partError{err}
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.js.DeleteConsumer(ctx, o.Stream, cons.CachedInfo().Name) // else the server does, some time after
	}()
	left := cons.CachedInfo().NumPending
	for seen := uint64(0); left > 0; {
		batch, err := cons.Fetch(int(min(left, scanBatch)), jetstream.FetchMaxWait(fetchWait))
		if err != nil {
			return next, false, &partError{err}
		}
		got := false
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return next, false, err
			}
			if seen++; meta.Sequence.Consumer != seen {
				return next, true, nil // some got lost on the way
			}
			if meta.Sequence.Stream > last {
				return next, false, nil
			}
			got, left, next = true, meta.NumPending, meta.Sequence.Stream+1
			if more, err := each(storedOf(m, meta)); err != nil || !more {
				return next, false, err
			}
		}
		if ctx.Err() != nil {
			return next, false, ctx.Err()
		}
		if err := batch.Error(); err != nil && left > 0 {
			return next, false, &partError{err}
		}
		if got {
			continue
		}
		// What was counted is gone, or it is late: the server knows.
		asked, cancel := context.WithTimeout(ctx, apiTimeout)
		info, err := cons.Info(asked)
		cancel()
		switch {
		case err != nil:
			return next, false, &partError{err}
		case info.NumPending > 0 || info.Delivered.Consumer != seen:
			return next, false, &partError{errors.New("its messages do not come")}
		}
		return next, false, nil
	}
	return next, false, nil
}

func storedOf(m jetstream.Msg, meta *jetstream.MsgMetadata) *storedMsg {
	s := &storedMsg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data(), Size: len(m.Data()), Seq: meta.Sequence.Stream, Time: meta.Timestamp}
	if size := s.Header.Get(sizeHeader); size != "" && len(s.Data) == 0 {
		if n, err := strconv.Atoi(size); err == nil {
			s.Size, s.Data = n, nil
		}
		s.Header.Del(sizeHeader)
	}
	return s
}

// message reads one message of a stream; nil if it is not there.
func (c *Conn) message(ctx context.Context, stream string, seq uint64) (*storedMsg, error) {
	if seq == 0 {
		return nil, nil
	}
	return c.nextMessage(ctx, stream, seq, "")
}

// nextMessage is the first message at seq or behind it that has the subject; "": the one at seq.
func (c *Conn) nextMessage(ctx context.Context, stream string, seq uint64, subject string) (*storedMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	var m *jetstream.RawStreamMsg
	if err == nil {
		m, err = s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
	}
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, nil
	case err != nil && unreadable(err):
		return c.withoutHeaders(ctx, stream, directRequest{Seq: seq, Next: subject})
	case err != nil:
		return nil, c.trouble(stream, ".", err)
	}
	return &storedMsg{Subject: m.Subject, Header: m.Header, Data: m.Data, Size: len(m.Data), Seq: m.Sequence, Time: m.Time}, nil
}

// unreadable tells a message whose headers nats.go cannot read. From a direct get it comes
// without those that the server adds, for which nats.go has no error of its own.
func unreadable(err error) bool {
	return errors.Is(err, nats.ErrBadHeaderMsg) || strings.Contains(err.Error(), "should have headers")
}

// withoutHeaders reads a message whose headers cannot be read; nil if it is gone by now.
func (c *Conn) withoutHeaders(ctx context.Context, stream string, r directRequest) (*storedMsg, error) {
	m, err := c.askLeader(ctx, stream, r)
	switch {
	case err != nil:
		return nil, c.trouble(stream, ".", err)
	case m == nil:
		return nil, nil
	}
	return &storedMsg{Subject: m.Subject, Data: m.Data, Size: len(m.Data), Seq: m.Sequence, Time: m.Time, BadHeader: true}, nil
}

func (c *Conn) lastSeq(ctx context.Context, stream string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return 0, c.trouble(stream, "STREAM.INFO.", err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return 0, nil
	}
	return state.LastSeq, nil
}

// subjects counts the messages of each subject that filter has.
func (c *Conn) subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return nil, c.trouble(stream, "STREAM.INFO.", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, c.trouble(stream, "STREAM.INFO.", err)
	}
	return info.State.Subjects, nil
}

// trouble is why something could not be done with a stream, in one line; api is part of the
// subject of JetStream's API that was used. A server is silent about what is not permitted, except on the side.
func (c *Conn) trouble(stream, api string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return &MissingError{stream}
	}
	if denied := c.deniedAPI(stream, api); denied != nil {
		return denied
	}
	return fmt.Errorf("stream %s: %w", stream, apiError(err))
}

func (c *Conn) deniedAPI(stream, api string) error {
	denied := c.deniedOf(func(op, subject string) bool {
		return op == "publish" && strings.HasPrefix(subject, c.api) && strings.Contains(subject, api) && hasToken(subject, stream)
	})
	if denied == "" {
		return nil
	}
	return errors.New("missing NATS permission: " + denied)
}
