package amqpd_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

var muteAction = fault.Action{Kind: fault.Withhold}

func on(device string) func(string) bool { return func(d string) bool { return d == device } }

func TestTransferFaults(t *testing.T) {
	e := runEndpoint(t)
	s := newSender(t, authorized(t, e.dial(t, nil)), nil)
	e.faults.Add(fault.Transfer, 1, on("d1"), fault.Action{Kind: fault.Release})
	e.faults.Add(fault.Transfer, 1, on("d1"), fault.Action{Kind: fault.Modify})
	e.faults.Add(fault.Transfer, 1, on("d1"), fault.Action{Kind: fault.Reject, Condition: "com.microsoft:device-container-throttled", Text: "slow down"})
	e.faults.Add(fault.Transfer, 1, on("d1"), fault.Action{Kind: fault.Reject})
	e.faults.Add(fault.Transfer, 1, on("d1"), fault.Action{Kind: fault.Release, After: true})

	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d2", "other devices are not concerned")))
	require.IsType(t, &amqp.StateReleased{}, send(t, s, command("d1", "")))
	require.Equal(t, &amqp.StateModified{DeliveryFailed: true}, send(t, s, command("d1", "")))
	rejected := send(t, s, command("d1", "")).(*amqp.StateRejected).Error
	require.EqualValues(t, "com.microsoft:device-container-throttled", rejected.Condition)
	require.Equal(t, "slow down", rejected.Description)
	require.EqualValues(t, 429001, rejected.Info["com.microsoft:error-code"])
	require.Equal(t, amqp.ErrCondInternalError, send(t, s, command("d1", "")).(*amqp.StateRejected).Error.Condition)
	require.Len(t, e.got(), 1)
	require.IsType(t, &amqp.StateReleased{}, send(t, s, command("d1", "taken all the same")))
	require.Len(t, e.got(), 2)
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "")))
}

func TestDelayedAndWithheldAnswersHoldUpNobodyElse(t *testing.T) {
	e := runEndpoint(t)
	s := newSender(t, authorized(t, e.dial(t, nil)), nil)
	e.faults.Add(fault.Transfer, 0, on("slow"), fault.Action{Kind: fault.Delay, Delay: 300 * time.Millisecond})
	e.faults.Add(fault.Transfer, 0, on("mute"), fault.Action{Kind: fault.Withhold})
	ctx := within(t)
	start := time.Now()
	slow, err := s.SendWithReceipt(ctx, command("slow", "x"), nil)
	require.NoError(t, err)
	mute, err := s.SendWithReceipt(ctx, command("mute", "x"), nil)
	require.NoError(t, err)
	// More than the credit, so that it is renewed in spite of what is outstanding.
	for n := range 150 {
		require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", fmt.Sprint(n))))
	}
	state, err := slow.Wait(ctx)
	require.NoError(t, err)
	require.IsType(t, &amqp.StateAccepted{}, state)
	require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = mute.Wait(short)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, e.got(), 151)
}

func TestUnansweredDeliveriesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.faults.Add(fault.Transfer, 2048, nil, fault.Action{Kind: fault.Delay, Delay: time.Second})
		p := b.ready(t)
		sent, settled, credit := uint32(0), uint32(0), uint32(100)
		// step sends what credit allows and takes what comes, until nothing comes.
		step := func(idle time.Duration, most uint32) {
			for {
				for ; credit > 0 && sent < most; credit-- {
					sent++
					p.send(0, transferOf(0, sent), c2dMessage("/devices/d1/messages/devicebound", "")...)
				}
				p.nc.SetReadDeadline(time.Now().Add(idle))
				fr, err := p.in.Next()
				if err != nil {
					return
				}
				perf, _, err := p.parser.Parse(fr.Type, fr.Body)
				require.NoError(t, err)
				switch perf := perf.(type) {
				case *amqpwire.Flow:
					if perf.Handle.Set {
						credit = perf.DeliveryCount.Value + perf.LinkCredit.Value - sent
					}
				case *amqpwire.Disposition:
					settled++
					if perf.Last.Set {
						settled += perf.Last.Value - perf.First
					}
				}
			}
		}
		step(time.Millisecond, 10000)
		require.EqualValues(t, 2048, sent)
		require.Zero(t, settled)
		step(2*time.Second, 3000)
		require.EqualValues(t, 3000, sent)
		require.EqualValues(t, 3000, settled)
		require.Len(t, b.got(), 3000)
	})
}

func TestDrop(t *testing.T) {
	e := runEndpoint(t)
	for _, after := range []bool{false, true} {
		c := e.dial(t, nil)
		s := newSender(t, authorized(t, c), nil)
		before := len(e.got())
		e.faults.Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Drop, After: after})
		require.Error(t, s.Send(within(t), command("d1", "x"), nil))
		require.Error(t, waitEnd(t, c))
		require.Equal(t, after, len(e.got()) == before+1)
	}
}

func TestPutTokenFaults(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	session, err := c.NewSession(within(t), nil)
	require.NoError(t, err)
	props, token := sasToken("good")
	status := func() any {
		t.Helper()
		reply, err := putToken(t, session, "x", props, token)
		require.NoError(t, err)
		return reply.ApplicationProperties["status-code"]
	}
	for condition, code := range map[string]int32{"": 500, "amqp:unauthorized-access": 401, "amqp:not-found": 404,
		"amqp:resource-limit-exceeded": 403, "com.microsoft:argument-error": 400} {
		e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Reject, Condition: condition})
		require.Equal(t, code, status())
	}
	_, err = session.NewSender(within(t), "/messages/devicebound", nil)
	require.Error(t, err, "none of these was a token")

	e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Delay, Delay: 100 * time.Millisecond})
	start := time.Now()
	require.EqualValues(t, 200, status())
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
	e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Drop})
	_, err = putToken(t, session, "x", props, token)
	require.Error(t, err)
	waitEnd(t, c)
}

func TestAttachFaults(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	session := authorized(t, c)
	e.faults.Add(fault.AttachSender, 1, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:link:detach-forced", Text: "busy"})
	_, err := session.NewSender(within(t), "/messages/devicebound", nil)
	var ae *amqp.Error
	require.ErrorAs(t, err, &ae)
	require.EqualValues(t, "amqp:link:detach-forced", ae.Condition)

	e.faults.Add(fault.AttachSender, 1, nil, fault.Action{Kind: fault.Delay, Delay: 100 * time.Millisecond})
	start := time.Now()
	s := newSender(t, session, nil)
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "")))

	e.faults.Add(fault.AttachSender, 1, nil, fault.Action{Kind: fault.Withhold})
	impatient, giveUp := context.WithCancel(within(t))
	answered := make(chan error, 1)
	go func() {
		_, err := session.NewSender(impatient, "/messages/devicebound", nil)
		answered <- err
	}()
	e.takenUp(t)
	giveUp()
	require.ErrorIs(t, <-answered, context.Canceled)
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "the session lives")))

	e.faults.Add(fault.AttachSender, 1, nil, fault.Action{Kind: fault.Drop})
	_, err = session.NewSender(within(t), "/messages/devicebound", nil)
	require.Error(t, err)
	waitEnd(t, c)
}

func TestOpenFaults(t *testing.T) {
	e := runEndpoint(t)
	e.faults.Add(fault.Open, 1, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:connection:forced"})
	c, err := e.tryDial(t, nil)
	if err == nil {
		err = waitEnd(t, c)
	}
	var ce *amqp.ConnError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, amqp.ErrCondConnectionForced, ce.RemoteErr.Condition)

	e.faults.Add(fault.Open, 1, nil, fault.Action{Kind: fault.Drop})
	_, err = e.tryDial(t, nil)
	require.Error(t, err)

	e.faults.Add(fault.Open, 1, nil, fault.Action{Kind: fault.Withhold})
	nc := dialRaw(t, e)
	impatient, giveUp := context.WithCancel(within(t))
	answered := make(chan error, 1)
	go func() {
		_, err := amqp.NewConn(impatient, nc, &amqp.ConnOptions{HostName: "localhost"})
		answered <- err
	}()
	e.takenUp(t)
	giveUp()
	require.ErrorIs(t, <-answered, context.Canceled)

	e.faults.Add(fault.Open, 1, nil, fault.Action{Kind: fault.Delay, Delay: 100 * time.Millisecond})
	start := time.Now()
	c, err = e.tryDial(t, nil)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
	authorized(t, c)
}

func TestPutTokenReleasedModifiedWithheld(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	p.open()
	p.send(0, senderAttach("s", 0, "$cbs"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 0)
	e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Withhold})
	e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Modify})
	e.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Release, After: true})
	attach := func(handle uint32) *amqpwire.Attach {
		p.send(0, senderAttach("d", handle, "/messages/devicebound"))
		a, _ := expect[*amqpwire.Attach](p)
		return a
	}
	for id := range uint32(2) {
		p.send(0, transferOf(0, id), tokenMessage(t, nil, "good")...)
	}
	d, _ := expect[*amqpwire.Disposition](p)
	require.EqualValues(t, 1, d.First)
	require.Equal(t, &amqpwire.Modified{DeliveryFailed: true}, d.State)
	require.Nil(t, attach(1).Target, "no token was taken")
	expect[*amqpwire.Detach](p)
	p.send(0, transferOf(0, 2), tokenMessage(t, nil, "good")...)
	d, _ = expect[*amqpwire.Disposition](p)
	require.Equal(t, amqpwire.Released{}, d.State)
	require.NotNil(t, attach(2).Target, "the token was taken")
	fullFlow(p, 2)
}

func TestWithheldAttachIsDetachedAllTheSame(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	e.faults.Add(fault.AttachSender, 1, nil, fault.Action{Kind: fault.Withhold})
	p.send(0, senderAttach("other", 1, "/messages/devicebound"))
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), NextOutgoingID: 1, Handle: amqpwire.Some[uint32](1), Echo: true})
	p.send(0, &amqpwire.Detach{Handle: 1, Closed: true})
	a, _ := expect[*amqpwire.Attach](p)
	require.Equal(t, "other", a.Name)
	require.Nil(t, a.Target)
	d, _ := expect[*amqpwire.Detach](p)
	require.EqualValues(t, 1, d.Handle)
}
