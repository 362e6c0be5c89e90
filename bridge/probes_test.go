package bridge

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// takeDue pops all that is due.
func takeDue(q *probeQueue[string], now time.Time) []string {
	var lanes []string
	for ok, _, _ := q.due(now); ok; ok, _, _ = q.due(now) {
		lanes = append(lanes, q.pop())
	}
	return lanes
}

func TestProbesBackOff(t *testing.T) {
	q := newProbeQueue[string]()
	ok, woken, wait := q.due(noon)
	require.False(t, ok || woken)
	require.Zero(t, wait, "nobody waits")

	now, pause := noon, roomFirst
	for range 10 {
		q.wait("a", "a", now)
		ok, _, wait := q.due(now)
		require.False(t, ok)
		require.GreaterOrEqual(t, wait, pause/2)
		require.LessOrEqual(t, wait, pause*3/2)
		require.Empty(t, takeDue(q, now.Add(wait-1)))
		require.Equal(t, []string{"a"}, takeDue(q, now.Add(wait)))
		now, pause = now.Add(wait), min(2*pause, roomMax)
	}
	q.forget("a")
	require.Empty(t, q.lanes)
	q.wait("a", "a", now)
	_, _, wait = q.due(now)
	require.LessOrEqual(t, wait, roomFirst*3/2, "from the start again")
	q.wait("a", "a", now.Add(time.Second))
	require.Equal(t, 1, q.Len())
	_, _, again := q.due(now)
	require.Equal(t, wait, again, "one that waits stays as it is")
}

func TestProbesWake(t *testing.T) {
	q := newProbeQueue[string]()
	require.False(t, q.wake("a"))
	for _, lane := range []string{"b1", "a1", "a2", "c1"} {
		q.wait(lane, lane[:1], noon)
	}
	late := noon.Add(time.Hour)
	require.True(t, q.wake("c"))
	require.True(t, q.wake("a"))
	require.True(t, q.wake("a"), "the device's other lane")
	require.False(t, q.wake("a"), "it has no third")
	ok, woken, _ := q.due(noon)
	require.True(t, ok && woken)
	require.Equal(t, []string{"a1", "a2", "c1"}, takeDue(q, noon), "in turn")
	require.False(t, q.wake("a"), "under way")
	_, woken, _ = q.due(late)
	require.False(t, woken)
	q.wait("a1", "a", late)
	require.True(t, q.wake("a"))
	require.Equal(t, []string{"a1", "b1"}, takeDue(q, late), "before what has been due for long")
	require.Empty(t, q.devices)
	require.Len(t, q.lanes, 4, "their back-off is kept while they are probed")
}

// With more full queues than probes each is tried in turn: the slowest device is
// not kept waiting by those that were there before.
func TestProbesTurns(t *testing.T) {
	q := newProbeQueue[string]()
	const lanes = 100
	for i := range lanes {
		q.wait(fmt.Sprint(i), fmt.Sprint(i), noon)
	}
	tries := make(map[string]int)
	for i := range 10 * lanes { // one probe every 6 s, all remain full
		now := noon.Add(time.Duration(i+1) * 6 * time.Second)
		ok, _, _ := q.due(now)
		require.True(t, ok)
		lane := q.pop()
		tries[lane]++
		q.wait(lane, lane, now)
	}
	for i := range lanes {
		require.InDelta(t, 10, tries[fmt.Sprint(i)], 1)
	}
}

// Against a plain model, with random calls.
func TestProbesModel(t *testing.T) {
	type entry struct {
		due  time.Time
		turn int
	}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		q := newProbeQueue[string]()
		model := make(map[string]entry)
		now := noon
		for turn := range 300 {
			lane := fmt.Sprintf("%d-%d", r.IntN(8), r.IntN(2))
			switch r.IntN(5) {
			case 0, 1:
				q.wait(lane, lane[:1], now)
				if _, there := model[lane]; !there {
					model[lane] = entry{q.lanes[lane].due, turn}
				}
			case 2:
				q.forget(lane)
				delete(model, lane)
			case 3:
				first := ""
				for l, e := range model {
					if l[:1] == lane[:1] && !e.due.IsZero() && (first == "" || e.turn < model[first].turn) {
						first = l
					}
				}
				require.Equal(t, first != "", q.wake(lane[:1]))
				if first != "" {
					model[first] = entry{time.Time{}, model[first].turn}
				}
			case 4:
				now = now.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
				first := ""
				for l, e := range model {
					if f, ok := model[first]; !ok || e.due.Before(f.due) || e.due.Equal(f.due) && e.turn < f.turn {
						first = l
					}
				}
				ok, woken, wait := q.due(now)
				require.Equal(t, first != "" && !model[first].due.After(now), ok)
				require.Equal(t, first != "" && model[first].due.IsZero(), woken)
				if !ok {
					require.Equal(t, first != "", wait > 0)
					break
				}
				require.Equal(t, first, q.pop())
				delete(model, first)
			}
			require.Equal(t, len(model), q.Len(), "seed %d", seed)
		}
	}
}

func BenchmarkProbes(b *testing.B) {
	q := newProbeQueue[int]()
	for i := range 100_000 {
		q.wait(i, fmt.Sprint(i), noon)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now := noon.Add(time.Hour + time.Duration(i)*time.Microsecond)
		lane := q.pop()
		q.wait(lane, q.lanes[lane].device, now)
	}
}
