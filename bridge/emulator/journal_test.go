package emulator_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
)

// TestJournal: a hub with the journal of another has its queues and its unread feedback.
func TestJournal(t *testing.T) {
	o := emulator.Options{
		Journal: filepath.Join(t.TempDir(), "journal"), DataDir: t.TempDir(), Devices: []string{"away", "there"},
		Virtual: []virtual.Rule{{Pattern: "away", Behaviour: virtual.Behaviour{Kind: virtual.Offline}}, {Pattern: "there"}}, Feedback: feedback.Rules{Every: time.Millisecond},
	}
	start := func() *emulator.Hub {
		h, err := emulator.Start(o)
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		return h
	}
	send := func(h *emulator.Hub, device, id string) {
		require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/" + device + "/messages/devicebound", MessageID: id, Ack: "full", Body: []byte(id)}))
	}
	read := func(h *emulator.Hub) (b feedback.Batch) {
		require.Eventually(t, func() bool {
			var ok bool
			b, ok = h.Feedback().Receive()
			return ok
		}, wait, time.Millisecond)
		return b
	}

	h := start()
	send(h, "away", "a1")
	send(h, "away", "a2")
	send(h, "there", "t1")
	require.Contains(t, string(read(h).Body), `"t1"`) // and not completed
	require.NoError(t, h.Close())

	h = start()
	queue := h.Queue("away")
	require.Len(t, queue, 2)
	require.Equal(t, []byte("a1"), queue[0].Message.Body)
	send(h, "away", "a3")
	require.EqualValues(t, 3, h.Queue("away")[2].Sequence)
	b := read(h)
	require.Contains(t, string(b.Body), `"t1"`)
	require.True(t, h.Feedback().Complete(b.LockToken))
	require.NoError(t, h.Close())

	h = start()
	require.Len(t, h.Queue("away"), 3)
	h.Sweep()
	_, ok := h.Feedback().Receive()
	require.False(t, ok, "it was read")
	require.Zero(t, h.Feedback().Status().Records)
}
