package bridge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"downlink/mapping"
)

const (
	// DefaultTTL is how long a hub keeps a message that says no expiry (IoT Hub developer guide, "Send
	// cloud-to-device messages": defaultTtlAsIso8601, one hour unless its owner changed it).
	DefaultTTL = time.Hour
	// FeedbackGrace is how long after a message's expiry its feedback may still come: the hub keeps a
	// batch for an hour by default (same page, feedback ttlAsIso8601).
	FeedbackGrace = time.Hour

	defaultSweep = time.Minute
)

// Deadline is when feedback for the message is no longer to be expected.
func (c *Correlation) Deadline() time.Time {
	expires := c.Expires
	if expires.IsZero() {
		expires = c.SentAt.Add(DefaultTTL)
	}
	return expires.Add(FeedbackGrace)
}

// SweeperOptions configure a Sweeper. Pending and Receipts are required.
type SweeperOptions struct {
	Pending  Pending
	Receipts Receipts
	// Every is the pause between sweeps. Default one minute.
	Every time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Sweeper gives a message that asked for feedback its last receipt when none came by its
// expiry plus an hour: StatusUnknown. What it means depends on what was asked for.
// With full, no record reached us: the device was deleted, another reader
// took the record, or it got lost. With positive the message may also have expired or
// been rejected, which the hub does not tell then. With negative it was most likely
// completed, which the hub does not tell then either: the receipt says so, but it does not
// claim it, because a deleted device and a record that another reader took look the same.
// Each message is told once, also across restarts; feedback that comes later still makes its own receipt.
type Sweeper struct {
	o   SweeperOptions
	log *slog.Logger

	swept   time.Time // all that was due before has its receipt
	unsure  bool      // a sweep ended in the middle, maybe another process's: look before telling
	failing bool
}

// NewSweeper checks the options; it starts nothing.
func NewSweeper(o SweeperOptions) (*Sweeper, error) {
	if o.Pending == nil || o.Receipts == nil {
		return nil, errors.New("bridge: a sweeper needs what is pending and a place for receipts")
	}
	if o.Every <= 0 {
		o.Every = defaultSweep
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return &Sweeper{o: o, log: o.Logger.With("component", "feedback"), unsure: true}, nil
}

// Run sweeps, at once and then every so often, until ctx is done. What fails is tried again.
func (s *Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(s.o.Every)
	defer tick.Stop()
	for {
		err := s.sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !s.failing:
			s.failing = true
			s.log.Warn("cannot tell which messages had no feedback; trying again", "err", err)
		case err == nil && s.failing:
			s.failing = false
			s.log.Info("messages without feedback are told again")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Sweeper) sweep(ctx context.Context) error {
	upTo, err := s.o.Pending.Overdue(ctx, s.swept, time.Now(), func(due []*Found) error {
		for _, f := range due {
			if err := s.tell(ctx, f); err != nil {
				return err
			}
		}
		return nil
	})
	s.swept = upTo
	s.unsure = err != nil
	return err
}

func (s *Sweeper) tell(ctx context.Context, f *Found) error {
	r := Receipt{
		ID: f.ID, Device: f.Device, Hub: f.Hub, Route: f.Route, Status: StatusUnknown, Reason: ReasonNoFeedback, Text: untold(f.Ack),
		Subject: f.Subject, Stream: f.Stream, Sequence: f.Sequence, At: time.Now().UTC(),
	}
	if s.unsure {
		// The process that told it may have ended before it could note that.
		told, err := s.o.Pending.Told(ctx, r, f.Deadline())
		if err != nil {
			return err
		}
		if told {
			return s.o.Pending.Finish(ctx, f, StatusUnknown)
		}
	}
	if err := s.o.Receipts.Store(ctx, r, f.Correlation); err != nil {
		return err
	}
	return s.o.Pending.Finish(ctx, f, StatusUnknown)
}

// ReasonNoFeedback is the reason of receipts that a Sweeper makes.
const ReasonNoFeedback = "no-feedback"

func untold(ack mapping.Ack) string {
	switch ack {
	case mapping.AckNegative:
		return "no negative feedback came: most likely it was completed, which the hub does not tell for ack negative"
	case mapping.AckPositive:
		return "no positive feedback came; a negative outcome is not told by the hub for ack positive"
	}
	return "no feedback came by the message's expiry plus an hour"
}
