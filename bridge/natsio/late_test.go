package natsio

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// What could not be stored while the server was away is not stored behind the caller's back when it returns: by
// then another process may have got on with the message.
func TestNothingIsStoredLate(t *testing.T) {
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	away, other := connectTo(t, link.URL()), connectTo(t, n.URL())
	r, next := newReceipts(t, away, "prod"), newReceipts(t, other, "prod")
	dead, err := NewDeadLetters(DeadLettersOptions{Conn: away, Name: "prod", Create: true})
	require.NoError(t, err)
	c := correlation()
	require.NoError(t, r.Record(t.Context(), c))
	require.NoError(t, dead.Store(t.Context(), letter()))
	link.Down()
	require.Eventually(t, func() bool { return !away.nc.IsConnected() }, 30*time.Second, time.Millisecond)

	short, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	require.Error(t, r.Record(short, c))
	accepted, rejected := receipt(), receipt()
	rejected.Status = bridge.StatusRejected
	require.Error(t, r.Store(short, rejected, c))
	l := letter()
	l.Device = "another"
	require.Error(t, dead.Store(short, l))
	_, err = r.Find(short, "main", []bridge.Record{record(c, "")})
	require.Error(t, err)
	_, err = r.Overdue(short, time.Time{}, time.Now(), func([]*bridge.Found) error { return nil })
	require.Error(t, err)
	require.Less(t, time.Since(begun), apiTimeout, "nobody waits for a server that is known to be away")

	require.NoError(t, next.Store(t.Context(), accepted, c))
	found, err := next.Find(t.Context(), "main", []bridge.Record{record(c, "")})
	require.NoError(t, err)
	require.NoError(t, next.Finish(t.Context(), found[0], bridge.StatusCompleted))

	link.Up()
	becomesReady(t, away.Ready)
	require.NoError(t, away.nc.FlushTimeout(20*time.Second))
	require.NoError(t, away.nc.Publish("prod.receipt.last.x.x", nil))
	require.Eventually(t, func() bool {
		m, err := other.leaderGet(t.Context(), "PROD_RECEIPTS", "prod.receipt.last.>")
		return err == nil && m != nil
	}, 30*time.Second, 5*time.Millisecond)
	found, err = next.Find(t.Context(), "main", []bridge.Record{record(c, "")})
	require.NoError(t, err)
	require.Equal(t, bridge.StatusCompleted, found[0].Status, "what was told is not forgotten")
	m, err := other.leaderGet(t.Context(), "PROD_RECEIPTS", "prod.receipt.*.*."+bridge.StatusRejected)
	require.NoError(t, err)
	require.Nil(t, m)
	s, err := n.JetStream(t).Stream(t.Context(), "PROD_DEAD")
	require.NoError(t, err)
	require.EqualValues(t, 1, s.CachedInfo().State.Msgs)
}
