package natsio

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// StreamMissingError says that a stream does not exist, and what creates it.
type StreamMissingError struct {
	Stream   string
	Subjects []string
	Routes   []string
}

func (e *StreamMissingError) Error() string {
	subjects := ""
	if len(e.Subjects) > 0 {
		subjects = " --subjects '" + strings.Join(e.Subjects, ",") + "'"
	}
	where := "on the route"
	switch len(e.Routes) {
	case 0:
	case 1:
		where = "on route " + e.Routes[0]
	default:
		where = "on one of the routes " + strings.Join(e.Routes, ", ")
	}
	return fmt.Sprintf("stream %s does not exist: `nats stream add %s%s` or set create: true %s", e.Stream, e.Stream, subjects, where)
}

// startPolicy is where a durable begins.
type startPolicy struct {
	all bool
	at  time.Time // zero: new, unless all
}

func parseStart(s string) (startPolicy, error) {
	switch s {
	case "", "new":
		return startPolicy{}, nil
	case "all":
		return startPolicy{all: true}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return startPolicy{}, fmt.Errorf("start %q: want new, all or a time such as 2026-01-31T08:00:00Z", s)
	}
	return startPolicy{at: t}, nil
}

// attachment makes sure that stream and durable exist and are as they must be. One goroutine uses it.
type attachment struct {
	o     *SourceOptions
	start startPolicy
	time  timing

	created time.Time // the stream's, as of the latest success
	seen    time.Time // when it was last there
	missing time.Time // when it was first found missing
}

// attached is what a successful attach found.
type attached struct {
	position position
	created  time.Time // the stream's
	anew     bool      // it is not the stream that we knew
}

// attach blocks for a few requests. resume tells the stream sequence a consumer that is
// gone must start again from.
func (a *attachment) attach(ctx context.Context, resume uint64) (attached, error) {
	if err := a.o.Conn.usable(); err != nil {
		return attached{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	js := a.o.Conn.js
	stream, err := js.Stream(ctx, a.o.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if a.missing.IsZero() {
			a.missing = time.Now()
		}
		if !a.o.Create {
			return attached{}, &StreamMissingError{Stream: a.o.Stream, Subjects: a.o.Subjects, Routes: a.o.Routes}
		}
		if err = createStream(ctx, js, Stream{Name: a.o.Stream, Subjects: a.o.Subjects}.config()); err != nil {
			return attached{}, fmt.Errorf("stream %s: cannot create it: %w", a.o.Stream, apiError(err))
		}
		stream, err = js.Stream(ctx, a.o.Stream)
	}
	if err != nil {
		return attached{}, fmt.Errorf("stream %s: %w", a.o.Stream, apiError(err))
	}
	si := stream.CachedInfo()
	got := attached{created: si.Created, anew: !a.created.IsZero() && !si.Created.Equal(a.created)}
	ci, err := a.consumer(ctx, js, si, got.anew, resume)
	if err != nil {
		return attached{}, fmt.Errorf("stream %s: consumer %s: %w", a.o.Stream, a.o.Consumer, apiError(err))
	}
	got.position = positionOf(ci)
	a.created, a.seen, a.missing = si.Created, time.Now(), time.Time{}
	return got, nil
}

// consumer creates the durable, or updates what may be updated of it and keeps its place.
func (a *attachment) consumer(ctx context.Context, js jetstream.JetStream, si *jetstream.StreamInfo, anew bool, resume uint64) (*jetstream.ConsumerInfo, error) {
	var c jetstream.Consumer
	old, err := js.Consumer(ctx, a.o.Stream, a.o.Consumer)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		cfg := jetstream.ConsumerConfig{Durable: a.o.Consumer, AckPolicy: jetstream.AckExplicitPolicy}
		a.startAt(&cfg, si, anew, resume)
		a.configure(&cfg)
		c, err = js.CreateConsumer(ctx, a.o.Stream, cfg)
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		err = errors.New("it is a push consumer, not one of ours: delete it or change the bridge's name")
	case err == nil:
		cfg := old.CachedInfo().Config
		if cfg.AckPolicy != jetstream.AckExplicitPolicy {
			return nil, fmt.Errorf("its ack policy is %s, not explicit: delete it or change the bridge's name", cfg.AckPolicy)
		}
		want := cfg
		a.configure(&want)
		if c = old; !reflect.DeepEqual(cfg, want) {
			c, err = js.UpdateConsumer(ctx, a.o.Stream, want)
		}
	}
	if err != nil {
		return nil, err
	}
	ci := c.CachedInfo()
	if ci.Config.PriorityPolicy != jetstream.PriorityPolicyPinned {
		// A server that does not know the policy leaves it out without a word.
		return nil, errors.New("the server that keeps it is too old: Downlink needs nats-server 2.11 or newer")
	}
	return ci, nil
}

// configure sets what we need and leaves the rest to whoever owns the consumer.
func (a *attachment) configure(cfg *jetstream.ConsumerConfig) {
	cfg.AckWait, cfg.BackOff = a.time.ackWait, nil // a BackOff would replace AckWait
	cfg.HeadersOnly = false
	cfg.MaxRequestBatch, cfg.MaxRequestExpires, cfg.MaxRequestMaxBytes = 0, 0, 0
	cfg.MaxDeliver = -1
	cfg.MaxAckPending = a.o.MaxAckPending
	cfg.PriorityPolicy = jetstream.PriorityPolicyPinned
	cfg.PriorityGroups = []string{pinnedGroup}
	cfg.PinnedTTL = a.time.pinnedTTL
	filters := cfg.FilterSubjects
	if cfg.FilterSubject != "" {
		filters = []string{cfg.FilterSubject}
	}
	if !sameSet(filters, a.o.Filters) {
		cfg.FilterSubject, cfg.FilterSubjects = "", nil
		if len(a.o.Filters) == 1 {
			cfg.FilterSubject = a.o.Filters[0]
		} else {
			cfg.FilterSubjects = slices.Clone(a.o.Filters)
		}
	}
}

// startAt sets where a new durable begins.
func (a *attachment) startAt(cfg *jetstream.ConsumerConfig, si *jetstream.StreamInfo, anew bool, resume uint64) {
	since := a.missing
	if since.IsZero() && anew {
		since = a.seen
	}
	switch {
	case si.Config.Retention == jetstream.WorkQueuePolicy, a.start.all:
		cfg.DeliverPolicy = jetstream.DeliverAllPolicy
	case !since.IsZero():
		// The stream came into being while we were waiting for it: all that was published to it meanwhile is new
		// to us. A minute for clocks that differ; nothing of it was consumed, so nothing is repeated. Not
		// "all", in case the stream was restored with what it held years ago.
		t := since.Add(-time.Minute)
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &t
	case !a.created.IsZero():
		// The durable was deleted under us: go on where it was.
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, max(resume, 1)
	case !a.start.at.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &a.start.at
	default:
		cfg.DeliverPolicy = jetstream.DeliverNewPolicy
	}
}

// position asks the server where the consumer is.
func (a *attachment) position(ctx context.Context) (position, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	c, err := a.o.Conn.js.Consumer(ctx, a.o.Stream, a.o.Consumer)
	if err != nil {
		return position{}, err
	}
	return positionOf(c.CachedInfo()), nil
}

// unpin takes the pin from whoever has it, if the server does it at once.
func (a *attachment) unpin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, unpinTimeout)
	defer cancel()
	body := []byte(`{"group":"` + pinnedGroup + `"}`)
	// Otherwise it runs out by itself: without a permission, for one.
	_ = a.o.Conn.apiRequest(ctx, apiTimeout, "CONSUMER.UNPIN."+a.o.Stream+"."+a.o.Consumer, body, &struct{}{})
}

const unpinTimeout = time.Second

func positionOf(ci *jetstream.ConsumerInfo) position {
	p := position{
		deliveredConsumer: ci.Delivered.Consumer, deliveredStream: ci.Delivered.Stream,
		ackFloorStream: ci.AckFloor.Stream, pending: ci.NumAckPending,
	}
	for _, g := range ci.PriorityGroups {
		if g.Group == pinnedGroup {
			p.pin = g.PinnedClientID
		}
	}
	return p
}

func sameSet(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// apiError words what JetStream's API answered, or that it did not.
func apiError(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer from JetStream")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return errors.New("JetStream is not enabled for this account")
	case errors.Is(err, nats.ErrNoResponders):
		return errors.New("nobody answers for JetStream: it is not enabled on the server, or not up yet")
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.Description != "" {
		return described{err, api.Description}
	}
	return oneLine{err}
}

// described is an error with the server's words alone, without "API error: code=503 err_code=10077".
type described struct {
	err  error
	text string
}

func (e described) Error() string { return e.text }
func (e described) Unwrap() error { return e.err }
