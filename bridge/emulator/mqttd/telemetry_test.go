package mqttd_test

import (
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
)

func (p *peer) publish(topic string, qos byte, body string, change ...func(*packets.PublishPacket)) {
	p.t.Helper()
	m := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	m.TopicName, m.Qos, m.Payload = topic, qos, []byte(body)
	if qos > 0 {
		m.MessageID = 3
	}
	for _, c := range change {
		c(m)
	}
	p.write(m)
}

// published publishes at QoS 1 and waits for the PUBACK.
func (p *peer) published(topic, body string) {
	p.t.Helper()
	p.publish(topic, 1, body)
	require.Equal(p.t, uint16(3), p.read().(*packets.PubackPacket).MessageID)
}

func TestTelemetryIsKept(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.publish("devices/d1/messages/events/", 0, "bare")
	p.publish("devices/d1/messages/events/%24.mid=m1&%24.ct=application%2Fjson&%24.ce=utf-8&alert=yes", 0, `{"t":1}`)
	p.published("devices/d1/messages/events/a=b/", "acknowledged")
	p.publish("devices/d1/messages/events/a=b", 0, "kept", func(m *packets.PublishPacket) { m.Retain = true })
	p.ping()

	device, err := f.store.Get("d1")
	require.NoError(t, err)
	got := f.told.Read(telemetry.Query{Device: "d1"})
	require.Len(t, got, 4)
	for i, m := range got {
		require.Equal(t, uint64(i+1), m.Sequence)
		require.Equal(t, device.GenerationID, m.Generation)
		require.False(t, m.Enqueued.IsZero())
	}
	type bag = []telemetry.Property
	require.Equal(t, "bare", string(got[0].Body))
	require.Equal(t, bag{{Name: "message-id", Value: "m1"}, {Name: "content-type", Value: "application/json"}, {Name: "content-encoding", Value: "utf-8"}}, got[1].System)
	require.Equal(t, bag{{Name: "alert", Value: "yes"}}, got[1].Properties)
	require.Equal(t, bag{{Name: "a", Value: "b"}}, got[2].Properties)
	require.Equal(t, bag{{Name: "a", Value: "b"}, {Name: "mqtt-retain", Value: "true"}}, got[3].Properties, "nothing is retained, and the backend is told")
	require.Equal(t, uint64(4), f.store.Counts("d1").Telemetry)
}

func TestTelemetryThatBreaksTheRules(t *testing.T) {
	for name, c := range map[string]struct {
		topic string
		size  int
	}{
		"another device":   {"devices/d2/messages/events/", 0},
		"similar name":     {"devices/d1/messages/eventsx", 0},
		"bad escape":       {"devices/d1/messages/events/a=%zz", 0},
		"nameless":         {"devices/d1/messages/events/=b", 0},
		"too large":        {"devices/d1/messages/events/", 256*1024 + 1},
		"large properties": {"devices/d1/messages/events/a=" + strings.Repeat("b", 1000), 256*1024 - 1000},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, mqttd.Behaviour{})
			p, _ := f.connect()
			p.publish(c.topic, 1, strings.Repeat("x", c.size))
			require.Empty(t, p.cut())
			require.Empty(t, f.told.Read(telemetry.Query{}))
		})
	}
}

func TestWill(t *testing.T) {
	will := func(retain bool) func(*packets.ConnectPacket) {
		return func(p *packets.ConnectPacket) {
			p.WillFlag, p.WillTopic, p.WillMessage, p.WillQos, p.WillRetain = true, "devices/d1/messages/events/a=b", []byte("gone"), 1, retain
		}
	}
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect(will(false))
	p.write(packets.NewControlPacket(packets.Disconnect))
	require.Empty(t, p.cut())
	f.offline()
	require.Empty(t, f.told.Read(telemetry.Query{}), "a device that says good-bye leaves no will")

	p, _ = f.connect(will(false))
	p.Close()
	m, err := f.told.Wait(t.Context(), telemetry.Query{})
	require.NoError(t, err)
	type bag = []telemetry.Property
	require.Equal(t, bag{{Name: "a", Value: "b"}, {Name: "iothub-MessageType", Value: "Will"}}, m[0].Properties)
	require.Equal(t, "gone", string(m[0].Body))

	_, _ = f.connect(will(true))
	_, _ = f.connect() // takes over
	m, err = f.told.Wait(t.Context(), telemetry.Query{After: 1})
	require.NoError(t, err)
	require.Contains(t, m[0].Properties, telemetry.Property{Name: "mqtt-retain", Value: "true"})
}
