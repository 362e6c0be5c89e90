package fault_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/fault"
)

func TestNilAndZeroNeverAct(t *testing.T) {
	var none *fault.Injector
	none.Add(fault.Open, 1, nil, fault.Action{Kind: fault.Drop})()
	_, ok := none.Next(fault.Open, "")
	require.False(t, ok)
	_, ok = new(fault.Injector).Next(fault.Open, "")
	require.False(t, ok)
}

func TestCountsDown(t *testing.T) {
	var i fault.Injector
	i.Add(fault.Transfer, 2, nil, fault.Action{Kind: fault.Release})
	for range 2 {
		a, ok := i.Next(fault.Transfer, "d1")
		require.True(t, ok)
		require.Equal(t, fault.Release, a.Kind)
	}
	_, ok := i.Next(fault.Transfer, "d1")
	require.False(t, ok)
}

func TestMatchesPointAndDevice(t *testing.T) {
	var i fault.Injector
	cancel := i.Add(fault.Transfer, 0, func(d string) bool { return d == "d1" }, fault.Action{Kind: fault.Modify})
	_, ok := i.Next(fault.Transfer, "d2")
	require.False(t, ok)
	_, ok = i.Next(fault.MQTTPublish, "d1")
	require.False(t, ok)
	for range 5 {
		_, ok = i.Next(fault.Transfer, "d1")
		require.True(t, ok)
	}
	cancel()
	cancel()
	_, ok = i.Next(fault.Transfer, "d1")
	require.False(t, ok)
}

func TestRulesActInOrder(t *testing.T) {
	var i fault.Injector
	i.Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Release})
	i.Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Drop})
	a, _ := i.Next(fault.Transfer, "")
	require.Equal(t, fault.Release, a.Kind)
	a, _ = i.Next(fault.Transfer, "")
	require.Equal(t, fault.Drop, a.Kind)
}

func TestConcurrentUseActsExactlyTimes(t *testing.T) {
	var i fault.Injector
	i.Add(fault.Transfer, 100, nil, fault.Action{Kind: fault.Drop})
	var hits atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, ok := i.Next(fault.Transfer, "d"); ok {
					hits.Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 100, hits.Load())
}
