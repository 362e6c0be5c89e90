package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

// ledger is Receipts and Pending in memory.
type ledger struct {
	mu       sync.Mutex
	pending  map[string]*bridge.Found // by device and message ID
	receipts []bridge.Receipt
	waits    []string // of the correlations that receipts came with
	finished []string
	fail     func(op string) error // nil: nothing fails
	looked   int                   // calls of Told
}

func newLedger(cs ...bridge.Correlation) *ledger {
	l := &ledger{pending: map[string]*bridge.Found{}}
	for _, c := range cs {
		l.pending[c.Device+" "+c.ID] = &bridge.Found{Correlation: c, Keys: []string{c.ID}}
	}
	return l
}

func (l *ledger) failing(op string) error {
	if l.fail == nil {
		return nil
	}
	return l.fail(op)
}

func (l *ledger) Record(context.Context, bridge.Correlation) error { return nil }

func (l *ledger) Store(_ context.Context, r bridge.Receipt, c bridge.Correlation) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failing("store " + r.ID); err != nil {
		return err
	}
	l.receipts = append(l.receipts, r)
	l.waits = append(l.waits, c.Wait)
	return nil
}

func (l *ledger) Find(_ context.Context, hub string, records []bridge.Record) ([]*bridge.Found, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failing("find"); err != nil {
		return nil, err
	}
	found := make([]*bridge.Found, len(records))
	for i, r := range records {
		found[i] = l.pending[r.Device+" "+r.MessageID]
	}
	return found, nil
}

func (l *ledger) Finish(_ context.Context, f *bridge.Found, status string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.failing("finish " + f.ID); err != nil {
		return err
	}
	f.Status = status
	l.finished = append(l.finished, f.ID+" "+status)
	return nil
}

func (l *ledger) Overdue(_ context.Context, from, to time.Time, handle func([]*bridge.Found) error) (time.Time, error) {
	l.mu.Lock()
	if err := l.failing("overdue"); err != nil {
		l.mu.Unlock()
		return from, err
	}
	var due []*bridge.Found
	for _, f := range l.pending {
		if d := f.Deadline(); f.Status == "" && !d.Before(from) && d.Before(to) {
			due = append(due, f)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(due, func(a, b *bridge.Found) int { return strings.Compare(a.ID, b.ID) })
	if err := handle(due); err != nil {
		return from, err
	}
	return to, nil
}

func (l *ledger) Told(_ context.Context, r bridge.Receipt, since time.Time) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked++
	return slices.ContainsFunc(l.receipts, func(x bridge.Receipt) bool {
		return x.ID == r.ID && x.Status == r.Status && !x.At.Before(since)
	}), l.failing("told")
}

// told is "message status" of the receipts, in order.
func (l *ledger) told() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.receipts {
		list = append(list, r.ID+" "+r.Status)
	}
	return list
}

func sent(id string) bridge.Correlation {
	return bridge.Correlation{
		ID: id, Device: "d1", Hub: "main", Route: "commands", Subject: "cmd.d1", Stream: "COMMANDS", Sequence: 7,
		Trace: "00-1-2-01", Feedback: true, Ack: mapping.AckFull, SentAt: time.Now(),
	}
}

func newFeedback(t *testing.T, l *ledger, change func(*bridge.FeedbackOptions)) *bridge.Feedback {
	t.Helper()
	o := bridge.FeedbackOptions{Hub: "main", Pending: l, Receipts: l}
	if change != nil {
		change(&o)
	}
	f, err := bridge.NewFeedback(o)
	require.NoError(t, err)
	return f
}

func TestFeedbackMakesReceipts(t *testing.T) {
	waiting := sent("m1")
	waiting.Wait, waiting.ReplyTo = bridge.StatusCompleted, "_INBOX.1"
	l := newLedger(waiting, sent("m2"))
	var freed []string
	var mu sync.Mutex
	f := newFeedback(t, l, func(o *bridge.FeedbackOptions) {
		o.Freed = func(hub, device string) { mu.Lock(); defer mu.Unlock(); freed = append(freed, hub+" "+device) }
	})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	require.NoError(t, f.Handle(t.Context(), []bridge.Record{
		{MessageID: "m1", Device: "d1", Status: bridge.StatusCompleted, At: at},
		{MessageID: "m2", Device: "d1", Status: bridge.StatusRejected, Text: "why", At: at},
		{MessageID: "m1", Device: "d2", Status: bridge.StatusExpired, At: at}, // the same ID, another device: not ours
	}))
	slices.SortFunc(l.receipts, func(a, b bridge.Receipt) int { return strings.Compare(a.Device+a.ID, b.Device+b.ID) })
	require.Equal(t, []bridge.Receipt{
		{ID: "m1", Device: "d1", Hub: "main", Route: "commands", Status: "completed", Subject: "cmd.d1", Stream: "COMMANDS", Sequence: 7, At: at.UTC()},
		{ID: "m2", Device: "d1", Hub: "main", Route: "commands", Status: "rejected", Text: "why", Subject: "cmd.d1", Stream: "COMMANDS", Sequence: 7, At: at.UTC()},
		{ID: "m1", Device: "d2", Hub: "main", Status: "expired", Text: "not sent by this bridge", At: at.UTC()},
	}, l.receipts)
	slices.Sort(l.waits)
	require.Equal(t, []string{"", "", "completed"}, l.waits, "who waits is answered")
	slices.Sort(l.finished)
	require.Equal(t, []string{"m1 completed", "m2 rejected"}, l.finished)
	slices.Sort(freed)
	require.Equal(t, []string{"main d1", "main d1", "main d2"}, freed)
	require.Equal(t, bridge.FeedbackStats{Records: 3, Foreign: 1}, f.Stats())
}

// What is told already is not told again, unless what comes later is worth more.
func TestFeedbackRepeats(t *testing.T) {
	for _, x := range []struct {
		told, comes string
		again       bool
	}{
		{"completed", "completed", false}, {"completed", "expired", false}, {"expired", "completed", true}, {"expired", "rejected", false},
		{"unknown", "completed", true}, {"unknown", "expired", true}, {"unknown", "unknown", false}, {"", "unknown", true},
	} {
		l := newLedger(sent("m1"))
		l.pending["d1 m1"].Status = x.told
		f := newFeedback(t, l, nil)
		require.NoError(t, f.Handle(t.Context(), []bridge.Record{{MessageID: "m1", Device: "d1", Status: x.comes}}))
		require.Equal(t, x.again, len(l.receipts) == 1, "%+v", x)
	}
	// Two records of one message in one batch, in their order.
	l := newLedger(sent("m1"))
	f := newFeedback(t, l, nil)
	require.NoError(t, f.Handle(t.Context(), []bridge.Record{
		{MessageID: "m1", Device: "d1", Status: "expired"}, {MessageID: "m1", Device: "d1", Status: "completed"}, {MessageID: "m1", Device: "d1", Status: "completed"},
	}))
	require.Equal(t, []string{"m1 expired", "m1 completed"}, l.told())
}

// A batch is done only when all of it is; handled again, nothing of it is told twice.
func TestFeedbackFailures(t *testing.T) {
	for _, op := range []string{"find", "store m2", "finish m2"} {
		var logged bytes.Buffer
		l := newLedger(sent("m1"), sent("m2"), sent("m3"))
		f := newFeedback(t, l, func(o *bridge.FeedbackOptions) {
			o.Able = func() error { return errors.New("away") }
			o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		})
		batch := []bridge.Record{
			{MessageID: "m1", Device: "d1", Status: "completed"}, {MessageID: "m2", Device: "d1", Status: "completed"}, {MessageID: "m3", Device: "d1", Status: "completed"},
		}
		l.fail = func(what string) error {
			if what == op {
				return errors.New("no answer from JetStream")
			}
			return nil
		}
		require.EqualError(t, f.Able(), "away")
		for range 3 {
			require.EqualError(t, f.Handle(t.Context(), batch), "feedback of hub main: no answer from JetStream")
		}
		require.NotContains(t, l.finished, "m2 completed")
		l.fail = nil
		require.NoError(t, f.Handle(t.Context(), batch))
		require.NoError(t, f.Handle(t.Context(), batch), "and delivered once more")
		told := l.told()
		slices.Sort(told)
		require.Equal(t, []string{"m1 completed", "m2 completed", "m3 completed"}, told)
		require.Equal(t, 1, strings.Count(logged.String(), "level=WARN"), logged.String())
		require.Equal(t, 1, strings.Count(logged.String(), "stored again"), logged.String())
	}
	_, err := bridge.NewFeedback(bridge.FeedbackOptions{})
	require.Error(t, err)
}

// Long after the start, and without a failure, nobody looks whether something was told; after a failure somebody does.
func TestFeedbackLooksWhenUnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(sent("m1"), sent("m2"), sent("m3"))
		f := newFeedback(t, l, nil)
		handle := func(id string) error {
			return f.Handle(t.Context(), []bridge.Record{{MessageID: id, Device: "d1", Status: "completed"}})
		}
		require.NoError(t, handle("m1"))
		require.Equal(t, 1, l.looked)
		time.Sleep(10 * time.Minute)
		require.NoError(t, handle("m2"))
		require.Equal(t, 1, l.looked)
		l.fail = func(op string) error {
			if op == "finish m3" {
				return errors.New("away")
			}
			return nil
		}
		require.Error(t, handle("m3"))
		require.Equal(t, 1, l.looked)
		l.fail = nil
		require.NoError(t, handle("m3"))
		require.Equal(t, 2, l.looked)
		require.Equal(t, []string{"m1 completed", "m2 completed", "m3 completed"}, l.told())
		require.NoError(t, handle("m4")) // not ours; nothing failed since
		require.Equal(t, 2, l.looked)
	})
}

func TestDeadline(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := bridge.Correlation{SentAt: now}
	require.Equal(t, now.Add(2*time.Hour), c.Deadline())
	c.Expires = now.Add(10 * time.Minute)
	require.Equal(t, now.Add(70*time.Minute), c.Deadline())
}

func runSweeper(t *testing.T, l *ledger) (stop func()) {
	s, err := bridge.NewSweeper(bridge.SweeperOptions{Pending: l, Receipts: l})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); require.NoError(t, s.Run(ctx)) }()
	return func() { cancel(); <-done }
}

func TestSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full, positive, negative, done := sent("full"), sent("positive"), sent("negative"), sent("done")
		positive.Ack, negative.Ack = mapping.AckPositive, mapping.AckNegative
		positive.Expires = time.Now().Add(3 * time.Hour)
		full.Wait = bridge.StatusCompleted
		l := newLedger(full, positive, negative, done)
		l.pending["d1 done"].Status = bridge.StatusCompleted
		stop := runSweeper(t, l)
		time.Sleep(2*time.Hour - time.Second)
		require.Empty(t, l.told())
		time.Sleep(2 * time.Minute)
		require.Equal(t, []string{"full unknown", "negative unknown"}, l.told())
		time.Sleep(30 * time.Hour)
		stop()
		require.Equal(t, []string{"full unknown", "negative unknown", "positive unknown"}, l.told(), "each once")
		require.Equal(t, []string{"full unknown", "negative unknown", "positive unknown"}, l.finished)
		require.Equal(t, []string{"completed", "", ""}, l.waits)
		require.Equal(t, bridge.ReasonNoFeedback, l.receipts[0].Reason)
		require.Equal(t, "COMMANDS", l.receipts[0].Stream)
		require.Contains(t, l.receipts[0].Text, "no feedback came")
		require.Contains(t, l.receipts[1].Text, "most likely it was completed")
		require.Contains(t, l.receipts[2].Text, "no positive feedback")
		require.Zero(t, l.looked, "an ordinary sweep need not look")
	})
}

// The process ends, or NATS goes away, between a receipt and the note that it was told.
func TestSweeperTellsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(sent("a"), sent("b"))
		broken := errors.New("no answer")
		l.fail = func(op string) error {
			if op == "finish a" {
				return broken
			}
			return nil
		}
		time.Sleep(3 * time.Hour)
		stop := runSweeper(t, l)
		time.Sleep(10 * time.Minute)
		stop()
		require.Equal(t, []string{"a unknown"}, l.told(), "and it went on trying")
		l.fail = nil
		time.Sleep(time.Hour)
		stop = runSweeper(t, l) // the next process
		time.Sleep(10 * time.Minute)
		require.Equal(t, []string{"a unknown", "b unknown"}, l.told())
		looked := l.looked
		stop()

		l.fail = func(op string) error { return broken }
		stop = runSweeper(t, l)
		time.Sleep(time.Hour)
		l.mu.Lock()
		l.fail = nil
		l.pending["d1 c"] = &bridge.Found{Correlation: sent("c")}
		l.mu.Unlock()
		time.Sleep(3 * time.Hour)
		stop()
		require.Equal(t, []string{"a unknown", "b unknown", "c unknown"}, l.told())
		require.Equal(t, looked, l.looked, "a sweep that ended well need not look the next time")
	})
	_, err := bridge.NewSweeper(bridge.SweeperOptions{})
	require.Error(t, err)
}
