package natsio

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
)

// BenchmarkFind looks up a batch of 64 records among 200,000 messages that wait, of 10,000
// devices, with deadlines over a day: the hub's feedback must not slow down as more waits.
func BenchmarkFind(b *testing.B) {
	const pending, devices = 200_000, 10_000
	n := bridgetest.RunNATS(b)
	r := newReceipts(b, connectTo(b, n.URL()), "prod")
	require.NoError(b, r.ensure(b.Context()))
	js := n.JetStream(b)
	begin := time.Now()
	key := func(i int) string {
		slot := slotOf(begin) + int64(i%144)
		return fmt.Sprintf("%s%d.%s", kvPrefix("prod"), slot, messageKey("main", fmt.Sprint("d", i%devices), fmt.Sprint("m", i)))
	}
	for i := range pending {
		c := correlation()
		c.ID, c.Device = fmt.Sprint("m", i), fmt.Sprint("d", i%devices)
		value, err := json.Marshal(entryOf(c, ""))
		require.NoError(b, err)
		require.NoError(b, js.Conn().PublishMsg(&nats.Msg{Subject: key(i), Data: value, Header: nats.Header{"Downlink-Format": {"1"}}})) // in bulk: no one waits for each
	}
	require.Eventually(b, func() bool {
		s, err := js.Stream(b.Context(), "KV_prod-pending")
		return err == nil && s.CachedInfo().State.Msgs == pending
	}, time.Minute, 100*time.Millisecond)
	i := 0
	for b.Loop() {
		records := make([]bridge.Record, 64)
		for j := range records {
			i = (i + 7919) % pending
			records[j] = bridge.Record{MessageID: fmt.Sprint("m", i), Device: fmt.Sprint("d", i%devices)}
		}
		found, err := r.Find(b.Context(), "main", records)
		require.NoError(b, err)
		require.NotContains(b, found, (*bridge.Found)(nil))
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/64, "µs/record")
}
