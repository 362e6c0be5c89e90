package natsio

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

func newLease(t testing.TB, url string, change func(*LeaseOptions)) *Lease {
	t.Helper()
	o := LeaseOptions{Stream: "S", Create: true, Logger: testLog(t)}
	if change != nil {
		change(&o)
	}
	if o.Conn == nil {
		o.Conn = connectTo(t, url)
	}
	l, err := NewLease(o)
	require.NoError(t, err)
	l.time = steady()
	return l
}

func runLease(t testing.TB, l *Lease) (stop func()) {
	return run(t, func(ctx context.Context) error { l.Run(ctx); return nil })
}

func acquire(t testing.TB, l *Lease, limit time.Duration) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	lost, err := l.Acquire(ctx)
	require.NoError(t, err, "%v", l.Ready())
	require.True(t, l.Held())
	return lost
}

func standsBy(t testing.TB, l *Lease, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err := l.Acquire(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, l.Held())
}

// cannotBeAsked asks for a lease until Ready says why it cannot be had.
func cannotBeAsked(t testing.TB, l *Lease, want string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan error, 1)
	go func() { _, err := l.Acquire(ctx); asked <- err }()
	becomes(t, l.Ready, want)
	cancel()
	require.ErrorIs(t, <-asked, context.Canceled)
	require.EqualError(t, l.Ready(), want)
	require.False(t, l.Held())
}

func lostWithin(t testing.TB, lost <-chan struct{}, d time.Duration) {
	t.Helper()
	select {
	case <-lost:
	case <-time.After(d):
		require.Fail(t, "the loss was not told")
	}
}

func kept(t testing.TB, lost <-chan struct{}) {
	t.Helper()
	select {
	case <-lost:
		require.Fail(t, "lost")
	default:
	}
}

// One holds it, as long as it lives; at its ordered end the next one has it at once.
func TestLease(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	a, b := newLease(t, n.URL(), nil), newLease(t, n.URL(), nil)
	require.EqualError(t, a.Ready(), "bucket downlink-leases: not checked yet")
	require.False(t, a.Held())
	stop := runLease(t, a)
	runLease(t, b)
	lost := acquire(t, a, 20*time.Second)
	require.NoError(t, a.Ready())
	require.Equal(t, lost, acquire(t, a, 20*time.Second), "held already")
	standsBy(t, b, steady().leaseTTL+time.Second)
	require.NoError(t, b.Ready(), "to stand by is well")
	require.Equal(t, LeaseStatus{Owned: true}, a.Status())
	require.Equal(t, LeaseStatus{Owner: a.id}, b.Status())
	kept(t, lost)
	require.True(t, a.Held())

	kv, err := n.JetStream(t).KeyValue(t.Context(), "downlink-leases")
	require.NoError(t, err)
	status, err := kv.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, steady().leaseTTL, status.TTL())
	e, err := kv.Get(t.Context(), "S")
	require.NoError(t, err)
	require.Equal(t, a.id, string(e.Value()))

	stop()
	require.False(t, a.Held())
	lostWithin(t, lost, 20*time.Second)
	start := time.Now()
	acquire(t, b, 20*time.Second)
	require.Less(t, time.Since(start), steady().leaseTTL-2*steady().leaseRenew, "the key did not run out")
}

// As after kill -9, or while it is stopped: the holder renews no more, and says nothing.
func TestLeaseOfADeadHolder(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	a, b := newLease(t, n.URL(), nil), newLease(t, n.URL(), nil)
	lost := acquire(t, a, 20*time.Second) // Run is not running: nobody renews
	runLease(t, b)
	start := time.Now()
	acquire(t, b, 30*time.Second)
	require.Less(t, time.Since(start), 3*steady().leaseTTL)
	require.False(t, a.Held(), "long before")
	kept(t, lost)
	// It wakes up: told at once, and it does not take the key from its new holder.
	stop := runLease(t, a)
	lostWithin(t, lost, 20*time.Second)
	standsBy(t, a, steady().leaseTTL)
	stop()
	require.True(t, b.Held())
	standsBy(t, newLease(t, n.URL(), nil), 300*time.Millisecond)
}

// By its own clock a holder gives up before the server does, so never are there two.
func TestLeaseEndsBeforeItsKey(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	link := n.Link(t)
	a, b := newLease(t, link.URL(), nil), newLease(t, n.URL(), nil)
	runLease(t, a)
	runLease(t, b)
	lost := acquire(t, a, 20*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() { _, err := b.Acquire(ctx); got <- err }()
	link.Down()
	down := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		// In this order: what a still has at the end of a look it had all through it.
		gone, taken := time.Since(down), b.Held()
		if !a.Held() {
			break
		}
		require.False(t, taken, "both")
		require.Less(t, gone, steady().leaseTTL)
	}
	require.NoError(t, <-got)
	lostWithin(t, lost, 20*time.Second)
	link.Up()
	standsBy(t, a, steady().leaseTTL)
	require.True(t, b.Held())
}

// A suspended machine's monotonic clock stands still: its wall clock says how long it was away.
func TestLeaseAfterASuspension(t *testing.T) {
	n := bridgetest.RunNATS(t)
	var away atomic.Int64
	l := newLease(t, n.URL(), nil)
	l.time = patient() // no renewal is due while the clock jumps
	l.wall = func(now time.Time) time.Time { return now.Add(time.Duration(away.Load())) }
	runLease(t, l)
	lost := acquire(t, l, 20*time.Second)
	away.Store(int64(time.Hour))
	require.False(t, l.Held(), "somebody else may have it by now")
	acquire(t, l, 20*time.Second)
	lostWithin(t, lost, 20*time.Second)
	away.Store(0) // a clock that is set back ends nothing
	require.True(t, l.Held())
	stays(t, l.Held, patient().leaseValid+time.Second, 10*time.Millisecond)
}

// The server is away for less than the lease lasts: nothing happens. For longer: it is lost, and had again.
func TestLeaseThroughRestarts(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	a := newLease(t, n.URL(), nil)
	runLease(t, a)
	lost := acquire(t, a, 20*time.Second)
	n.Restart(t)
	stays(t, a.Held, steady().leaseValid+time.Second, 5*time.Millisecond)
	kept(t, lost)
	n.Stop()
	require.Eventually(t, func() bool { return !a.Held() }, 30*time.Second, 5*time.Millisecond)
	lostWithin(t, lost, 20*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx); got <- err }()
	require.Eventually(t, func() bool { err := a.Ready(); return err != nil && strings.Contains(err.Error(), n.Addr()) }, 30*time.Second, 5*time.Millisecond)
	n.Start(t)
	require.NoError(t, <-got)
	require.True(t, a.Held())
	require.NoError(t, a.Ready())
}

// The answer to a renewal gets lost: the key is ours all the same.
func TestLeaseRenewedWithoutKnowing(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	a := newLease(t, n.URL(), nil)
	lost := acquire(t, a, 20*time.Second)
	kv, err := n.JetStream(t).KeyValue(t.Context(), "downlink-leases")
	require.NoError(t, err)
	_, err = kv.PutString(t.Context(), "S", a.id)
	require.NoError(t, err)
	runLease(t, a)
	stays(t, a.Held, steady().leaseValid+time.Second, 5*time.Millisecond)
	kept(t, lost)
	// And somebody takes it by force.
	_, err = kv.PutString(t.Context(), "S", "somebody")
	require.NoError(t, err)
	lostWithin(t, lost, steady().leaseValid-2*steady().leaseRenew) // by a renewal, not by its end
	require.False(t, a.Held())
}

func TestLeaseNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "cmd.>")
	l := newLease(t, n.URL(), func(o *LeaseOptions) { o.Create = false })
	cannotBeAsked(t, l, "bucket downlink-leases, which says who owns stream S, does not exist: `nats kv add downlink-leases --ttl 6s` or set storage.create: true")
	_, err := n.JetStream(t).CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "downlink-leases", TTL: time.Minute})
	require.NoError(t, err)
	cannotBeAsked(t, l, "bucket downlink-leases, which says who owns stream S: its TTL is 1m0s, not 6s: `nats stream edit KV_downlink-leases --max-age 6s`")

	denied := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$KV.>"}},
		}}}
	})
	l = newLease(t, denied.URL(), func(o *LeaseOptions) {
		o.Conn = connect(t, Options{URLs: []string{denied.URL()}, User: "u", PasswordFile: write(t, t.TempDir(), "password", "p")})
	})
	cannotBeAsked(t, l, `missing NATS permission: publish to "$KV.downlink-leases.S" (who owns stream S)`)

	for _, o := range []LeaseOptions{{}, {Stream: "a.b"}, {Stream: "S", Name: "x.y"}, {Stream: "S", Name: "ü"}} {
		_, err := NewLease(o)
		require.Error(t, err)
	}
	l, err = NewLease(LeaseOptions{Stream: "Ü=S"})
	require.NoError(t, err)
	require.Equal(t, "=C3=9C=3DS", l.key)
}
