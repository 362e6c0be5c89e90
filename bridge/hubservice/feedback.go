package hubservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/cenkalti/backoff/v5"

	"downlink/bridge"
)

const (
	// feedbackAddress is the one feedback queue of a hub (IoT Hub developer guide, "Understand the endpoints").
	feedbackAddress = "/messages/servicebound/feedback"
	// ablePoll is how often a handler is asked whether it can store, while it has the
	// hub's next batch ahead or no credit is out.
	ablePoll = 500 * time.Millisecond
)

// FeedbackHandler takes the hub's feedback records.
type FeedbackHandler interface {
	// Able is nil while the handler can store what it is given. Otherwise the hub is not asked for anything.
	Able() error
	// Handle blocks until everything of the batch is durable. After an error the same batch comes again.
	Handle(ctx context.Context, records []bridge.Record) error
}

// FeedbackStats is what came over the feedback link.
type FeedbackStats struct {
	Attached   bool   `json:"attached"`
	Batches    uint64 `json:"batches"`    // settled
	Unreadable uint64 `json:"unreadable"` // batches, or records in them, that nobody can read; settled all the same
}

// feedback is the client's state of it; unused until Feedback is called.
type feedback struct {
	used, attached      atomic.Bool
	batches, unreadable atomic.Uint64
}

// links lets others than Run take part in the link that is up.
type links struct {
	mu      sync.Mutex
	current *link         // nil while there is none
	changed chan struct{} // closed when there is one, or none any more
}

func (w *links) set(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = l
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *links) get() (*link, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current, w.changed
}

// wait blocks until a link is up; nil when ctx ends.
func (w *links) wait(ctx context.Context) *link {
	for {
		l, changed := w.get()
		if l != nil {
			return l
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Feedback reads the hub's feedback on the client's connection until ctx ends, then
// returns nil. Call it once. A hub has one feedback queue, so what is read here no other reader
// gets. One batch is in hand at a time: it is asked for only while the handler is able,
// kept and handled again until the handler succeeds, and only then accepted; when ctx or
// the link ends before, the hub delivers it again. A link that the hub refuses or detaches is made again, with
// back-off, and shown in Ready; it does not disturb the sends.
func (c *Client) Feedback(ctx context.Context, h FeedbackHandler) error {
	if !c.feedback.used.CompareAndSwap(false, true) {
		return fmt.Errorf("hub %s: Feedback called twice", c.options.Hub)
	}
	c.health.feedbackEnded(errAttaching)
	pause := &backoff.ExponentialBackOff{
		InitialInterval:     c.options.ReconnectMin,
		MaxInterval:         c.options.ReconnectMax,
		Multiplier:          2,
		RandomizationFactor: 0.5,
	}
	for {
		l := c.links.wait(ctx)
		if l == nil {
			break
		}
		began := time.Now()
		err := c.readFeedback(ctx, l, h)
		if ctx.Err() != nil {
			break
		}
		if _, lost := errors.AsType[*amqp.ConnError](err); lost {
			select { // the link is about to learn of it
			case <-l.broken:
			case <-ctx.Done():
			}
		}
		if l.gone() {
			c.health.feedbackEnded(errAttaching) // Ready tells that there is no connection
			pause.Reset()
			select { // until the connection that is over has been replaced
			case <-l.over:
			case <-ctx.Done():
			}
			continue
		}
		c.health.feedbackEnded(fmt.Errorf("not read: %w", readable(err)))
		if isUnauthorized(err) {
			select {
			case c.renew <- struct{}{}:
			default:
			}
		}
		if time.Since(began) > c.options.ReconnectMax {
			pause.Reset()
		}
		t := time.NewTimer(pause.NextBackOff())
		select {
		case <-t.C:
		case <-l.broken:
		case <-ctx.Done():
		}
		t.Stop()
	}
	c.health.feedbackRead()
	return nil
}

var errAttaching = errors.New("not read yet")

// readFeedback works one link to the feedback queue until it ends, and says why.
func (c *Client) readFeedback(ctx context.Context, l *link, h FeedbackHandler) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-l.broken:
			cancel()
		case <-ctx.Done():
		}
	})

	attach, cancelAttach := context.WithTimeout(ctx, connectTimeout)
	defer cancelAttach()
	// A session of its own: what the hub does to it does not touch the sender.
	session, err := l.conn.NewSession(attach, nil)
	if err != nil {
		return fmt.Errorf("begin the AMQP session: %w", orContext(attach, err))
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = session.Close(end)
	}()
	r, err := session.NewReceiver(attach, feedbackAddress, &amqp.ReceiverOptions{Credit: -1}) // credit by hand
	if err != nil {
		return fmt.Errorf("attach to %s: %w", feedbackAddress, orContext(attach, err))
	}
	c.feedback.attached.Store(true)
	defer c.feedback.attached.Store(false)
	c.health.feedbackRead()
	for {
		m, err := nextBatch(ctx, r, h)
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if err := c.settleBatch(ctx, r, m, h); err != nil {
			return err
		}
	}
}

// nextBatch asks for one batch once the handler is able. When it stops being so while the hub has
// nothing, the credit is taken back; nil then.
func nextBatch(ctx context.Context, r *amqp.Receiver, h FeedbackHandler) (*amqp.Message, error) {
	for h.Able() != nil {
		// The link may end meanwhile; Receive tells, and a message cannot come without credit.
		if m, err := receive(ctx, r, ablePoll); m != nil || err != nil {
			return m, err
		}
	}
	if err := r.IssueCredit(1); err != nil {
		return nil, err
	}
	for {
		m, err := receive(ctx, r, ablePoll)
		if m != nil || err != nil {
			return m, err
		}
		if h.Able() == nil {
			continue
		}
		drain, cancel := context.WithTimeout(ctx, connectTimeout)
		err = r.DrainCredit(drain, nil)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("take back the credit: %w", orContext(ctx, err))
		}
		return r.Prefetched(), nil // it may have come all the same
	}
}

// receive waits for a message, nil if none came within d.
func receive(ctx context.Context, r *amqp.Receiver, d time.Duration) (*amqp.Message, error) {
	wait, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	m, err := r.Receive(wait, nil)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && wait.Err() != nil {
		return nil, nil
	}
	return m, err
}

// settleBatch hands a batch over until it is durable, and accepts it.
func (c *Client) settleBatch(ctx context.Context, r *amqp.Receiver, m *amqp.Message, h FeedbackHandler) error {
	var body []byte
	for _, part := range m.Data { // one section, by the guide; AMQP allows more
		body = append(body, part...)
	}
	records, bad, err := parseFeedback(body)
	if err != nil || bad > 0 {
		// It would come for ever: there is nobody who could read it later.
		c.feedback.unreadable.Add(uint64(max(bad, 1)))
		c.log.Error("feedback that cannot be read is dropped", "bytes", len(body), "records", len(records), "unreadable", bad, "err", err)
	}
	if len(records) > 0 {
		if err := handleBatch(ctx, h, records); err != nil {
			// The next owner has it at once; without this, when the link ends or the lock lapses.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = r.ReleaseMessage(end, m)
			return err
		}
	}
	if err := r.AcceptMessage(ctx, m); err != nil {
		return fmt.Errorf("accept a batch: %w", orContext(ctx, err))
	}
	c.feedback.batches.Add(1)
	return nil
}

// handleBatch tries until it succeeds or ctx ends. To give the batch back after each failure would
// use up the hub's deliveries of it, ten by default, and then it is lost.
func handleBatch(ctx context.Context, h FeedbackHandler, records []bridge.Record) error {
	pause := &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, MaxInterval: 5 * time.Second, Multiplier: 2, RandomizationFactor: 0.5}
	for {
		err := h.Handle(ctx, records)
		if err == nil {
			return nil
		}
		if !sleep(ctx, pause.NextBackOff()) {
			return err
		}
	}
}
