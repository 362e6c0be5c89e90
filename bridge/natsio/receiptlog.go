package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
)

// ReceiptFilter says which receipts to read: empty fields stand for all.
type ReceiptFilter struct {
	// Name is the bridge's. Default downlink.
	Name                string
	Hub, Device, Status string
	// Since leaves out what was stored before; zero: nothing.
	Since time.Time
	// Follow goes on with what comes, until ctx ends.
	Follow bool
}

// StoredReceipt is a receipt as it is in its stream.
type StoredReceipt struct {
	bridge.Receipt
	Trace string `json:"traceparent,omitempty"` // W3C trace context, if the message had one
}

// ReadReceipts calls each with the stored receipts that the filter lets through, in their order, and
// returns when there are no more, or each fails, or ctx ends (with its error). A bridge that
// has stored none yet has no stream, which is an error. It takes nothing from anybody.
func ReadReceipts(ctx context.Context, c *Conn, f ReceiptFilter, each func(StoredReceipt) error) error {
	if f.Name == "" {
		f.Name = "downlink"
	}
	if err := checkToken("name", f.Name); err != nil {
		return err
	}
	stream := ReceiptStream(f.Name)
	fail := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("there is no stream %s: no bridge named %s has stored a receipt here", stream, f.Name)
		}
		return fmt.Errorf("stream %s: %w", stream, apiError(err))
	}
	subjects := []string{ReceiptSubject(f.Name, f.Hub, f.Device, f.Status)}
	if !f.Follow {
		err := c.scan(ctx, scanOptions{Stream: stream, Subjects: subjects, Since: f.Since}, func(m *storedMsg) (bool, error) {
			if r, ok := parseReceipt(m.Header, m.Data); ok {
				return true, each(r)
			}
			return true, nil
		})
		if missing := (*MissingError)(nil); errors.As(err, &missing) {
			return fail(jetstream.ErrStreamNotFound)
		}
		return err
	}
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: subjects}
	if !f.Since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &f.Since
	}
	ask, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	consumer, err := c.js.OrderedConsumer(ask, stream, cfg)
	if err != nil {
		return fail(err)
	}
	it, err := consumer.Messages()
	if err != nil {
		return fail(err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if errors.Is(err, jetstream.ErrNoHeartbeat) && ctx.Err() == nil {
			continue // the server is away; the consumer is made again
		}
		if err != nil {
			return fail(err)
		}
		if r, ok := parseReceipt(m.Headers(), m.Data()); ok {
			if err := each(r); err != nil {
				return err
			}
		}
	}
}

// parseReceipt reads a receipt. What a newer version stores in another format is not for us to show.
func parseReceipt(h nats.Header, data []byte) (r StoredReceipt, ok bool) {
	r.Trace = h.Get("traceparent")
	return r, checkFormat(h) == nil && json.Unmarshal(data, &r.Receipt) == nil
}
