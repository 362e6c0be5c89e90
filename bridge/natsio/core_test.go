package natsio

import (
	"context"
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

func TestCoreSource(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	s, err := NewCoreSource(CoreOptions{Conn: c, Queue: "downlink", Subjects: []string{"cmd.*.a", "cmd.x.*", "other.>"}})
	require.NoError(t, err)
	require.Equal(t, "core", s.Name())
	run(t, s.Run)
	becomesReady(t, s.Ready)
	require.NoError(t, c.NATS().Flush())
	nc := n.Conn(t)
	for i, subject := range []string{"cmd.x.a", "cmd.y.z", "other.b", "cmd.x.b", "cmd.y.a"} {
		require.NoError(t, nc.Publish(subject, []byte(strconv.Itoa(i))))
	}
	var got []string
	for range 4 {
		d, err := s.Receive(t.Context())
		require.NoError(t, err)
		got = append(got, d.Message().Subject)
		require.Nil(t, d.Message().Header)
		require.Zero(t, d.Message().Sequence)
		_, isRequest := d.(bridge.Replier)
		require.False(t, isRequest)
		require.NoError(t, d.Ack(t.Context()))
		require.NoError(t, d.Term(t.Context(), "x"))
	}
	require.Equal(t, []string{"cmd.x.a", "other.b", "cmd.x.b", "cmd.y.a"}, got, "each once, in order, and nothing else")

	answers := make(chan *nats.Msg, 2)
	for range 2 {
		go func() {
			m, err := nc.Request("cmd.x.a", nil, time.Minute)
			if err == nil {
				answers <- m
			}
		}()
	}
	receipts := []bridge.Receipt{{ID: "1", Status: "accepted", Subject: "cmd.x.a"}, {ID: "2", Status: "dead", Reason: "expired", Text: "late", Subject: "cmd.x.a"}}
	for i := range 2 {
		d, err := s.Receive(t.Context())
		require.NoError(t, err)
		require.NoError(t, d.(bridge.Replier).Reply(t.Context(), receipts[:i+1]))
		m := <-answers
		if i == 0 {
			require.Equal(t, "accepted", m.Header.Get("Downlink-Status"))
			var r bridge.Receipt
			require.NoError(t, json.Unmarshal(m.Data, &r))
			require.Equal(t, receipts[0], r)
		} else {
			require.Equal(t, "dead", m.Header.Get("Downlink-Status"))
			require.Equal(t, "expired", m.Header.Get("Downlink-Reason"))
			var r []bridge.Receipt
			require.NoError(t, json.Unmarshal(m.Data, &r))
			require.Equal(t, receipts, r)
		}
	}
}

func TestCoreSourceCountsWhatItLoses(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	s, err := NewCoreSource(CoreOptions{Conn: c, Queue: "downlink", Subjects: []string{"cmd.>"}, Pending: 10})
	require.NoError(t, err)
	run(t, s.Run)
	becomesReady(t, s.Ready)
	require.NoError(t, c.NATS().Flush())
	nc := n.Conn(t)
	for i := range 25 {
		require.NoError(t, nc.Publish("cmd.x", []byte(strconv.Itoa(i))))
	}
	require.Eventually(t, func() bool { return s.Dropped() == 15 }, 30*time.Second, 10*time.Millisecond)
	for i := range 10 {
		d, err := s.Receive(t.Context())
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(i), string(d.Message().Payload))
	}
	s.Drain()
	require.NoError(t, c.NATS().Flush())
	require.NoError(t, nc.Publish("cmd.x", nil))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = s.Receive(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestCoreConflict(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "COMMANDS", "cmd.*.stored.>")
	c := connectTo(t, n.URL())
	for subject, want := range map[string]string{
		"cmd.a.stored.x": "COMMANDS", "cmd.>": "COMMANDS", "cmd.a.*.x": "COMMANDS", "cmd.a.live": "", "other.>": "",
	} {
		got, err := CoreConflict(t.Context(), c, []string{"nothing", subject})
		require.NoError(t, err)
		require.Equal(t, want, got, subject)
	}
	plain := bridgetest.RunNATS(t, func(o *server.Options) { o.JetStream = false })
	got, err := CoreConflict(t.Context(), connectTo(t, plain.URL()), []string{"cmd.>"})
	require.NoError(t, err)
	require.Empty(t, got)
}

// Who is told that it is subscribed may publish at once, so the server has to know, however late it answers.
func TestCoreSourceIsReadyOnceTheServerKnows(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	s, err := NewCoreSource(CoreOptions{Conn: connectTo(t, link.URL()), Queue: "q", Subjects: []string{"cmd.>"}})
	require.NoError(t, err)
	link.Stall()
	run(t, s.Run)
	stays(t, func() bool { return s.Ready() != nil }, 2*finishTimeout, 10*time.Millisecond)
	link.Flow()
	becomesReady(t, s.Ready)
	nc := n.Conn(t)
	require.NoError(t, nc.Publish("cmd.1", nil))
	_, err = s.Receive(t.Context())
	require.NoError(t, err)
}

// What the server has given to this process nobody else gets any more, so Finish must not lose it,
// wherever on its way it is.
func TestCoreSourceFinish(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	s, err := NewCoreSource(CoreOptions{Conn: connectTo(t, n.URL()), Queue: "q", Subjects: []string{"cmd.>"}, Logger: testLog(t)})
	require.NoError(t, err)
	require.Empty(t, s.Finish(t.Context()), "never ran")

	s, err = NewCoreSource(CoreOptions{Conn: connectTo(t, n.URL()), Queue: "q", Subjects: []string{"cmd.>"}, Logger: testLog(t)})
	require.NoError(t, err)
	stop := run(t, s.Run)
	defer stop()
	require.Eventually(t, func() bool { return s.Ready() == nil }, 30*time.Second, time.Millisecond)
	nc := n.Conn(t)
	require.NoError(t, nc.Publish("cmd.1", []byte("first")))
	require.NoError(t, nc.Flush())
	d, err := s.Receive(t.Context())
	require.NoError(t, err)
	require.Equal(t, "first", string(d.Message().Payload))

	const total = 5000
	for i := range total {
		require.NoError(t, nc.PublishRequest("cmd.1", "reply."+strconv.Itoa(i), []byte(strconv.Itoa(i))))
	}
	require.NoError(t, nc.Flush())
	var f bridge.Finisher = s
	left := f.Finish(t.Context())
	require.Len(t, left, total)
	for i, d := range left {
		require.Equal(t, strconv.Itoa(i), string(d.Message().Payload))
		require.Implements(t, (*bridge.Replier)(nil), d)
	}
	require.NoError(t, nc.Publish("cmd.1", []byte("late")))
	require.NoError(t, nc.Flush())
	require.Empty(t, s.Finish(t.Context()), "it takes nothing more")
}

// What is on its way may take long to come: as long as something comes, Finish waits for the rest.
func TestCoreSourceFinishWaitsWhileMessagesCome(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	s, err := NewCoreSource(CoreOptions{Conn: connectTo(t, link.URL()), Queue: "q", Subjects: []string{"cmd.>"}})
	require.NoError(t, err)
	s.wait = 4 * time.Second
	run(t, s.Run)
	becomesReady(t, s.Ready)
	link.Stall()
	left := make(chan []bridge.Delivery, 1)
	go func() { left <- s.Finish(t.Context()) }()
	const total = 60
	for i := range total { // as if each took so long
		require.NoError(t, sleep(t.Context(), s.wait/40))
		s.msgs <- &nats.Msg{Subject: "cmd.1", Data: []byte(strconv.Itoa(i))}
	}
	link.Flow()
	require.Len(t, <-left, total)
}
