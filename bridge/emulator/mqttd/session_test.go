package mqttd_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
)

func TestSubscribeGrants(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	require.Equal(t, []byte{1}, p.subscribe(2, devicebound), "QoS 2 is granted as 1")
	require.Equal(t, []byte{0}, p.subscribe(0, devicebound))
	require.Equal(t, []byte{1, 1, 1}, p.subscribe(1, "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"))
	require.Equal(t, []byte{0x80, 0x80, 0x80, 0x80}, p.subscribe(1, "#", "devices/d2/messages/devicebound/#", "devices/+/messages/devicebound/#", "devices/d1/messages/devicebound"))
}

func TestQoS0CompletesOnSend(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Window: 2})
	p, _ := f.connect()
	require.Equal(t, []byte{0}, p.subscribe(0, devicebound))
	f.send("1", "2", "3", "4", "5")
	for _, want := range []string{"1", "2", "3", "4", "5"} {
		body, m := p.next()
		require.Equal(t, want, body)
		require.Zero(t, m.Qos)
	}
	f.pending(0)
}

func TestWindowAndPubackOrder(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Window: 3})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	f.send("1", "2", "3", "4", "5")
	var got []*packets.PublishPacket
	for range 3 {
		_, m := p.next()
		require.Equal(t, byte(1), m.Qos)
		require.False(t, m.Dup || m.Retain)
		got = append(got, m)
	}
	p.ping() // the window is full
	p.puback(got[1])
	p.ping()
	f.pending(5) // out of order: ignored
	p.puback(got[0])
	body, m := p.next()
	require.Equal(t, "4", body)
	f.pending(4)
	p.puback(&packets.PublishPacket{MessageID: 999})
	p.puback(got[1])
	p.puback(got[2])
	body, last := p.next()
	require.Equal(t, "5", body)
	p.puback(m)
	p.puback(last)
	f.pending(0)
}

func TestPersistentSession(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, present := f.connect()
	require.False(t, present)
	p.subscribe(1, devicebound)
	f.send("1", "2")
	_, one := p.next()
	_, _ = p.next()
	p.puback(one)
	f.pending(1)
	p.Close()
	f.offline()
	f.send("3")

	p, present = f.connect()
	require.True(t, present)
	body, m := p.next() // before any SUBSCRIBE
	require.Equal(t, "2", body)
	require.False(t, m.Dup, "as the hub's devices report")
	p.puback(m)
	body, m = p.next()
	require.Equal(t, "3", body)
	p.puback(m)
	f.pending(0)

	u := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	u.MessageID, u.Topics = 9, []string{devicebound}
	p.write(u)
	require.IsType(t, &packets.UnsubackPacket{}, p.read())
	f.send("4")
	p.ping()
	p.write(packets.NewControlPacket(packets.Disconnect))
	require.Empty(t, p.cut())
	f.offline()

	p, present = f.connect()
	require.True(t, present)
	p.ping() // unsubscribed: nothing comes
	p, present = f.connect(clean)
	require.False(t, present)
	p.ping()
	p.subscribe(1, devicebound)
	body, _ = p.next()
	require.Equal(t, "4", body)
	p, present = f.connect()
	require.False(t, present, "the clean session ended the persistent one")
	p.ping()
}

func TestSessionEndsWithItsDevice(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	require.NoError(t, f.store.Delete("d1", "*"))
	require.Empty(t, p.cut())
	_, err := f.store.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	_, present := f.connect()
	require.False(t, present)
}

func TestFirstSubscribe(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		f.send("old")
		p, _ := f.connect(clean)
		p.ping()
		p.subscribe(1, devicebound)
		body, _ := p.next()
		require.Equal(t, "old", body)
	})
	t.Run("new", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{FirstSubscribe: mqttd.DeliverNew})
		f.send("old")
		p, _ := f.connect()
		p.subscribe(1, devicebound)
		f.send("new")
		body, m := p.next()
		require.Equal(t, "new", body)
		p.puback(m)
		f.pending(1)
		p.subscribe(1, devicebound) // again: still only the new ones
		p.ping()
		p, present := f.connect() // and on the next connection
		require.True(t, present)
		f.send("newer")
		body, _ = p.next()
		require.Equal(t, "newer", body)
	})
}

func TestSecondConnectionDropsTheFirst(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	first, _ := f.connect()
	first.subscribe(1, devicebound)
	f.send("1")
	_, m := first.next()
	second, present := f.connect()
	require.True(t, present)
	require.Empty(t, first.cut())
	body, again := second.next()
	require.Equal(t, "1", body)
	require.Equal(t, m.TopicName, again.TopicName, "a repeat is identical")
	second.puback(again)
	f.pending(0)
	require.Len(t, f.server.Connections(), 1)
}

func TestRedeliveryOptions(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Dup: true})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	f.send("1")
	_, m := p.next()
	require.False(t, m.Dup)
	p, _ = f.connect()
	_, m = p.next()
	require.True(t, m.Dup)
}

func TestPropertiesTooLongForATopicAreRejected(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	require.NoError(t, f.store.Enqueue(c2d.Message{
		To: "/devices/d1/messages/devicebound", Properties: []c2d.Property{{Name: "p", Value: strings.Repeat("é", 11000)}},
	}))
	f.send("next")
	body, _ := p.next()
	require.Equal(t, "next", body)
	require.Equal(t, uint64(1), f.store.Counts("d1").Rejected)
}

func TestLapsedLockComesAgainWhereAsked(t *testing.T) {
	store := c2d.New(c2d.Options{Rules: c2d.Rules{Lock: 20 * time.Millisecond}})
	_, err := store.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	s := mqttd.New(mqttd.Options{Store: store, Authority: doorman{time.Now().Add(time.Hour)}, Behaviour: mqttd.Behaviour{Resend: true, Window: 1}})
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { s.ServeConn(there); close(done) }()
	p := &peer{t, here}
	p.write(hello())
	p.read()
	f := &fixture{t: t, store: store}
	p.subscribe(1, devicebound)
	f.send("1")
	_, first := p.next()
	require.Eventually(t, func() bool { store.Sweep(); return store.Queue("d1")[0].State == c2d.Enqueued }, wait, time.Millisecond)
	_, again := p.next()
	require.NotEqual(t, first.MessageID, again.MessageID)
	require.Equal(t, first.TopicName, again.TopicName)
	require.NoError(t, s.Close())
	<-done
	here.Close()
}

func TestNoSessionPresent(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{NoSessionPresent: true})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	f.send("1")
	p.next()
	p, present := f.connect()
	require.False(t, present)
	body, _ := p.next()
	require.Equal(t, "1", body, "the session is there all the same")
}

func TestForget(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	p.Close()
	f.offline()
	f.server.Forget(func(device, generation string) bool { return generation != f.generation() })
	p, present := f.connect()
	require.True(t, present)
	p.Close()
	f.offline()
	f.server.Forget(func(device, generation string) bool { return device == "d1" && generation == f.generation() })
	_, present = f.connect()
	require.False(t, present)
}
