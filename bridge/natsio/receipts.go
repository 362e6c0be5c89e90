package natsio

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
)

const (
	receiptsMaxAge   = 7 * 24 * time.Hour
	receiptsMaxBytes = 1 << 30
	// pendingMaxAge: the longest time to live is 48 h, its feedback may take two more, and the rest is
	// for a sweeper that was away.
	pendingMaxAge = 72 * time.Hour
)

// ReceiptsOptions configures Receipts. Conn is required.
type ReceiptsOptions struct {
	Conn *Conn
	// Name is the bridge's: stream <NAME>_RECEIPTS, subjects <name>.receipt.>, KV bucket <name>-pending. Default downlink.
	Name string
	// Create makes stream and bucket if they do not exist.
	Create bool
	// Wanted says that receipts will be stored, so Run makes stream and bucket and Ready
	// asks for them. Otherwise the first use does.
	Wanted bool
	// Replicas of what is created. Zero: as many as the one of Sources with most.
	Replicas int
	// Sources are the streams that messages come from.
	Sources []string
	// MaxAge and MaxBytes bound the stream when it is created; MaxBytes bounds the bucket, too. Default 7 days and 1 GiB.
	MaxAge   time.Duration
	MaxBytes int64
	Logger   *slog.Logger
}

// Receipts publishes receipts to a stream, answers publishers that wait, and keeps in a KV
// bucket what feedback is still to come. It implements bridge.Receipts and
// bridge.Pending. Safe for concurrent use; callers do not wait for each other.
type Receipts struct {
	o       ReceiptsOptions
	log     *slog.Logger
	stream  *ownStream // of the receipts
	pending *ownStream // of the bucket
	told    toldMemory

	mu    sync.Mutex
	used  bool
	asked map[string]chan struct{} // by hub: closed at the first record
	first chan struct{}            // closed at the first use
	// replicated: a direct get from the bucket may be answered by a replica that is behind. True until the bucket is known.
	replicated bool
}

// NewReceipts checks the options. It does no I/O.
func NewReceipts(o ReceiptsOptions) (*Receipts, error) {
	if o.Name == "" {
		o.Name = "downlink"
	}
	if err := checkToken("name", o.Name); err != nil {
		return nil, err
	}
	if o.MaxAge == 0 {
		o.MaxAge = receiptsMaxAge
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = receiptsMaxBytes
	}
	r := &Receipts{o: o, log: logger(o.Logger), asked: make(map[string]chan struct{}), first: make(chan struct{}), replicated: true}
	r.told.most = toldAtMost
	own := func(cfg jetstream.StreamConfig, prefix, flags string) *ownStream {
		s := &ownStream{
			conn: o.Conn, log: r.log, use: "receipts", cannot: "receipts cannot be stored", prefix: prefix, flags: flags,
			config: cfg, check: r.check, create: o.Create, copies: copies{o.Replicas, o.Sources},
		}
		if o.Wanted {
			s.err = errors.New("stream " + cfg.Name + ": not checked yet")
		}
		return s
	}
	r.stream = own(r.streamConfig(), receiptPrefix(o.Name), " --allow-direct --discard new")
	r.pending = own(r.bucketConfig(), kvPrefix(o.Name), " --allow-direct --discard new --allow-msg-ttl --max-msgs-per-subject 1")
	if o.Wanted {
		r.used = true
		close(r.first)
	}
	return r, nil
}

// Stream is the stream's name.
func (r *Receipts) Stream() string { return ReceiptStream(r.o.Name) }

// Ready is nil if receipts can be stored, as far as known without one, or if nobody has asked for any.
// Otherwise it is one line.
func (r *Receipts) Ready() error {
	return cmp.Or(r.stream.ready(), r.pending.ready())
}

// Able is nil while it makes sense to store receipts: NATS is there, and so are stream and bucket.
func (r *Receipts) Able() error {
	if err := r.o.Conn.usable(); err != nil {
		return err
	}
	return r.Ready()
}

// Run makes sure, once receipts are wanted, that stream and bucket exist, again after each reconnect,
// until ctx is done. Without it the first use does.
func (r *Receipts) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.first:
	}
	keepEnsured(ctx, r.o.Conn, r.ensure)
	return nil
}

func (r *Receipts) use() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.used {
		r.used = true
		close(r.first)
	}
}

// ensure finds or creates stream and bucket.
func (r *Receipts) ensure(ctx context.Context) error {
	return cmp.Or(r.stream.ensure(ctx), r.pending.ensure(ctx))
}

// check refuses a stream of somebody else's making that cannot do what is needed of it.
func (r *Receipts) check(has jetstream.StreamConfig) error {
	bucket := has.Name == r.bucketStream()
	switch {
	case !has.AllowDirect:
		return fmt.Errorf("direct get is off: `nats stream edit %s --allow-direct`", has.Name)
	case bucket && !has.AllowMsgTTL:
		return fmt.Errorf("per-message TTL is off: `nats stream edit %s --allow-msg-ttl`", has.Name)
	case bucket:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.replicated = has.Replicas > 1
	}
	return nil
}

func (r *Receipts) streamConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: r.Stream(), Subjects: []string{receiptPrefix(r.o.Name) + ">"}, MaxAge: r.o.MaxAge, MaxBytes: r.o.MaxBytes,
		Discard: jetstream.DiscardNew, AllowDirect: true,
	}
}

// Store implements bridge.Receipts: it blocks until JetStream has acknowledged the receipt, five
// seconds at most, and then answers who waits for it. An answer is sent at most
// once each time; whoever stores a receipt again, after an error, answers again.
func (r *Receipts) Store(ctx context.Context, receipt bridge.Receipt, c bridge.Correlation) error {
	m, err := r.message(receipt, c)
	if err != nil {
		return err
	}
	if err := r.publish(ctx, m, r.stream, 0); err != nil {
		return fmt.Errorf("receipt: subject %s: %w", m.Subject, apiError(err))
	}
	if err := r.ended(ctx, receipt, c); err != nil {
		return err
	}
	if !answers(receipt.Status, c) {
		return nil
	}
	a, err := reply(c.ReplyTo, []bridge.Receipt{receipt})
	if err != nil {
		return err
	}
	setTrace(a.Header, c.Trace)
	if err := r.o.Conn.nc.PublishMsg(a); err != nil {
		// The receipt is there; to store it again would not help the answer.
		r.log.Debug("a publisher that waits for an outcome cannot be answered", "message_id", receipt.ID, "err", oneLine{err})
	}
	return nil
}

// ended takes a message off what waits for feedback if it has its last fate at the bridge, after sends that were
// not accepted: there is no outcome at the device to be missed.
func (r *Receipts) ended(ctx context.Context, receipt bridge.Receipt, c bridge.Correlation) error {
	if !c.Feedback || receipt.Attempts == 0 || receipt.ID == "" {
		return nil
	}
	switch receipt.Status {
	case bridge.StatusDead, bridge.StatusDropped, bridge.StatusReplaced:
	default:
		return nil
	}
	found, err := r.Find(ctx, receipt.Hub, []bridge.Record{{MessageID: receipt.ID, Device: receipt.Device}})
	if err != nil || found[0] == nil || found[0].Status != "" {
		return err
	}
	return r.Finish(ctx, found[0], receipt.Status)
}

// publish blocks until a message is durable in that stream, making it first if it is not there.
// ttl: how long the server keeps it; zero: as long as the stream says.
func (r *Receipts) publish(ctx context.Context, m *nats.Msg, stream *ownStream, ttl time.Duration) (err error) {
	r.use()
	defer func() {
		if ctx.Err() == nil {
			stream.used(err)
		}
	}()
	opts := []jetstream.PublishOpt{jetstream.WithExpectStream(stream.config.Name)}
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL(ttl))
	}
	try := func() error {
		_, err := r.o.Conn.publish(ctx, m, opts...)
		return err
	}
	if err = try(); errors.Is(err, jetstream.ErrNoStreamResponse) {
		if err := stream.ensure(ctx); err != nil {
			return err
		}
		err = try()
	}
	return err
}

// message is the receipt as it is stored.
func (r *Receipts) message(receipt bridge.Receipt, c bridge.Correlation) (*nats.Msg, error) {
	receipt.Text = oneText(receipt.Text)
	body, err := json.Marshal(receipt)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	m := &nats.Msg{
		Subject: receiptPrefix(r.o.Name) + token(receipt.Hub) + "." + token(receipt.Device) + "." + token(receipt.Status),
		Header:  nats.Header{"Downlink-Format": {"1"}, nats.MsgIdHdr: {receiptID(receipt)}},
		Data:    body,
	}
	setTrace(m.Header, c.Trace)
	return m, nil
}

func setTrace(h nats.Header, trace string) {
	if trace != "" {
		h["traceparent"] = []string{oneText(trace)}
	}
}

// receiptHash is the same for each try to tell one outcome of one message at one device.
type receiptHash [16]byte

// hashOf: of a message that is not ours no number is known, and one from core NATS that never got as far as a device
// has none; the moment tells their outcomes apart.
func hashOf(r bridge.Receipt) receiptHash {
	h := sha256.New()
	write := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s,", len(p), p)
		}
	}
	write(r.ID, r.Device, r.Hub, r.Stream, strconv.FormatUint(r.Sequence, 10), r.Route, r.Status)
	if r.Target != "" {
		write(r.Target)
	}
	if r.Stream == "" && (r.Route == "" || r.ID == "") {
		write(stamp(r.At))
	}
	return receiptHash(h.Sum(nil)[:16])
}

// receiptID is the message ID of a receipt.
func receiptID(r bridge.Receipt) string {
	h := hashOf(r)
	return "receipt-" + hex.EncodeToString(h[:])
}
