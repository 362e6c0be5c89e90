package bench

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

// asPart makes this test's binary a part when it is started again.
const asPart = "BENCH_TEST_AS_PART"

func TestMain(m *testing.M) {
	if os.Getenv(asPart) != "" {
		if err := Part(context.Background(), os.Stdin, os.Stdout, os.Stderr); err != nil {
			io.WriteString(os.Stderr, err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	bridgetest.VerifyTestMain(m)
}

func own(t *testing.T) Command {
	t.Helper()
	t.Setenv(asPart, "1")
	c, err := Own()
	require.NoError(t, err)
	return c
}

// A part answers questions, and ends in good order with its stdin.
func TestPartEndsWithItsInput(t *testing.T) {
	p, err := own(t).start(t.Context(), Spec{Part: "nats", NATS: &NATSSpec{StoreDir: t.TempDir()}})
	require.NoError(t, err)
	require.NotEmpty(t, p.ready.URL)
	before, err := p.stat(t.Context())
	require.NoError(t, err)
	require.Positive(t, before.CPU)
	require.GreaterOrEqual(t, before.Peak, before.RSS)
	after, err := p.stat(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, after.CPU, before.CPU)
	require.NoError(t, p.stop())
	require.NoError(t, p.stop())
}

func TestPartThatFails(t *testing.T) {
	c := own(t)
	for text, s := range map[string]Spec{
		`the bad process: part "bad": unknown`:     {Part: "bad"},
		`the hub process: part "hub": unknown`:     {Part: "hub"},
		"the bridge process: bench.yaml":           {Part: "bridge", Bridge: "version: 2\n"},
		"the hub process: \"*=dance\": behaviour ": {Part: "hub", Hub: &HubSpec{DataDir: t.TempDir(), Virtual: []string{"*=dance"}}},
	} {
		_, err := c.start(t.Context(), s)
		require.ErrorContains(t, err, text)
	}
	_, err := Command{t.TempDir()}.start(t.Context(), Spec{})
	require.Error(t, err)
}

func TestPartWithoutSpecification(t *testing.T) {
	require.ErrorContains(t, Part(t.Context(), strings.NewReader(""), io.Discard, io.Discard), "no specification on stdin")
}

// A measurement ends soon after its context, and leaves no process.
func TestSpeedEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Speed(ctx, SpeedOptions{Command: own(t), Messages: 500, Devices: 30, Pairs: 1000, Progress: func(Round) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOptionsOutOfRange(t *testing.T) {
	for text, o := range map[string]SpeedOptions{
		"messages: 99 are too few":    {Messages: 99},
		"window: 2001 is not":         {Window: 2001},
		"devices: 10 are too few for": {Devices: 10},
		"rate-for: 1ms":               {RateFor: time.Millisecond},
	} {
		require.ErrorContains(t, o.Check(), text)
	}
	require.ErrorContains(t, (&WaitingOptions{}).Check(), "waiting: 0")
	require.ErrorContains(t, (&IsolationOptions{For: 1}).Check(), "for: 1ns")
}

func TestCompare(t *testing.T) {
	c := compare([]Round{
		{Raw: Leg{Rate: 40}, Minimal: Leg{Rate: 20, CPU: 10}, Bridge: Leg{Rate: 10, CPU: 30, Peak: 5}},
		{Raw: Leg{Rate: 40}, Minimal: Leg{Rate: 40, CPU: 10}, Bridge: Leg{Rate: 40, CPU: 10, Peak: 7}},
	})
	require.InDelta(t, 0.75, c.Throughput.Median, 1e-9)
	require.InDelta(t, 2, c.CPU.Median, 1e-9)
	require.InDelta(t, 0.75, c.MinimalToRaw.Median, 1e-9)
	require.InDelta(t, 7, c.Peak.Highest, 1e-9)
	// What was too fast to be seen compares to nothing, and JSON can still say it.
	_, err := json.Marshal(compare([]Round{{}}))
	require.NoError(t, err)
}

func TestFleet(t *testing.T) {
	for _, n := range []int{4, 100, 1000, 1234} {
		f := newFleet(n)
		each := max(1, n/100)
		require.Len(t, f.full, each, n)
		require.Len(t, f.unknown, each, n)
		require.Len(t, f.slow, each, n)
		require.Len(t, f.healthy, n-3*each, n)
		require.Len(t, f.all, n)
	}
}

func TestStatusField(t *testing.T) {
	status := []byte("Name:\tdownlink\nVmHWM:\t   12345 kB\nVmRSS:\t     678 kB\n")
	n, ok := statusField(status, "VmRSS:")
	require.True(t, ok)
	require.EqualValues(t, 678<<10, n)
	_, ok = statusField(status, "VmSwap:")
	require.False(t, ok)
}
