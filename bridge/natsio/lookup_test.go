package natsio

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

func bucket(t testing.TB, n *bridgetest.NATS, name string, pairs ...string) jetstream.KeyValue {
	t.Helper()
	kv, err := n.JetStream(t).CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: name, Storage: jetstream.FileStorage})
	require.NoError(t, err)
	for i := 0; i < len(pairs); i += 2 {
		_, err := kv.PutString(t.Context(), pairs[i], pairs[i+1])
		require.NoError(t, err)
	}
	return kv
}

// lookups runs one table of a bucket.
func lookups(t testing.TB, c *Conn, name string) *Lookups {
	t.Helper()
	l, err := NewLookups(LookupsOptions{Conn: c, Tables: []LookupTable{{Name: "t", Bucket: name}}, bucketPoll: 50 * time.Millisecond})
	require.NoError(t, err)
	run(t, l.Run)
	return l
}

// gives waits until a key has a value; nil: until it is absent.
func gives(t testing.TB, l *Lookups, key string, want any) {
	t.Helper()
	require.Eventually(t, func() bool {
		v, ok := l.Lookup("t", key)
		return ok == (want != nil) && (want == nil || equal(v, want))
	}, 30*time.Second, 5*time.Millisecond, "%s: %v", key, want)
}

func equal(a, b any) bool { return assert.ObjectsAreEqual(a, b) }

func isLoaded(l *Lookups) bool {
	select {
	case <-l.Loaded():
		return true
	default:
		return false
	}
}

func TestLookupFollowsBucket(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	kv := bucket(t, n, "aliases", "pump", "berlin-7", "all", `["a","b"]`, "a=20b", "space", "a.b/c", "deep", "bad", "[1")
	require.NoError(t, kv.Delete(t.Context(), "gone"))
	l := lookups(t, connectTo(t, n.URL()), "aliases")
	<-l.Loaded()
	require.NoError(t, l.Ready())
	for key, want := range map[string]any{"pump": "berlin-7", "all": []any{"a", "b"}, "a b": "space", "a.b/c": "deep", "gone": nil, "bad": nil, "none": nil, "": nil} {
		v, ok := l.Lookup("t", key)
		require.Equal(t, want, v, key)
		require.Equal(t, want != nil, ok, key)
	}
	_, ok := l.Lookup("other", "pump")
	require.False(t, ok)
	require.Equal(t, []LookupStatus{{Name: "t", Keys: 4}}, l.Status())

	_, err := kv.PutString(t.Context(), "pump", "berlin-8")
	require.NoError(t, err)
	gives(t, l, "pump", "berlin-8")
	require.NoError(t, kv.Delete(t.Context(), "pump"))
	gives(t, l, "pump", nil)
	_, err = kv.PutString(t.Context(), "new", "x")
	require.NoError(t, err)
	gives(t, l, "new", "x")
	require.NoError(t, kv.Purge(t.Context(), "new"))
	gives(t, l, "new", nil)
}

func TestLookupWaitsForBucket(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	l := lookups(t, connectTo(t, n.URL()), "aliases")
	require.Eventually(t, func() bool {
		err := l.Ready()
		return err != nil && err.Error() == "lookup t: bucket aliases does not exist: `nats kv add aliases`; no message is mapped before it is read"
	}, 30*time.Second, time.Millisecond)
	require.False(t, isLoaded(l))
	kv := bucket(t, n, "aliases")
	<-l.Loaded()
	require.NoError(t, l.Ready())
	_, err := kv.PutString(t.Context(), "a", "b")
	require.NoError(t, err)
	gives(t, l, "a", "b")
}

func TestLookupOutlivesServerAndBucket(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	kv := bucket(t, n, "aliases", "a", "1", "b", "1")
	l := lookups(t, connectTo(t, n.URL()), "aliases")
	gives(t, l, "a", "1")
	n.Stop()
	gives(t, l, "a", "1")
	n.Start(t)
	require.Eventually(t, func() bool {
		_, err := kv.PutString(t.Context(), "a", "2")
		return err == nil
	}, time.Minute, 20*time.Millisecond)
	gives(t, l, "a", "2")

	js := n.JetStream(t)
	require.NoError(t, js.DeleteKeyValue(t.Context(), "aliases"))
	becomes(t, l.Ready, "does not exist", "what was read before is in use")
	gives(t, l, "a", "2")
	require.True(t, isLoaded(l))
	kv = bucket(t, n, "aliases", "a", "3")
	gives(t, l, "a", "3")
	gives(t, l, "b", nil)
	becomesReady(t, l.Ready)
	_, err := kv.PutString(t.Context(), "b", "4")
	require.NoError(t, err)
	gives(t, l, "b", "4")
}

// A bucket made anew between two looks counts from 1 again, which the watch would wait out.
func TestLookupNoticesBucketMadeAnew(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	bucket(t, n, "aliases", "a", "1", "b", "1", "c", "1")
	l := lookups(t, connectTo(t, n.URL()), "aliases")
	gives(t, l, "c", "1")
	require.NoError(t, n.JetStream(t).DeleteKeyValue(t.Context(), "aliases"))
	bucket(t, n, "aliases", "a", "2")
	gives(t, l, "a", "2")
	gives(t, l, "b", nil)
}

func TestLookupSurvivesCutLink(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	link := n.Link(t)
	kv := bucket(t, n, "aliases", "a", "1")
	l := lookups(t, connectTo(t, link.URL()), "aliases")
	gives(t, l, "a", "1")
	link.Down()
	_, err := kv.PutString(t.Context(), "a", "2")
	require.NoError(t, err)
	require.NoError(t, kv.Delete(t.Context(), "a"))
	_, err = kv.PutString(t.Context(), "b", "3")
	require.NoError(t, err)
	link.Up()
	gives(t, l, "b", "3")
	gives(t, l, "a", nil)
}

func TestLookupFollowsFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "t.csv")
	l, err := NewLookups(LookupsOptions{Tables: []LookupTable{{Name: "t", File: file}}, filePoll: 5 * time.Millisecond})
	require.NoError(t, err)
	run(t, l.Run)
	require.Eventually(t, func() bool {
		err := l.Ready()
		return err != nil && err.Error() != "lookup t: not read yet; no message is mapped before it is read"
	}, 30*time.Second, time.Millisecond)
	require.ErrorContains(t, l.Ready(), "no such file")
	require.False(t, isLoaded(l))

	write := func(text string) {
		t.Helper()
		next := file + ".new"
		require.NoError(t, os.WriteFile(next, []byte(text), 0o600))
		require.NoError(t, os.Rename(next, file))
	}
	write("a,1\nb c,2\n")
	<-l.Loaded()
	gives(t, l, "a", "1")
	gives(t, l, "b c", "2")
	require.NoError(t, l.Ready())

	write("a,2,3\n")
	gives(t, l, "a", []any{"2", "3"})
	gives(t, l, "b c", nil)

	write("a,5\nbroken\n")
	require.Eventually(t, func() bool { return l.Ready() != nil }, 30*time.Second, time.Millisecond)
	require.EqualError(t, l.Ready(), "lookup t: "+file+": line 2: has no value; write key,value; what was read before is in use")
	gives(t, l, "a", []any{"2", "3"})
	write("a,7\n")
	gives(t, l, "a", "7")
	becomesReady(t, l.Ready)
}

func TestLookupOptions(t *testing.T) {
	t.Parallel()
	for want, tables := range map[string][]LookupTable{
		"is there twice":           {{Name: "a", File: "x.csv"}, {Name: "a", File: "y.csv"}},
		"needs a bucket or a file": {{Name: "a"}},
		"needs a connection":       {{Name: "a", Bucket: "b"}},
	} {
		_, err := NewLookups(LookupsOptions{Tables: tables})
		require.ErrorContains(t, err, want)
	}
	l, err := NewLookups(LookupsOptions{})
	require.NoError(t, err)
	run(t, l.Run)
	<-l.Loaded()
	require.NoError(t, l.Ready())
}
