package bridge

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// drain asks for sends for d and returns how many were allowed.
func drain(ask func(time.Time) (bool, time.Duration), from time.Time, d time.Duration) int {
	n := 0
	for now := from; now.Before(from.Add(d)); {
		ok, wait := ask(now)
		if ok {
			n++
			continue
		}
		if wait <= 0 {
			panic("no wait")
		}
		now = now.Add(wait)
	}
	return n
}

func TestPaceRates(t *testing.T) {
	for _, c := range []struct {
		o      PaceOptions
		source string
		minute int // sends in the first minute, the bucket full
		daily  int64
	}{
		{PaceOptions{Tier: "F1"}, "F1 x1", 100, 8_000},
		{PaceOptions{Tier: "S1"}, "S1 x1", 100, 400_000},
		{PaceOptions{Tier: "S1", Units: 3}, "S1 x3", 300, 1_200_000},
		{PaceOptions{Tier: "S2", Units: 2}, "S2 x2", 200, 12_000_000},
		{PaceOptions{Tier: "S3"}, "S3 x1", 5_000, 300_000_000},
		{PaceOptions{Tier: "S3", Units: 10}, "S3 x10", 50_000, 3_000_000_000},
		{PaceOptions{Tier: "S3", Share: 0.2}, "S3 x1", 1_000, 60_000_000},
		{PaceOptions{Tier: "S1", Share: 0.1}, "S1 x1", 10, 40_000},
		{PaceOptions{Tier: "S1", Rate: 12.5, DailyMessages: 1_000}, "rate", 750, 1_000},
		{PaceOptions{Rate: 500, Share: 0.5}, "rate", 15_000, 0},
		{PaceOptions{Rate: 0.5}, "rate", 30, 0},
	} {
		t.Run(c.source, func(t *testing.T) {
			require.NoError(t, c.o.check())
			b := newBudget(c.o)
			s := b.status(noon)
			require.Equal(t, c.source, s.Source)
			require.Equal(t, c.daily, s.Limit)
			require.InEpsilon(t, float64(c.minute)/60, s.Rate, 1e-9)
			n := drain(b.take, noon, time.Minute)
			if s.Rate >= 1 {
				require.LessOrEqual(t, n, c.minute)
			} else {
				require.LessOrEqual(t, n, c.minute+1)
			}
			require.GreaterOrEqual(t, n, c.minute*96/100)
			n = drain(b.take, noon.Add(time.Minute), 2*time.Minute)
			require.InEpsilon(t, 2*c.minute, n, 0.03)
		})
	}
}

func TestPaceBurst(t *testing.T) {
	b := newBudget(PaceOptions{Tier: "S3", Units: 10})
	n := 0
	for ok := true; ok; n++ {
		ok, _ = b.take(noon)
	}
	require.Equal(t, 833, n-1, "one second's worth")
	_, wait := b.take(noon)
	require.Equal(t, shortestWait, wait, "a timer of a fast hub finds several tokens")

	b = newBudget(PaceOptions{Tier: "S1"})
	ok, _ := b.take(noon)
	require.True(t, ok)
	ok, wait = b.take(noon)
	require.False(t, ok)
	require.InDelta(t, 0.61, wait.Seconds(), 0.001)
	ok, _ = b.take(noon.Add(wait))
	require.True(t, ok, "wait is enough")
}

func TestPaceProbes(t *testing.T) {
	b := newBudget(PaceOptions{})
	require.Equal(t, 10*60, drain(b.probe, noon, time.Minute), "nothing is known")

	b = newBudget(PaceOptions{Rate: 100})
	require.InDelta(t, 600, drain(b.probe, noon, time.Minute), 12)

	b = newBudget(PaceOptions{Rate: 100})
	var probes int
	sends := drain(func(now time.Time) (bool, time.Duration) {
		if ok, _ := b.probe(now); ok {
			probes++
		}
		return b.take(now)
	}, noon, time.Minute)
	require.InDelta(t, 600, probes, 12)
	require.LessOrEqual(t, probes+sends, 6000, "from one bucket")
	require.GreaterOrEqual(t, probes+sends, 5900)

	b = newBudget(PaceOptions{Rate: 100})
	for ok := true; ok; {
		ok, _ = b.take(noon)
	}
	ok, wait := b.probe(noon)
	require.False(t, ok)
	require.Less(t, wait, 20*time.Millisecond, "waits for the bucket, not for its tenth")
}

func TestPaceUnknown(t *testing.T) {
	b := newBudget(PaceOptions{})
	for range 100_000 {
		ok, _ := b.take(noon)
		require.True(t, ok)
	}
	require.Equal(t, PaceStatus{Source: "unlimited"}, b.status(noon))
	require.Equal(t, "unlimited", b.status(noon).String())
	require.Zero(t, b.timeToDrain(100, noon))
	for i := range 200 { // 20 a second
		b.accepted(noon, noon.Add(time.Duration(i)*50*time.Millisecond), 1)
	}
	now := noon.Add(10 * time.Second)
	require.InDelta(t, 5, b.timeToDrain(100, now).Seconds(), 0.1, "as lately achieved")
	b.throttled(now.Add(-time.Millisecond), now)
	require.InDelta(t, 10, b.rate, 0.5, "from what was achieved")
	require.Equal(t, "learned", b.status(now).Source)
	ok, _ := b.take(now)
	require.False(t, ok, "what was saved up is gone")
}

func TestPaceLowersOncePerBurst(t *testing.T) {
	b := newBudget(PaceOptions{Rate: 100})
	for i := range 50 {
		b.throttled(noon.Add(-time.Duration(i)*time.Millisecond), noon.Add(time.Duration(i)*time.Millisecond))
	}
	require.Equal(t, 90., b.rate)
	b.answered(noon.Add(time.Second), noon.Add(time.Second))
	b.throttled(noon.Add(time.Second), noon.Add(2*time.Second))
	require.Equal(t, 72., b.rate, "again, at the lowered rate: a larger step")
	require.Equal(t, PaceStatus{Rate: 72, Source: "rate", Configured: 100}, b.status(noon.Add(2*time.Second)))
	require.Equal(t, "72/s (rate, lowered from 100/s)", b.status(noon.Add(2*time.Second)).String())
}

func TestPaceRaisesOnlyWhatLimits(t *testing.T) {
	b := newBudget(PaceOptions{Rate: 100})
	b.throttled(noon, noon)
	now := noon
	for range 1000 {
		now = now.Add(time.Second) // one a second: the rate is not what limits
		ok, _ := b.take(now)
		require.True(t, ok)
		b.accepted(now, now, 1)
	}
	require.Equal(t, 90., b.rate)
}

func TestPaceHold(t *testing.T) {
	b := newBudget(PaceOptions{Rate: 100})
	now := noon
	var waits []time.Duration
	for range 10 {
		b.throttled(now, now)
		until := b.status(now).Until
		waits = append(waits, max(0, until.Sub(now)))
		now = now.Add(2 * time.Minute)
	}
	const s = time.Second
	require.Equal(t, []time.Duration{0, s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s, 60 * s}, waits)
	require.Equal(t, lowestRate, b.rate)

	b.throttled(now, now)
	ok, wait := b.take(now)
	require.False(t, ok)
	require.Equal(t, time.Minute, wait)
	ok, wait = b.probe(now)
	require.False(t, ok)
	require.Equal(t, time.Minute, wait)
	b.answered(now.Add(61*s), now.Add(61*s))
	require.Equal(t, 90., b.rate, "nothing but the first said anything about the rate")
	b.throttled(now.Add(70*s), now.Add(70*s))
	require.True(t, b.status(now.Add(70*s)).Until.IsZero(), "an answer ends the streak")

	b = newBudget(PaceOptions{Rate: 0.1})
	for i := range 20 {
		b.throttled(noon.Add(time.Duration(i)*time.Hour), noon.Add(time.Duration(i)*time.Hour))
	}
	require.Equal(t, 0.025, b.rate, "a small rate is lowered too")
}

func TestPaceQuota(t *testing.T) {
	b := newBudget(PaceOptions{DailyMessages: 10})
	b.accepted(noon, noon, 1)
	b.accepted(noon, noon, 4096)
	require.EqualValues(t, 2, b.used)
	b.accepted(noon, noon, 5000)
	b.accepted(noon, noon, 0)
	require.EqualValues(t, 5, b.used)
	require.Equal(t, "unlimited, 5 of 10 today", b.status(noon).String())
	_, yes := b.exhausted(noon)
	require.False(t, yes)

	b.accepted(noon, noon, 64<<10)
	until, yes := b.exhausted(noon)
	require.True(t, yes)
	midnight := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	require.Equal(t, midnight, until)
	for _, ask := range []func(time.Time) (bool, time.Duration){b.take, b.probe} {
		ok, wait := ask(noon)
		require.False(t, ok)
		require.Equal(t, time.Minute, wait, "then the clock is read again")
		ok, wait = ask(midnight.Add(-1))
		require.False(t, ok)
		require.EqualValues(t, 1, wait)
	}
	require.Equal(t, PaceStatus{Source: "unlimited", Until: midnight, Exhausted: true, Used: 21, Limit: 10}, b.status(noon))
	ok, _ := b.take(midnight)
	require.True(t, ok)
	require.Equal(t, PaceStatus{Source: "unlimited", Limit: 10}, b.status(midnight))

	zone := time.FixedZone("", -5*3600)
	b.accepted(time.Time{}, time.Date(2026, 1, 2, 20, 0, 0, 0, zone), 40_960)
	until, yes = b.exhausted(time.Date(2026, 1, 2, 20, 0, 0, 0, zone))
	require.True(t, yes)
	require.Equal(t, time.Date(2026, 1, 4, 0, 0, 0, 0, time.UTC), until, "by UTC days")

	b = newBudget(PaceOptions{Tier: "F1"})
	b.accepted(noon, noon, 513)
	require.EqualValues(t, 2, b.used, "the free tier counts in 0.5 KB")
}

func TestPaceTimeToDrain(t *testing.T) {
	b := newBudget(PaceOptions{Rate: 10})
	require.Equal(t, 100*time.Second, b.timeToDrain(1000, noon))
	require.Zero(t, b.timeToDrain(0, noon))
	require.Equal(t, time.Duration(math.MaxInt64), b.timeToDrain(math.MaxUint64, noon))

	b = newBudget(PaceOptions{Rate: 10, DailyMessages: 1000})
	require.Equal(t, 100*time.Second, b.timeToDrain(1000, noon))
	require.Equal(t, 12*time.Hour+time.Second, b.timeToDrain(1010, noon))
	require.Equal(t, 12*time.Hour+2*24*time.Hour+50*time.Second, b.timeToDrain(3500, noon), "two whole days and a half")
	for range 1000 {
		b.accepted(noon, noon, 1)
	}
	require.Equal(t, 12*time.Hour+time.Second, b.timeToDrain(10, noon))

	b = newBudget(PaceOptions{Rate: 10})
	b.throttled(noon, noon)
	b.throttled(noon.Add(time.Second), noon.Add(time.Second))
	require.InDelta(t, 1+72/9., b.timeToDrain(72, noon.Add(time.Second)).Seconds(), 0.01, "with the hold, at the rate after it")
}

func TestPaceStatusJSON(t *testing.T) {
	b := newBudget(PaceOptions{Tier: "S1", Units: 2})
	b.accepted(noon, noon, 1)
	text, err := json.Marshal(b.status(noon))
	require.NoError(t, err)
	require.JSONEq(t, `{"rate":3.3333333333333335,"source":"S1 x2","used":1,"limit":800000}`, string(text))
	require.Equal(t, "3.33/s (S1 x2), 1 of 800000 today", b.status(noon).String())
}

func TestPaceOptionsCheck(t *testing.T) {
	for _, o := range []PaceOptions{
		{Tier: "B1"}, {Tier: "s1"}, {Tier: "S1", Units: -1}, {Units: 2}, {Rate: -1}, {Rate: math.NaN()}, {Rate: math.Inf(1)},
		{Share: -0.1}, {Share: 1.1}, {Share: math.NaN()}, {DailyMessages: -1},
	} {
		require.Error(t, o.check(), "%+v", o)
	}
	require.NoError(t, PaceOptions{}.check())
	require.NoError(t, PaceOptions{Tier: "S3", Units: 10, Rate: 0.1, Share: 1, DailyMessages: 1}.check())
}

// The clock may jump either way; nothing is stuck for longer than it jumped.
func TestPaceClockJumps(t *testing.T) {
	b := newBudget(PaceOptions{Rate: 10, DailyMessages: 100_000})
	drain(b.take, noon, time.Second)
	before := noon.Add(-48 * time.Hour)
	b.accepted(before, before, 1)
	b.throttled(before, before)
	require.Positive(t, drain(b.take, before, 5*time.Second))
	after := noon.Add(1000 * time.Hour)
	b.accepted(after, after, 1)
	require.LessOrEqual(t, drain(b.take, after, 5*time.Second), 60)
	require.EqualValues(t, 1, b.status(after).Used)
}
