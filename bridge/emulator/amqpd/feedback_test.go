package amqpd_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/internal/amqpwire"
)

// withFeedback gives an endpoint a queue that closes a batch with every record.
func withFeedback(q **feedback.Queue, r feedback.Rules) func(*amqpd.Options) {
	if r.BatchSize == 0 {
		r.BatchSize = 1
	}
	*q = feedback.New(feedback.Options{HubName: "hub1", Rules: r})
	return func(o *amqpd.Options) { o.Feedback = *q }
}

func record(id string) feedback.Record {
	return feedback.Record{MessageID: id, Device: "d1", Generation: "g1", Status: "Success", At: time.Date(2025, 1, 2, 3, 4, 5, 678e6, time.UTC)}
}

func newReceiver(t testing.TB, s *amqp.Session, address string, o *amqp.ReceiverOptions) *amqp.Receiver {
	t.Helper()
	r, err := s.NewReceiver(within(t), address, o)
	require.NoError(t, err)
	return r
}

func receive(t testing.TB, r *amqp.Receiver) *amqp.Message {
	t.Helper()
	m, err := r.Receive(within(t), nil)
	require.NoError(t, err)
	return m
}

func ids(t testing.TB, m *amqp.Message) (out []string) {
	t.Helper()
	var records []struct{ OriginalMessageID string }
	require.NoError(t, json.Unmarshal(m.GetData(), &records))
	for _, r := range records {
		out = append(out, r.OriginalMessageID)
	}
	return out
}

func eventually(t testing.TB, q *feedback.Queue, ok func(feedback.Status) bool) {
	t.Helper()
	require.Eventually(t, func() bool { return ok(q.Status()) }, wait, time.Millisecond)
}

func TestFeedbackAsTheHubSendsIt(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	for _, address := range []string{
		"/messages/serviceBound/feedback", "/messages/servicebound/feedback", "messages/serviceBound/Feedback",
		"amqps://localhost/messages/serviceBound/feedback", "amqps://localhost:5671/messages/servicebound/feedback",
	} {
		t.Run(address, func(t *testing.T) {
			r := newReceiver(t, authorized(t, e.dial(t, nil)), address, nil)
			q.Add(record("m1"))
			m := receive(t, r)
			require.JSONEq(t, `[{"originalMessageId":"m1","description":"Success","deviceGenerationId":"g1","deviceId":"d1",
				"enqueuedTimeUtc":"2025-01-02T03:04:05.678Z","statusCode":"Success"}]`, string(m.GetData()))
			require.Equal(t, "application/vnd.microsoft.iothub.feedback.json", *m.Properties.ContentType)
			require.Equal(t, "hub1", string(m.Properties.UserID))
			require.WithinDuration(t, time.Now(), m.Annotations["iothub-enqueuedtime"].(time.Time), time.Minute)
			require.Len(t, m.DeliveryTag, 16)
			token := m.Annotations["x-opt-lock-token"].(string)
			tag := m.DeliveryTag // as .NET's Guid reads it
			require.Equal(t, fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x", tag[3], tag[2], tag[1], tag[0], tag[5], tag[4], tag[7], tag[6], tag[8:10], tag[10:]), token)
			require.NotZero(t, m.Annotations["x-opt-sequence-number"])
			require.EqualValues(t, 0, m.Annotations["iothub-deliverycount"])
			require.Equal(t, 1, q.Status().Locked)
			require.NoError(t, r.AcceptMessage(within(t), m))
			eventually(t, q, func(s feedback.Status) bool { return s.Locked == 0 })
			require.NoError(t, r.Close(within(t)))
		})
	}
	require.Equal(t, uint64(5), q.Status().Completed)
}

func TestFeedbackNeedsServiceConnect(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	s, err := e.dial(t, nil).NewSession(within(t), nil)
	require.NoError(t, err)
	for _, token := range []string{"", "registry"} {
		if token != "" {
			props, token := sasToken(token)
			_, err := putToken(t, s, "id", props, token)
			require.NoError(t, err)
		}
		_, err = s.NewReceiver(within(t), "/messages/serviceBound/feedback", nil)
		var e *amqp.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, amqp.ErrCondUnauthorizedAccess, e.Condition)
	}
}

// The way of C#: prefetch as asked, rcv-settle-mode second, and the hub has the last word on each outcome.
func TestFeedbackOutcomes(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	r := newReceiver(t, authorized(t, e.dial(t, nil)), "/messages/serviceBound/feedback",
		&amqp.ReceiverOptions{SettlementMode: amqp.ReceiverSettleModeSecond.Ptr(), Credit: -1})
	take := func() *amqp.Message {
		t.Helper()
		require.NoError(t, r.IssueCredit(1))
		return receive(t, r)
	}
	q.Add(record("m1"))
	first := take()
	require.NoError(t, r.ReleaseMessage(within(t), first))
	second := take()
	require.Equal(t, []string{"m1"}, ids(t, second))
	require.EqualValues(t, 1, second.Annotations["iothub-deliverycount"])
	require.NotEqual(t, first.DeliveryTag, second.DeliveryTag)
	require.NoError(t, r.ModifyMessage(within(t), second, &amqp.ModifyMessageOptions{DeliveryFailed: true}))
	require.NoError(t, r.RejectMessage(within(t), take(), nil))
	require.Equal(t, feedback.Status{Received: 3, Rejected: 1}, q.Status())
	q.Add(record("m2"))
	require.NoError(t, r.AcceptMessage(within(t), take()))
	require.Equal(t, feedback.Status{Received: 4, Rejected: 1, Completed: 1}, q.Status())
}

func TestFeedbackLockLost(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{Lock: time.Millisecond}))
	p := ready(t, e)
	q.Add(record("m1"))
	p.send(0, receiverAttach("f", 1, "/messages/serviceBound/feedback"))
	expect[*amqpwire.Attach](p)
	credit(p, 0, 0, 1)
	tr, _ := expect[*amqpwire.Transfer](p)
	require.Equal(t, amqpwire.Some(false), tr.Settled)
	require.Len(t, tr.DeliveryTag, 16)
	require.Eventually(t, func() bool { q.Sweep(); return q.Status().Locked == 0 }, wait, time.Millisecond)
	p.send(0, &amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: tr.DeliveryID.Value, State: &amqpwire.Received{}})
	p.send(0, &amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: tr.DeliveryID.Value, State: amqpwire.Accepted{}})
	d, _ := expect[*amqpwire.Disposition](p)
	require.True(t, d.Settled && d.Role == amqpwire.RoleSender)
	require.EqualValues(t, "com.microsoft:message-lock-lost", d.State.(*amqpwire.Rejected).Error.Condition)
	require.Equal(t, 1, q.Status().Batches)
}

// credit grants credit on handle 1 of channel 0, as of the given counts.
func credit(p *peer, nextIncoming, deliveryCount, n uint32) {
	p.t.Helper()
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some(nextIncoming), IncomingWindow: 100, NextOutgoingID: 1, OutgoingWindow: 100,
		Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some(deliveryCount), LinkCredit: amqpwire.Some(n)})
}

// Nothing comes beyond the credit; drain uses up what is left.
func TestFeedbackCreditAndDrain(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	p := ready(t, e)
	for i := range 5 {
		q.Add(record(fmt.Sprint("m", i)))
	}
	a := receiverAttach("f", 1, "/messages/serviceBound/feedback")
	a.SenderSettleMode = amqpwire.Some(amqpwire.SenderSettled)
	p.send(0, a)
	expect[*amqpwire.Attach](p)
	credit(p, 0, 0, 2)
	for range 2 {
		tr, _ := expect[*amqpwire.Transfer](p)
		require.Equal(t, amqpwire.Some(true), tr.Settled)
	}
	// Settled deliveries complete at once, the last of them maybe when we have it already.
	eventually(t, q, func(s feedback.Status) bool { return s == feedback.Status{Batches: 3, Received: 2, Completed: 2} })
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](2), IncomingWindow: 100, NextOutgoingID: 1, OutgoingWindow: 100,
		Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some[uint32](2), LinkCredit: amqpwire.Some[uint32](10), Drain: true})
	for range 3 {
		expect[*amqpwire.Transfer](p)
	}
	f, _ := expect[*amqpwire.Flow](p)
	require.True(t, f.Drain)
	require.Equal(t, amqpwire.Some[uint32](12), f.DeliveryCount)
	require.Equal(t, amqpwire.Some[uint32](0), f.LinkCredit)
	q.Add(record("late"))
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](5), IncomingWindow: 100, NextOutgoingID: 1, OutgoingWindow: 100, Echo: true})
	f, _ = expect[*amqpwire.Flow](p) // and no transfer before it
	require.False(t, f.Handle.Set)
	require.Equal(t, 1, q.Status().Batches)
}

// A batch may need several frames and more window than there is; whoever is cut off in the middle gives it back.
func TestFeedbackInSmallFramesAndCutOff(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{BatchSize: 40}))
	for i := range 40 {
		q.Add(record(fmt.Sprint("m", i)))
	}
	for _, mode := range []uint8{amqpwire.SenderSettled, amqpwire.SenderUnsettled} {
		p := newPeer(t, dialRaw(t, e))
		p.raw([]byte(amqpwire.HeaderAMQP))
		p.send(0, &amqpwire.Open{ContainerID: "c", MaxFrameSize: 512, ChannelMax: 1})
		p.send(0, &amqpwire.Begin{IncomingWindow: 10, OutgoingWindow: 10, HandleMax: 9})
		p.header(amqpwire.HeaderAMQP)
		expect[*amqpwire.Open](p)
		expect[*amqpwire.Begin](p)
		p.send(0, senderAttach("s", 0, "$cbs"))
		expect[*amqpwire.Attach](p)
		fullFlow(p, 0)
		p.send(0, transferOf(0, 0), tokenMessage(t, nil, "good")...)
		expect[*amqpwire.Disposition](p)
		a := receiverAttach("f", 1, "/messages/serviceBound/feedback")
		a.SenderSettleMode = amqpwire.Some(mode)
		p.send(0, a)
		expect[*amqpwire.Attach](p)
		p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), IncomingWindow: 3, NextOutgoingID: 1, OutgoingWindow: 100,
			Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some[uint32](0), LinkCredit: amqpwire.Some[uint32](1)})
		for range 3 {
			tr, _ := expect[*amqpwire.Transfer](p)
			require.True(t, tr.More)
		}
		require.Equal(t, 1, q.Status().Locked)
		p.nc.Close()
		eventually(t, q, func(s feedback.Status) bool { return s.Batches == 1 && s.Locked == 0 })
	}
	r := newReceiver(t, authorized(t, e.dial(t, nil)), "/messages/serviceBound/feedback", nil)
	m := receive(t, r)
	require.Len(t, ids(t, m), 40)
	require.NoError(t, r.AcceptMessage(within(t), m))
}

// Whatever ends a link, its session or its connection gives back what was not settled.
func TestUnsettledFeedbackComesBack(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	q.Add(record("m1"))
	for name, end := range map[string]func(*amqp.Conn, *amqp.Session, *amqp.Receiver) error{
		"detach": func(_ *amqp.Conn, _ *amqp.Session, r *amqp.Receiver) error { return r.Close(within(t)) },
		"end":    func(_ *amqp.Conn, s *amqp.Session, _ *amqp.Receiver) error { return s.Close(within(t)) },
		"close":  func(c *amqp.Conn, _ *amqp.Session, _ *amqp.Receiver) error { return c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := e.dial(t, nil)
			s := authorized(t, c)
			r := newReceiver(t, s, "/messages/serviceBound/feedback", &amqp.ReceiverOptions{Credit: 1000})
			require.Equal(t, []string{"m1"}, ids(t, receive(t, r)))
			require.NoError(t, end(c, s, r))
			eventually(t, q, func(s feedback.Status) bool { return s.Batches == 1 && s.Locked == 0 })
		})
	}
}

func TestSeveralReadersShareTheFeedback(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	const readers, batches = 3, 300
	got := make(chan string, batches)
	for range readers {
		r := newReceiver(t, authorized(t, e.dial(t, nil)), "/messages/serviceBound/feedback", &amqp.ReceiverOptions{Credit: 10})
		ctx := t.Context()
		go func() {
			for {
				m, err := r.Receive(ctx, nil)
				if err != nil || r.AcceptMessage(ctx, m) != nil {
					return
				}
				got <- ids(t, m)[0]
			}
		}()
	}
	for i := range batches {
		q.Add(record(fmt.Sprint("m", i)))
	}
	seen := map[string]int{}
	for range batches {
		select {
		case id := <-got:
			seen[id]++
		case <-time.After(wait):
			require.Fail(t, "feedback is missing")
		}
	}
	require.Len(t, seen, batches)
	eventually(t, q, func(s feedback.Status) bool { return s.Completed == batches && s.Received == batches })
}

func TestFeedbackAttachFaults(t *testing.T) {
	var q *feedback.Queue
	e := runEndpoint(t, withFeedback(&q, feedback.Rules{}))
	q.Add(record("m1"))
	session := authorized(t, e.dial(t, nil))
	e.faults.Add(fault.AttachReceiver, 1, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:link:detach-forced"})
	_, err := session.NewReceiver(within(t), "/messages/serviceBound/feedback", nil)
	var ae *amqp.Error
	require.ErrorAs(t, err, &ae)
	require.EqualValues(t, "amqp:link:detach-forced", ae.Condition)
	e.faults.Add(fault.AttachReceiver, 1, nil, fault.Action{Kind: fault.Delay, Delay: 20 * time.Millisecond})
	start := time.Now()
	r := newReceiver(t, session, "/messages/serviceBound/feedback", nil)
	require.GreaterOrEqual(t, time.Since(start), 20*time.Millisecond)
	require.Equal(t, []string{"m1"}, ids(t, receive(t, r)))
}
