package main

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bench"
)

// Tiny runs of each measurement: they end, and their numbers agree with each
// other. How fast anything is, is no test's business.
func TestBenchBridge(t *testing.T) {
	t.Parallel()
	profiles := t.TempDir()
	got := cli(t, "bench", "bridge", "--messages", "2000", "--devices", "50", "--pairs", "2", "--rate", "200", "--rate-for", "200ms",
		"--hub-delay", "10ms", "--profiles", profiles, "--json")
	require.Zero(t, got.code, got.stderr)
	var r bench.SpeedResult
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	require.Len(t, r.Near.Rounds, 2)
	for _, round := range r.Near.Rounds {
		for _, leg := range []bench.Leg{round.Raw, round.Minimal, round.Bridge} {
			require.Positive(t, leg.Peak)
			require.GreaterOrEqual(t, leg.CPU, 0.0)
		}
		require.LessOrEqual(t, r.Near.Bridge.Lowest, round.Bridge.Rate)
		require.GreaterOrEqual(t, r.Near.Bridge.Highest, round.Bridge.Rate)
	}
	require.Equal(t, 200, r.Latency.Rate)
	require.Len(t, r.Latency.Rounds, 2)
	for _, l := range r.Latency.Rounds {
		require.Positive(t, l.Bridge.P50)
		require.LessOrEqual(t, l.Bridge.P50, l.Bridge.P99)
		require.LessOrEqual(t, l.Minimal.P50, l.Minimal.P99)
	}
	require.Equal(t, 10*time.Millisecond, r.Far.Delay)
	require.InDelta(t, 50/0.010, r.Far.Bound, 0.1) // one of each device
	require.LessOrEqual(t, r.Far.Explained, r.Far.Bound)
	for _, name := range []string{"bridge.pprof", "minimal.pprof"} {
		require.FileExists(t, filepath.Join(profiles, name))
	}
}

func TestBenchBridgeText(t *testing.T) {
	t.Parallel()
	got := cli(t, "bench", "bridge", "--messages", "500", "--devices", "30", "--pairs", "1", "--rate", "100", "--rate-for", "100ms")
	require.Zero(t, got.code, got.stderr)
	require.Regexp(t, `(?m)^round 1 +raw +\d+/s .* us  minimal +\d+/s .* us  bridge +\d+/s .* us +[\d.]+ MB$`, got.stdout)
	require.Regexp(t, `(?m)^  throughput  bridge/minimal \d+\.\d\d \(.* to .*\)  minimal/raw \d`, got.stdout)
	require.Regexp(t, `(?m)^  p99 +minimal `, got.stdout)
}

func TestBenchWaiting(t *testing.T) {
	t.Parallel()
	got := cli(t, "bench", "bridge", "--waiting", "3000", "--waiting-devices", "60", "--json")
	require.Zero(t, got.code, got.stderr)
	var r bench.WaitingResult
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	require.Equal(t, 3000, r.Held+r.Parked+r.Unread)
	require.Equal(t, 60, r.WaitingDevices)
	require.GreaterOrEqual(t, r.Peak, r.RSS)
	require.InDelta(t, float64(r.RSS-r.RSSBefore)/60, r.PerDevice, 0.01)
}

func TestBenchIsolation(t *testing.T) {
	t.Parallel()
	got := cli(t, "bench", "isolation", "--devices", "100", "--pairs", "1", "--for", "1s", "--ahead", "300", "--json")
	require.Zero(t, got.code, got.stderr)
	var r bench.IsolationResult
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	require.Len(t, r.Pairs, 1)
	p := r.Pairs[0]
	// Of 400 messages 4 go to the one device of each kind.
	require.Equal(t, 4, p.Troubled.Unknown)
	require.Positive(t, p.Troubled.Refused)
	require.NotEqual(t, p.With, p.Without, "two runs, not one told twice")
	for _, h := range []bench.Healthy{p.With, p.Without} {
		require.Positive(t, h.Goodput)
		require.LessOrEqual(t, h.Goodput, 400.0)
		require.LessOrEqual(t, h.P50, h.P99)
	}
	require.InDelta(t, p.With.Goodput/p.Without.Goodput, r.Goodput.Median, 1e-9)
	require.True(t, r.Ahead.Arrived)
	require.Equal(t, r.Ahead.Delay, r.Ahead.ReadPast+r.Ahead.More)
	require.Positive(t, r.Ahead.Copy)

	got = cli(t, "bench", "isolation", "--devices", "4", "--pairs", "1", "--for", "200ms", "--ahead", "1")
	require.Zero(t, got.code, got.stderr)
	require.Regexp(t, `(?m)^  goodput     with/without \d\.\d+ \(`, got.stdout)
	require.Regexp(t, `(?m)^behind 1 messages of another device:\n  at the hub after `, got.stdout)
}

func TestBenchBridgeWrongUse(t *testing.T) {
	for _, args := range [][]string{
		{"bench", "bridge", "--pairs", "0"}, {"bench", "bridge", "--messages", "-1"}, {"bench", "bridge", "--devices", "3"}, {"bench", "bridge", "x"},
		{"bench", "bridge", "--rate", "-1"}, {"bench", "bridge", "--hub-delay", "-1s"}, {"bench", "bridge", "--waiting", "-1"},
		{"bench", "isolation", "--devices", "3"}, {"bench", "isolation", "--rate", "501"}, {"bench", "isolation", "--ahead", "-1"},
	} {
		require.Equal(t, 2, cli(t, args...).code, args)
	}
}
