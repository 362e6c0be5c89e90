package journal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/journal"
)

func events(t *testing.T, path string) []journal.Event {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var all []journal.Event
	for e, err := range journal.Read(f) {
		require.NoError(t, err)
		all = append(all, e)
	}
	return all
}

// TestLines pins the file's format.
func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	j, _, err := journal.Open(path, func() time.Time { return at })
	require.NoError(t, err)
	m := &c2d.Message{To: "/devices/d/messages/devicebound", MessageID: "m1", Ack: "full", Properties: []c2d.Property{{Name: "a", Value: "b"}}, Body: []byte{0, 255}}
	require.NoError(t, j.Accepted("d", c2d.Pending{Message: m, Sequence: 1, Enqueued: at, Expires: at.Add(time.Hour)}))
	j.Delivered("d", 1, at)
	j.Ended("d", 1, c2d.Success, at)
	j.Told("d", 1)
	require.NoError(t, j.Close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, `{"event":"started","at":"2026-01-02T03:04:05.0000006Z"}
{"event":"accepted","at":"2026-01-02T03:04:05.0000006Z","device":"d","seq":1,"message":{"to":"/devices/d/messages/devicebound","messageId":"m1","ack":"full","properties":[{"Name":"a","Value":"b","Null":false}],"body":"AP8="},"expires":"2026-01-02T04:04:05.0000006Z"}
{"event":"delivered","at":"2026-01-02T03:04:05.0000006Z","device":"d","seq":1}
{"event":"ended","at":"2026-01-02T03:04:05.0000006Z","device":"d","seq":1,"outcome":"Success"}
{"event":"told","at":"2026-01-02T03:04:05.0000006Z","device":"d","seq":1}
`, string(text))
}

// TestState: what had not ended is pending, with what it was.
func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	at := time.Now().UTC()
	j, s, err := journal.Open(path, time.Now)
	require.NoError(t, err)
	require.Empty(t, s.Queues)
	for n := range uint64(4) {
		m := &c2d.Message{To: "/devices/d/messages/devicebound", MessageID: string('a' + rune(n)), Ack: "full", Body: []byte{byte(n)}}
		require.NoError(t, j.Accepted("d", c2d.Pending{Message: m, Sequence: n + 1, Enqueued: at, Expires: at.Add(time.Hour)}))
	}
	j.Delivered("d", 2, at)
	j.Delivered("d", 2, at)
	j.Ended("d", 1, c2d.Success, at)
	j.Ended("d", 3, c2d.Purged, at)
	j.Told("d", 1)
	require.NoError(t, j.Close())
	require.ErrorIs(t, j.Accepted("d", c2d.Pending{Message: &c2d.Message{}}), os.ErrClosed)

	j, s, err = journal.Open(path, time.Now)
	require.NoError(t, err)
	require.NoError(t, j.Close())
	q := s.Queues["d"]
	require.EqualValues(t, 4, q.Last)
	require.Len(t, q.Pending, 2)
	require.EqualValues(t, 2, q.Pending[0].Sequence)
	require.Equal(t, 2, q.Pending[0].Deliveries)
	require.Equal(t, "b", q.Pending[0].Message.MessageID)
	require.Equal(t, []byte{3}, q.Pending[1].Message.Body)
	require.True(t, q.Pending[1].Expires.Equal(at.Add(time.Hour)))
	require.Len(t, s.Untold, 1)
	require.Equal(t, "c", s.Untold[0].MessageID)
	require.Equal(t, c2d.Purged, s.Untold[0].Outcome)
}

// TestTornLine: what a kill cut off is gone, what comes after it is not.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	require.NoError(t, os.WriteFile(path, []byte(`{"event":"started","at":"2026-01-02T03:04:05Z"}`+"\n"+`{"event":"acc`), 0o600))
	j, _, err := journal.Open(path, time.Now)
	require.NoError(t, err)
	j.Told("d", 1)
	require.NoError(t, j.Close())
	var kinds []string
	for _, e := range events(t, path) {
		kinds = append(kinds, e.Kind)
	}
	require.Equal(t, []string{"started", "started", "told"}, kinds)
}

func TestNoJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	require.NoError(t, os.WriteFile(path, []byte("{}\n"), 0o600))
	_, _, err := journal.Open(path, time.Now)
	require.ErrorContains(t, err, path+": line 1: no event")
	_, _, err = journal.Open(t.TempDir(), time.Now)
	require.ErrorContains(t, err, "journal: ")
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"event":"accepted","device":"d","seq":1,"message":{"to":"x"}}` + "\n" + `{"event":"ended","device":"d","seq":1}` + "\n"))
	f.Add([]byte(`{"event":"accepted","device":"d","seq":1}` + "\n" + `{"eve`))
	f.Fuzz(func(t *testing.T, text []byte) {
		n := 0
		for e, err := range journal.Read(bytes.NewReader(text)) {
			if err == nil {
				n++
				require.NotEmpty(t, e.Kind)
			}
		}
		require.LessOrEqual(t, n, strings.Count(string(text), "\n"))
		path := filepath.Join(t.TempDir(), "journal")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		if j, _, err := journal.Open(path, time.Now); err == nil {
			require.NoError(t, j.Close())
		}
	})
}
