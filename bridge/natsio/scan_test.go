package natsio

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

// publishAsync does not wait for the answer, but however long it takes until another one may be sent.
func publishAsync(t testing.TB, js jetstream.JetStream, m *nats.Msg) {
	t.Helper()
	_, err := js.PublishMsgAsync(m, jetstream.WithStallWait(30*time.Second))
	require.NoError(t, err)
}

func allStored(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		require.FailNow(t, "no answer", "to %d messages", js.PublishAsyncPending())
	}
}

// A consumer that the server forgets while a list is read slowly is made again, at the right place.
func TestScanGoesOnAfterItsConsumerIsGone(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	s := n.CreateStream(t, "S", "s.>")
	for range 2*scanBatch + 10 {
		publishAsync(t, c.js, nats.NewMsg("s.x"))
	}
	allStored(t, c.js)
	want := uint64(1)
	require.NoError(t, c.scan(t.Context(), scanOptions{Stream: "S"}, func(m *storedMsg) (bool, error) {
		require.Equal(t, want, m.Seq)
		want++
		if m.Seq%300 == 7 {
			for name := range s.ConsumerNames(t.Context()).Name() {
				require.NoError(t, s.DeleteConsumer(t.Context(), name))
			}
		}
		return true, nil
	}))
	require.EqualValues(t, 2*scanBatch+11, want)
}

// A list that is read over a link on which nothing moves for a while goes on where it was. It must not end there.
func TestScanGoesOnAfterAStall(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "S", "s.>")
	js := n.JetStream(t)
	for range scanBatch + 10 {
		publishAsync(t, js, nats.NewMsg("s.x"))
	}
	allStored(t, js)
	link := n.Link(t)
	c := connectTo(t, link.URL())
	want := uint64(1)
	require.NoError(t, c.scan(t.Context(), scanOptions{Stream: "S"}, func(m *storedMsg) (bool, error) {
		require.Equal(t, want, m.Seq)
		want++
		if m.Seq == scanBatch {
			link.Stall()
			flow := time.AfterFunc(fetchWait+2*time.Second, link.Flow)
			t.Cleanup(func() { flow.Stop() })
		}
		return true, nil
	}))
	require.EqualValues(t, scanBatch+11, want)
}
