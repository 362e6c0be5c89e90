package natsio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"downlink/mapping"
)

const (
	lookupFilePoll   = 2 * time.Second
	lookupBucketPoll = 30 * time.Second // a bucket that is deleted and made anew is noticed by then at the latest
	lookupFileMax    = 64 << 20
)

// LookupTable is one table that expressions read: a KV bucket or a file, exactly one of them.
type LookupTable struct {
	Name   string
	Bucket string
	File   string // as mapping.ParseLookup reads it
}

// LookupsOptions configures Lookups.
type LookupsOptions struct {
	Conn   *Conn // required for buckets
	Tables []LookupTable
	Logger *slog.Logger

	filePoll, bucketPoll time.Duration // for tests; default as the constants
}

// Lookups keeps tables in memory, whole and always up to date: buckets are watched, files
// read again when they change. What was read once stays in use while its
// bucket or file cannot be read. It implements mapping.Lookups. Safe for concurrent use.
type Lookups struct {
	o      LookupsOptions
	log    *slog.Logger
	tables map[string]*lookupTable
	loaded chan struct{}
}

// lookupTable is one table with its values.
type lookupTable struct {
	LookupTable

	mu     sync.RWMutex
	values map[string]any
	ready  bool  // the first values are in
	err    error // why it cannot be read now
}

// LookupStatus is one table for people.
type LookupStatus struct {
	Name  string `json:"name"`
	Keys  int    `json:"keys"`
	Error string `json:"error,omitempty"`
}

// NewLookups checks the options. It does no I/O; until Run has read a table, no key of it is there.
func NewLookups(o LookupsOptions) (*Lookups, error) {
	if o.filePoll == 0 {
		o.filePoll = lookupFilePoll
	}
	if o.bucketPoll == 0 {
		o.bucketPoll = lookupBucketPoll
	}
	l := &Lookups{o: o, log: logger(o.Logger), tables: map[string]*lookupTable{}, loaded: make(chan struct{})}
	for _, t := range o.Tables {
		switch {
		case l.tables[t.Name] != nil:
			return nil, fmt.Errorf("nats: lookup %q is there twice", t.Name)
		case (t.Bucket == "") == (t.File == ""):
			return nil, fmt.Errorf("nats: lookup %q: needs a bucket or a file", t.Name)
		case t.Bucket != "" && o.Conn == nil:
			return nil, fmt.Errorf("nats: lookup %q: needs a connection", t.Name)
		}
		l.tables[t.Name] = &lookupTable{LookupTable: t, err: errors.New("not read yet")}
	}
	return l, nil
}

// Lookup implements mapping.Lookups. It never blocks on I/O.
func (l *Lookups) Lookup(table, key string) (any, bool) {
	t := l.tables[table]
	if t == nil {
		return nil, false
	}
	if t.Bucket != "" {
		key = bucketKey(key)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.values[key]
	return v, ok
}

// bucketKey writes the bytes that a KV key cannot have as =XX.
func bucketKey(key string) string {
	legal := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-/_=.", c) >= 0
	}
	i := 0
	for i < len(key) && legal(key[i]) {
		i++
	}
	if i == len(key) {
		return key
	}
	b := []byte(key[:i])
	for ; i < len(key); i++ {
		if legal(key[i]) {
			b = append(b, key[i])
		} else {
			b = fmt.Appendf(b, "=%02X", key[i])
		}
	}
	return string(b)
}

// Loaded is closed once every table's first values are in.
func (l *Lookups) Loaded() <-chan struct{} { return l.loaded }

// Ready is nil while every table is read and kept up to date. Otherwise it is one line.
func (l *Lookups) Ready() error {
	for _, t := range l.o.Tables {
		if err := l.tables[t.Name].problem(); err != nil {
			return err
		}
	}
	return nil
}

// Status lists the tables, in the order of the options.
func (l *Lookups) Status() []LookupStatus {
	list := make([]LookupStatus, 0, len(l.o.Tables))
	for _, o := range l.o.Tables {
		t := l.tables[o.Name]
		s := LookupStatus{Name: o.Name}
		if err := t.problem(); err != nil {
			s.Error = err.Error()
		}
		t.mu.RLock()
		s.Keys = len(t.values)
		t.mu.RUnlock()
		list = append(list, s)
	}
	return list
}

func (t *lookupTable) problem() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	switch {
	case t.err == nil:
		return nil
	case t.ready:
		return fmt.Errorf("lookup %s: %w; what was read before is in use", t.Name, t.err)
	}
	return fmt.Errorf("lookup %s: %w; no message is mapped before it is read", t.Name, t.err)
}

// Run reads the tables and follows them until ctx is done.
func (l *Lookups) Run(ctx context.Context) error {
	var running, waiting sync.WaitGroup
	for _, t := range l.tables {
		follow := l.followFile
		if t.Bucket != "" {
			follow = l.followBucket
		}
		waiting.Add(1)
		first := sync.OnceFunc(waiting.Done)
		running.Go(func() {
			follow(ctx, t, first)
			first()
		})
	}
	waiting.Wait()
	if ctx.Err() == nil {
		close(l.loaded)
	}
	running.Wait()
	return nil
}

// set takes over a table's values.
func (t *lookupTable) set(values map[string]any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.values, t.ready, t.err = values, true, nil
}

// fail notes why a table cannot be read. fresh: it is not what was noted before.
func (t *lookupTable) fail(err error) (fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh = t.err == nil || t.err.Error() != err.Error()
	t.err = err
	return fresh
}

// followFile reads a file whenever its time or size changes.
func (l *Lookups) followFile(ctx context.Context, t *lookupTable, first func()) {
	var last fs.FileInfo
	for {
		// The look comes before the read: a file that changes between them is read again.
		info, err := os.Stat(t.File)
		if err != nil || last == nil || !info.ModTime().Equal(last.ModTime()) || info.Size() != last.Size() {
			var values map[string]any
			if err == nil {
				values, err = readLookup(t.File, info.Size())
			}
			last = info
			switch {
			case err == nil:
				t.set(values)
				l.log.Info("lookup read", "lookup", t.Name, "keys", len(values))
				first()
			case t.fail(err):
				l.log.Error("lookup cannot be read", "lookup", t.Name, "err", err)
			}
		}
		if sleep(ctx, l.o.filePoll) != nil {
			return
		}
	}
}

func readLookup(file string, size int64) (map[string]any, error) {
	if size > lookupFileMax {
		return nil, fmt.Errorf("%s: more than %d bytes", file, lookupFileMax)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	values, err := mapping.ParseLookup(file, b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return values, nil
}

// followBucket watches a bucket, and begins anew when the watch or the bucket ends.
func (l *Lookups) followBucket(ctx context.Context, t *lookupTable, first func()) {
	reconnected, stop := l.o.Conn.notify()
	defer stop()
	retry := newBackOff()
	for ctx.Err() == nil {
		err := l.watch(ctx, t, reconnected, func() { retry.Reset(); first() })
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		if t.fail(err) {
			l.log.Warn("lookup cannot be read, trying again", "lookup", t.Name, "err", err)
		}
		wait := time.NewTimer(retry.NextBackOff())
		select {
		case <-ctx.Done():
		case <-reconnected:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// watch keeps a table's values until the watch ends. Nil: it is to begin anew at once.
func (l *Lookups) watch(ctx context.Context, t *lookupTable, reconnected <-chan struct{}, first func()) error {
	if err := l.o.Conn.usable(); err != nil {
		return err
	}
	kv, created, err := l.bucket(ctx, t.Bucket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("cannot watch bucket %s: %w", t.Bucket, cause(err))
	}
	defer func() {
		_ = w.Stop() // it has ended, or ends with the connection
		for range w.Updates() {
		}
	}()

	values, initial := map[string]any{}, true
	check := time.NewTicker(l.o.bucketPoll)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return fmt.Errorf("the watch of bucket %s ended", t.Bucket)
			case e == nil: // these were the first values
				t.set(values)
				initial = false
				l.log.Info("lookup read", "lookup", t.Name, "keys", len(values))
				first()
			case initial:
				l.put(t, values, e)
			default:
				t.mu.Lock()
				l.put(t, values, e)
				t.mu.Unlock()
			}
			continue
		case <-reconnected:
			return nil // the server may have forgotten the watch, which takes nats.go 15 s to find out
		case <-check.C:
		}
		// The watch does not notice a bucket made anew, which counts from 1 again.
		if l.o.Conn.usable() != nil {
			continue
		}
		switch _, now, err := l.bucket(ctx, t.Bucket); {
		case errors.Is(err, errNoBucket):
			return err
		case err == nil && !now.Equal(created):
			return nil
		}
	}
}

var errNoBucket = errors.New("does not exist")

// bucket opens a bucket and tells when it was made.
func (l *Lookups) bucket(ctx context.Context, name string) (jetstream.KeyValue, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	fail := func(err error) (jetstream.KeyValue, time.Time, error) {
		if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, time.Time{}, fmt.Errorf("bucket %s %w: `nats kv add %s`", name, errNoBucket, name)
		}
		return nil, time.Time{}, fmt.Errorf("bucket %s: %w", name, cause(err))
	}
	kv, err := l.o.Conn.JetStream().KeyValue(ctx, name)
	if err != nil {
		return fail(err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return fail(err)
	}
	s, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return kv, time.Time{}, nil
	}
	return kv, s.StreamInfo().Created, nil
}

// put applies one change of a bucket.
func (l *Lookups) put(t *lookupTable, values map[string]any, e jetstream.KeyValueEntry) {
	if e.Operation() != jetstream.KeyValuePut {
		delete(values, e.Key())
		return
	}
	v, err := mapping.LookupValue(e.Value())
	if err != nil {
		// No value is better than one that means something else.
		delete(values, e.Key())
		l.log.Error("a lookup's value cannot be read, the key counts as absent", "lookup", t.Name, "key", e.Key(), "err", err)
		return
	}
	values[e.Key()] = v
}
