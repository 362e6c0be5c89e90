package bridge

import (
	"container/heap"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/throttle"
)

// shapedHub is a hub's throttle: burst worth of messages is served at once, then
// each is delayed for up to backlog, then they are refused ("IoT Hub quotas and
// throttling", traffic shaping). It is a virtual queue that is filled by sends and
// emptied at rate.
type shapedHub struct {
	rate           float64
	burst, backlog time.Duration
	free           time.Time // when all it took is paid for
	deaf           bool      // refuses everything
}

func (h *shapedHub) send(now time.Time) (wait time.Duration, ok bool) {
	each := time.Duration(float64(time.Second) / h.rate)
	if early := now.Add(-max(h.burst, each)); h.free.Before(early) {
		h.free = early
	}
	next := h.free.Add(each)
	wait = max(0, next.Sub(now))
	if h.deaf || wait > h.backlog {
		return 0, false
	}
	h.free = next
	return wait, true
}

type answer struct {
	sent, at time.Time
	ok       bool
}

type answers []answer

func (a answers) Len() int           { return len(a) }
func (a answers) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a answers) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *answers) Push(x any)        { *a = append(*a, x.(answer)) }
func (a *answers) Pop() any {
	old := *a
	x := old[len(old)-1]
	*a = old[:len(old)-1]
	return x
}

// paceSim is a sender with a window that always has something to send.
type paceSim struct {
	b        *budget
	hub      *shapedHub
	window   int
	trip     time.Duration
	now      time.Time
	inFlight answers

	accepted, refused int
	lowest, highest   float64
}

func newPaceSim(o PaceOptions, hub *shapedHub) *paceSim {
	b := newBudget(o)
	return &paceSim{b: &b, hub: hub, window: 512, trip: 20 * time.Millisecond, now: time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)}
}

// run simulates d and counts anew.
func (s *paceSim) run(d time.Duration) {
	s.accepted, s.refused, s.lowest, s.highest = 0, 0, s.b.rate, s.b.rate
	for end := s.now.Add(d); s.now.Before(end); {
		next := end
		for len(s.inFlight) < s.window {
			ok, wait := s.b.take(s.now)
			if !ok {
				if at := s.now.Add(wait); at.Before(next) {
					next = at
				}
				break
			}
			delay, ok := s.hub.send(s.now.Add(s.trip / 2))
			heap.Push(&s.inFlight, answer{s.now, s.now.Add(s.trip + delay), ok})
		}
		if len(s.inFlight) > 0 && s.inFlight[0].at.Before(next) {
			next = s.inFlight[0].at
		}
		s.now = next
		for len(s.inFlight) > 0 && !s.inFlight[0].at.After(s.now) {
			a := heap.Pop(&s.inFlight).(answer)
			if a.ok {
				s.accepted++
				s.b.accepted(a.sent, s.now, 256)
			} else {
				s.refused++
				s.b.throttled(a.sent, s.now)
			}
			s.lowest, s.highest = min(s.lowest, s.b.rate), max(s.highest, s.b.rate)
		}
	}
}

func (s *paceSim) goodput(d time.Duration) float64 { return float64(s.accepted) / d.Seconds() }

func (s *paceSim) refusals() float64 {
	return float64(s.refused) / float64(max(1, s.accepted+s.refused))
}

// A hub of unknown tier: its rate is learned, kept to, and hardly ever overrun.
func TestPaceLearns(t *testing.T) {
	for _, r := range []float64{100. / 60, 83, 2000} {
		for _, shape := range []struct{ burst, backlog time.Duration }{
			{time.Minute, 30 * time.Second}, // as the embedded hub
			{time.Minute, 0},
			{10 * time.Second, 200 * time.Millisecond},
			{time.Second, 0}, // hardly any shaping
		} {
			t.Run(fmt.Sprintf("%.3g/s, burst %s, backlog %s", r, shape.burst, shape.backlog), func(t *testing.T) {
				s := newPaceSim(PaceOptions{}, &shapedHub{rate: r, burst: shape.burst, backlog: shape.backlog})
				settle, steady := 5*time.Minute, 10*time.Minute
				switch { // so many messages that the share means something
				case r < 10:
					steady = time.Hour
				case r > 1000:
					settle, steady = 30*time.Second, 30*time.Second
				}
				s.run(settle)
				t.Logf("settling: %.4g/s, %.2f %% refused, %v", s.goodput(settle), 100*s.refusals(), s.b.status(s.now))
				s.run(steady)
				t.Logf("steady: %.4g/s, %.2f %% (%d) refused, rate %.4g to %.4g, %v", s.goodput(steady), 100*s.refusals(), s.refused, s.lowest, s.highest, s.b.status(s.now))
				require.GreaterOrEqual(t, s.goodput(steady), 0.9*r)
				require.Less(t, s.refusals(), 0.02)
				if s.refused > 0 {
					require.Equal(t, "learned", s.b.status(s.now).Source)
					require.Greater(t, s.lowest, 0.6*r, "does not oscillate")
					require.Less(t, s.highest, 1.5*r, "does not oscillate")
				}
			})
		}
	}
}

// A hub of known tier: it is never overrun from the start; when another sender
// takes half of it the rate goes down, and comes back when that one has gone.
func TestPaceOfATier(t *testing.T) {
	for _, shape := range []struct{ burst, backlog time.Duration }{{time.Minute, 5 * time.Second}, {time.Second, 0}} {
		for _, units := range []int{1, 10} {
			t.Run(fmt.Sprintf("S1 x%d, burst %s, backlog %s", units, shape.burst, shape.backlog), func(t *testing.T) {
				full := 100. / 60 * float64(units)
				s := newPaceSim(PaceOptions{Tier: "S1", Units: units}, &shapedHub{rate: full, burst: shape.burst, backlog: shape.backlog})
				s.run(10 * time.Minute)
				require.Zero(t, s.refused)
				require.GreaterOrEqual(t, s.goodput(10*time.Minute), 0.97*full)
				require.LessOrEqual(t, len(s.inFlight), 1+int(full), "and nothing queues at the hub")

				s.hub.rate = full / 2
				s.run(10 * time.Minute)
				s.run(20 * time.Minute)
				require.GreaterOrEqual(t, s.goodput(20*time.Minute), 0.9*full/2)
				require.Less(t, s.refusals(), 0.02)
				status := s.b.status(s.now)
				require.Equal(t, fmt.Sprintf("S1 x%d", units), status.Source)
				require.Equal(t, full, status.Configured, "lowered")

				s.hub.rate = full
				s.run(10 * time.Minute)
				s.run(10 * time.Minute)
				require.GreaterOrEqual(t, s.goodput(10*time.Minute), 0.97*full)
				require.Equal(t, full, s.b.rate)
				require.Zero(t, s.b.status(s.now).Configured)
			})
		}
	}
}

// A single throttle answer of a fast hub, met when little was asked of it, is
// forgotten within minutes.
func TestPaceForgetsALoneThrottle(t *testing.T) {
	s := newPaceSim(PaceOptions{}, &shapedHub{rate: 1000, burst: time.Second, backlog: 10 * time.Second})
	s.b.accepted(s.now, s.now, 1)
	s.b.throttled(s.now, s.now.Add(time.Second))
	require.Less(t, s.b.rate, 2.)
	s.run(2 * time.Minute)
	s.run(time.Minute)
	require.GreaterOrEqual(t, s.goodput(time.Minute), 900.)
}

// A hub that refuses everything for a while, twice, when little was sent before, has
// its whole rate back in less than half a minute.
func TestPaceAfterAHubThatTookNothing(t *testing.T) {
	s := newPaceSim(PaceOptions{}, &shapedHub{rate: 1000, burst: time.Second, backlog: 10 * time.Second})
	for range 50 {
		s.b.accepted(s.now, s.now, 1)
	}
	s.now = s.now.Add(time.Second)
	for range 2 {
		s.hub.deaf = true
		s.run(2 * time.Second)
		require.Zero(t, s.accepted)
		s.hub.deaf = false
		s.run(time.Second)
	}
	s.run(25 * time.Second)
	s.run(time.Minute)
	require.GreaterOrEqual(t, s.goodput(time.Minute), 900.)
}

// A hub that throttles before it has answered anything, as to a process that has just
// begun, leaves its rate unknown.
func TestPaceThrottledFirst(t *testing.T) {
	s := newPaceSim(PaceOptions{}, &shapedHub{rate: 1000, burst: time.Second, backlog: 10 * time.Second, deaf: true})
	s.run(3 * time.Second)
	require.NotZero(t, s.refused)
	require.Less(t, s.refused, 520, "a window of them, and then few")
	require.Equal(t, "learned", s.b.status(s.now).Source)
	require.Zero(t, s.b.timeToDrain(100, s.now), "not known")
	s.hub.deaf = false
	s.run(5 * time.Second)
	require.Equal(t, "unlimited", s.b.status(s.now).Source)
	require.GreaterOrEqual(t, s.goodput(5*time.Second), 900.)
}

// Beside the embedded hub's own idea of the tiers, with next to no shaping: neither
// rate nor quota is ever overrun, and both ends count the same.
func TestPaceBesideTheEmbeddedHub(t *testing.T) {
	for _, tier := range []throttle.Tier{throttle.F1, throttle.S1, throttle.S2, throttle.S3} {
		t.Run(string(tier), func(t *testing.T) {
			const size, daily = 600, 20_000
			now := noon
			hub, err := throttle.New(throttle.Options{Tier: tier, Burst: time.Second, Backlog: -1, Daily: daily, Now: func() time.Time { return now }})
			require.NoError(t, err)
			b := newBudget(PaceOptions{Tier: string(tier), DailyMessages: daily})
			for end := noon.Add(30 * time.Minute); now.Before(end); {
				ok, wait := b.take(now)
				if !ok {
					now = now.Add(wait)
					continue
				}
				_, err := hub.Send(size)
				require.NoError(t, err)
				b.accepted(now, now, size)
			}
			require.Equal(t, hub.Status().Used, b.used)
			tiers := newBudget(PaceOptions{Tier: string(tier), Units: 1})
			hub, err = throttle.New(throttle.Options{Tier: tier})
			require.NoError(t, err)
			require.Equal(t, hub.Status().Quota, tiers.limit)
		})
	}
}
