package emulator_test

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/internal/sas"
)

const (
	wait = 30 * time.Second
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

// clock is the hub's time: the real one, until a test moves it ahead.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// stopped is a clock for what a quota gives back as time passes, be it a slow machine's.
func stopped() func() time.Time {
	at := time.Now()
	return func() time.Time { return at }
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
	return mqtt.NewClientOptions().AddBroker("ssl://" + h.MQTTAddr()).SetClientID(id).SetProtocolVersion(4).
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

func TestUnacknowledgedMessagesComeAgainAtOnce(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	d := connected(t, h, "d1")
	d.subscribe(t, "d1", 1)
	for _, id := range []string{"m1", "m2", "m3"} {
		require.NoError(t, h.Enqueue(message("d1", id, id)))
	}
	first := d.next(t)
	first.Ack()
	d.next(t)
	d.next(t)
	require.Eventually(t, func() bool { return len(h.Queue("d1")) == 2 }, wait, tick)
	require.True(t, h.DisconnectDevice("d1"))
	require.Eventually(t, func() bool { return !d.IsConnected() && len(h.Connections()) == 0 }, wait, tick)
	require.NoError(t, h.Enqueue(message("d1", "m4", "m4")))

	d = connected(t, h, "d1") // and no subscribe
	for _, want := range []string{"m2", "m3", "m4"} {
		m := d.next(t)
		require.Equal(t, want, string(m.Payload()))
		m.Ack()
	}
	require.Eventually(t, func() bool { return len(h.Queue("d1")) == 0 }, wait, tick)
	c := h.Counts("d1")
	require.Equal(t, [3]uint64{6, 2, 4}, [3]uint64{c.Delivered, c.Redelivered, c.Completed})
}

func TestSignIn(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1", "own"}, Hostnames: []string{"localhost", "hub.test"}})
	policy := func(name string, sr string) string {
		text, err := h.ConnectionString(name)
		require.NoError(t, err)
		cs, err := sas.Parse(text)
		require.NoError(t, err)
		return sas.Sign(sr, name, cs.Key, time.Now().Add(time.Hour))
	}
	keyOf := func(id string) []byte {
		text, err := h.DeviceConnectionString(id)
		require.NoError(t, err)
		cs, err := sas.Parse(text)
		require.NoError(t, err)
		return cs.Key
	}
	sign := func(sr string, key []byte, life time.Duration) string {
		return sas.Sign(sr, "", key, time.Now().Add(life))
	}
	for name, c := range map[string]struct {
		user, password string
		ok             bool
	}{
		"device key":              {"localhost/d1/?api-version=2021-04-12", sign("localhost/devices/d1", keyOf("d1"), time.Hour), true},
		"user name without ?":     {"localhost/d1/api-version=2021-04-12", sign("localhost/devices/d1", keyOf("d1"), time.Hour), true},
		"another name of the hub": {"HUB.test/d1/?api-version=1", sign("hub.test/devices/d1", keyOf("d1"), time.Hour), true},
		"by address":              {"127.0.0.1/d1/?api-version=1", sign("127.0.0.1/devices/d1", keyOf("d1"), time.Hour), true},
		"policy device":           {"localhost/d1/?api-version=1", policy("device", "localhost"), true},
		"policy iothubowner":      {"localhost/d1/?api-version=1", policy("iothubowner", "localhost/devices/d1"), true},
		"policy service":          {"localhost/d1/?api-version=1", policy("service", "localhost"), false},
		"unknown policy":          {"localhost/d1/?api-version=1", sas.Sign("localhost", "nobody", keyOf("d1"), time.Now().Add(time.Hour)), false},
		"policy, other key":       {"localhost/d1/?api-version=1", sas.Sign("localhost", "device", keyOf("d1"), time.Now().Add(time.Hour)), false},
		"key of another device":   {"localhost/d1/?api-version=1", sign("localhost/devices/d1", keyOf("own"), time.Hour), false},
		"token of another device": {"localhost/d1/?api-version=1", sign("localhost/devices/own", keyOf("own"), time.Hour), false},
		"expired":                 {"localhost/d1/?api-version=1", sign("localhost/devices/d1", keyOf("d1"), -time.Minute), false},
		"other hub's token":       {"localhost/d1/?api-version=1", sign("other/devices/d1", keyOf("d1"), time.Hour), false},
		"other hub's user name":   {"other/d1/?api-version=1", sign("localhost/devices/d1", keyOf("d1"), time.Hour), false},
		"no token":                {"localhost/d1/?api-version=1", "", false},
		"not a token":             {"localhost/d1/?api-version=1", "secret", false},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := connect(t, options(t, h, "d1").SetUsername(c.user).SetPassword(c.password))
			if !c.ok {
				require.ErrorIs(t, err, packets.ErrorRefusedNotAuthorised)
				return
			}
			require.NoError(t, err)
			d.subscribe(t, "d1", 1)
		})
	}
}

func TestTokenExpiryEndsTheConnection(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	text, err := h.DeviceConnectionString("d1")
	require.NoError(t, err)
	cs, err := sas.Parse(text)
	require.NoError(t, err)
	lost := make(chan error, 1)
	require.Eventually(t, func() bool { // in time, which on a busy machine not every device is
		o := options(t, h, "d1").SetPassword(sas.Sign("localhost/devices/d1", "", cs.Key, time.Now().Add(2*time.Second))).
			SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
		_, err := connect(t, o)
		return err == nil
	}, wait, tick)
	select {
	case <-lost:
	case <-time.After(wait):
		require.FailNow(t, "still connected")
	}
}

func TestAnyDevice(t *testing.T) {
	h := runHub(t, emulator.Options{AnyDevice: true})
	d := connected(t, h, "never-seen")
	d.subscribe(t, "never-seen", 1)
	require.NoError(t, h.Enqueue(message("never-seen", "m1", "x")))
	d.next(t).Ack()
	_, err := connect(t, options(t, h, "other").SetPassword(token(t, h, "never-seen")))
	require.Error(t, err)
	require.Equal(t, []string{"never-seen"}, h.Devices(), "who fails to sign in creates nothing")
}

func TestDisableAndDelete(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	d := connected(t, h, "d1")
	require.NoError(t, h.DisableDevice("d1"))
	require.Eventually(t, func() bool { return !d.IsConnected() }, wait, tick)
	_, err := connect(t, options(t, h, "d1"))
	require.ErrorIs(t, err, packets.ErrorRefusedServerUnavailable)
	require.NoError(t, h.Enqueue(message("d1", "m1", "x")))
	require.NoError(t, h.EnableDevice("d1"))
	d = connected(t, h, "d1")
	d.subscribe(t, "d1", 1)
	d.next(t)
	require.NoError(t, h.DeleteDevice("d1"))
	require.Eventually(t, func() bool { return !d.IsConnected() }, wait, tick)
	_, err = connect(t, options(t, h, "d1"))
	require.ErrorIs(t, err, packets.ErrorRefusedNotAuthorised)
	require.Error(t, h.DisableDevice("d1"))
}

func TestExpiryByTheHubsClock(t *testing.T) {
	var c clock
	h := runHub(t, emulator.Options{Devices: []string{"d1"}, Now: c.now})
	require.NoError(t, h.Enqueue(message("d1", "m1", "x")))
	c.pass(time.Hour)
	require.Eventually(t, func() bool { return h.Counts("d1").Expired == 1 }, wait, tick, "swept in the background")
}

func TestPropertiesMayComeInAnotherOrder(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}, MQTT: mqttd.Behaviour{ReverseProperties: true}})
	d := connected(t, h, "d1")
	require.Equal(t, byte(1), d.subscribe(t, "d1", 1))
	m := message("d1", "m1", "x")
	m.Properties = []c2d.Property{{Name: "a/b", Value: "1&2"}, {Name: "empty"}}
	require.NoError(t, h.Enqueue(m))
	require.Equal(t, "devices/d1/messages/devicebound/empty=&a%2Fb=1%262&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&%24.mid=m1", d.next(t).Topic())
}
