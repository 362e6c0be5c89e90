// Package spread sums up a handful of measurements, as the benchmarks print
// them: a median, since one busy second of the machine must not decide, and
// the extremes, since a median alone hides how busy it was.
package spread

import "slices"

// Spread is what the measurements of one thing came to. The zero Spread is that of none.
type Spread struct {
	Median  float64 `json:"median"`
	Lowest  float64 `json:"lowest"`
	Highest float64 `json:"highest"`
}

// Of sums up x, which stays as it is. The median of an even number is between the two in the middle.
func Of(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	return Spread{Median: (x[(n-1)/2] + x[n/2]) / 2, Lowest: x[0], Highest: x[n-1]}
}

// Each sums up one number of each of the rounds.
func Each[R any](rounds []R, number func(R) float64) Spread {
	x := make([]float64, len(rounds))
	for i, r := range rounds {
		x[i] = number(r)
	}
	return Of(x)
}

// Quantile is the smallest of x that at least the given part of x does not
// exceed: 0.5 is a median, 0.99 the value that one in a hundred exceeds. It
// sorts x; 0 for none.
func Quantile[T ~int64 | ~float64](x []T, part float64) T {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	i := int(part*float64(len(x))+0.999999) - 1
	return x[min(max(i, 0), len(x)-1)]
}
