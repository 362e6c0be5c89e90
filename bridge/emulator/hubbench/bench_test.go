package hubbench

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	told := 0
	r, err := Run(t.Context(), Options{Messages: 3001, Pairs: 2, Senders: 2, Progress: func(p Pair) {
		told++
		require.Positive(t, p.Hub)
		require.Positive(t, p.Sink)
	}, Devices: 100, Window: 64})
	require.NoError(t, err)
	require.Equal(t, 2, told)
	require.Len(t, r.Pairs, 2)
	require.LessOrEqual(t, r.Lowest, r.Ratio)
	require.LessOrEqual(t, r.Ratio, r.Highest)
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Run(ctx, Options{Messages: 1000, Pairs: 1000, Progress: func(Pair) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOptionsOutOfRange(t *testing.T) {
	for text, o := range map[string]Options{
		"messages: -1":                {Messages: -1},
		"window: 70000":               {Window: 70_000},
		"devices: 10 are too few for": {Devices: 10},
	} {
		_, err := Run(t.Context(), o)
		require.ErrorContains(t, err, text)
	}
}

func TestMedian(t *testing.T) {
	r := &Result{Pairs: []Pair{{Hub: 10, Sink: 10, Ratio: 1}, {Hub: 6, Sink: 12, Ratio: 0.5}, {Hub: 8, Sink: 10, Ratio: 0.8}}}
	r.summarize()
	require.Equal(t, &Result{Pairs: r.Pairs, Ratio: 0.8, Lowest: 0.5, Highest: 1, Hub: 8, Sink: 10}, r)
	r = &Result{Pairs: r.Pairs[:2]}
	r.summarize()
	require.InDelta(t, 0.75, r.Ratio, 1e-9)
}
