package spread

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOf(t *testing.T) {
	x := []float64{3, 1, 2}
	require.Equal(t, Spread{Median: 2, Lowest: 1, Highest: 3}, Of(x))
	require.Equal(t, []float64{3, 1, 2}, x)
	require.Equal(t, Spread{Median: 2, Lowest: 1, Highest: 3}, Of([]float64{3, 1}))
	require.Equal(t, Spread{}, Of(nil))
	require.Equal(t, Spread{Median: 2, Lowest: 1, Highest: 3}, Each([]string{"a", "abc"}, func(s string) float64 { return float64(len(s)) }))
}

func TestQuantile(t *testing.T) {
	x := make([]time.Duration, 200)
	for i := range x {
		x[len(x)-1-i] = time.Duration(i + 1)
	}
	require.EqualValues(t, 100, Quantile(x, 0.5))
	require.EqualValues(t, 198, Quantile(x, 0.99))
	require.EqualValues(t, 200, Quantile(x, 1))
	require.EqualValues(t, 1, Quantile(x, 0))
	require.Zero(t, Quantile([]time.Duration{}, 0.5))
}
