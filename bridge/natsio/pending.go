package natsio

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/mapping"
)

// What waits for feedback is in a KV bucket, one key a message:
//
//	<slot>.<hub>.<device>.<message ID>
//
// The slot is the deadline in units of ten minutes, so that the sweeper reads only the slots
// that are over, and what a batch of feedback belongs to is found by one direct get with one
// pattern a record (the server's index is a tree, to which a "*" in front costs a step a slot).
// Nothing of it is kept in the process. What is finished stays a while, marked, to recognise the
// hub's repeats; the server removes it by its TTL, since by then it has its receipt.
const (
	slotLength  = 10 * time.Minute
	toldTTL     = 15 * time.Minute // longer than a batch's lock and a restart
	untoldTTL   = 24 * time.Hour   // feedback that comes very late still ends the uncertainty
	findAtOnce  = 128              // patterns a request; the server answers at most 1024 messages
	sweepAtOnce = 256
	probeAtOnce = 32
)

// pendingEntry is the value of a key: a bridge.Correlation, and what was told.
type pendingEntry struct {
	ID       string      `json:"id"`
	Device   string      `json:"device"`
	Hub      string      `json:"hub"`
	Route    string      `json:"route,omitempty"`
	Subject  string      `json:"subject,omitempty"`
	Stream   string      `json:"stream,omitempty"`
	Sequence uint64      `json:"seq,omitempty"`
	Trace    string      `json:"trace,omitempty"`
	ReplyTo  string      `json:"reply_to,omitempty"`
	Wait     string      `json:"wait,omitempty"`
	Ack      mapping.Ack `json:"ack,omitempty"`
	Expires  *time.Time  `json:"expires,omitempty"`
	SentAt   time.Time   `json:"sent_at"`
	Told     string      `json:"told,omitempty"`
}

func entryOf(c bridge.Correlation, told string) pendingEntry {
	e := pendingEntry{
		ID: c.ID, Device: c.Device, Hub: c.Hub, Route: c.Route, Subject: c.Subject, Stream: c.Stream, Sequence: c.Sequence,
		Trace: c.Trace, ReplyTo: c.ReplyTo, Wait: c.Wait, Ack: c.Ack, SentAt: c.SentAt, Told: told,
	}
	if !c.Expires.IsZero() {
		e.Expires = &c.Expires
	}
	return e
}

func (e *pendingEntry) correlation() bridge.Correlation {
	c := bridge.Correlation{
		ID: e.ID, Device: e.Device, Hub: e.Hub, Route: e.Route, Subject: e.Subject, Stream: e.Stream, Sequence: e.Sequence,
		Trace: e.Trace, ReplyTo: e.ReplyTo, Wait: e.Wait, Ack: e.Ack, SentAt: e.SentAt, Feedback: true,
	}
	if e.Expires != nil {
		c.Expires = *e.Expires
	}
	return c
}

func kvPrefix(name string) string { return "$KV." + PendingBucket(name) + "." }

func (r *Receipts) bucketStream() string { return "KV_" + PendingBucket(r.o.Name) }

func (r *Receipts) bucketConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: r.bucketStream(), Subjects: []string{kvPrefix(r.o.Name) + ">"}, MaxAge: pendingMaxAge, MaxBytes: r.o.MaxBytes,
		Discard: jetstream.DiscardNew, AllowDirect: true,
		// The rest makes it a KV bucket that any client can open.
		MaxMsgsPerSubject: 1, AllowRollup: true, DenyDelete: true, MaxMsgs: -1, MaxConsumers: -1, MaxMsgSize: -1,
		AllowMsgTTL: true,
	}
}

func slotOf(t time.Time) int64 { return t.Unix() / int64(slotLength/time.Second) }

// messageKey names a message without its slot. The hub's text of an ID that some SDK sent as an
// AMQP uuid may differ from the original in upper and lower case.
func messageKey(hub, device, id string) string {
	if uuidLike(id) {
		id = strings.ToLower(id)
	}
	return keyToken(hub) + "." + keyToken(device) + "." + keyToken(id)
}

func uuidLike(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return true
}

// Record implements bridge.Receipts. A message without an ID, which feedback cannot name, is not recorded.
func (r *Receipts) Record(ctx context.Context, c bridge.Correlation) error {
	if c.ID == "" {
		return nil
	}
	key := strconv.FormatInt(slotOf(c.Deadline()), 10) + "." + messageKey(c.Hub, c.Device, c.ID)
	if err := r.put(ctx, key, entryOf(c, ""), 0); err != nil {
		return fmt.Errorf("noting what feedback is to come: %w", err)
	}
	r.ask(c.Hub)
	return nil
}

func (r *Receipts) put(ctx context.Context, key string, e pendingEntry, ttl time.Duration) error {
	value, err := json.Marshal(e)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: kvPrefix(r.o.Name) + key, Data: value, Header: nats.Header{"Downlink-Format": {"1"}}}
	if err := r.publish(ctx, m, r.pending, ttl); err != nil {
		return r.bucketError(err)
	}
	return nil
}

// Finish implements bridge.Pending.
func (r *Receipts) Finish(ctx context.Context, f *bridge.Found, status string) error {
	ttl := toldTTL
	if status == bridge.StatusUnknown {
		ttl = untoldTTL
	}
	for _, key := range f.Keys {
		if err := r.put(ctx, key, entryOf(f.Correlation, status), ttl); err != nil {
			return fmt.Errorf("noting what was told: %w", err)
		}
	}
	return nil
}

// Find implements bridge.Pending.
func (r *Receipts) Find(ctx context.Context, hub string, records []bridge.Record) ([]*bridge.Found, error) {
	found := make([]*bridge.Found, len(records))
	byKey := make(map[string][]int, len(records))
	for i, rec := range records {
		if rec.MessageID != "" {
			key := messageKey(hub, rec.Device, rec.MessageID)
			byKey[key] = append(byKey[key], i)
		}
	}
	keys := make([]string, 0, len(byKey))
	for key := range byKey {
		keys = append(keys, key)
	}
	for len(keys) > 0 {
		n := min(findAtOnce, len(keys))
		entries, err := r.find(ctx, keys[:n])
		if err != nil {
			return nil, err
		}
		if err := r.confirmMissing(ctx, keys[:n], entries); err != nil {
			return nil, err
		}
		for key, f := range entries {
			for _, i := range byKey[key] {
				found[i] = f
			}
		}
		keys = keys[n:]
	}
	return found, nil
}

// confirmMissing asks the leader of a replicated bucket for what a replica did not have, or a receipt
// would call a message foreign that was sent a moment ago. A bucket without replicas has nobody else to ask.
func (r *Receipts) confirmMissing(ctx context.Context, keys []string, entries map[string]*bridge.Found) error {
	r.mu.Lock()
	replicated := r.replicated
	r.mu.Unlock()
	if !replicated {
		return nil
	}
	for _, key := range keys {
		if entries[key] != nil {
			continue
		}
		m, err := r.o.Conn.leaderGet(ctx, r.bucketStream(), kvPrefix(r.o.Name)+"*."+key)
		if err != nil {
			return fmt.Errorf("looking up what feedback belongs to: %w", r.bucketError(err))
		}
		if m == nil {
			continue
		}
		if f, _ := r.foundIn(m); f != nil {
			entries[key] = f
		}
	}
	return nil
}

// find looks up messages by their keys without slots. Of a message that was recorded in several
// slots, since it was sent again much later, the newest record counts, and a told
// outcome is not forgotten.
func (r *Receipts) find(ctx context.Context, keys []string) (map[string]*bridge.Found, error) {
	prefix := kvPrefix(r.o.Name)
	patterns := make([]string, len(keys))
	for i, key := range keys {
		patterns[i] = prefix + "*." + key
	}
	found := make(map[string]*bridge.Found, len(keys))
	request := directRequest{MultiLast: patterns}
	each := func(m *nats.Msg) {
		f, key := r.foundIn(m)
		if f == nil {
			return
		}
		_, rest, _ := strings.Cut(key, ".")
		if old := found[rest]; old != nil { // in the order of the stream: f is newer
			f.Keys = append(f.Keys, old.Keys...)
			if f.Status == "" {
				f.Status = old.Status
			}
		}
		found[rest] = f
	}
	r.use()
	err := r.o.Conn.directGet(ctx, r.bucketStream(), request, each)
	if errors.Is(err, nats.ErrNoResponders) {
		// Either there is no bucket yet, and nothing was recorded, or JetStream is away.
		if err = r.pending.ensure(ctx); err == nil {
			err = r.o.Conn.directGet(ctx, r.bucketStream(), request, each)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("looking up what feedback belongs to: %w", r.bucketError(err))
	}
	return found, nil
}

// foundIn reads an entry; nil for what is no entry of ours, a newer version's included.
func (r *Receipts) foundIn(m *nats.Msg) (f *bridge.Found, key string) {
	key, ok := strings.CutPrefix(m.Header.Get(jetstream.SubjectHeader), kvPrefix(r.o.Name))
	var e pendingEntry
	if !ok || m.Header.Get("Downlink-Format") != "1" || json.Unmarshal(m.Data, &e) != nil {
		return nil, ""
	}
	return &bridge.Found{Correlation: e.correlation(), Status: e.Told, Keys: []string{key}}, key
}

// Overdue implements bridge.Pending.
func (r *Receipts) Overdue(ctx context.Context, from, to time.Time, handle func([]*bridge.Found) error) (time.Time, error) {
	first, last := slotOf(from), slotOf(to)
	if oldest := slotOf(to.Add(-pendingMaxAge)); from.IsZero() || first < oldest {
		first = oldest
	}
	// After a start there are hundreds of slots to look at, for nothing if nobody asks for feedback.
	empty, err := r.nothingPending(ctx)
	begin := func(slot int64) time.Time { return time.Unix(slot*int64(slotLength/time.Second), 0) }
	var filled []int64
	if err == nil && !empty {
		filled, err = r.filled(ctx, first, last)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		if r.noBucket(ctx) {
			return from, nil
		}
		filled, err = r.filled(ctx, first, last) // it was made meanwhile
	}
	if err != nil {
		return begin(first), r.bucketError(err)
	}
	for _, slot := range filled {
		if err := r.overdue(ctx, slot, handle); err != nil {
			return begin(slot), err
		}
	}
	return begin(last), nil
}

func (r *Receipts) bucketError(err error) error {
	return fmt.Errorf("bucket %s: %w", PendingBucket(r.o.Name), apiError(err))
}

// nothingPending reports whether the bucket is empty.
func (r *Receipts) nothingPending(ctx context.Context) (bool, error) {
	empty := true
	err := r.o.Conn.directGet(ctx, r.bucketStream(), directRequest{Next: kvPrefix(r.o.Name) + ">", Seq: 1, Batch: 1}, func(*nats.Msg) { empty = false })
	return empty, err
}

// filled lists the slots that have anything, in order. It asks for many at once: after a start there
// are hundreds to look at, most of them empty.
func (r *Receipts) filled(ctx context.Context, first, last int64) (slots []int64, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	places := make(chan struct{}, probeAtOnce)
	for slot := first; slot < last; slot++ {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			failed := r.o.Conn.directGet(ctx, r.bucketStream(), directRequest{Next: r.slotPattern(slot), Seq: 1, Batch: 1}, func(*nats.Msg) {
				mu.Lock()
				defer mu.Unlock()
				slots = append(slots, slot)
			})
			mu.Lock()
			defer mu.Unlock()
			err = cmp.Or(err, failed)
		})
	}
	wg.Wait()
	slices.Sort(slots)
	return slots, err
}

func (r *Receipts) slotPattern(slot int64) string {
	return kvPrefix(r.o.Name) + strconv.FormatInt(slot, 10) + ".>"
}

// noBucket tells a bucket that nobody has made yet from a JetStream that does not answer.
func (r *Receipts) noBucket(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	_, err := r.o.Conn.js.Stream(ctx, r.bucketStream())
	return errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}

// overdue hands over one slot.
func (r *Receipts) overdue(ctx context.Context, slot int64, handle func([]*bridge.Found) error) error {
	pattern := r.slotPattern(slot)
	for next := uint64(1); ; {
		var due []*bridge.Found
		n := 0
		err := r.o.Conn.directGet(ctx, r.bucketStream(), directRequest{Next: pattern, Seq: next, Batch: sweepAtOnce}, func(m *nats.Msg) {
			n++
			if seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64); err == nil {
				next = seq + 1
			}
			if f, _ := r.foundIn(m); f != nil && f.Status == "" {
				due = append(due, f)
			}
		})
		if err != nil {
			return r.bucketError(err)
		}
		if due, err = r.still(ctx, slot, due); err != nil {
			return err
		}
		if len(due) > 0 {
			if err := handle(due); err != nil {
				return err
			}
		}
		if n < sweepAtOnce {
			return nil
		}
	}
}

// still leaves out what was recorded again with a later deadline, or has been told under another slot.
func (r *Receipts) still(ctx context.Context, slot int64, due []*bridge.Found) ([]*bridge.Found, error) {
	var left []*bridge.Found
	for len(due) > 0 {
		n := min(findAtOnce, len(due))
		keys := make([]string, n)
		for i, f := range due[:n] {
			_, keys[i], _ = strings.Cut(f.Keys[0], ".")
		}
		all, err := r.find(ctx, keys)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			f := all[key]
			if f == nil || f.Status != "" || slotOf(f.Deadline()) > slot {
				continue // a later slot has it, or it was told meanwhile
			}
			left = append(left, f)
		}
		due = due[n:]
	}
	return left, nil
}

func (r *Receipts) ask(hub string) {
	ch := r.askedFor(hub)
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-ch:
	default:
		close(ch)
	}
}

func (r *Receipts) askedFor(hub string) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked[hub] == nil {
		r.asked[hub] = make(chan struct{})
	}
	return r.asked[hub]
}

// WaitAsked blocks until a message to the hub has asked for feedback, in this process or, as the
// bucket tells, in another one of the bridge's. It fails only when ctx is done.
func (r *Receipts) WaitAsked(ctx context.Context, hub string) error {
	reconnected, stop := r.o.Conn.notify()
	defer stop()
	asked := r.askedFor(hub)
	pattern := kvPrefix(r.o.Name) + "*." + keyToken(hub) + ".>"
	for {
		wait := time.Minute
		if err := r.o.Conn.usable(); err == nil {
			err = r.o.Conn.directGet(ctx, r.bucketStream(), directRequest{Next: pattern, Seq: 1, Batch: 1}, func(*nats.Msg) { r.ask(hub) })
			if err != nil && !errors.Is(err, nats.ErrNoResponders) { // no bucket: nothing has asked
				wait = longestWait
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-asked:
			t.Stop()
			r.use() // what was asked for wants its receipts
			return nil
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-reconnected:
		case <-t.C:
		}
		t.Stop()
	}
}
