package natsio

import (
	"context"
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
	"downlink/mapping"
)

// tally records the calls of done in their order.
type tally struct {
	mu   sync.Mutex
	done []int
	errs map[int]error
}

func (y *tally) note(i int) func(error) {
	return func(err error) {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.done = append(y.done, i)
		if err != nil {
			if y.errs == nil {
				y.errs = map[int]error{}
			}
			y.errs[i] = err
		}
	}
}

func (y *tally) count() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.done)
}

func (y *tally) check(t testing.TB, from, to int) {
	t.Helper()
	require.Eventually(t, func() bool { return y.count() == to-from+1 }, time.Minute, 5*time.Millisecond, "done: %d", y.count())
	y.mu.Lock()
	defer y.mu.Unlock()
	for i, got := range y.done {
		require.Equal(t, from+i, got, "order of the calls")
	}
}

func pub(i int) *mapping.Publication {
	return &mapping.Publication{Subject: "edge.d1.x", Header: map[string][]string{"x-i": {strconv.Itoa(i)}}, Data: []byte(strconv.Itoa(i)), ID: "id-" + strconv.Itoa(i)}
}

// stored returns the payloads of a stream in its order.
func stored(t testing.TB, js jetstream.JetStream, name string) (out []int) {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	require.NoError(t, err)
	want := int(s.CachedInfo().State.Msgs)
	c, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
	require.NoError(t, err)
	for len(out) < want {
		batch, err := c.Fetch(want-len(out), jetstream.FetchMaxWait(10*time.Second))
		require.NoError(t, err)
		for m := range batch.Messages() {
			i, err := strconv.Atoi(string(m.Data()))
			require.NoError(t, err)
			out = append(out, i)
		}
		require.NoError(t, batch.Error())
	}
	return out
}

func upTo(n int) (out []int) {
	for i := 1; i <= n; i++ {
		out = append(out, i)
	}
	return out
}

func runOrdered(t testing.TB, url string, change func(*PublisherOptions)) (*OrderedPublisher, func()) {
	t.Helper()
	o := PublisherOptions{Conn: Options{URLs: []string{url}}, Logger: testLog(t)}
	if change != nil {
		change(&o)
	}
	p, err := NewOrderedPublisher(o)
	require.NoError(t, err)
	return p, run(t, p.Run)
}

func becomesReady(t testing.TB, ready func() error) {
	t.Helper()
	require.Eventually(t, func() bool { return ready() == nil }, 30*time.Second, 5*time.Millisecond, "%v", ready())
}

func TestOrderedPublisher(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "EDGE", "edge.>")
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Window = 16 })
	becomesReady(t, p.Ready)
	var y tally
	for i := 1; i <= 1000; i++ {
		require.NoError(t, p.Publish(t.Context(), pub(i), y.note(i)))
	}
	y.check(t, 1, 1000)
	require.Empty(t, y.errs)
	js := n.JetStream(t)
	require.Equal(t, upTo(1000), stored(t, js, "EDGE"))
	s, err := js.Stream(t.Context(), "EDGE")
	require.NoError(t, err)
	m, err := s.GetMsg(t.Context(), 5)
	require.NoError(t, err)
	require.Equal(t, nats.Header{"x-i": {"5"}, "Nats-Msg-Id": {"id-5"}}, m.Header)
	// The same message again is stored once.
	require.NoError(t, p.Publish(t.Context(), pub(7), y.note(1001)))
	y.check(t, 1, 1001)
	require.Empty(t, y.errs)
	require.Len(t, stored(t, js, "EDGE"), 1000)
}

// Whatever happens to the connection or the server, the stream has all, once and in order.
func TestOrderedPublisherThroughFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(t *testing.T, n *bridgetest.NATS, l *bridgetest.Link){
		"cut":     func(_ *testing.T, _ *bridgetest.NATS, l *bridgetest.Link) { l.Cut() },
		"restart": func(t *testing.T, n *bridgetest.NATS, _ *bridgetest.Link) { n.Restart(t) },
	} {
		t.Run(name, func(t *testing.T) {
			n := bridgetest.RunNATS(t)
			n.CreateStream(t, "EDGE", "edge.>")
			link := n.Link(t)
			p, _ := runOrdered(t, link.URL(), func(o *PublisherOptions) { o.Stream = "EDGE" })
			const total = 5000
			var y tally
			var wg sync.WaitGroup
			wg.Go(func() {
				for k := 1; k <= 5; k++ {
					for y.count() < k*total/6 {
						if sleep(t.Context(), time.Millisecond) != nil {
							return
						}
					}
					fault(t, n, link)
				}
			})
			for i := 1; i <= total; i++ {
				require.NoError(t, p.Publish(t.Context(), pub(i), y.note(i)))
			}
			y.check(t, 1, total)
			wg.Wait()
			require.Empty(t, y.errs)
			require.Equal(t, upTo(total), stored(t, n.JetStream(t), "EDGE"))
		})
	}
}

// Without IDs a message may repeat, but none is lost and none changes places.
func TestOrderedPublisherWithoutIDs(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "EDGE", "edge.>")
	link := n.Link(t)
	p, _ := runOrdered(t, link.URL(), nil)
	var y tally
	const total = 3000
	for i := 1; i <= total; i++ {
		m := pub(i)
		m.ID = ""
		require.NoError(t, p.Publish(t.Context(), m, y.note(i)))
		if i%700 == 0 {
			link.Cut()
		}
	}
	y.check(t, 1, total)
	var first []int
	seen := map[int]bool{}
	for _, i := range stored(t, n.JetStream(t), "EDGE") {
		if !seen[i] {
			seen[i] = true
			first = append(first, i)
		}
	}
	require.Equal(t, upTo(total), first)
}

func TestOrderedPublisherWaitsForItsStream(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	p, _ := runOrdered(t, n.URL(), nil)
	becomesReady(t, p.Ready)
	var y tally
	for i := 1; i <= 10; i++ {
		require.NoError(t, p.Publish(t.Context(), pub(i), y.note(i)))
	}
	becomes(t, p.Ready, "no stream stores subject edge.d1.x")
	require.Zero(t, y.count())
	n.CreateStream(t, "EDGE", "edge.>")
	y.check(t, 1, 10)
	becomesReady(t, p.Ready)
	require.Equal(t, upTo(10), stored(t, n.JetStream(t), "EDGE"))
}

func TestOrderedPublisherStreamOption(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Stream, o.Subjects = "EDGE", []string{"edge.>"} })
	becomes(t, p.Ready, "stream EDGE does not exist: `nats stream add EDGE --subjects 'edge.>'` or set create: true")
	q, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Stream, o.Subjects, o.Create = "EDGE", []string{"edge.>"}, true })
	becomesReady(t, q.Ready)
	becomesReady(t, p.Ready)
	s, err := n.JetStream(t).Stream(t.Context(), "EDGE")
	require.NoError(t, err)
	require.Equal(t, 48*time.Hour, s.CachedInfo().Config.Duplicates)
}

// A full stream holds everything up and loses nothing; nothing overtakes what does not fit.
func TestOrderedPublisherFullStream(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	s := n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "EDGE", Subjects: []string{"edge.>"}, MaxBytes: 3000, Discard: jetstream.DiscardNew})
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Stream = "EDGE" })
	var y tally
	var got []int
	for i := 1; i <= 40; i++ {
		m := pub(i)
		if i%3 == 0 {
			m.Header["pad"] = []string{strings.Repeat("x", 900)}
		}
		require.NoError(t, p.Publish(t.Context(), m, y.note(i)))
	}
	becomes(t, p.Ready, "maximum bytes exceeded")
	for len(got) < 40 {
		// A consumer takes what is there.
		got = append(got, stored(t, n.JetStream(t), "EDGE")...)
		require.NoError(t, s.Purge(t.Context(), jetstream.WithPurgeSequence(uint64(len(got)+1))))
	}
	y.check(t, 1, 40)
	require.Equal(t, upTo(40), got)
	becomesReady(t, p.Ready)
}

// What can never be published is refused alone, in its place.
func TestOrderedPublisherRefuses(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "EDGE", Subjects: []string{"edge.>"}, MaxMsgSize: 100_000})
	p, _ := runOrdered(t, n.URL(), nil)
	var y tally
	bad := map[int]func(*mapping.Publication){
		3:  func(m *mapping.Publication) { m.Subject = "edge..x" },
		5:  func(m *mapping.Publication) { m.Data = make([]byte, 2<<20) },
		6:  func(m *mapping.Publication) { m.Data = make([]byte, 200_000) },
		8:  func(m *mapping.Publication) { m.Header["a b"] = []string{"x"} },
		9:  func(m *mapping.Publication) { m.Header["big"] = []string{strings.Repeat("x", 70_000)} },
		12: func(m *mapping.Publication) { m.Subject = "edge.*" },
	}
	var want []int
	for i := 1; i <= 12; i++ {
		m := pub(i)
		if change := bad[i]; change != nil {
			change(m)
		} else {
			want = append(want, i)
		}
		require.NoError(t, p.Publish(t.Context(), m, y.note(i)))
	}
	y.check(t, 1, 12)
	require.Len(t, y.errs, len(bad))
	for i := range bad {
		var e *bridge.Error
		require.ErrorAs(t, y.errs[i], &e, "%d", i)
		require.Equal(t, bridge.Refused, e.Class)
	}
	require.Equal(t, want, stored(t, n.JetStream(t), "EDGE"))
	becomesReady(t, p.Ready)
}

func TestPublishersStop(t *testing.T) {
	t.Parallel()
	const url = "nats://127.0.0.1:1" // not a port that was free a moment ago: somebody else may have it by now
	ordered, err := NewOrderedPublisher(PublisherOptions{Conn: Options{URLs: []string{url}}, Window: 2})
	require.NoError(t, err)
	core, err := NewCorePublisher(PublisherOptions{Conn: Options{URLs: []string{url}}, Window: 2})
	require.NoError(t, err)
	for _, p := range []interface {
		Run(context.Context) error
		Publish(context.Context, *mapping.Publication, func(error)) error
		Ready() error
	}{ordered, core} {
		stop := run(t, p.Run)
		var y tally
		require.NoError(t, p.Publish(t.Context(), pub(1), y.note(1)))
		require.NoError(t, p.Publish(t.Context(), pub(2), y.note(2)))
		becomes(t, p.Ready, url, "connection refused")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		require.ErrorIs(t, p.Publish(ctx, pub(3), y.note(3)), context.DeadlineExceeded, "the window is full")
		cancel()
		blocked := make(chan error)
		go func() { blocked <- p.Publish(t.Context(), pub(4), y.note(4)) }()
		stop()
		require.ErrorIs(t, <-blocked, context.Canceled)
		y.check(t, 1, 2)
		require.ErrorIs(t, y.errs[1], context.Canceled)
		require.ErrorIs(t, p.Publish(t.Context(), pub(5), y.note(5)), context.Canceled)
	}
}

func TestPublisherNamesMissingPermission(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "relay", Password: secret, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"edge.d1.x"}}}}}
	})
	o := PublisherOptions{Conn: Options{URLs: []string{n.URL()}, User: "relay", PasswordFile: write(t, t.TempDir(), "p", secret)}}
	ordered, err := NewOrderedPublisher(o)
	require.NoError(t, err)
	core, err := NewCorePublisher(o)
	require.NoError(t, err)
	run(t, ordered.Run)
	run(t, core.Run)
	var y tally
	require.NoError(t, ordered.Publish(t.Context(), pub(1), y.note(1)))
	require.NoError(t, core.Publish(t.Context(), pub(1), y.note(1)))
	becomes(t, ordered.Ready, `missing NATS permission: publish to "edge.d1.x"`)
	becomes(t, core.Ready, `missing NATS permission: publish to "edge.d1.x"`)
	require.Zero(t, y.count(), "nothing is lost")
}

func TestCorePublisher(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	var mu sync.Mutex
	var got []int
	edge := n.Conn(t)
	_, err := edge.Subscribe("edge.>", func(m *nats.Msg) {
		i, _ := strconv.Atoi(string(m.Data))
		mu.Lock()
		defer mu.Unlock()
		got = append(got, i)
	})
	require.NoError(t, err)
	require.NoError(t, edge.Flush())
	p, err := NewCorePublisher(PublisherOptions{Conn: Options{URLs: []string{link.URL()}}, Logger: testLog(t)})
	require.NoError(t, err)
	run(t, p.Run)
	becomesReady(t, p.Ready)
	var y tally
	const total = 3000
	for i := 1; i <= total; i++ {
		m := pub(i)
		if i == 77 {
			m.Subject = "bad subject"
		}
		require.NoError(t, p.Publish(t.Context(), m, y.note(i)))
		if i%700 == 0 {
			link.Cut()
		}
	}
	y.check(t, 1, total)
	require.Len(t, y.errs, 1)
	require.Error(t, y.errs[77])
	want := slices.DeleteFunc(upTo(total), func(i int) bool { return i == 77 })
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		seen := map[int]bool{}
		var first []int
		for _, i := range got {
			if !seen[i] {
				seen[i] = true
				first = append(first, i)
			}
		}
		return slices.Equal(want, first)
	}, 30*time.Second, 10*time.Millisecond)
	becomesReady(t, p.Ready)
}
