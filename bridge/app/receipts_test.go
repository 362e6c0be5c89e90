package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/hubservice"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// outcomes is a hub with devices of each kind, whose feedback comes soon.
func outcomes(t *testing.T) *bridgetest.Hub {
	t.Helper()
	rule := func(pattern string, kind virtual.Kind) virtual.Rule {
		return virtual.Rule{Pattern: pattern, Behaviour: virtual.Behaviour{Kind: kind}}
	}
	return bridgetest.RunHubWith(t, emulator.Options{
		Devices: []string{"good", "bad", "weak", "late", "purged"}, Rules: c2d.Rules{MaxDeliveries: 1, Counting: c2d.CountDeliveries},
		Virtual:  []virtual.Rule{rule("good", virtual.Complete), rule("bad", virtual.Reject), rule("weak", virtual.Abandon), rule("late", virtual.Offline), rule("purged", virtual.Offline)},
		Feedback: feedback.Rules{Every: 20 * time.Millisecond, BatchSize: 16},
	})
}

// teller is what a process has for receipts, without the engine: the store, the hub's
// client, and the flow between them.
type teller struct {
	t      *testing.T
	store  *natsio.Receipts
	client *hubservice.Client
	flow   *bridge.Feedback
	stop   func() // as the end of the process
}

func runTeller(t *testing.T, natsURL, hubAddr string, h *bridgetest.Hub, wrap func(hubservice.FeedbackHandler) hubservice.FeedbackHandler) *teller {
	t.Helper()
	conn, err := natsio.Connect(natsio.Options{URLs: []string{natsURL}})
	require.NoError(t, err)
	x := &teller{t: t}
	x.store, err = natsio.NewReceipts(natsio.ReceiptsOptions{Conn: conn, Create: true, Wanted: true})
	require.NoError(t, err)
	x.client, err = hubservice.New(hubservice.Options{
		ConnectionString: h.ServiceConnectionString, Address: hubAddr, RootCAs: h.RootCAs(), ReconnectMin: 5 * time.Millisecond, ReconnectMax: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	x.flow, err = bridge.NewFeedback(bridge.FeedbackOptions{Hub: "main", Pending: x.store, Receipts: x.store, Able: x.store.Able})
	require.NoError(t, err)
	var handler hubservice.FeedbackHandler = x.flow
	if wrap != nil {
		handler = wrap(handler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, x.store.Run(ctx)) })
	wg.Go(func() { require.NoError(t, x.client.Run(ctx)) })
	wg.Go(func() { require.NoError(t, x.client.Feedback(ctx, handler)) })
	x.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		conn.Close()
	})
	t.Cleanup(x.stop)
	return x
}

// send is what the engine does with one message that asked for receipts.
func (x *teller) send(device, id string, change ...func(*bridge.Correlation)) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), deadline)
	defer cancel()
	c := bridge.Correlation{
		ID: id, Device: device, Hub: "main", Route: "commands", Subject: "cmd." + device, Stream: "COMMANDS", Sequence: 1,
		Feedback: true, Ack: mapping.AckFull, SentAt: time.Now(),
	}
	for _, f := range change {
		f(&c)
	}
	require.NoError(x.t, x.store.Record(ctx, c))
	require.NoError(x.t, x.client.Send(ctx, &mapping.Envelope{Device: device, MessageID: id, Ack: c.Ack, ExpiresAt: c.Expires}))
	require.NoError(x.t, x.store.Store(ctx, bridge.Receipt{
		ID: id, Device: device, Hub: "main", Route: c.Route, Status: bridge.StatusAccepted, Subject: c.Subject, Stream: c.Stream, Sequence: c.Sequence, At: time.Now(),
	}, c))
}

// receiptsOf waits for n receipts and returns them as "message status", sorted; extra
// ones fail the test, also those that come a moment later.
func receiptsOf(t *testing.T, js jetstream.JetStream, n int) (told []string, all []bridge.Receipt) {
	t.Helper()
	created(t, js, "DOWNLINK_RECEIPTS")
	for _, m := range read(t, js, "DOWNLINK_RECEIPTS", n) {
		var r bridge.Receipt
		require.NoError(t, json.Unmarshal(m.Data(), &r))
		require.Equal(t, natsio.ReceiptSubject("downlink", r.Hub, r.Device, r.Status), m.Subject())
		told, all = append(told, r.ID+" "+r.Status), append(all, r)
	}
	s, err := js.Stream(t.Context(), "DOWNLINK_RECEIPTS")
	require.NoError(t, err)
	require.EqualValues(t, n, s.CachedInfo().State.Msgs)
	slices.Sort(told)
	return told, all
}

func settled(t *testing.T, h *bridgetest.Hub) {
	t.Helper()
	require.Eventually(t, func() bool { s := h.Feedback().Status(); return s.Locked == 0 && s.Batches == 0 && s.Records == 0 }, deadline, 5*time.Millisecond)
}

func TestReceiptOfEachOutcome(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	x := runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	for _, device := range []string{"good", "bad", "weak", "purged"} {
		x.send(device, "to-"+device)
	}
	x.send("late", "to-late", func(c *bridge.Correlation) { c.Expires = time.Now().Add(3 * time.Second) }) // enough to be sent on any machine
	_, err := h.PurgeDevice("purged")
	require.NoError(t, err)
	told, all := receiptsOf(t, srv.JetStream(t), 10)
	require.Equal(t, []string{
		"to-bad accepted", "to-bad rejected", "to-good accepted", "to-good completed", "to-late accepted", "to-late expired",
		"to-purged accepted", "to-purged purged", "to-weak accepted", "to-weak delivery-count-exceeded",
	}, told)
	for _, r := range all {
		require.Equal(t, "commands", r.Route)
		require.Equal(t, "cmd."+r.Device, r.Subject)
		require.Equal(t, "COMMANDS", r.Stream)
	}
	settled(t, h)
}

// A publisher that waits for the outcome at the device gets it, and one that waits for the hub does not wait longer.
func TestRequestWaitsForTheDevice(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	x := runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	nc := srv.Conn(t)
	for device, wait := range map[string]string{"good": bridge.StatusCompleted, "bad": bridge.StatusCompleted, "purged": bridge.StatusAccepted} {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		x.send(device, "to-"+device, func(c *bridge.Correlation) {
			c.Stream, c.Sequence, c.ReplyTo, c.Wait, c.Trace = "", 0, inbox, wait, "00-1-2-01"
		})
		m, err := sub.NextMsg(deadline)
		require.NoError(t, err)
		want := map[string]string{"good": "completed", "bad": "rejected", "purged": "accepted"}[device]
		require.Equal(t, want, m.Header.Get("Downlink-Status"))
		require.Equal(t, device, m.Header.Get("Downlink-Device"))
		require.Equal(t, "to-"+device, m.Header.Get("Downlink-Message-Id"))
		require.Equal(t, []string{"00-1-2-01"}, m.Header["traceparent"])
		at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Downlink-At"))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), at, time.Minute)
		_, err = sub.NextMsg(100 * time.Millisecond)
		require.ErrorIs(t, err, nats.ErrTimeout, "one answer")
	}
}

// While NATS is away nothing is settled at the hub, whatever the devices do, and afterwards nothing is missing.
func TestFeedbackWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	x := runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	const n = 40
	require.Eventually(t, func() bool { return x.store.Able() == nil }, deadline, time.Millisecond)
	var want []string
	for i := range n { // to a device that is away: no feedback yet
		id := fmt.Sprintf("m%02d", i)
		x.send("purged", id)
		want = append(want, id+" accepted", id+" purged")
	}
	srv.Stop()
	// Before it knows, it would take a second batch.
	require.Eventually(t, func() bool { return x.store.Able() != nil }, deadline, time.Millisecond)
	_, err := h.PurgeDevice("purged")
	require.NoError(t, err)
	require.Eventually(t, func() bool { s := h.Feedback().Status(); return s.Records == 0 && s.Batches+s.Locked >= 3 }, deadline, time.Millisecond)
	require.Never(t, func() bool { return h.Feedback().Status().Completed > 0 }, 700*time.Millisecond, 10*time.Millisecond)
	require.LessOrEqual(t, h.Feedback().Status().Locked, 1)
	srv.Start(t)
	told, _ := receiptsOf(t, srv.JetStream(t), 2*n)
	require.Equal(t, want, told)
	settled(t, h)
	require.Zero(t, h.Feedback().Status().Lost)
}

// The process ends after the hub has accepted: the next one knows whose feedback it is.
func TestReceiptsAcrossARestart(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	x := runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	nc := srv.Conn(t)
	sub, err := nc.SubscribeSync("answers")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	x.send("purged", "m1", func(c *bridge.Correlation) { c.ReplyTo, c.Wait = "answers", bridge.StatusCompleted })
	x.stop()
	_, err = h.PurgeDevice("purged")
	require.NoError(t, err)
	runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	told, all := receiptsOf(t, srv.JetStream(t), 2)
	require.Equal(t, []string{"m1 accepted", "m1 purged"}, told)
	require.Equal(t, "cmd.purged", all[1].Subject)
	m, err := sub.NextMsg(deadline)
	require.NoError(t, err)
	require.Equal(t, "purged", m.Header.Get("Downlink-Status"))
}

// stuck handles a batch, and never says so.
type stuck struct {
	hubservice.FeedbackHandler
	once    sync.Once
	handled chan struct{}
}

func (s *stuck) Handle(ctx context.Context, records []bridge.Record) error {
	if err := s.FeedbackHandler.Handle(ctx, records); err != nil {
		return err
	}
	first := false
	s.once.Do(func() { first = true })
	if first {
		close(s.handled)
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Everything is stored, but the hub does not learn of it, by a cut link or the end of the process. It delivers
// the batch again, and no receipt is doubled.
func TestRedeliveredFeedbackIsToldOnce(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	link := bridgetest.RunLink(t, h.AMQPAddr())
	s := &stuck{handled: make(chan struct{})}
	wrap := func(f hubservice.FeedbackHandler) hubservice.FeedbackHandler { s.FeedbackHandler = f; return s }
	x := runTeller(t, srv.URL(), link.Addr(), h, wrap)
	x.send("bad", "m1")
	<-s.handled
	link.Cut()
	settled(t, h)
	require.EqualValues(t, 1, h.Feedback().Status().Completed)
	require.EqualValues(t, 1, x.flow.Stats().Repeated)
	x.stop()

	s = &stuck{handled: make(chan struct{})}
	x = runTeller(t, srv.URL(), h.AMQPAddr(), h, wrap)
	x.send("bad", "m2")
	<-s.handled
	x.stop()
	x = runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	settled(t, h)
	require.EqualValues(t, 1, x.flow.Stats().Repeated)
	told, _ := receiptsOf(t, srv.JetStream(t), 4)
	require.Equal(t, []string{"m1 accepted", "m1 rejected", "m2 accepted", "m2 rejected"}, told)
}

// What other senders' messages came to is told, too, and is told apart.
func TestFeedbackOfOtherSenders(t *testing.T) {
	t.Parallel()
	srv, h := bridgetest.RunNATS(t), outcomes(t)
	runTeller(t, srv.URL(), h.AMQPAddr(), h, nil)
	require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/good/messages/devicebound", MessageID: "theirs", Ack: "full"}))
	told, all := receiptsOf(t, srv.JetStream(t), 1)
	require.Equal(t, []string{"theirs completed"}, told)
	require.Empty(t, all[0].Subject)
	require.Empty(t, all[0].Route)
	require.Equal(t, bridge.TextForeign, all[0].Text)
}

// sweeps ends a sweeper after so many sweeps that went well.
type sweeps struct {
	bridge.Pending
	left int
	done func()
}

func (s *sweeps) Overdue(ctx context.Context, from, to time.Time, handle func([]*bridge.Found) error) (time.Time, error) {
	upTo, err := s.Pending.Overdue(ctx, from, to, handle)
	if err == nil {
		if s.left--; s.left == 0 {
			s.done()
		}
	}
	return upTo, err
}

// No record ever comes: the sweeper says so, once, and the publisher that waits is told.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	srv := bridgetest.RunNATS(t)
	conn, err := natsio.Connect(natsio.Options{URLs: []string{srv.URL()}})
	require.NoError(t, err)
	defer conn.Close()
	store, err := natsio.NewReceipts(natsio.ReceiptsOptions{Conn: conn, Create: true})
	require.NoError(t, err)
	nc := srv.Conn(t)
	sub, err := nc.SubscribeSync("answers")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	require.NoError(t, store.Record(t.Context(), bridge.Correlation{
		ID: "m1", Device: "d1", Hub: "main", Route: "commands", Stream: "COMMANDS", Sequence: 7, Feedback: true,
		SentAt: time.Now().Add(-5 * time.Hour), ReplyTo: "answers", Wait: bridge.StatusCompleted,
	}))
	sweep := func() {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		twice := &sweeps{Pending: store, left: 2, done: cancel}
		sweeper, err := bridge.NewSweeper(bridge.SweeperOptions{Pending: twice, Receipts: store, Every: 5 * time.Millisecond})
		require.NoError(t, err)
		require.NoError(t, sweeper.Run(ctx))
		require.ErrorIs(t, ctx.Err(), context.Canceled)
	}
	sweep()
	sweep() // the next process
	told, _ := receiptsOf(t, srv.JetStream(t), 1)
	require.Equal(t, []string{"m1 unknown"}, told)
	m, err := sub.NextMsg(deadline)
	require.NoError(t, err)
	require.Equal(t, "unknown", m.Header.Get("Downlink-Status"))
	require.Equal(t, bridge.ReasonNoFeedback, m.Header.Get("Downlink-Reason"))

	// It comes after all.
	found, err := store.Find(t.Context(), "main", []bridge.Record{{MessageID: "m1", Device: "d1"}})
	require.NoError(t, err)
	require.Equal(t, bridge.StatusUnknown, found[0].Status)
}

const feedbackYAML = `
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true, feedback: %s}]
  routes:
    - {name: commands, subject: "cmd.{device}", stream: COMMANDS, create: true, device: "{device}"%s}
`

// Whether a process reads the hub's feedback, which it then takes from other readers.
func TestWhenFeedbackIsRead(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		mode, message string
		read          bool
	}{
		{"always", "", true}, {"auto", ", message: {ack: negative}", true}, {"auto", "", false}, {"never", ", message: {ack: full}", false},
	} {
		t.Run(x.mode+x.message, func(t *testing.T) {
			srv, h := bridgetest.RunNATS(t), outcomes(t)
			a := runApp(t, h, fmt.Sprintf(feedbackYAML, srv.URL(), x.mode, x.message))
			waitReady(t, a)
			require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/good/messages/devicebound", MessageID: "theirs", Ack: "full"}))
			if x.read {
				told, _ := receiptsOf(t, srv.JetStream(t), 1)
				require.Equal(t, []string{"theirs completed"}, told)
				settled(t, h)
				return
			}
			require.Eventually(t, func() bool { return h.Feedback().Status().Batches == 1 }, deadline, time.Millisecond)
			require.Never(t, func() bool { return h.Feedback().Status().Received > 0 }, 300*time.Millisecond, 10*time.Millisecond)
			if x.message == "" {
				_, err := srv.JetStream(t).Stream(t.Context(), "DOWNLINK_RECEIPTS")
				require.True(t, errors.Is(err, jetstream.ErrStreamNotFound), "nothing is made that nobody wants: %v", err)
			}
		})
	}
}
