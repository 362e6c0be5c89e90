package hubdevice_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/hubdevice"
)

// These run against the embedded hub, which shares no MQTT code with the client.

func hubClient(t *testing.T, h *bridgetest.Hub, change func(*hubdevice.Options)) *hubdevice.Client {
	t.Helper()
	o := hubdevice.Options{ConnectionString: h.DeviceConnectionString(device), Address: h.MQTTAddr(), RootCAs: h.RootCAs()}
	if change != nil {
		change(&o)
	}
	c, err := hubdevice.New(o)
	require.NoError(t, err)
	c.Hurry(20*time.Millisecond, 20*time.Millisecond, time.Minute)
	return c
}

func enqueue(t *testing.T, h *bridgetest.Hub, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/d1/messages/devicebound", MessageID: id, Body: []byte(id)}))
	}
}

func ready(t *testing.T, c *hubdevice.Client) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond)
}

func TestHubPropertiesArriveExactly(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	c := hubClient(t, h, nil)
	run(t, c)
	properties := []c2d.Property{{Name: "plain", Value: "x"}, {Name: "empty"}, {Name: "a&b=c", Value: "1%262+3 4/5#"}, {Name: "straße", Value: "Köln€😀"}, {Name: "$", Value: "$.mid"}}
	require.NoError(t, h.Enqueue(c2d.Message{
		To: "/devices/d1/messages/deviceBound", MessageID: "m-1", CorrelationID: "c&1", UserID: "u", ContentType: "application/json", ContentEncoding: "utf-8",
		Ack: "full", Properties: properties, Body: []byte{0, 1, 0xff},
	}))
	m := receive(t, c)
	m.Ack()
	got := m.C2D()
	require.Equal(t, device, got.Device)
	require.Equal(t, []string{"m-1", "c&1", "u", "application/json", "utf-8", "full", "/devices/d1/messages/deviceBound"},
		[]string{got.MessageID, got.CorrelationID, got.UserID, got.ContentType, got.ContentEncoding, got.Ack, got.To})
	require.Equal(t, []byte{0, 1, 0xff}, got.Body)
	values := map[string]string{}
	for _, p := range got.Properties {
		require.False(t, p.Null)
		values[p.Name] = p.Value
	}
	for _, p := range properties {
		require.Equal(t, p.Value, values[p.Name], p.Name)
	}
	require.Len(t, values, len(properties))
}

func TestHubPersistentSession(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	first := hubClient(t, h, nil)
	stop := run(t, first)
	ready(t, first)
	stop()
	require.Eventually(t, func() bool { return len(h.Connections()) == 0 }, within, time.Millisecond)

	enqueue(t, h, "a", "b", "c") // offline
	second := hubClient(t, h, nil)
	run(t, second)
	for _, id := range []string{"a", "b", "c"} {
		m := receive(t, second)
		require.Equal(t, id, m.C2D().MessageID)
		m.Ack()
	}
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
	require.Equal(t, c2d.Tally{Accepted: 1, Delivered: 1, Completed: 1}, h.Tally(device)["a"])
}

// More messages than the hub has in flight at once, acked in an order of their own:
// the hub ignores a PUBACK that is not for the oldest, so all completed means all in order.
func TestHubPubackOrder(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	c := hubClient(t, h, nil)
	run(t, c)
	var ids []string
	for i := range 45 {
		ids = append(ids, fmt.Sprint(i))
	}
	enqueue(t, h, ids...)
	const window = 9
	for i := 0; i < len(ids); i += window {
		var batch []*hubdevice.Message
		for range window {
			batch = append(batch, receive(t, c))
		}
		for j := range batch {
			require.Equal(t, ids[i+j], batch[j].C2D().MessageID)
			batch[(j*4+7)%window].Ack()
		}
	}
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
	for _, id := range ids {
		require.Equal(t, c2d.Tally{Accepted: 1, Delivered: 1, Completed: 1}, h.Tally(device)[id], id)
	}
}

func TestHubConnectionCutBeforePuback(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	c := hubClient(t, h, nil)
	run(t, c)
	ready(t, c)
	enqueue(t, h, "a", "b", "c")
	a, b := receive(t, c), receive(t, c)
	a.Ack()
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 2 }, within, time.Millisecond)
	require.True(t, h.DisconnectDevice(device))
	require.Eventually(t, func() bool { return c.Stats().Connects == 2 }, within, time.Millisecond)
	b.Ack() // of the connection that is gone
	for _, id := range []string{"b", "c"} {
		m := receive(t, c)
		require.Equal(t, id, m.C2D().MessageID)
		require.Len(t, h.Queue(device), map[string]int{"b": 2, "c": 1}[id], "%s is not completed yet", id)
		m.Ack()
		require.Eventually(t, func() bool { return h.Tally(device)[id].Completed == 1 }, within, time.Millisecond)
	}
	require.Equal(t, 2, h.Tally(device)["b"].Delivered)
}

func TestHubPubackLost(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	c := hubClient(t, h, nil)
	run(t, c)
	h.Faults().Add(fault.Puback, 1, nil, fault.Action{Kind: fault.Drop})
	enqueue(t, h, "a")
	for range 2 {
		m := receive(t, c)
		require.Equal(t, "a", m.C2D().MessageID)
		m.Ack()
	}
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
}

func TestHubTokenRenewal(t *testing.T) {
	t.Parallel()
	h := bridgetest.RunHub(t, device)
	// So long that a slow machine completes a message, and is let in with a token, before it runs out.
	c := hubClient(t, h, func(o *hubdevice.Options) { o.TokenLifetime, o.Grace = 6*time.Second, within })
	run(t, c)
	ready(t, c)
	for i := range 3 {
		id := fmt.Sprint(i)
		connects := c.Stats().Connects
		enqueue(t, h, id)
		m := receive(t, c)
		require.Equal(t, id, m.C2D().MessageID)
		m.Ack()
		require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
		require.Eventually(t, func() bool {
			require.NoError(t, c.Ready(), "a renewal is no failure")
			return c.Stats().Connects > connects
		}, within, 5*time.Millisecond)
	}
	for id, tally := range h.Tally(device) {
		require.Equal(t, c2d.Tally{Accepted: 1, Delivered: 1, Completed: 1}, tally, id)
	}
}

func TestHubSecondConnectionTakesOver(t *testing.T) {
	h := bridgetest.RunHub(t, device)
	c := hubClient(t, h, nil)
	rival := hubClient(t, h, nil)
	run(t, c)
	ready(t, c)
	stop := run(t, rival)
	require.Eventually(t, func() bool {
		err := c.Ready()
		return err != nil && strings.Contains(err.Error(), "another client uses this device's identity")
	}, within, time.Millisecond)
	stop()
	enqueue(t, h, "a")
	m := receive(t, c)
	m.Ack()
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
}

func TestHubWrongKey(t *testing.T) {
	for _, code := range []byte{4, 5} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			o := emulator.Options{Devices: []string{device}}
			o.MQTT.CodeBadCredentials = code
			h := bridgetest.RunHubWith(t, o)
			c := hubClient(t, h, func(o *hubdevice.Options) {
				o.ConnectionString = strings.Replace(connectionString(), host, h.Hostname(), 1)
			})
			run(t, c)
			require.Eventually(t, func() bool { return strings.Contains(c.Ready().Error(), "unauthorized") }, within, time.Millisecond)
			require.ErrorContains(t, c.Ready(), fmt.Sprintf("CONNACK %d", code))
		})
	}
}

func TestHubDeviceDisabledAndUnknown(t *testing.T) {
	h := bridgetest.RunHub(t)
	c := hubClient(t, h, nil)
	run(t, c)
	require.Eventually(t, func() bool { return strings.Contains(c.Ready().Error(), "that the device exists") }, within, time.Millisecond)
	require.NoError(t, h.CreateDevice(device))
	ready(t, c)
	require.NoError(t, h.DisableDevice(device))
	require.Eventually(t, func() bool {
		err := c.Ready()
		return err != nil && strings.Contains(err.Error(), "disabled")
	}, within, time.Millisecond)
	require.NoError(t, h.EnableDevice(device))
	ready(t, c)
}

func TestHubRestart(t *testing.T) {
	o := emulator.Options{DataDir: t.TempDir(), Devices: []string{device}, MQTTS: fmt.Sprintf("127.0.0.1:%d", bridgetest.HoldPort(t))}
	h := bridgetest.RunHubWith(t, o)
	c := hubClient(t, h, nil)
	run(t, c)
	ready(t, c)
	require.NoError(t, h.Close())
	require.Eventually(t, func() bool {
		err := c.Ready()
		return err != nil && strings.Contains(err.Error(), "refused")
	}, within, time.Millisecond, "names what it cannot reach")
	h = bridgetest.RunHubWith(t, o)
	ready(t, c)
	enqueue(t, h, "a")
	m := receive(t, c)
	require.Equal(t, "a", m.C2D().MessageID)
	m.Ack()
	require.Eventually(t, func() bool { return len(h.Queue(device)) == 0 }, within, time.Millisecond)
}
