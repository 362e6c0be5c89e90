package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Record is one record of a hub's feedback: what became of a message at its device.
type Record struct {
	MessageID string // as the sender gave it; upper and lower case of a UUID are the same
	Device    string
	Status    string    // one of the outcomes at the device; StatusUnknown for a code that nobody knows yet
	Text      string    // what the hub said besides; may be empty
	At        time.Time // when it happened, by the hub's clock; zero: not said
}

// Found is what was recorded of a message before its send.
type Found struct {
	Correlation
	Status string   // the outcome that was told last; "": none yet
	Keys   []string // the store's own names for it
}

// Pending keeps the correlations of what waits for feedback, across restarts. Safe for
// concurrent use; each call blocks until it is done, durably if it changes anything.
type Pending interface {
	// Find looks up what records of one hub belong to: one entry each, nil where
	// nothing was recorded. Records of one message share an entry.
	Find(ctx context.Context, hub string, records []Record) ([]*Found, error)
	// Finish notes that an outcome was told. What is finished is forgotten soon, but
	// late enough to recognise the hub's repeats.
	Finish(ctx context.Context, f *Found, status string) error
	// Overdue hands over, in portions, what should have had its outcome between from
	// and to and had none. It returns up to when that is done, which is where the
	// next call goes on; a zero from is the earliest that can still be there.
	Overdue(ctx context.Context, from, to time.Time, handle func([]*Found) error) (time.Time, error)
	// Told reports whether a receipt like r was stored since then; one of a message that is not ours at the same moment.
	Told(ctx context.Context, r Receipt, since time.Time) (bool, error)
}

// FeedbackOptions configure a Feedback: all but Freed, Ready and Logger are required.
type FeedbackOptions struct {
	Hub      string
	Pending  Pending
	Receipts Receipts
	// Freed is called when a device's queue at the hub has room again. It must not block. Nil: nobody wants to know.
	Freed func(hub, device string)
	// Able is nil while receipts can be stored; otherwise no feedback is asked for. Nil: always.
	Able func() error
	// Logger; nil discards.
	Logger *slog.Logger
}

// Feedback turns one hub's feedback records into receipts. Safe for concurrent use.
type Feedback struct {
	o   FeedbackOptions
	log *slog.Logger

	started                    time.Time
	records, foreign, repeated atomic.Uint64

	mu      sync.Mutex
	failing bool
}

// NewFeedback checks the options; it starts nothing.
func NewFeedback(o FeedbackOptions) (*Feedback, error) {
	if o.Hub == "" || o.Pending == nil || o.Receipts == nil {
		return nil, errors.New("bridge: feedback needs a hub's name, what is pending, and a place for receipts")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return &Feedback{o: o, started: time.Now(), log: o.Logger.With("component", "feedback", "hub", o.Hub)}, nil
}

// TextForeign is the text of a receipt for a message that this bridge has not
// sent, or of which it knows nothing any more. Such a receipt has no route and no subject.
const TextForeign = "not sent by this bridge"

// Able is nil while receipts can be stored.
func (f *Feedback) Able() error {
	if f.o.Able == nil {
		return nil
	}
	return f.o.Able()
}

// FeedbackStats is what was done with one hub's records.
type FeedbackStats struct {
	Records  uint64 `json:"records"`  // that have their receipt
	Foreign  uint64 `json:"foreign"`  // of them, of messages that others sent
	Repeated uint64 `json:"repeated"` // that told what had been told before
}

// Stats is a snapshot.
func (f *Feedback) Stats() FeedbackStats {
	return FeedbackStats{Records: f.records.Load(), Foreign: f.foreign.Load(), Repeated: f.repeated.Load()}
}

// maxRecords bounds the receipts that are stored at once; it is the size of the hub's batches.
const maxRecords = 64

// Handle makes the receipts of a batch and blocks until all of them are durable: then the batch
// may be settled at the hub. After an error the same batch may be handled again; what
// was told is not told twice.
func (f *Feedback) Handle(ctx context.Context, records []Record) error {
	found, err := f.o.Pending.Find(ctx, f.o.Hub, records)
	if err == nil && len(found) != len(records) {
		err = fmt.Errorf("%d answers for %d records", len(found), len(records))
	}
	if err == nil {
		err = f.handle(ctx, records, found)
	}
	f.note(ctx, err)
	if err != nil {
		return fmt.Errorf("feedback of hub %s: %w", f.o.Hub, err)
	}
	return nil
}

// handle works on many messages at once, and on the records of one in their order.
func (f *Feedback) handle(ctx context.Context, records []Record, found []*Found) error {
	type message struct{ device, id string }
	groups := make(map[message][]int)
	for i, r := range records {
		m := message{r.Device, strings.ToLower(r.MessageID)}
		groups[m] = append(groups[m], i)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs error
	places := make(chan struct{}, maxRecords)
	for _, group := range groups {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			for _, i := range group {
				if err := f.tell(ctx, records[i], found[i]); err != nil {
					mu.Lock()
					errs = cmpFirst(errs, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// cmpFirst keeps the first error: the others say the same.
func cmpFirst(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// tell makes one receipt durable, then notes that it was told.
func (f *Feedback) tell(ctx context.Context, r Record, found *Found) error {
	receipt, c := f.receipt(r, found)
	switch {
	case found == nil:
		f.foreign.Add(1)
	case !supersedes(r.Status, found.Status):
		f.repeated.Add(1)
		return nil
	}
	told := false
	if f.unsure() {
		var err error
		if told, err = f.o.Pending.Told(ctx, receipt, receipt.At.Add(-clockSkew)); err != nil {
			return err
		}
	}
	if told {
		f.repeated.Add(1)
	} else if err := f.o.Receipts.Store(ctx, receipt, c); err != nil {
		return err
	}
	if found != nil {
		if err := f.o.Pending.Finish(ctx, found, r.Status); err != nil {
			return err
		}
		found.Status = r.Status
	}
	f.records.Add(1)
	if f.o.Freed != nil {
		f.o.Freed(f.o.Hub, r.Device)
	}
	return nil
}

const (
	// longestLock is how long the hub may keep a batch from other readers (feedback lock duration, 5 s to 300 s): after
	// that whatever the process before this one had in hand has come again.
	longestLock = 5 * time.Minute
	// clockSkew is how far the hub's clock and that of NATS may be apart; more only costs a repeat.
	clockSkew = 5 * time.Minute
)

// unsure reports whether a receipt may have been stored without a note of it: by the process before
// this one, or by a try that failed in the middle. The stream's own memory of repeats lasts two minutes only.
func (f *Feedback) unsure() bool {
	if time.Since(f.started) < longestLock {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failing
}

// supersedes reports whether an outcome is to be told after another one was. A message that was
// sent twice, since the first answer got lost, has two outcomes: that it arrived
// counts. And what came too late for us ends the uncertainty.
func supersedes(status, told string) bool {
	switch told {
	case "":
		return true
	case StatusUnknown:
		return status != StatusUnknown
	default:
		return status == StatusCompleted && told != StatusCompleted
	}
}

func (f *Feedback) receipt(r Record, found *Found) (Receipt, Correlation) {
	at := r.At
	if at.IsZero() {
		at = time.Now()
	}
	receipt := Receipt{ID: r.MessageID, Device: r.Device, Hub: f.o.Hub, Status: r.Status, Text: r.Text, At: at.UTC()}
	if found == nil {
		receipt.Text = TextForeign
		return receipt, Correlation{}
	}
	c := found.Correlation
	receipt.ID, receipt.Route, receipt.Subject, receipt.Stream, receipt.Sequence = c.ID, c.Route, c.Subject, c.Stream, c.Sequence
	return receipt, c
}

// note logs the beginning and the end of a streak of failures.
func (f *Feedback) note(ctx context.Context, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil && !f.failing:
		f.failing = true
		f.log.Warn("feedback is kept at the hub: its receipts cannot be stored", "err", err)
	case err == nil && f.failing:
		f.failing = false
		f.log.Info("receipts of feedback are stored again")
	}
}
