package virtual_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/virtual"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 30 * time.Second

type hub struct {
	*c2d.Store
	fleet *virtual.Fleet
}

func newHub(t testing.TB, rules ...string) *hub {
	t.Helper()
	h := newIdleHub(t, c2d.Options{}, rules...)
	h.run(t)
	return h
}

// newIdleHub is a hub whose fleet does not run yet: who sends must help.
func newIdleHub(t testing.TB, o c2d.Options, rules ...string) *hub {
	t.Helper()
	h := &hub{}
	o.Changed = func(id string) { h.fleet.Consider(id) }
	h.Store = c2d.New(o)
	var parsed []virtual.Rule
	for _, r := range rules {
		p, err := virtual.Parse(r)
		require.NoError(t, err)
		parsed = append(parsed, p)
	}
	var err error
	h.fleet, err = virtual.New(virtual.Options{Store: h.Store, Rules: parsed})
	require.NoError(t, err)
	return h
}

// run serves the fleet until the test ends.
func (h *hub) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.fleet.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (h *hub) create(t testing.TB, id string) {
	t.Helper()
	_, err := h.Create(c2d.Device{ID: id})
	require.NoError(t, err)
}

// send queues a message as an endpoint does.
func (h *hub) send(t testing.TB, id, message string) {
	t.Helper()
	require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/" + id + "/messages/devicebound", MessageID: message}))
	h.fleet.Help()
}

func (h *hub) connected(t testing.TB, id string) bool {
	t.Helper()
	d, err := h.Get(id)
	require.NoError(t, err)
	return d.Connected
}

func TestBehaviours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, "now*=complete", "late*=complete:200ms", "never=never", "no=reject", "back=abandon", "gone=offline")
		for _, id := range []string{"now-1", "late-1", "never", "no", "back", "gone", "real"} {
			h.create(t, id)
			require.Equal(t, id != "gone" && id != "real", h.connected(t, id), id)
			h.send(t, id, "m1")
			h.send(t, id, "m2")
		}
		require.Len(t, h.fleet.Connections(), 5)
		synctest.Wait() // Run may have been quicker than Help to begin with a message, and slower to end with it
		require.EqualValues(t, 2, h.Counts("now-1").Completed)
		require.EqualValues(t, 2, h.Counts("no").Rejected)
		require.EqualValues(t, 2, h.Counts("back").Exceeded, "abandoned ten times each")
		require.EqualValues(t, 20, h.Counts("back").Delivered)
		time.Sleep(199 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 2, h.Counts("late-1").Delivered)
		require.Zero(t, h.Counts("late-1").Completed)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 2, h.Counts("late-1").Completed)
		for _, p := range h.Queue("never") {
			require.Equal(t, c2d.Invisible, p.State)
		}
		require.EqualValues(t, 2, h.Counts("never").Delivered)
		require.Len(t, h.Queue("gone"), 2)
		require.Zero(t, h.Counts("real").Delivered)
	})
}

func TestConnectAndDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, "up=complete,online=5s,offline=3s", "down=complete,offline=3s,online=5s", "once=complete,online=1s")
		for _, id := range []string{"up", "down", "once"} {
			h.create(t, id)
		}
		synctest.Wait()
		for _, step := range []struct {
			wait           time.Duration
			up, down, once bool
		}{
			{0, true, false, true}, {2 * time.Second, true, false, false}, {2 * time.Second, true, true, false}, // at 4 s
			{2 * time.Second, false, true, false}, {2 * time.Second, true, false, false}, {4 * time.Second, true, true, false}, // at 6, 8 and 12 s
		} {
			time.Sleep(step.wait)
			synctest.Wait()
			require.Equal(t, []bool{step.up, step.down, step.once},
				[]bool{h.connected(t, "up"), h.connected(t, "down"), h.connected(t, "once")}, "%v", step)
		}
		h.send(t, "once", "m1") // stays
		require.Len(t, h.Queue("once"), 1)
		for h.connected(t, "up") {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		h.send(t, "up", "m1")
		require.Zero(t, h.Counts("up").Completed, "the device is away")
		time.Sleep(4 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, h.Counts("up").Completed)
	})
}

func TestGivesWayToARealDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t, "d=complete", "p=complete,online=5s,offline=1s")
		h.create(t, "d")
		h.create(t, "p")
		ended := make(chan error, 1)
		real, err := h.Attach("d", c2d.SessionOptions{})
		require.NoError(t, err)
		realP, err := h.Attach("p", c2d.SessionOptions{Closed: func(err error) { ended <- err }})
		require.NoError(t, err)
		_, err = h.Update(c2d.Device{ID: "d", StatusReason: "changed"}, "*")
		require.NoError(t, err)
		require.True(t, real.Live(), "a change of the device is no reason to come back")
		real.Detach()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.False(t, h.connected(t, "d"))
		require.ErrorIs(t, <-ended, c2d.ErrReplaced, "its pattern has it connect again")
		require.False(t, realP.Live())
	})
}

func TestDisableDeleteCreate(t *testing.T) {
	h := newHub(t, "*=complete")
	h.create(t, "d")
	_, err := h.Update(c2d.Device{ID: "d", Disabled: true}, "*")
	require.NoError(t, err)
	require.False(t, h.connected(t, "d"))
	h.send(t, "d", "m1")
	_, err = h.Update(c2d.Device{ID: "d"}, "*")
	require.NoError(t, err)
	require.True(t, h.connected(t, "d"))
	require.Eventually(t, func() bool { return h.Counts("d").Completed == 1 }, wait, time.Millisecond)
	require.NoError(t, h.Delete("d", "*"))
	require.Empty(t, h.fleet.Connections())
	h.create(t, "d")
	require.True(t, h.connected(t, "d"))
	h.send(t, "d", "m2")
	require.Eventually(t, func() bool { return h.Counts("d").Completed == 1 }, wait, time.Millisecond)
}

// What is done at once is done when the sender has its answer, if Run does not get in between.
func TestSendersHelp(t *testing.T) {
	h := newIdleHub(t, c2d.Options{}, "now=complete", "no=reject")
	for _, id := range []string{"now", "no"} {
		h.create(t, id)
		h.send(t, id, "m1")
		h.send(t, id, "m2")
	}
	require.EqualValues(t, 2, h.Counts("now").Completed)
	require.EqualValues(t, 2, h.Counts("no").Rejected)
}

// A device settles its messages in their order, whoever serves it: Run or a sender.
func TestOutcomesComeInOrder(t *testing.T) {
	var got []uint64 // the store tells of one device's outcomes one at a time
	h := newIdleHub(t, c2d.Options{Outcome: func(o c2d.Outcome) { got = append(got, o.Sequence) }}, "*=complete")
	h.run(t)
	h.create(t, "d")
	for range 5000 {
		require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/d/messages/devicebound", Ack: "full"}))
		h.fleet.Help()
	}
	require.Eventually(t, func() bool { return h.Counts("d").Completed == 5000 }, wait, time.Millisecond)
	require.Len(t, got, 5000)
	require.True(t, slices.IsSorted(got))
}

// One sender may not outrun a device that completes at once.
func TestNoRefusals(t *testing.T) {
	h := newHub(t, "*=complete")
	h.create(t, "d")
	for i := range 5000 {
		h.send(t, "d", fmt.Sprint(i))
	}
	require.Eventually(t, func() bool { return h.Counts("d").Completed == 5000 }, wait, time.Millisecond)
}

func TestManyIdleDevicesCostMemoryAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 devices")
	}
	h := newHub(t, "*=complete,online=1h,offline=1h")
	const devices = 100_000
	before, goroutines := heap(), runtime.NumGoroutine()
	begin := time.Now()
	for i := range devices {
		h.create(t, fmt.Sprintf("d%d", i))
	}
	took := time.Since(begin)
	per := float64(heap()-before) / devices
	t.Logf("%d devices connected in %v, %.0f bytes each", devices, took, per)
	require.Less(t, runtime.NumGoroutine()-goroutines, devices/1000, "an earlier test's may end meanwhile, and the runtime's own come and go")
	require.Less(t, per, 2500.0)
	_, _, connected := h.Statistics()
	require.Equal(t, devices, connected)
	h.send(t, "d99999", "m1")
	require.Eventually(t, func() bool { return h.Counts("d99999").Completed == 1 }, wait, time.Millisecond)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkComplete(b *testing.B) {
	h := newHub(b, "*=complete")
	for i := range 1000 {
		h.create(b, fmt.Sprintf("d%d", i))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		h.send(b, fmt.Sprintf("d%d", i%1000), "m")
		i++
	}
}
