package natsio

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// Through restarts and cut links: tried again until it is stored, each entry is there once, in order.
func TestMailboxThroughFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testing.T, *bridgetest.NATS, *bridgetest.Link){
		"restart": func(t *testing.T, n *bridgetest.NATS, _ *bridgetest.Link) { n.Restart(t) },
		"cut":     func(_ *testing.T, _ *bridgetest.NATS, l *bridgetest.Link) { l.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			n := bridgetest.RunNATS(t)
			link := n.Link(t)
			m := mailbox(t, connectTo(t, link.URL()), nil)
			run(t, m.Run)
			const devices, each, faults = 16, 120, 4
			var stored atomic.Int64
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			for d := range devices {
				wg.Go(func() {
					for i := 1; i <= each && ctx.Err() == nil; {
						_, err := m.Append(ctx, waits("d"+strconv.Itoa(d), i))
						if errors.Is(err, bridge.ErrUnstorable) {
							t.Errorf("%v", err)
							return
						}
						if err == nil {
							stored.Add(1)
							i++
						} else {
							_ = sleep(ctx, 20*time.Millisecond)
						}
					}
				})
			}
			for k := int64(1); k <= faults; k++ {
				require.Eventually(t, func() bool { return stored.Load() >= k*devices*each/(faults+1) }, 2*time.Minute, time.Millisecond)
				fault(t, n, link)
			}
			wg.Wait()
			require.NoError(t, ctx.Err())
			boxes, err := m.Boxes(t.Context(), "COMMANDS")
			require.NoError(t, err)
			require.Len(t, boxes, devices)
			for _, b := range boxes {
				require.EqualValues(t, each, b.Entries)
				above := uint64(0)
				for i := 1; i <= each; i++ {
					p, err := m.Next(t.Context(), b, above)
					require.NoError(t, err)
					require.EqualValues(t, i, p.Message.Sequence, "in order")
					above = p.Entry
				}
			}
			becomesReady(t, m.Ready)
		})
	}
}

// Not buffered: whoever owns the box when the server is back must not find a stranger's entry behind its own.
func TestMailboxFailsWhileAway(t *testing.T) {
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	m := mailbox(t, c, nil)
	appendTo(t, m, waits("d", 1))
	n.Stop()
	require.Eventually(t, func() bool { return !c.nc.IsConnected() }, 30*time.Second, time.Millisecond)
	start := time.Now()
	_, err := m.Append(t.Context(), waits("d", 2))
	require.ErrorContains(t, err, "nats://127.0.0.1")
	_, err = m.Next(t.Context(), boxOf("d"), 0)
	require.ErrorContains(t, err, "nats://127.0.0.1")
	require.Less(t, time.Since(start), apiTimeout, "neither waited")
	n.Start(t)
	require.Eventually(t, c.nc.IsConnected, 30*time.Second, time.Millisecond)
	p, err := m.Next(t.Context(), boxOf("d"), 0)
	require.NoError(t, err)
	p, err = m.Next(t.Context(), boxOf("d"), p.Entry)
	require.NoError(t, err)
	require.Nil(t, p)
}

// More boxes than the server lists at a time.
func TestMailboxManyBoxes(t *testing.T) {
	if testing.Short() {
		t.Skip("stores 100,100 messages")
	}
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil)
	require.NoError(t, m.stream.ensure(t.Context()))
	const total = 100_100
	nc := n.Conn(t)
	s, err := n.JetStream(t).Stream(t.Context(), m.Stream())
	require.NoError(t, err)
	for i := range total {
		require.NoError(t, nc.Publish(m.subject(boxOf("device-"+strconv.Itoa(i)), ""), nil))
		if i%20_000 != 0 && i != total-1 {
			continue
		}
		require.Eventually(t, func() bool { // the server has room for so many that are not stored yet
			info, err := s.Info(t.Context())
			return err == nil && info.State.Msgs == uint64(i+1)
		}, 3*time.Minute, 20*time.Millisecond)
	}
	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Len(t, boxes, total)
	for i := 1; i < total; i++ {
		require.Less(t, boxes[i-1].Device, boxes[i].Device)
	}
}

// A page of very many boxes may take long to make and to come.
func TestMailboxWaitsForItsBoxes(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	m := mailbox(t, connectTo(t, link.URL()), nil)
	appendTo(t, m, waits("d", 1))
	link.Stall()
	flow := time.AfterFunc(apiTimeout+time.Second, link.Flow)
	defer flow.Stop()
	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Len(t, boxes, 1)
}

// While the pages are read, boxes come and go: what stays is never missed.
func TestPages(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 25 {
		all = append(all, fmt.Sprintf("s%02d", i))
	}
	pages := func(between func(call int)) func(int) (map[string]uint64, int, error) {
		call := 0
		return func(offset int) (map[string]uint64, int, error) {
			between(call)
			call++
			page := map[string]uint64{}
			for _, s := range all[min(offset, len(all)):min(offset+10, len(all))] {
				page[s] = 1
			}
			return page, len(all), nil
		}
	}
	list, err := allPages(pages(func(int) {}))
	require.NoError(t, err)
	require.Len(t, list, 25)
	list, err = allPages(pages(func(call int) {
		if call == 1 { // the first one is emptied between two pages
			all = all[1:]
		}
	}))
	require.NoError(t, err)
	require.Len(t, list, 24)
	require.Equal(t, "s01", list[0].subject)
	list, err = allPages(pages(func(call int) {
		if call == 2 { // and one comes before
			all = append([]string{"a"}, all...)
		}
	}))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(list), 24)
	require.Equal(t, "s24", list[len(list)-1].subject)
	_, err = allPages(pages(func(int) { all = all[1:]; all = append(all, "z"+strconv.Itoa(len(all)), "zz") }))
	require.Error(t, err)
	list, err = allPages(func(int) (map[string]uint64, int, error) { return nil, 0, nil })
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = allPages(func(int) (map[string]uint64, int, error) { return nil, 0, errors.New("x") })
	require.EqualError(t, err, "x")
}

// What a hot device and many devices at once get through one connection.
func BenchmarkMailboxAppend(b *testing.B) {
	for _, devices := range []int{1, 16, 64} {
		b.Run(strconv.Itoa(devices), func(b *testing.B) {
			n := bridgetest.RunNATS(b)
			m := mailbox(b, connectTo(b, n.URL()), nil)
			require.NoError(b, m.stream.ensure(b.Context()))
			var seq atomic.Int64
			b.ResetTimer()
			var wg sync.WaitGroup
			for d := range devices {
				wg.Go(func() {
					for i := seq.Add(1); i <= int64(b.N); i = seq.Add(1) {
						if _, err := m.Append(b.Context(), waits("d"+strconv.Itoa(d), int(i))); err != nil {
							b.Errorf("%v", err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
