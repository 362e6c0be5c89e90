package throttle_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/throttle"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newThrottle(t *testing.T, o throttle.Options) (*throttle.Throttle, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)}
	o.Now = c.now
	x, err := throttle.New(o)
	require.NoError(t, err)
	return x, c
}

func refusal(t *testing.T, err error, condition string, code int) {
	t.Helper()
	var r *c2d.Refusal
	require.ErrorAs(t, err, &r)
	require.Equal(t, condition, r.Condition)
	require.Equal(t, code, r.Code)
}

const throttled = "com.microsoft:device-container-throttled"

// A burst is served at once, then messages are delayed at the rate, then refused.
func TestTrafficShaping(t *testing.T) {
	for tier, perSecond := range map[throttle.Tier]float64{throttle.F1: 100. / 60, throttle.S1: 100. / 60, throttle.S2: 100. / 60, throttle.S3: 5000. / 60} {
		t.Run(string(tier), func(t *testing.T) {
			x, clock := newThrottle(t, throttle.Options{Tier: tier})
			for i := range int(perSecond*60 + .5) {
				wait, err := x.Send(100)
				require.NoError(t, err)
				require.Zero(t, wait, "message %d of the burst", i)
			}
			last := time.Duration(0)
			for i := 1; i <= int(perSecond*30); i++ {
				wait, err := x.Send(100)
				require.NoError(t, err)
				require.InDelta(t, float64(i)/perSecond, wait.Seconds(), 0.001)
				require.Greater(t, wait, last)
				last = wait
			}
			_, err := x.Send(100)
			refusal(t, err, throttled, 429001)
			s := x.Status()
			require.Equal(t, int64(math.Round(perSecond*60)+math.Floor(perSecond*30)), s.Used, "what is refused is not charged")
			require.Equal(t, uint64(1), s.Throttled)
			clock.t = clock.t.Add(time.Duration(float64(time.Second)/perSecond) + time.Microsecond)
			_, err = x.Send(100)
			require.NoError(t, err, "the rate goes on")
			clock.t = clock.t.Add(10 * time.Minute)
			wait, err := x.Send(100)
			require.NoError(t, err)
			require.Zero(t, wait, "a quiet time earns the burst again")
		})
	}
}

func TestUnitsMultiply(t *testing.T) {
	x, _ := newThrottle(t, throttle.Options{Tier: throttle.S1, Units: 3, Backlog: -1})
	n := 0
	for ; ; n++ {
		if _, err := x.Send(1); err != nil {
			refusal(t, err, throttled, 429001)
			break
		}
	}
	require.Equal(t, 300, n)
	require.Equal(t, int64(1_200_000), x.Status().Quota)
}

func TestBurstAndBacklogAreOptions(t *testing.T) {
	x, _ := newThrottle(t, throttle.Options{Tier: throttle.S1, Burst: -1, Backlog: 700 * time.Millisecond})
	wait, err := x.Send(1)
	require.NoError(t, err)
	require.Zero(t, wait)
	wait, err = x.Send(1)
	require.NoError(t, err)
	require.InDelta(t, 0.6, wait.Seconds(), 0.001)
	_, err = x.Send(1)
	refusal(t, err, throttled, 429001)
}

func TestDailyQuotaCountsBlocksUntilMidnight(t *testing.T) {
	for name, c := range map[string]struct {
		tier      throttle.Tier
		condition string
		want      string
		block     int
	}{
		"standard": {throttle.S1, "", "amqp:resource-limit-exceeded", 4096},
		"free":     {throttle.F1, throttle.QuotaExceeded, "com.microsoft:quota-exceeded", 512},
	} {
		t.Run(name, func(t *testing.T) {
			x, clock := newThrottle(t, throttle.Options{Tier: c.tier, Daily: 10, QuotaCondition: c.condition})
			for _, m := range []struct{ size, used int }{{0, 1}, {1, 2}, {c.block, 3}, {c.block + 1, 5}, {5 * c.block, 10}} {
				_, err := x.Send(m.size)
				require.NoError(t, err)
				require.EqualValues(t, m.used, x.Status().Used)
			}
			_, err := x.Send(1)
			refusal(t, err, c.want, 403002)
			refusal(t, x.Telemetry(1), c.want, 403002)
			x.Refund(c.block)
			require.NoError(t, x.Telemetry(1))
			clock.t = time.Date(2026, 1, 2, 23, 59, 59, 0, time.UTC)
			_, err = x.Send(1)
			refusal(t, err, c.want, 403002)
			require.Equal(t, uint64(3), x.Status().OverQuota)
			clock.t = time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
			_, err = x.Send(1)
			require.NoError(t, err)
			require.EqualValues(t, 1, x.Status().Used)
		})
	}
}

func TestTheTiersQuotas(t *testing.T) {
	for tier, daily := range map[throttle.Tier]int64{
		throttle.F1: 8_000, throttle.S1: 400_000, throttle.S2: 6_000_000, throttle.S3: 300_000_000,
		throttle.B1: 400_000, throttle.B2: 6_000_000, throttle.B3: 300_000_000,
	} {
		x, _ := newThrottle(t, throttle.Options{Tier: tier})
		require.Equal(t, daily, x.Status().Quota, tier)
	}
}

func TestBasicTiersHaveNoCloudToDevice(t *testing.T) {
	for _, tier := range []throttle.Tier{throttle.B1, throttle.B2, throttle.B3} {
		x, _ := newThrottle(t, throttle.Options{Tier: tier})
		_, err := x.Send(1)
		refusal(t, err, "amqp:not-allowed", 400003)
		require.NoError(t, x.Telemetry(1))
		require.NoError(t, x.Registry())
	}
}

func TestConnectionsTelemetryAndRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		o                 throttle.Options
		devices, registry int // a second's worth
	}{
		"the floor of S1":  {throttle.Options{Tier: throttle.S1}, 100, 2},
		"12 a unit of S1":  {throttle.Options{Tier: throttle.S1, Units: 10}, 120, 17},
		"120 a unit of S2": {throttle.Options{Tier: throttle.S2, Units: 2}, 240, 3},
		"S3":               {throttle.Options{Tier: throttle.S3}, 6000, 83},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Burst = time.Second
			x, clock := newThrottle(t, c.o)
			count := func(ask func() error) (n int) {
				for ; n < 10_000; n++ {
					if err := ask(); err != nil {
						refusal(t, err, throttled, 429001)
						break
					}
				}
				return n
			}
			require.Equal(t, c.devices, count(x.Connect))
			require.Equal(t, c.devices, count(func() error { return x.Telemetry(1) }))
			require.Equal(t, c.registry, count(x.Registry))
			clock.t = clock.t.Add(time.Second)
			require.Equal(t, c.devices, count(x.Connect))
		})
	}
}

func TestOffLimitsNothing(t *testing.T) {
	x, err := throttle.New(throttle.Options{})
	require.NoError(t, err)
	require.Nil(t, x)
	wait, err := x.Send(1 << 20)
	require.NoError(t, err)
	require.Zero(t, wait)
	x.Refund(1)
	require.NoError(t, x.Connect())
	require.NoError(t, x.Registry())
	require.NoError(t, x.Telemetry(1))
	require.Zero(t, x.Status())
}

func TestWrongOptions(t *testing.T) {
	for name, c := range map[string]struct {
		o    throttle.Options
		want string
	}{
		"tier":       {throttle.Options{Tier: "S9"}, `tier: no tier "S9": take F1, S1, S2, S3, B1, B2, B3 or off`},
		"free units": {throttle.Options{Tier: throttle.F1, Units: 2}, "units: 2 is more than the 1 a hub of tier F1 can have"},
		"units":      {throttle.Options{Tier: throttle.S3, Units: 11}, "units: 11 is more than the 10 a hub of tier S3 can have"},
		"negative":   {throttle.Options{Tier: throttle.S1, Units: -1}, "units: -1 is negative"},
		"no tier":    {throttle.Options{Units: 2}, "units: 2 units of no tier: give the tier as well"},
		"condition":  {throttle.Options{Tier: throttle.S1, QuotaCondition: "x"}, `quota condition: "x" is neither amqp:resource-limit-exceeded nor com.microsoft:quota-exceeded`},
	} {
		_, err := throttle.New(c.o)
		require.EqualError(t, err, c.want, name)
	}
	for in, want := range map[string]throttle.Tier{"": throttle.Off, "off": throttle.Off, "s1": throttle.S1, "B3": throttle.B3} {
		got, err := throttle.ParseTier(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}
