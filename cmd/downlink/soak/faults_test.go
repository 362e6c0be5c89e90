package soak

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	hubfault "downlink/bridge/emulator/fault"
)

// TestSeedDecides: the same seed draws the same faults.
func TestSeedDecides(t *testing.T) {
	draw := func(seed uint64) (all []string) {
		s := &stage{devices: cast(MinDevices)}
		m := &mischief{s: s, kinds: faultKinds, rand: rand.New(rand.NewPCG(seed, 1))}
		for range 200 {
			f := m.pick()
			all = append(all, f.kind+": "+f.draw(m.rand, s).what)
		}
		return all
	}
	require.Equal(t, draw(1), draw(1))
	require.NotEqual(t, draw(1), draw(2))
	for _, kind := range FaultKinds() {
		require.Contains(t, strings.Join(draw(1), "\n"), kind+": ", "200 draws have all kinds")
	}
}

// TestOrders: the hub understands whatever is ordered of it.
func TestOrders(t *testing.T) {
	var mu sync.Mutex
	var orders []string
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		orders = append(orders, fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, body))
		mu.Unlock()
		if r.URL.Path != "/admin/faults" {
			return
		}
		if _, err := hubfault.Parse(string(body)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	t.Cleanup(hub.Close)
	s := &stage{devices: cast(MinDevices), http: hub.Client(), hub: hubReady{HTTP: hub.URL}}
	done, cancel := context.WithCancel(t.Context())
	cancel() // nothing lasts
	for _, f := range faultKinds {
		for seed := range uint64(30) {
			a := f.draw(rand.New(rand.NewPCG(seed, 1)), s)
			if len(a.needs) != 1 || a.needs[0] != actorHub || strings.HasPrefix(f.kind, "kill") || f.kind == "freeze" {
				continue // of a process or a link
			}
			require.NoError(t, a.do(t.Context(), done), f.kind)
		}
	}
	all := strings.Join(orders, "\n")
	for _, order := range []string{
		"POST /admin/faults transfer=throttle,for=", "transfer=release,times=", ",after", "transfer=drop", "attach-sender=reject", "puback=withhold,times=", "puback=drop",
		"DELETE /admin/devices/s1-", "POST /admin/expire {",
	} {
		require.Contains(t, all, order)
	}
	require.ErrorIs(t, s.script(t.Context(), "nonsense"), errBadOrder)
}

// TestMischief: faults of one thing do not overlap, and no more than a few at once.
func TestMischief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		under := make(map[string]bool)
		kind := fault{kind: "test", weight: 1, draw: func(r *rand.Rand, _ *stage) act {
			name, long := string('a'+rune(r.IntN(8))), between(r, time.Second, 10*time.Second)
			return act{needs: []string{name}, do: func(_, more context.Context) error {
				mu.Lock()
				require.False(t, under[name])
				under[name] = true
				now++
				most = max(most, now)
				mu.Unlock()
				sleep(more, long)
				mu.Lock()
				under[name] = false
				now--
				mu.Unlock()
				return nil
			}}
		}}
		m := &mischief{kinds: []fault{kind}, rand: rand.New(rand.NewPCG(1, 1)), say: func(string, ...any) {}, busy: map[string]bool{}}
		more, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		require.NoError(t, m.run(t.Context(), more))
		require.Equal(t, time.Minute, time.Since(began), "what lasts ends with the run")
		require.Equal(t, atOnce, most)
		require.Zero(t, now)
		list := m.disturbances()
		require.Greater(t, len(list), 5)
		for i := range list[1:] {
			require.False(t, list[i+1].Begin.Before(list[i].Begin))
		}
	})
}
