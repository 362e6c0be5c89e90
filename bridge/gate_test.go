package bridge

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// between counts the sends begun at or after t0+from and before t0+to.
func between(r *rig, t0 time.Time, from, to time.Duration) (n int) {
	for _, s := range r.sender.log() {
		if d := s.at.Sub(t0); d >= from && d < to {
			n++
		}
	}
	return n
}

// What was on its way when the hub throttled, and is accepted later (a shaping
// hub delays before it refuses), must not end the pause that the throttle began.
func TestLateAcceptDoesNotEndAThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sends atomic.Int64
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			if n := sends.Add(1); n <= 32 {
				time.Sleep(time.Duration(n) * 10 * time.Millisecond) // delayed by shaping
				return nil
			}
			return amqpErr(Throttled, "com.microsoft:device-container-throttled")
		}))
		t0 := time.Now()
		for i := range 200 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(time.Minute)
		require.Zero(t, between(r, t0, 5*time.Millisecond, 400*time.Millisecond), "sends within 0.4 s of a throttle answer to half the window")
		r.stop()
	})
}

// An answer about one message that was sent before the hub paused must not open it.
func TestLateAnswerDoesNotEndAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			if e.Device == "gone" {
				time.Sleep(50 * time.Millisecond)
				return amqpErr(NoDevice, "amqp:not-found")
			}
			return amqpErr(Paused, "com.microsoft:quota-exceeded")
		}))
		t0 := time.Now()
		r.source.publish("COMMANDS", "cmd.gone", "gone")
		for i := range 60 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(30 * time.Second)
		require.Zero(t, between(r, t0, 10*time.Millisecond, 30*time.Second), "sends while the quota is used up: one a minute")
		r.stop()
	})
}

// A timer armed for a long pause must not serve for a shorter one that follows.
func TestShorterPauseAfterALongerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(n int, e *mapping.Envelope) error {
			switch {
			case e.Device == "gone":
				time.Sleep(5 * time.Millisecond)
				return amqpErr(NoDevice, "amqp:not-found")
			case n == 1:
				return amqpErr(Paused, "com.microsoft:iot-hub-suspended")
			case n == 2:
				return amqpErr(Throttled, "com.microsoft:device-container-throttled")
			}
			return nil
		}))
		t0 := time.Now()
		r.source.publish("COMMANDS", "cmd.a", "a")
		r.source.publish("COMMANDS", "cmd.gone", "gone")
		time.Sleep(90 * time.Second)
		require.Equal(t, []string{"a"}, r.source.acks())
		log := r.sender.log()
		require.Less(t, log[len(log)-1].at.Sub(t0), 70*time.Second, "throttled for a few seconds, ten after the probe at most")
		r.stop()
	})
}

// A probe that tells nothing (released, link lost) must not bring on the next at once.
func TestReleasedProbesBringOnNoStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sends atomic.Int64
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			if sends.Add(1) <= 64 {
				return amqpErr(Paused, "com.microsoft:iot-hub-suspended")
			}
			return amqpErr(Resend, "")
		}))
		t0 := time.Now()
		for i := range 200 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(150 * time.Second)
		require.Less(t, between(r, t0, 30*time.Second, 150*time.Second), 10, "one probe a minute")
		r.stop()
	})
}

// A condition we do not know, as the answer to the probe of a paused hub, is no proof that it serves.
func TestUnknownConditionDoesNotEndAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sends atomic.Int64
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			if n := sends.Add(1); n == 65 {
				return amqpErr(Unknown, "amqp:internal-error")
			}
			return amqpErr(Paused, "com.microsoft:iot-hub-suspended")
		}))
		t0 := time.Now()
		for i := range 200 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(2 * time.Minute)
		require.LessOrEqual(t, between(r, t0, time.Second, 90*time.Second), 2, "the probe, not a whole window after it")
		r.stop()
	})
}

// Probes of full queues take at most a tenth of the hub's budget.
func TestProbesTakeATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}), func(o *Options) { o.Hubs[0].Pace = PaceOptions{Tier: "S1"} })
		t0 := time.Now()
		for i := range 7 { // one less than what is taken for the quota
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(11 * time.Minute)
		require.LessOrEqual(t, between(r, t0, time.Minute, 11*time.Minute), 101, "a tenth of 100 a minute")
		r.stop()
	})
}

// What expires while it waits is told soon, not when its lane has its next turn.
func TestExpiryDoesNotWaitForATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}), func(o *Options) { o.Mapper = bySubject{ttl: 10 * time.Second} })
		for i := range 40 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(15 * time.Second)
		require.Len(t, r.source.terms(), 40, "dead letters 5 s after they expired")
		r.stop()
	})
}

// After two breaks of the link a whole window is suspect, and is sent one by one;
// a message that was never in flight at a break waits behind all of them.
func TestSuspectsDoNotHoldUpTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newFakeSender(nil)
		t0 := time.Now()
		sender.answer = func(n int, e *mapping.Envelope) error {
			if e.Device != "fresh" && n <= 2 {
				return amqpErr(LinkLost, "")
			}
			time.Sleep(time.Second) // a shaping hub
			return nil
		}
		r := start(t, sender)
		for i := range 60 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(100 * time.Millisecond)
		r.source.publish("COMMANDS", "cmd.fresh", "fresh")
		time.Sleep(2 * time.Minute)
		for _, s := range r.sender.log() {
			if s.device == "fresh" {
				require.Less(t, s.at.Sub(t0), 10*time.Second)
			}
		}
		r.stop()
	})
}

// When it really is the quota, devices that were not refused yet are each tried without a pause, and not even one
// after the other: each answer of the first window lifts "probing", so that as many tries run side by side.
func TestQuotaIsNotProbedByEveryDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sender struct{ now, maxAfter atomic.Int64 }
		t0 := time.Now()
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			n := sender.now.Add(1)
			defer sender.now.Add(-1)
			time.Sleep(time.Millisecond)
			if time.Since(t0) > 10*time.Millisecond {
				sender.maxAfter.Store(max(n, sender.maxAfter.Load()))
			}
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}))
		for i := range 2000 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(time.Minute)
		require.Less(t, between(r, t0, 2*time.Millisecond, time.Minute), 60, "refused sends in the first minute, after the first window")
		require.LessOrEqual(t, sender.maxAfter.Load(), int64(1), "one at a time")
		r.stop()
	})
}

// Devices whose queues were full before do not hide that the quota is used up.
func TestKnownFullDevicesDoNotHideTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quota atomic.Bool
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			if e.Device == "healthy" && !quota.Load() {
				return nil
			}
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}))
		for i := range 20 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(time.Second)
		r.source.publish("COMMANDS", "cmd.healthy", "h1")
		time.Sleep(time.Minute)
		require.Equal(t, []string{"h1"}, r.source.acks())
		quota.Store(true)
		r.source.publish("COMMANDS", "cmd.healthy", "h2")
		time.Sleep(10 * time.Minute)
		require.ErrorContains(t, r.Ready(), "quota", "21 devices refused in a row with no accept between")
		r.stop()
	})
}

// Two streams bring messages for one device. However its queue and the link behave, neither lane is forgotten.
func TestTwoStreamsForOneDevice(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			var free atomic.Bool
			rnd := rand.New(rand.NewPCG(seed, 3))
			var mu sync.Mutex
			sender := newFakeSender(func(_ int, e *mapping.Envelope) error {
				mu.Lock()
				defer mu.Unlock()
				switch p := rnd.IntN(10); {
				case p == 0:
					return amqpErr(LinkLost, "")
				case p == 1:
					return amqpErr(Resend, "")
				case !free.Load() || p == 2:
					return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
				}
				return nil
			})
			r := start(t, sender)
			for i := range 300 {
				r.source.publish([]string{"COMMANDS", "ALERTS", "OTHER"}[i%3], fmt.Sprintf("cmd.d%d", i/3%2), fmt.Sprintf("%04d", i))
			}
			time.Sleep(30 * time.Second)
			free.Store(true)
			for range 20 {
				r.Freed("main", "d0")
				time.Sleep(time.Second)
			}
			time.Sleep(time.Hour)
			require.Zero(t, r.Status().Waiting, "seed %d", seed)
			r.stop()
		})
	}
}

// shortTail gives the messages named "short" little time.
type shortTail struct{ bySubject }

func (m shortTail) Map(in *mapping.Input) []mapping.Result {
	results := m.bySubject.Map(in)
	if string(in.Payload) == "short" {
		results[0].Envelope.ExpiresAt = in.Time.Add(20 * time.Second)
	}
	return results
}

// What expires behind a head that waits for room does not take its lane's probes away.
func TestExpiryBehindAWaitingHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Bool
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			if free.Load() {
				return nil
			}
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}), func(o *Options) { o.Mapper = shortTail{} })
		for _, name := range []string{"first", "short", "last"} {
			r.source.publish("COMMANDS", "cmd.d", name)
		}
		time.Sleep(time.Minute)
		require.Len(t, r.source.terms(), 1)
		free.Store(true)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"first", "last"}, r.source.acks())
		r.stop()
	})
}
