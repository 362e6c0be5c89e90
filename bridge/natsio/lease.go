package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// LeaseOptions configures a Lease. Conn and Stream are required.
type LeaseOptions struct {
	Conn *Conn
	// Name is the bridge's: KV bucket <name>-leases. Default downlink.
	Name string
	// Stream is the source stream to own.
	Stream string
	// Create makes the bucket if it does not exist.
	Create bool
	// Replicas of a bucket that is created. Zero: as many as Stream has.
	Replicas int
	Logger   *slog.Logger
}

// Lease is the ownership of a source stream by one process of a bridge name: a key that its holder
// renews every three seconds, and that the server drops ten seconds after the last
// renewal. The holder counts on it for eight seconds from the start of its last renewal, on its own monotonic
// clock, and on its wall clock as well, since the former stands still while a machine is suspended, so that whoever holds it next never meets one who believes that he still does. Only its own word
// makes the key last: an update names the revision that it replaces.
//
// Acquire and Run are for one goroutine each; the rest is safe for concurrent use.
type Lease struct {
	o      LeaseOptions
	time   timing
	log    *slog.Logger
	id     string
	began  time.Time
	wall   func(now time.Time) time.Time // what the wall clock says; tests have it jump
	bucket string
	key    string

	term atomic.Pointer[term] // the current one; nil: not ours
	news chan struct{}        // there is a new term

	mu    sync.Mutex
	kv    jetstream.KeyValue
	err   error  // why the lease cannot be asked for; a lease that somebody else holds is no error
	owner string // who holds it, as far as known
}

// term is one time of holding the lease, from its acquisition to its loss.
type term struct {
	kv       jetstream.KeyValue
	revision uint64        // of the key; only Run's goroutine uses it
	until    atomic.Int64  // when it ends unless it is renewed, in nanoseconds since Lease.began
	wall     atomic.Int64  // the same on the wall clock, as Unix time in nanoseconds
	lost     chan struct{} // closed when it has ended
}

// NewLease checks the options. It does no I/O.
func NewLease(o LeaseOptions) (*Lease, error) {
	if o.Name == "" {
		o.Name = "downlink"
	}
	if err := errors.Join(checkToken("name", o.Name), checkToken("stream", o.Stream)); err != nil {
		return nil, err
	}
	if kvKey(o.Name) != o.Name {
		return nil, fmt.Errorf("nats: name %q: only letters, digits, - and _ are allowed in it: it names a KV bucket", o.Name)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	l := &Lease{
		o: o, time: realTiming(), log: logger(o.Logger).With("stream", o.Stream), began: time.Now(), wall: func(now time.Time) time.Time { return now },
		id:     fmt.Sprintf("%s %d %s", host, os.Getpid(), nuid.Next()),
		bucket: LeaseBucket(o.Name), key: kvKey(o.Stream), news: make(chan struct{}, 1),
	}
	l.err = errors.New("bucket " + l.bucket + ": not checked yet")
	return l, nil
}

// LeaseBucket is the KV bucket with the leases of a bridge of this name. A key is a stream's name with
// every byte outside [A-Za-z0-9_-] as =XX, its value names the holder.
func LeaseBucket(name string) string { return name + "-leases" }

// Held reports whether the lease is surely still ours.
func (l *Lease) Held() bool { return l.holds(l.term.Load()) }

// holds reports whether a term has not ended, nor may have without our knowing.
func (l *Lease) holds(t *term) bool {
	if t == nil || l.term.Load() != t {
		return false
	}
	now := time.Now() // both clocks at once
	return int64(now.Sub(l.began)) < t.until.Load() && l.wall(now).UnixNano() < t.wall.Load()
}

// moment is what a term's end is counted from.
type moment struct {
	since time.Duration // Lease.began
	wall  time.Time
}

func (l *Lease) now() moment {
	now := time.Now()
	return moment{now.Sub(l.began), l.wall(now)}
}

// lasts has a term that was asked for at start last its whole length.
func (l *Lease) lasts(t *term, start moment) {
	t.until.Store(int64(start.since + l.time.leaseValid))
	t.wall.Store(start.wall.Add(l.time.leaseValid).UnixNano())
}

// LeaseStatus says who owns a stream, for operators.
type LeaseStatus struct {
	Owned bool `json:"owned"` // by this process
	// Owner is another process that owns it, as far as known: host, process number and a random part.
	Owner string `json:"owner,omitempty"`
}

// Status is safe for concurrent use and asks nobody.
func (l *Lease) Status() LeaseStatus {
	s := LeaseStatus{Owned: l.Held()}
	if !s.Owned {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.Owner = l.owner
	}
	return s
}

// Ready is nil while the lease is ours or another process's, as far as known. Otherwise it is one
// line that says why it cannot be asked for.
func (l *Lease) Ready() error {
	denied := l.o.Conn.deniedOf(func(op, subject string) bool {
		return op == "publish" && (strings.HasPrefix(subject, "$KV."+l.bucket+".") || hasToken(subject, "KV_"+l.bucket))
	})
	if denied != "" {
		return errors.New("missing NATS permission: " + denied + " (who owns stream " + l.o.Stream + ")")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Acquire blocks until the lease is ours, however long another process holds it and however long the server is
// away. The channel is closed when it is lost. It fails only when ctx is done. Run must be running.
func (l *Lease) Acquire(ctx context.Context) (lost <-chan struct{}, err error) {
	t, err := l.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return t.lost, nil
}

func (l *Lease) acquire(ctx context.Context) (*term, error) {
	retry := newBackOff()
	for {
		if t := l.term.Load(); l.holds(t) {
			return t, nil
		}
		t, err := l.try(ctx)
		if ctx.Err() != nil && t == nil {
			return nil, ctx.Err()
		}
		l.note(err)
		wait := l.time.leasePoll
		if err != nil {
			wait = retry.NextBackOff()
		} else {
			retry.Reset()
		}
		if t != nil {
			l.log.Info("this process owns the stream now")
			return t, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// try asks once. Neither a term nor an error: somebody else holds it.
func (l *Lease) try(ctx context.Context) (*term, error) {
	if err := l.o.Conn.usable(); err != nil {
		return nil, err
	}
	kv, err := l.store(ctx)
	if err != nil {
		return nil, err
	}
	start := l.now()
	var revision uint64
	err = l.o.Conn.request(ctx, apiTimeout, func(ctx context.Context) error {
		e, err := kv.Get(ctx, l.key)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			revision, err = kv.Create(ctx, l.key, []byte(l.id))
		case err == nil && string(e.Value()) == l.id: // of an earlier term, and nobody had it since
			revision, err = kv.Update(ctx, l.key, []byte(l.id), e.Revision())
		case err == nil:
			l.heldBy(string(e.Value()))
		}
		return err
	})
	switch {
	case overtaken(err):
		return nil, nil // somebody was faster
	case err != nil:
		l.forget(err)
		return nil, l.failed(err)
	case revision == 0:
		return nil, nil
	}
	t := &term{kv: kv, revision: revision, lost: make(chan struct{})}
	l.lasts(t, start)
	if old := l.term.Swap(t); old != nil {
		close(old.lost) // it ran out, and Run has not noticed yet
	}
	l.heldBy("")
	signal(l.news)
	return t, nil
}

// Run renews the lease while it is ours, until ctx is done; then it gives it back, so that the next
// owner need not wait for its end. What relies on the lease must have ended by then.
func (l *Lease) Run(ctx context.Context) {
	defer l.release(context.WithoutCancel(ctx))
	for {
		t := l.term.Load()
		if t == nil {
			select {
			case <-ctx.Done():
				return
			case <-l.news:
			}
			continue
		}
		if !l.keep(ctx, t) {
			return
		}
	}
}

// keep renews until the term is lost. False: ctx is done.
func (l *Lease) keep(ctx context.Context, t *term) bool {
	wait := l.left(t, time.Since(l.began)) - l.time.leaseValid + l.time.leaseRenew
	for {
		timer := time.NewTimer(max(min(wait, l.left(t, time.Since(l.began))), 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-l.news: // a term after this one began
		case <-timer.C:
		}
		timer.Stop()
		if l.term.Load() != t {
			return true
		}
		start := l.now()
		if l.left(t, start.since) <= 0 {
			l.lose(t, "it was not renewed in time")
			return true
		}
		switch mine, err := l.renew(ctx, t); {
		case err == nil && mine:
			l.lasts(t, start)
			l.note(nil)
			wait = l.time.leaseRenew
		case err == nil:
			l.lose(t, "another process has it, or it ran out")
			return true
		case ctx.Err() == nil:
			l.note(err)
			wait = l.time.leasePoll
		}
	}
}

// left is how long a term lasts from a moment on.
func (l *Lease) left(t *term, now time.Duration) time.Duration {
	return time.Duration(t.until.Load()) - now
}

// renew puts the key's life back to its whole length. mine is false if it is not ours any more.
func (l *Lease) renew(ctx context.Context, t *term) (mine bool, err error) {
	if err := l.o.Conn.usable(); err != nil {
		return false, err
	}
	kv := t.kv
	// As late as this it must be known, or it counts as lost.
	ctx, cancel := context.WithTimeout(ctx, min(l.time.leaseRenew, l.left(t, time.Since(l.began))))
	defer cancel()
	err = l.o.Conn.request(ctx, apiTimeout, func(ctx context.Context) error {
		revision, err := kv.Update(ctx, l.key, []byte(l.id), t.revision)
		if overtaken(err) {
			// The answer to the latest update may have been lost. Then the key has a revision that we do not know.
			e, err2 := kv.Get(ctx, l.key)
			if err2 != nil || string(e.Value()) != l.id {
				return err
			}
			revision, err = kv.Update(ctx, l.key, []byte(l.id), e.Revision())
		}
		if err == nil {
			t.revision = revision
		}
		return err
	})
	switch {
	case overtaken(err):
		return false, nil
	case err != nil:
		return false, l.failed(err)
	}
	return true, nil
}

// overtaken reports that the key has another revision than the one named.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// lose ends a term and tells who waits for that.
func (l *Lease) lose(t *term, why string) {
	if l.term.CompareAndSwap(t, nil) {
		close(t.lost)
		l.log.Warn("this process does not own the stream any more", "why", why)
	}
}

// release gives the lease back.
func (l *Lease) release(ctx context.Context) {
	t := l.term.Load()
	if t == nil || !l.term.CompareAndSwap(t, nil) {
		return
	}
	close(t.lost)
	if !l.o.Conn.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	// Only if it is ours still; if it does not work out the next owner waits for the key's end.
	_ = t.kv.Delete(ctx, l.key, jetstream.LastRevision(t.revision))
}

const releaseTimeout = 2 * time.Second

// store finds or creates the bucket.
func (l *Lease) store(ctx context.Context) (jetstream.KeyValue, error) {
	l.mu.Lock()
	kv := l.kv
	l.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	js := l.o.Conn.js
	kv, err := js.KeyValue(ctx, l.bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if !l.o.Create {
			return nil, fmt.Errorf("bucket %s, which says who owns stream %s, does not exist: `nats kv add %s --ttl %s` or set storage.create: true",
				l.bucket, l.o.Stream, l.bucket, l.time.leaseTTL)
		}
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: l.bucket, TTL: l.time.leaseTTL, Description: "Which process owns a source stream of Downlink",
			Replicas: copies{l.o.Replicas, []string{l.o.Stream}}.count(ctx, js),
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, l.bucket)
		}
	}
	if err != nil {
		return nil, l.failed(err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, l.failed(err)
	}
	if ttl := status.TTL(); ttl != l.time.leaseTTL {
		// Shorter, two processes would own a stream at once; longer, or none, nobody would after a crash.
		return nil, fmt.Errorf("bucket %s, which says who owns stream %s: its TTL is %s, not %s: `nats stream edit KV_%s --max-age %s`",
			l.bucket, l.o.Stream, ttl, l.time.leaseTTL, l.bucket, l.time.leaseTTL)
	}
	l.mu.Lock()
	l.kv = kv
	l.mu.Unlock()
	return kv, nil
}

// forget makes the next try look for the bucket again.
func (l *Lease) forget(err error) {
	if errors.Is(err, errSessionOver) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kv = nil
}

func (l *Lease) failed(err error) error {
	return fmt.Errorf("bucket %s, which says who owns stream %s: %w", l.bucket, l.o.Stream, apiError(err))
}

func (l *Lease) note(err error) {
	l.mu.Lock()
	was := l.err
	l.err = err
	l.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) && (was == nil || was.Error() != err.Error()) {
		l.log.Warn("cannot find out who owns the stream, trying again", "err", err)
	}
}

// heldBy notes who has the lease; "": this process.
func (l *Lease) heldBy(owner string) {
	l.mu.Lock()
	was := l.owner
	l.owner = owner
	l.mu.Unlock()
	if owner != "" && owner != was {
		l.log.Info("standing by: another process owns the stream", "owner", owner)
	}
}
