package natsio

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// What the server has given to this process nobody else gets any more, so Finish must not lose it,
// wherever on its way it is.
func TestCoreSourceFinish(t *testing.T) {
	n := bridgetest.RunNATS(t)
	s, err := NewCoreSource(CoreOptions{Conn: connectTo(t, n.URL()), Queue: "q", Subjects: []string{"cmd.>"}, Logger: testLog(t)})
	require.NoError(t, err)
	require.Empty(t, s.Finish(t.Context()), "never ran")

	s, err = NewCoreSource(CoreOptions{Conn: connectTo(t, n.URL()), Queue: "q", Subjects: []string{"cmd.>"}, Logger: testLog(t)})
	require.NoError(t, err)
	stop := run(t, s.Run)
	defer stop()
	require.Eventually(t, func() bool { return s.Ready() == nil }, 10*time.Second, time.Millisecond)
	nc := n.Conn(t)
	require.NoError(t, nc.Publish("cmd.1", []byte("first")))
	require.NoError(t, nc.Flush())
	d, err := s.Receive(t.Context())
	require.NoError(t, err)
	require.Equal(t, "first", string(d.Message().Payload))

	const total = 5000
	for i := range total {
		require.NoError(t, nc.PublishRequest("cmd.1", "reply."+strconv.Itoa(i), []byte(strconv.Itoa(i))))
	}
	require.NoError(t, nc.Flush())
	var f bridge.Finisher = s
	left := f.Finish(t.Context())
	require.Len(t, left, total)
	for i, d := range left {
		require.Equal(t, strconv.Itoa(i), string(d.Message().Payload))
		require.Implements(t, (*bridge.Replier)(nil), d)
	}
	require.NoError(t, nc.Publish("cmd.1", []byte("late")))
	require.NoError(t, nc.Flush())
	require.Empty(t, s.Finish(t.Context()), "it takes nothing more")
}
