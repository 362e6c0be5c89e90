package mqttd_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
)

func TestFaults(t *testing.T) {
	with := func(t *testing.T) (*fixture, *peer) {
		f := newFixture(t, mqttd.Behaviour{})
		p, _ := f.connect()
		p.subscribe(1, devicebound)
		return f, p
	}
	once := func(f *fixture, p fault.Point, a fault.Action) { f.faults.Add(p, 1, nil, a) }

	t.Run("connect", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		for _, c := range []struct {
			action fault.Action
			said   []byte
		}{
			{fault.Action{Kind: fault.Drop}, nil},
			{fault.Action{Kind: fault.Drop, After: true}, nil},
			{fault.Action{Kind: fault.Reject}, []byte{0x20, 2, 0, 3}},
			{fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"}, []byte{0x20, 2, 0, 5}},
		} {
			once(f, fault.MQTTConnect, c.action)
			p := f.dial()
			p.write(hello(clean))
			require.Equal(t, string(c.said), string(p.cut()))
		}
		once(f, fault.MQTTConnect, fault.Action{Kind: fault.Delay, Delay: 20 * time.Millisecond})
		f.connect()
		once(f, fault.MQTTConnect, fault.Action{Kind: fault.Withhold})
		p := f.dial()
		p.write(hello())
		require.NoError(t, p.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		_, err := p.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
	t.Run("publish dropped before", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Drop})
		f.send("1")
		require.Empty(t, p.cut())
		p, _ = f.connect()
		body, _ := p.next()
		require.Equal(t, "1", body)
	})
	t.Run("publish dropped after", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Drop, After: true})
		f.send("1")
		require.NotEmpty(t, p.cut())
		require.Equal(t, 1, f.store.Tally("d1")["1"].Delivered)
	})
	t.Run("publish withheld, released, rejected, delayed", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Withhold})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Release})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Reject})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Delay, Delay: 10 * time.Millisecond})
		f.send("1", "2", "3")
		body, m := p.next() // 1 is withheld, 2 released once and then rejected, 3 delayed
		require.Equal(t, "3", body)
		p.puback(m)
		f.pending(1)
		p, _ = f.connect()
		body, _ = p.next()
		require.Equal(t, "1", body)
	})
	t.Run("puback", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.Puback, fault.Action{Kind: fault.Withhold})
		once(f, fault.Puback, fault.Action{Kind: fault.Reject})
		once(f, fault.Puback, fault.Action{Kind: fault.Delay, Delay: 10 * time.Millisecond})
		once(f, fault.Puback, fault.Action{Kind: fault.Release})
		f.send("1", "2", "3", "4")
		for range 4 {
			_, m := p.next()
			p.puback(m)
		}
		body, m := p.next()
		require.Equal(t, "4", body, "released: it comes again")
		f.pending(2)
		once(f, fault.Puback, fault.Action{Kind: fault.Drop, After: true})
		p.puback(m)
		require.Empty(t, p.cut())
		f.pending(1)
		p, _ = f.connect()
		body, m = p.next()
		require.Equal(t, "1", body, "its PUBACK was withheld")
		once(f, fault.Puback, fault.Action{Kind: fault.Drop})
		p.puback(m)
		require.Empty(t, p.cut())
		f.pending(1)
	})
}
