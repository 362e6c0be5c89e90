package amqpd_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/internal/amqpwire"
)

// throttled gives an endpoint a throttle of its own.
func throttled(t *testing.T, x **throttle.Throttle, o throttle.Options) func(*amqpd.Options) {
	return func(a *amqpd.Options) {
		var err error
		*x, err = throttle.New(o) // in the bubble: its clock counts
		require.NoError(t, err)
		a.Throttle = *x
	}
}

func (b *bubbled) sendMessage(id uint32, device string) {
	b.t.Helper()
	b.send(0, transferOf(0, id), c2dMessage("/devices/"+device+"/messages/devicebound", fmt.Sprint(id))...)
}

func condition(t *testing.T, d *amqpwire.Disposition) string {
	t.Helper()
	require.IsType(t, &amqpwire.Rejected{}, d.State)
	return string(d.State.(*amqpwire.Rejected).Error.Condition)
}

// A burst is served at once, then messages wait their turn in order, then they are refused.
func TestTrafficShaping(t *testing.T) {
	var x *throttle.Throttle
	bubble(t, func(t *testing.T, b *bubbled) {
		b.ready(t)
		start := time.Now()
		for id := range uint32(10) { // 6 s of 100 a minute
			b.sendMessage(id+1, "d1")
			d, _ := expect[*amqpwire.Disposition](b.peer)
			require.Equal(t, amqpwire.Accepted{}, d.State)
		}
		require.Zero(t, time.Since(start))
		for id := range uint32(5) { // 3 s
			b.sendMessage(id+11, "d1")
		}
		b.sendMessage(16, "d1")
		d, _ := expect[*amqpwire.Disposition](b.peer)
		require.EqualValues(t, 16, d.First)
		require.Equal(t, "com.microsoft:device-container-throttled", condition(t, d))
		require.EqualValues(t, 429001, d.State.(*amqpwire.Rejected).Error.Info.Get("com.microsoft:error-code"))
		require.Zero(t, time.Since(start))
		require.Len(t, b.got(), 10, "what waits is not taken yet")
		for id := range uint32(5) {
			d, _ := expect[*amqpwire.Disposition](b.peer)
			require.Equal(t, amqpwire.Accepted{}, d.State)
			require.Equal(t, id+11, d.First)
			require.InDelta(t, 0.6*float64(id+1), time.Since(start).Seconds(), 0.01)
		}
		require.Len(t, b.got(), 15)
		require.EqualValues(t, 15, x.Status().Used)
		for i, m := range b.got() {
			require.Equal(t, fmt.Sprint(i+1), string(m.Body))
		}
	}, throttled(t, &x, throttle.Options{Tier: throttle.S1, Burst: 6 * time.Second, Backlog: 3 * time.Second}))
}

// What waits is taken from nobody who has gone, and costs no quota; nor does what the hub refuses.
func TestOnlyWhatIsTakenIsCharged(t *testing.T) {
	var x *throttle.Throttle
	bubble(t, func(t *testing.T, b *bubbled) {
		b.ready(t)
		b.sendMessage(1, "nobody")
		d, _ := expect[*amqpwire.Disposition](b.peer)
		require.Equal(t, "amqp:not-found", condition(t, d))
		require.EqualValues(t, 0, x.Status().Used)
		b.sendMessage(2, "d1")
		b.sendMessage(3, "d1")
		synctest.Wait()
		require.EqualValues(t, 2, x.Status().Used)
		b.send(0, &amqpwire.Detach{Handle: 0, Closed: true})
		expect[*amqpwire.Detach](b.peer)
		b.nc.Close()
		<-b.ended
		require.Empty(t, b.got())
		require.EqualValues(t, 0, x.Status().Used)
	}, throttled(t, &x, throttle.Options{Tier: throttle.S1, Burst: -1}))
}

func TestDailyQuota(t *testing.T) {
	for _, c := range []string{throttle.ResourceLimit, throttle.QuotaExceeded} {
		t.Run(c, func(t *testing.T) {
			var x *throttle.Throttle
			bubble(t, func(t *testing.T, b *bubbled) { // the bubble's day begins at midnight
				b.ready(t)
				for id := range uint32(3) {
					b.sendMessage(id+1, "d1")
					d, _ := expect[*amqpwire.Disposition](b.peer)
					if id < 2 {
						require.Equal(t, amqpwire.Accepted{}, d.State)
						continue
					}
					require.Equal(t, c, condition(t, d))
					require.EqualValues(t, 403002, d.State.(*amqpwire.Rejected).Error.Info.Get("com.microsoft:error-code"))
				}
				for range 24 * 12 {
					time.Sleep(5 * time.Minute)
					b.send(0, nil)
				}
				b.sendMessage(4, "d1")
				d, _ := expect[*amqpwire.Disposition](b.peer)
				require.Equal(t, amqpwire.Accepted{}, d.State)
			}, throttled(t, &x, throttle.Options{Tier: throttle.S1, Daily: 2, QuotaCondition: c}))
		})
	}
}

func TestBasicTierRefusesCloudToDevice(t *testing.T) {
	var x *throttle.Throttle
	bubble(t, func(t *testing.T, b *bubbled) {
		b.ready(t)
		b.sendMessage(1, "d1")
		d, _ := expect[*amqpwire.Disposition](b.peer)
		require.Equal(t, "amqp:not-allowed", condition(t, d))
	}, throttled(t, &x, throttle.Options{Tier: throttle.B1}))
}

// The other reading of what a token's expiry does: the links go, the connection stays, and a new token opens it again.
func TestTokenExpiryDetachesLinks(t *testing.T) {
	var q *feedback.Queue
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		b.allow("one minute", amqpd.Grant{ServiceConnect: true, Expires: time.Now().Add(time.Minute)})
		b.putToken("one minute", 0)
		start := time.Now()
		b.send(0, senderAttach("d", 0, "/messages/devicebound"))
		expect[*amqpwire.Attach](b.peer)
		fullFlow(b.peer, 0)
		b.send(0, receiverAttach("f", 1, "/messages/serviceBound/feedback"))
		expect[*amqpwire.Attach](b.peer)
		for _, handle := range []uint32{0, 1} {
			d, _ := expect[*amqpwire.Detach](b.peer)
			require.Equal(t, handle, d.Handle)
			require.EqualValues(t, "amqp:unauthorized-access", d.Error.Condition)
			b.send(0, &amqpwire.Detach{Handle: handle, Closed: true})
		}
		require.Equal(t, time.Minute, time.Since(start))
		b.send(0, senderAttach("d", 0, "/messages/devicebound"))
		expect[*amqpwire.Attach](b.peer)
		d, _ := expect[*amqpwire.Detach](b.peer)
		require.EqualValues(t, "amqp:unauthorized-access", d.Error.Condition)
		b.send(0, &amqpwire.Detach{Handle: 0, Closed: true})
		b.putToken("forever", 1)
		b.send(0, senderAttach("d", 0, "/messages/devicebound"))
		expect[*amqpwire.Attach](b.peer)
		fullFlow(b.peer, 0)
		b.sendMessage(2, "d1")
		disposition, _ := expect[*amqpwire.Disposition](b.peer)
		require.Equal(t, amqpwire.Accepted{}, disposition.State)
	}, withFeedback(&q, feedback.Rules{}), func(o *amqpd.Options) { o.Behaviour.DetachExpired = true })
}

func TestCreditIsAnOption(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		b.send(0, senderAttach("s", 9, "$cbs"))
		expect[*amqpwire.Attach](b.peer)
		f, _ := expect[*amqpwire.Flow](b.peer)
		require.Equal(t, amqpwire.Some[uint32](1), f.LinkCredit)
	}, func(o *amqpd.Options) { o.Behaviour.Credit = 1 })
}

func TestTokenExpiresOnRequest(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		start := time.Now()
		b.faults.Add(fault.PutToken, 1, nil, fault.Action{Kind: fault.Expire, Delay: 90 * time.Second})
		b.putToken("forever", 0)
		c, _ := expect[*amqpwire.Close](b.peer)
		require.EqualValues(t, "amqp:unauthorized-access", c.Error.Condition)
		require.Equal(t, 90*time.Second, time.Since(start))
	})
}

// A token that came by SASL PLAIN cannot be renewed, so the connection ends with it in both readings.
func TestPlainTokenExpiryAlwaysCloses(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.allow("one minute", amqpd.Grant{Policy: "service", ServiceConnect: true, Expires: time.Now().Add(time.Minute)})
		start := time.Now()
		b.raw([]byte(amqpwire.HeaderSASL))
		b.header(amqpwire.HeaderSASL)
		expect[*amqpwire.SASLMechanisms](b.peer)
		b.raw(amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "PLAIN", Response: []byte("\x00service@sas.root.hub\x00one minute")}))
		outcome, _ := expect[*amqpwire.SASLOutcome](b.peer)
		require.Equal(t, amqpwire.SASLOk, outcome.Code)
		b.open()
		c, _ := expect[*amqpwire.Close](b.peer)
		require.EqualValues(t, "amqp:unauthorized-access", c.Error.Condition)
		require.Equal(t, time.Minute, time.Since(start))
	}, func(o *amqpd.Options) { o.Behaviour.DetachExpired = true })
}
