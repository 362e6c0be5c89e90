package natsio

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

// atOnce is how many store at the same time: a slow machine must answer the last of them in time, too.
const atOnce = 100

func newReceipts(t testing.TB, c *Conn, name string) *Receipts {
	t.Helper()
	r, err := NewReceipts(ReceiptsOptions{Conn: c, Name: name, Create: true})
	require.NoError(t, err)
	return r
}

func receipt() bridge.Receipt {
	return bridge.Receipt{
		ID: "COMMANDS:7:x", Device: "berlin.pump#7", Hub: "main", Route: "commands", Status: bridge.StatusAccepted, Text: "a\nb",
		Subject: "cmd.berlin.pump7", Stream: "COMMANDS", Sequence: 7, Attempts: 2, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func correlation() bridge.Correlation {
	return bridge.Correlation{
		ID: "COMMANDS:7:x", Device: "berlin.pump#7", Hub: "main", Route: "commands", Subject: "cmd.berlin.pump7", Stream: "COMMANDS",
		Sequence: 7, Trace: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Feedback: true, Ack: mapping.AckFull,
		SentAt: time.Now().UTC().Truncate(time.Millisecond),
	}
}

func record(c bridge.Correlation, status string) bridge.Record {
	return bridge.Record{MessageID: c.ID, Device: c.Device, Status: status}
}

func TestReceiptAsStored(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	require.NoError(t, r.Ready(), "nobody has asked for receipts")
	require.NoError(t, r.Store(t.Context(), receipt(), correlation()), "without Run: the first makes the stream")
	again := receipt()
	again.Attempts, again.At = 9, again.At.Add(time.Minute)
	require.NoError(t, r.Store(t.Context(), again, correlation()), "the same fate, told again after a crash")
	for _, change := range []func(*bridge.Receipt){
		func(r *bridge.Receipt) { r.Status = bridge.StatusCompleted }, func(r *bridge.Receipt) { r.Device = "other" },
		func(r *bridge.Receipt) { r.Route = "also" }, func(r *bridge.Receipt) { r.Sequence++ }, func(r *bridge.Receipt) { r.ID = "y" },
		func(r *bridge.Receipt) { r.Device, r.Target = "", "devices[0]" }, func(r *bridge.Receipt) { r.Device, r.Target = "", "devices[2]" },
		func(r *bridge.Receipt) { r.Device, r.Target = "", "devices[0]" }, // again
	} {
		other := receipt()
		change(&other)
		require.NoError(t, r.Store(t.Context(), other, correlation()))
	}

	require.Equal(t, "receipt-935e2d83d4fb6f840ebc288157c2a56f", receiptID(receipt()), "a version before knows it by this one")
	core := func(at time.Time) string { // from core NATS, and without a device
		return receiptID(bridge.Receipt{Route: "r", Status: bridge.StatusDead, Reason: "absent", At: at})
	}
	now := time.Now()
	require.NotEqual(t, core(now), core(now.Add(time.Millisecond)), "another message")
	require.Equal(t, core(now), core(now), "another try")
	s, err := n.JetStream(t).Stream(t.Context(), "PROD_RECEIPTS")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	require.Equal(t, []string{"prod.receipt.>"}, cfg.Subjects)
	require.Equal(t, 7*24*time.Hour, cfg.MaxAge)
	require.EqualValues(t, 1<<30, cfg.MaxBytes)
	require.Equal(t, jetstream.DiscardNew, cfg.Discard)
	require.EqualValues(t, 8, s.CachedInfo().State.Msgs)
	m, err := s.GetMsg(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "prod.receipt.main.berlin%2Epump%237.accepted", m.Subject)
	require.Equal(t, m.Subject, ReceiptSubject("prod", "main", "berlin.pump#7", "accepted"))
	require.JSONEq(t, `{"id":"COMMANDS:7:x","device":"berlin.pump#7","hub":"main","route":"commands","status":"accepted","text":"a b",
		"subject":"cmd.berlin.pump7","stream":"COMMANDS","seq":7,"attempts":2,"at":"2026-01-02T03:04:05Z"}`, string(m.Data))
	require.Equal(t, "1", m.Header.Get("Downlink-Format"))
	require.Equal(t, []string{correlation().Trace}, m.Header["traceparent"])
	require.Contains(t, m.Header.Get("Nats-Msg-Id"), "receipt-")
}

// Many that store at once share the connection: they do not wait for each other.
func TestReceiptsArePipelined(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	require.NoError(t, r.Store(t.Context(), receipt(), correlation()))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range 1000 {
		g.Go(func() error {
			x := receipt()
			x.Sequence = uint64(i + 100)
			return r.Store(t.Context(), x, correlation())
		})
	}
	require.NoError(t, g.Wait())
	s, err := n.JetStream(t).Stream(t.Context(), "PROD_RECEIPTS")
	require.NoError(t, err)
	require.EqualValues(t, 1001, s.CachedInfo().State.Msgs)
}

// Who is answered when: by what the publisher waits for.
func TestReceiptAnswers(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	replies := n.Conn(t)
	sub, err := replies.SubscribeSync("reply.>")
	require.NoError(t, err)
	require.NoError(t, sub.SetPendingLimits(-1, -1))
	require.NoError(t, replies.Flush())
	end := n.Conn(t)
	for _, x := range []struct {
		wait, status string
		answered     bool
	}{
		{"", bridge.StatusAccepted, true}, {"accepted", bridge.StatusAccepted, true}, {"completed", bridge.StatusAccepted, false},
		{"", bridge.StatusDead, true}, {"completed", bridge.StatusDead, true}, {"completed", bridge.StatusDropped, true},
		{"completed", bridge.StatusReplaced, true}, {"", bridge.StatusReplaced, true},
		{"", bridge.StatusCompleted, false}, {"completed", bridge.StatusCompleted, true},
		{"completed", bridge.StatusRejected, true}, {"accepted", bridge.StatusRejected, false}, {"completed", bridge.StatusExpired, true},
		{"completed", bridge.StatusExceeded, true}, {"completed", bridge.StatusPurged, true}, {"completed", bridge.StatusUnknown, true},
	} {
		rec, c := receipt(), correlation()
		rec.Status, rec.Reason, rec.Condition = x.status, "expired", "amqp:not-found"
		c.Wait, c.ReplyTo = x.wait, fmt.Sprintf("reply.%s.%s", token(x.wait), x.status)
		require.NoError(t, r.Store(t.Context(), rec, c))
		// What is answered comes before this mark, which takes the same way.
		require.NoError(t, r.o.Conn.nc.Publish("reply.mark", nil))
		require.NoError(t, end.Flush())
		m, err := sub.NextMsg(20 * time.Second)
		require.NoError(t, err)
		require.Equal(t, x.answered, m.Subject != "reply.mark", "%+v", x)
		if !x.answered {
			continue
		}
		require.Equal(t, c.ReplyTo, m.Subject)
		var got bridge.Receipt
		require.NoError(t, json.Unmarshal(m.Data, &got))
		require.Equal(t, rec, got)
		require.Equal(t, nats.Header{
			"Downlink-Status": {x.status}, "Downlink-Device": {"berlin.pump#7"}, "Downlink-Message-Id": {"COMMANDS:7:x"},
			"Downlink-At": {"2026-01-02T03:04:05Z"}, "Downlink-Reason": {"expired"}, "Downlink-Condition": {"amqp:not-found"},
			"traceparent": {c.Trace},
		}, m.Header)
		m, err = sub.NextMsg(20 * time.Second)
		require.NoError(t, err)
		require.Equal(t, "reply.mark", m.Subject)
	}
}

// What a client restarted finds of what it recorded before: by the ID that the hub gives.
func TestPendingIsFound(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	first := correlation()
	first.ReplyTo, first.Wait = "_INBOX.x.y", bridge.StatusCompleted
	first.Expires = time.Now().Add(40 * time.Hour).UTC().Truncate(time.Millisecond)
	uuid := correlation()
	uuid.ID, uuid.Device = "F47AC10B-58cc-4372-a567-0E02B2C3D479", "ä é/="
	cased := correlation()
	cased.ID = "Not-A-UUID"
	nothing := correlation()
	nothing.ID = ""
	for _, c := range []bridge.Correlation{first, uuid, cased, nothing, first} {
		require.NoError(t, r.Record(t.Context(), c))
	}
	kv, err := n.JetStream(t).KeyValue(t.Context(), "prod-pending")
	require.NoError(t, err, "any client can open the bucket")
	status, err := kv.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, status.Values())
	require.Equal(t, 72*time.Hour, status.TTL())

	again := newReceipts(t, connectTo(t, n.URL()), "prod")
	lower := record(uuid, bridge.StatusCompleted)
	lower.MessageID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
	wrongCase := record(cased, bridge.StatusCompleted)
	wrongCase.MessageID = "not-a-uuid"
	otherDevice := record(first, bridge.StatusCompleted)
	otherDevice.Device = "berlin.pump"
	wild := record(first, bridge.StatusCompleted)
	wild.MessageID, wild.Device = ">", "*"
	records := []bridge.Record{record(first, ""), lower, record(cased, ""), wrongCase, otherDevice, wild, {Device: first.Device}, record(first, "")}
	found, err := again.Find(t.Context(), "main", records)
	require.NoError(t, err)
	require.Len(t, found, len(records))
	require.Equal(t, first, found[0].Correlation)
	require.Equal(t, uuid, found[1].Correlation)
	require.Equal(t, cased, found[2].Correlation)
	require.Equal(t, []*bridge.Found{nil, nil, nil, nil}, found[3:7])
	require.Same(t, found[0], found[7])
	elsewhere, err := again.Find(t.Context(), "other", records)
	require.NoError(t, err)
	require.Equal(t, make([]*bridge.Found, len(records)), elsewhere)

	// The leader, which is asked where a replica may be behind, finds the same.
	confirmed := map[string]*bridge.Found{}
	nowhere := messageKey("main", "nobody", "m1")
	require.NoError(t, again.confirmMissing(t.Context(), []string{messageKey("main", first.Device, first.ID), nowhere}, confirmed))
	require.Len(t, confirmed, 1)
	require.Equal(t, found[0], confirmed[messageKey("main", first.Device, first.ID)])
	require.NoError(t, again.ensure(t.Context()))
	require.False(t, again.replicated, "nobody else to ask")

	require.NoError(t, again.Finish(t.Context(), found[0], bridge.StatusCompleted))
	found, err = r.Find(t.Context(), "main", records[:1])
	require.NoError(t, err)
	require.Equal(t, bridge.StatusCompleted, found[0].Status)
	m, err := n.JetStream(t).Stream(t.Context(), "KV_prod-pending")
	require.NoError(t, err)
	msg, err := m.GetLastMsgForSubject(t.Context(), "$KV.prod-pending."+found[0].Keys[0])
	require.NoError(t, err)
	require.Equal(t, "15m0s", msg.Header.Get("Nats-TTL"), "the server forgets it")
}

// A whole batch of the hub's, and more, is one look-up; those recorded in two slots are one message.
func TestPendingInBulk(t *testing.T) {
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	var records []bridge.Record
	for i := range 300 {
		c := correlation()
		c.ID = fmt.Sprint("m", i)
		require.NoError(t, r.Record(t.Context(), c))
		c.SentAt = c.SentAt.Add(time.Hour)
		require.NoError(t, r.Record(t.Context(), c))
		records = append(records, record(c, bridge.StatusCompleted))
	}
	found, err := r.Find(t.Context(), "main", records)
	require.NoError(t, err)
	for i, f := range found {
		require.NotNil(t, f, i)
		require.Len(t, f.Keys, 2)
		require.Greater(t, time.Until(f.SentAt), 50*time.Minute)
		require.NoError(t, r.Finish(t.Context(), f, bridge.StatusCompleted))
	}
	var due []*bridge.Found
	_, err = r.Overdue(t.Context(), time.Time{}, time.Now().Add(5*time.Hour), func(f []*bridge.Found) error { due = append(due, f...); return nil })
	require.NoError(t, err)
	require.Empty(t, due)
}

func TestOverdue(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	now := time.Now()
	overdue := func(r *Receipts, from, to time.Time) (ids []string, upTo time.Time) {
		t.Helper()
		upTo, err := r.Overdue(t.Context(), from, to, func(due []*bridge.Found) error {
			for _, f := range due {
				ids = append(ids, f.ID)
			}
			return nil
		})
		require.NoError(t, err)
		return ids, upTo
	}
	none, upTo := overdue(r, time.Time{}, now)
	require.Empty(t, none, "no bucket at all")
	require.Zero(t, upTo, "so nothing was swept")
	put := func(id string, expires time.Time) bridge.Correlation {
		c := correlation()
		c.ID, c.Expires = id, expires
		require.NoError(t, r.Record(t.Context(), c))
		return c
	}
	put("old", now.Add(-50*time.Hour))
	put("due", now.Add(-90*time.Minute))
	put("open", now.Add(time.Minute))
	put("default", time.Time{}) // sent now, kept an hour by the hub
	put("later", now.Add(-90*time.Minute))
	put("later", now.Add(time.Hour))
	told := put("told", now.Add(-90*time.Minute))
	found, err := r.Find(t.Context(), "main", []bridge.Record{record(told, "")})
	require.NoError(t, err)
	require.NoError(t, r.Finish(t.Context(), found[0], bridge.StatusRejected))

	got, upTo := overdue(newReceipts(t, connectTo(t, n.URL()), "prod"), time.Time{}, now)
	require.Equal(t, []string{"old", "due"}, got)
	require.WithinDuration(t, now, upTo, slotLength)
	require.False(t, upTo.After(now))
	got, _ = overdue(r, upTo, now)
	require.Empty(t, got)
	got, _ = overdue(r, upTo, now.Add(2*time.Hour+2*slotLength)) // what was sent "now" may be of the next slot already
	require.ElementsMatch(t, []string{"open", "default", "later"}, got)

	_, err = r.Overdue(t.Context(), time.Time{}, now, func([]*bridge.Found) error { return context.DeadlineExceeded })
	require.Error(t, err)
}

// A bucket that is made while it is looked at, as at the first start, is no reason to tell that NATS is away.
func TestOverdueWhileTheBucketIsMade(t *testing.T) {
	n := bridgetest.RunNATS(t)
	conn := connectTo(t, n.URL())
	for i := range 6 {
		r := newReceipts(t, conn, fmt.Sprintf("b%d", i))
		made := make(chan error, 1)
		go func() { made <- r.Record(t.Context(), correlation()) }()
		for upTo := (time.Time{}); upTo.IsZero(); {
			var err error
			upTo, err = r.Overdue(t.Context(), time.Time{}, time.Now(), func([]*bridge.Found) error { return nil })
			if !assert.NoError(t, err) {
				break
			}
		}
		require.NoError(t, <-made)
	}
}

// What was recorded for a send and then became a dead letter has no outcome at the device that could be missed.
func TestDeadIsNotOverdue(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	for _, status := range []string{bridge.StatusDead, bridge.StatusReplaced, bridge.StatusAccepted} {
		c := correlation()
		c.ID, c.Expires, c.Feedback = status, time.Now().Add(-90*time.Minute), true
		require.NoError(t, r.Record(t.Context(), c))
		told := receipt()
		told.ID, told.Hub, told.Device, told.Status, told.Attempts = c.ID, c.Hub, c.Device, status, 3
		require.NoError(t, r.Store(t.Context(), told, c))
	}
	var due []string
	_, err := r.Overdue(t.Context(), time.Time{}, time.Now(), func(f []*bridge.Found) error {
		for _, f := range f {
			due = append(due, f.ID)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{bridge.StatusAccepted}, due)
}

// A bridge that nobody asks for feedback looks once, not at each ten minutes of three days.
func TestOverdueOfNone(t *testing.T) {
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	none := func([]*bridge.Found) error { return nil }
	upTo, err := r.Overdue(t.Context(), time.Time{}, time.Now(), none)
	require.NoError(t, err)
	require.Zero(t, upTo, "no bucket")
	require.NoError(t, r.ensure(t.Context()))
	asked := make(chan *nats.Msg, 1000)
	watch := n.Conn(t)
	_, err = watch.ChanSubscribe("$JS.API.DIRECT.GET.>", asked)
	require.NoError(t, err)
	require.NoError(t, watch.Flush())
	now := time.Now()
	upTo, err = r.Overdue(t.Context(), time.Time{}, now, none)
	require.NoError(t, err)
	require.WithinDuration(t, now, upTo, slotLength, "all of it was swept")
	require.NoError(t, watch.Flush())
	require.Len(t, asked, 1)
}

// More than one portion in a slot.
func TestOverdueOfMany(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	expires := time.Now().Add(-2 * time.Hour)
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range 700 {
		g.Go(func() error {
			c := correlation()
			c.ID, c.Expires = fmt.Sprint("m", i), expires
			return r.Record(t.Context(), c)
		})
	}
	require.NoError(t, g.Wait())
	ids := map[string]int{}
	_, err := r.Overdue(t.Context(), time.Time{}, time.Now(), func(due []*bridge.Found) error {
		for _, f := range due {
			ids[f.ID]++
		}
		return nil
	})
	require.NoError(t, err)
	require.Len(t, ids, 700)
	for id, times := range ids {
		require.Equal(t, 1, times, id)
	}
}

func TestTold(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	begin := time.Now().Add(-time.Minute)
	told := func(rec bridge.Receipt) bool {
		t.Helper()
		is, err := r.Told(t.Context(), rec, begin)
		require.NoError(t, err)
		return is
	}
	rec := receipt()
	rec.Status = bridge.StatusUnknown
	require.False(t, told(rec), "there is no stream yet")
	for i := range 300 {
		other := rec
		other.ID = fmt.Sprint("m", i)
		require.NoError(t, r.Store(t.Context(), other, bridge.Correlation{}))
	}
	require.False(t, told(rec))
	require.NoError(t, r.Store(t.Context(), rec, bridge.Correlation{}))
	require.True(t, told(rec))
	rec.Device = "other"
	require.False(t, told(rec))
	foreign := bridge.Receipt{ID: "theirs", Device: "d", Hub: "main", Status: bridge.StatusCompleted, At: time.Now().UTC()}
	require.NoError(t, r.Store(t.Context(), foreign, bridge.Correlation{}))
	require.True(t, told(foreign))
	foreign.At = foreign.At.Add(time.Millisecond) // their next one of the same ID
	require.False(t, told(foreign))
}

// Nobody reads a hub's feedback before somebody has asked for it, this process or the one before.
func TestWaitAsked(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.WaitAsked(soon, "main"), context.DeadlineExceeded)
	waited := make(chan error, 1)
	go func() { waited <- r.WaitAsked(t.Context(), "main") }()
	require.NoError(t, r.Record(t.Context(), correlation()))
	require.NoError(t, <-waited)
	next := newReceipts(t, connectTo(t, n.URL()), "prod")
	require.NoError(t, next.WaitAsked(t.Context(), "main"))
	soon, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, next.WaitAsked(soon, "other"), context.DeadlineExceeded)
}

func TestReceiptsNotReady(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	r, err := NewReceipts(ReceiptsOptions{Conn: c, Name: "prod", Wanted: true})
	require.NoError(t, err)
	require.EqualError(t, r.Ready(), "stream PROD_RECEIPTS: not checked yet")
	err = r.Store(t.Context(), receipt(), correlation())
	require.ErrorContains(t, err, "nats stream add PROD_RECEIPTS --subjects 'prod.receipt.>'")
	n.CreateStream(t, "PROD_RECEIPTS", "prod.receipt.>")
	n.CreateStream(t, "KV_prod-pending", "$KV.prod-pending.>")
	run(t, r.Run)
	const unfit = "stream PROD_RECEIPTS for receipts: direct get is off: `nats stream edit PROD_RECEIPTS --allow-direct`"
	require.Eventually(t, func() bool {
		err := r.Ready()
		return err != nil && err.Error() == unfit
	}, 30*time.Second, time.Millisecond)
	require.NoError(t, r.Store(t.Context(), receipt(), bridge.Correlation{}))
	require.EqualError(t, r.Ready(), unfit, "whatever else it can do")
	_, err = NewReceipts(ReceiptsOptions{Conn: c, Name: "a.b"})
	require.Error(t, err)
}

// While NATS is away nothing can be stored, and it says so; afterwards it can.
func TestReceiptsWithoutNATS(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	r := newReceipts(t, connectTo(t, n.URL()), "prod")
	run(t, r.Run)
	require.NoError(t, r.Record(t.Context(), correlation()))
	n.Stop()
	require.Eventually(t, func() bool { return r.Able() != nil }, 30*time.Second, time.Millisecond)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.Error(t, r.Store(short, receipt(), correlation()))
	_, err := r.Find(short, "main", []bridge.Record{record(correlation(), "")})
	require.Error(t, err)
	n.Start(t)
	becomesReady(t, r.Able)
	found, err := r.Find(t.Context(), "main", []bridge.Record{record(correlation(), "")})
	require.NoError(t, err)
	require.NotNil(t, found[0])
	require.NoError(t, r.Store(t.Context(), receipt(), correlation()))
}
