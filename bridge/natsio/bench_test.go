package natsio

import (
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

func BenchmarkOrderedPublisher(b *testing.B) {
	n := bridgetest.RunNATS(b)
	n.CreateStream(b, "EDGE", "edge.>")
	p, _ := runOrdered(b, n.URL(), nil)
	becomesReady(b, p.Ready)
	var wg sync.WaitGroup
	wg.Add(b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m := &mapping.Publication{Subject: "edge.d1", Data: make([]byte, 200), ID: strconv.Itoa(i)}
		require.NoError(b, p.Publish(b.Context(), m, func(error) { wg.Done() }))
	}
	wg.Wait()
}

func BenchmarkCorePublisher(b *testing.B) {
	n := bridgetest.RunNATS(b)
	p, err := NewCorePublisher(PublisherOptions{Conn: Options{URLs: []string{n.URL()}}})
	require.NoError(b, err)
	run(b, p.Run)
	becomesReady(b, p.Ready)
	var wg sync.WaitGroup
	wg.Add(b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		m := &mapping.Publication{Subject: "edge.d1", Data: make([]byte, 200)}
		require.NoError(b, p.Publish(b.Context(), m, func(error) { wg.Done() }))
	}
	wg.Wait()
}

func BenchmarkSource(b *testing.B) {
	n := bridgetest.RunNATS(b)
	n.CreateStream(b, "S", "cmd.>")
	js := n.JetStream(b)
	for range b.N {
		_, err := js.PublishAsync("cmd.d1", make([]byte, 200))
		require.NoError(b, err)
	}
	<-js.PublishAsyncComplete()
	b.ReportAllocs()
	b.ResetTimer()
	w := runOwner(b, n.URL(), nil)
	for range b.N {
		d, err := w.source.Receive(b.Context())
		require.NoError(b, err)
		require.NoError(b, d.Ack(b.Context()))
	}
}
