package natsio

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("DOWNLINK_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

func connect(t testing.TB, o Options) *Conn {
	t.Helper()
	o.Logger = testLog(t)
	c, err := Connect(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// connectTo connects to a server that is there. Of a slow machine the first attempt may take too long.
func connectTo(t testing.TB, url string) *Conn {
	t.Helper()
	c := connect(t, Options{URLs: []string{url}})
	require.Eventually(t, c.nc.IsConnected, 30*time.Second, time.Millisecond, "%v", c.Ready())
	return c
}

// owner is one process that consumes.
type owner struct {
	t      testing.TB
	conn   *Conn
	source *JetStreamSource
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
}

func runOwner(t testing.TB, url string, change func(*SourceOptions)) *owner {
	t.Helper()
	return runOwnerAt(t, quick(), url, change)
}

func runOwnerAt(t testing.TB, at timing, url string, change func(*SourceOptions)) *owner {
	t.Helper()
	o := SourceOptions{Conn: connectTo(t, url), Stream: "S", Consumer: "downlink-test", Filters: []string{"cmd.>"}, Routes: []string{"commands"}, Start: "all", Logger: testLog(t)}
	if change != nil {
		change(&o)
	}
	s, err := NewJetStreamSource(o)
	require.NoError(t, err)
	s.time = at
	s.barrier = newBarrier(s.time, 2*s.o.MaxAckPending)
	if o.Lease != nil {
		o.Lease.time = at
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &owner{t: t, conn: o.Conn, source: s, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *owner) stop() {
	w.once.Do(func() {
		w.cancel()
		<-w.done
	})
}

// crash ends the owner without a word to the server.
func (w *owner) crash(l *bridgetest.Link) {
	l.Down()
	w.stop()
	w.conn.nc.Close()
}

func (w *owner) next(timeout time.Duration) bridge.Delivery {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	d, err := w.source.Receive(ctx)
	require.NoError(w.t, err, "no message; ready: %v", w.source.Ready())
	return d
}

func (w *owner) none(d time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	got, err := w.source.Receive(ctx)
	if err == nil {
		require.Fail(w.t, "a message came", "seq %d", got.Message().Sequence)
	}
}

func (w *owner) ready() {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.source.Ready() == nil }, 30*time.Second, 10*time.Millisecond, "%v", w.source.Ready())
}

func publish(t testing.TB, js jetstream.JetStream, from, to int) {
	t.Helper()
	// What is written before the client has noticed that a server was stopped is lost, and so is its answer.
	require.Eventually(t, func() bool { return js.Conn().FlushTimeout(time.Second) == nil }, 30*time.Second, 10*time.Millisecond)
	for i := from; i <= to; i++ {
		_, err := js.Publish(t.Context(), "cmd.d"+strconv.Itoa(i%7), []byte(strconv.Itoa(i)))
		require.NoError(t, err)
	}
}

func pendingOf(t testing.TB, js jetstream.JetStream) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := js.Consumer(t.Context(), "S", "downlink-test")
	require.NoError(t, err)
	return c.CachedInfo()
}

func TestSourceDelivers(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), nil)
	w.ready()
	m := nats.NewMsg("cmd.d1")
	m.Data = []byte("x")
	m.Header["x-Key"] = []string{"a", "b"}
	m.Header.Set("Nats-Pin-Id", "spoofed")
	_, err := js.PublishMsg(t.Context(), m)
	require.NoError(t, err)
	// No payload and a header that looks like the server's word.
	m = nats.NewMsg("cmd.d2")
	m.Header.Set("Status", "409")
	m.Header.Set("Description", "Consumer Deleted")
	_, err = js.PublishMsg(t.Context(), m)
	require.NoError(t, err)

	d := w.next(20 * time.Second)
	in := d.Message()
	require.Equal(t, "cmd.d1", in.Subject)
	require.Equal(t, "x", string(in.Payload))
	require.Equal(t, map[string][]string{"x-Key": {"a", "b"}, "Nats-Pin-Id": {"spoofed"}}, in.Header)
	require.Equal(t, "S", in.Stream)
	require.EqualValues(t, 1, in.Sequence)
	require.WithinDuration(t, time.Now(), in.Time, time.Minute)
	require.NoError(t, d.Ack(t.Context()))
	require.NoError(t, d.Ack(t.Context()), "settled already")

	d = w.next(20 * time.Second)
	require.Equal(t, "409", d.Message().Header["Status"][0])
	require.NoError(t, d.Term(t.Context(), "device-not-found\r\nx"))
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, "S", w.source.Name())
	publish(t, js, 1, 1)
	require.Nil(t, w.next(20*time.Second).Message().Header, "only the pin was in it")
}

// nats.go hands a message on without its headers if it cannot read them. Other clients do send such.
func TestUnreadableHeadersAreNotNone(t *testing.T) {
	t.Parallel()
	n, c, letters, r, s := redriver(t, "cmd.>")
	core, err := NewCoreSource(CoreOptions{Conn: c, Queue: "downlink", Subjects: []string{"cmd.>"}})
	require.NoError(t, err)
	run(t, core.Run)
	becomesReady(t, core.Ready)
	require.NoError(t, c.NATS().Flush())
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Stream = "COMMANDS" })
	w.ready()
	raw, err := net.Dial("tcp", strings.TrimPrefix(n.URL(), "nats://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	_, err = raw.Write([]byte("CONNECT {\"headers\":true}\r\n"))
	require.NoError(t, err)
	for _, header := range []string{"X: a\nb\r\n", "X: a\r\n"} {
		header = "NATS/1.0\r\n" + header + "\r\n"
		_, err = fmt.Fprintf(raw, "HPUB cmd.d1 %d %d\r\n%sgo\r\n", len(header), len(header)+2, header)
		require.NoError(t, err)
	}
	for i, bad := range []bool{true, false} {
		d := w.next(20 * time.Second)
		require.Equal(t, bad, d.Message().BadHeader, i)
		require.Equal(t, bad, d.Message().Header == nil)
		live, err := core.Receive(t.Context())
		require.NoError(t, err)
		require.Equal(t, bad, live.Message().BadHeader, i)
		if bad {
			l := letter()
			l.Message = d.Message()
			storeLetters(t, c, l)
		}
	}
	for _, direct := range []bool{false, true} {
		config := s.CachedInfo().Config
		config.AllowDirect = direct
		_, err := n.JetStream(t).UpdateStream(t.Context(), config)
		require.NoError(t, err)
		in, err := Find(t.Context(), c, "COMMANDS", 1)
		require.NoError(t, err)
		require.True(t, in.BadHeader)
		require.Equal(t, "cmd.d1 go", in.Subject+" "+string(in.Payload))
		// Redriven, it would come back without them.
		_, err = r.Redrive(t.Context(), 1)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		require.ErrorContains(t, err, "the headers of COMMANDS:1 cannot be read")
	}
	require.Len(t, chosen(t, letters, LetterFilter{}), 1)
}

// What is held is neither redelivered nor let out twice, however long it takes.
func TestSourceKeepsWhatItHolds(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwnerAt(t, calm(), n.URL(), nil)
	publish(t, js, 1, 3)
	for range 3 {
		w.next(20 * time.Second)
	}
	w.none(2*calm().ackWait + time.Second)
	require.Zero(t, pendingOf(t, js).NumRedelivered)
}

func TestSourceRecognisesRedeliveries(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), nil)
	publish(t, js, 1, 2)
	first, second := w.next(20*time.Second), w.next(20*time.Second)
	// As if the progress acks had been lost.
	require.NoError(t, w.conn.nc.Publish(first.(*delivery).held.reply, []byte("-NAK")))
	require.Eventually(t, func() bool { return pendingOf(t, js).NumRedelivered != 0 }, 30*time.Second, 10*time.Millisecond)
	w.none(time.Second)
	publish(t, js, 3, 3)
	third := w.next(20 * time.Second)
	require.EqualValues(t, 3, third.Message().Sequence)
	for _, d := range []bridge.Delivery{third, first, second} {
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 10*time.Millisecond)
}

// The owner dies with unacked messages; newer ones wait in the stream and more are published.
func TestSourceTakesOverInOrder(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	link := n.Link(t)
	w := runOwner(t, link.URL(), nil)
	publish(t, js, 1, 300)
	for i := range 200 {
		d := w.next(20 * time.Second)
		if i%3 == 0 {
			require.NoError(t, d.Ack(t.Context()))
		}
	}
	require.Eventually(t, func() bool { return pendingOf(t, js).AckFloor.Stream > 0 }, 30*time.Second, 10*time.Millisecond)
	w.crash(link)
	publish(t, js, 301, 400)
	left := pendingOf(t, js).NumAckPending
	require.Greater(t, left, 100)

	w = runOwner(t, n.URL(), nil)
	var got []uint64
	for len(got) < left || got[len(got)-1] < 400 {
		d := w.next(20 * time.Second)
		got = append(got, d.Message().Sequence)
		require.NoError(t, d.Ack(t.Context()))
	}
	require.True(t, slices.IsSorted(got), "%v", got)
	require.Eventually(t, func() bool { ci := pendingOf(t, js); return ci.NumAckPending == 0 && ci.NumPending == 0 }, 30*time.Second, 10*time.Millisecond)
	require.NotZero(t, left)
}

// Two owners: one gets all; the other takes over when it dies.
func TestSourceStandby(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	link := n.Link(t)
	a := runOwnerAt(t, calm(), link.URL(), nil)
	a.ready()
	publish(t, js, 1, 20)
	for range 20 {
		a.next(20 * time.Second)
	}
	b := runOwnerAt(t, calm(), n.URL(), nil)
	b.ready()
	publish(t, js, 21, 40)
	for range 20 {
		a.next(20 * time.Second)
	}
	b.none(2 * calm().ackWait)
	a.crash(link)
	publish(t, js, 41, 60)
	start := time.Now()
	for i := range 60 {
		d := b.next(20 * time.Second)
		require.EqualValues(t, i+1, d.Message().Sequence)
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Less(t, time.Since(start), 3*calm().ackWait+2*time.Second)
}

// An owner that is drained lets go of what it did not hand out at once; a second one goes on in order.
func TestSourceDrain(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	a := runOwnerAt(t, calm(), n.URL(), nil)
	publish(t, js, 1, 50)
	inHand := []bridge.Delivery{a.next(20 * time.Second), a.next(20 * time.Second)}
	b := runOwnerAt(t, calm(), n.URL(), nil)
	a.source.Drain()
	a.none(200 * time.Millisecond)
	publish(t, js, 51, 60)
	require.NoError(t, inHand[1].Ack(t.Context()))
	// The first one is kept alive until it is done with, however late.
	b.none(2*calm().ackWait - 500*time.Millisecond)
	require.NoError(t, inHand[0].Ack(t.Context()))
	a.stop()
	for i := 3; i <= 60; i++ {
		d := b.next(20 * time.Second)
		require.EqualValues(t, i, d.Message().Sequence)
		require.NoError(t, d.Ack(t.Context()))
	}
}

func TestSourceMissingStreamIsCreated(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Create, o.Start = true, "" })
	w.ready()
	publish(t, js, 1, 1)
	require.EqualValues(t, 1, w.next(20*time.Second).Message().Sequence)
}

func TestSourceStart(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	publish(t, js, 1, 5)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Start = "new" })
	w.ready()
	publish(t, js, 6, 6)
	d := w.next(20 * time.Second)
	require.EqualValues(t, 6, d.Message().Sequence)
	require.NoError(t, d.Ack(t.Context()))
	require.Eventually(t, func() bool { return pendingOf(t, js).NumAckPending == 0 }, 30*time.Second, 10*time.Millisecond)
	w.stop()
	// An existing durable keeps its place, whatever start says, and takes new filters.
	publish(t, js, 7, 7)
	w = runOwner(t, n.URL(), func(o *SourceOptions) { o.Start, o.Filters = "all", []string{"cmd.d0", "cmd.d1"} })
	w.ready()
	require.EqualValues(t, 7, w.next(20*time.Second).Message().Sequence, "cmd.d0")
	require.ElementsMatch(t, []string{"cmd.d0", "cmd.d1"}, pendingOf(t, js).Config.FilterSubjects)

	w = runOwner(t, n.URL(), func(o *SourceOptions) { o.Start, o.Consumer = time.Now().Add(-time.Hour).Format(time.RFC3339), "other" })
	require.EqualValues(t, 1, w.next(20*time.Second).Message().Sequence)
}

func TestSourceWorkQueueStartsAtAll(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "S", Subjects: []string{"cmd.>"}, Retention: jetstream.WorkQueuePolicy})
	js := n.JetStream(t)
	publish(t, js, 1, 2)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.Start = "new" })
	for i := range 2 {
		d := w.next(20 * time.Second)
		require.EqualValues(t, i+1, d.Message().Sequence)
		require.NoError(t, d.Ack(t.Context()))
	}
	s, err := js.Stream(t.Context(), "S")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		i, err := s.Info(t.Context())
		return err == nil && i.State.Msgs == 0
	}, 30*time.Second, 10*time.Millisecond)
}

// Messages that are deleted while a dead owner holds them do not hold the next one up.
func TestSourcePurgedPending(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	stream := n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	link := n.Link(t)
	w := runOwner(t, link.URL(), nil)
	publish(t, js, 1, 5)
	for range 5 {
		w.next(20 * time.Second)
	}
	w.crash(link)
	require.NoError(t, stream.DeleteMsg(t.Context(), 2))
	require.NoError(t, stream.DeleteMsg(t.Context(), 4))
	publish(t, js, 6, 6)
	w = runOwner(t, n.URL(), nil)
	for _, want := range []uint64{1, 3, 5, 6} {
		require.EqualValues(t, want, w.next(20*time.Second).Message().Sequence)
	}
}

func TestSourceBoundsWhatItHolds(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	js := n.JetStream(t)
	w := runOwner(t, n.URL(), func(o *SourceOptions) { o.MaxAckPending = 10 })
	publish(t, js, 1, 30)
	var open []bridge.Delivery
	for range 10 {
		open = append(open, w.next(20*time.Second))
	}
	w.none(quick().pinnedTTL + time.Second)
	require.NoError(t, open[4].Ack(t.Context()))
	require.EqualValues(t, 11, w.next(20*time.Second).Message().Sequence)
}

func TestSourceNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	plain := bridgetest.RunNATS(t, func(o *server.Options) { o.JetStream = false })
	w := runOwner(t, plain.URL(), nil)
	becomes(t, w.source.Ready, "stream S: nobody answers for JetStream")

	n := bridgetest.RunNATS(t)
	s := n.CreateStream(t, "S", "cmd.>")
	_, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "acks-none", AckPolicy: jetstream.AckNonePolicy})
	require.NoError(t, err)
	w = runOwner(t, n.URL(), func(o *SourceOptions) { o.Consumer = "acks-none" })
	becomes(t, w.source.Ready, "stream S: consumer acks-none: its ack policy is AckNone, not explicit: delete it or change the bridge's name")
	_, err = s.CreatePushConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "push", AckPolicy: jetstream.AckExplicitPolicy, DeliverSubject: "x"})
	require.NoError(t, err)
	w = runOwner(t, n.URL(), func(o *SourceOptions) { o.Consumer = "push" })
	becomes(t, w.source.Ready, "stream S: consumer push: it is a push consumer")
	// An ordinary pull consumer becomes one of ours and keeps its place.
	_, err = s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "downlink-test", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Hour, HeadersOnly: true, MaxRequestBatch: 5})
	require.NoError(t, err)
	w = runOwner(t, n.URL(), nil)
	w.ready()
	publish(t, n.JetStream(t), 1, 1)
	require.Equal(t, "1", string(w.next(20*time.Second).Message().Payload))
	cfg := pendingOf(t, n.JetStream(t)).Config
	require.Equal(t, jetstream.PriorityPolicyPinned, cfg.PriorityPolicy)
	require.Equal(t, []string{"downlink"}, cfg.PriorityGroups)
	require.Equal(t, quick().ackWait, cfg.AckWait)
}

func TestSourceOptions(t *testing.T) {
	t.Parallel()
	for _, o := range []SourceOptions{
		{Stream: "", Consumer: "c"}, {Stream: "a.b", Consumer: "c"}, {Stream: "S", Consumer: "a b"}, {Stream: "S", Consumer: ""},
		{Stream: "S", Consumer: "c", Start: "yesterday"},
	} {
		_, err := NewJetStreamSource(o)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "\n")
	}
}
