package emulator_test

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/internal/sas"
)

const (
	wait = 10 * time.Second
	tick = 5 * time.Millisecond
)

// runHub starts a hub that the test closes.
func runHub(t *testing.T, o emulator.Options) *emulator.Hub {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	h, err := emulator.Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// token signs a device's token that lasts an hour.
func token(t *testing.T, h *emulator.Hub, id string) string {
	t.Helper()
	text, err := h.DeviceConnectionString(id)
	require.NoError(t, err)
	cs, err := sas.Parse(text)
	require.NoError(t, err)
	return sas.Sign(cs.HostName+"/devices/"+id, "", cs.Key, time.Now().Add(time.Hour))
}

func username(h *emulator.Hub, id string) string {
	return h.Hostname() + "/" + id + "/?api-version=2021-04-12"
}

// device is a paho client with what it received.
type device struct {
	mqtt.Client
	received chan mqtt.Message
}

func (d *device) next(t *testing.T) mqtt.Message {
	t.Helper()
	select {
	case m := <-d.received:
		return m
	case <-time.After(wait):
		require.FailNow(t, "no message came")
		return nil
	}
}

func (d *device) subscribe(t *testing.T, id string, qos byte) byte {
	t.Helper()
	topic := "devices/" + id + "/messages/devicebound/#"
	tok := d.Subscribe(topic, qos, nil)
	require.True(t, tok.WaitTimeout(wait))
	require.NoError(t, tok.Error())
	return tok.(*mqtt.SubscribeToken).Result()[topic]
}

func options(t *testing.T, h *emulator.Hub, id string) *mqtt.ClientOptions {
	t.Helper()
	host, _, err := net.SplitHostPort(h.MQTTAddr())
	require.NoError(t, err)
	return mqtt.NewClientOptions().AddBroker("ssl://" + h.MQTTAddr()).SetClientID(id).
		SetUsername(username(h, id)).SetPassword(token(t, h, id)).
		SetTLSConfig(&tls.Config{RootCAs: h.RootCAs(), ServerName: host}).
		SetCleanSession(false).SetAutoReconnect(false).SetAutoAckDisabled(true).SetConnectTimeout(wait)
}

func connect(t *testing.T, o *mqtt.ClientOptions) (*device, error) {
	t.Helper()
	d := &device{received: make(chan mqtt.Message, 100)}
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { d.received <- m })
	d.Client = mqtt.NewClient(o)
	tok := d.Connect()
	require.True(t, tok.WaitTimeout(wait))
	t.Cleanup(func() { d.Disconnect(0) })
	return d, tok.Error()
}

func connected(t *testing.T, h *emulator.Hub, id string) *device {
	t.Helper()
	d, err := connect(t, options(t, h, id))
	require.NoError(t, err)
	return d
}

func message(id, messageID, body string) c2d.Message {
	return c2d.Message{To: "/devices/" + id + "/messages/devicebound", MessageID: messageID, Body: []byte(body)}
}

func TestMessageReachesDeviceAndIsCompletedByPuback(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	d := connected(t, h, "d1")
	require.Equal(t, byte(1), d.subscribe(t, "d1", 1))
	require.NoError(t, h.Enqueue(message("d1", "m1", "go")))

	m := d.next(t)
	require.Equal(t, "devices/d1/messages/devicebound/%24.mid=m1&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound", m.Topic())
	require.Equal(t, "go", string(m.Payload()))
	require.Equal(t, c2d.Invisible, h.Queue("d1")[0].State)
	require.Equal(t, 1, h.Connections()[0].InFlight)

	m.Ack()
	require.Eventually(t, func() bool { return len(h.Queue("d1")) == 0 }, wait, tick)
	require.Equal(t, c2d.Tally{Accepted: 1, Delivered: 1, Completed: 1}, h.Tally("d1")["m1"])
}
