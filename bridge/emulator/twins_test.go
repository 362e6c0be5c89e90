package emulator_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
	"downlink/bridge/emulator/twin"
)

// A device does all that a device SDK does: it subscribes to everything, sends
// telemetry, reads and writes its twin, and answers a direct method.
func TestTelemetryTwinAndMethods(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	d := connected(t, h, "d1")
	require.Equal(t, byte(1), d.subscribe(t, "d1", 1))
	heard := make(chan mqtt.Message, 10)
	tok := d.SubscribeMultiple(map[string]byte{
		"$iothub/twin/res/#": 0, "$iothub/twin/PATCH/properties/desired/#": 0, "$iothub/methods/POST/#": 0,
	}, func(_ mqtt.Client, m mqtt.Message) { heard <- m })
	require.True(t, tok.WaitTimeout(wait))
	require.NoError(t, tok.Error())
	hear := func() mqtt.Message {
		select {
		case m := <-heard:
			return m
		case <-time.After(wait):
			require.FailNow(t, "nothing came")
			return nil
		}
	}

	tok = d.Publish("devices/d1/messages/events/%24.mid=m1&%24.ct=application%2Fjson&alert=yes", 1, false, `{"t":20}`)
	require.True(t, tok.WaitTimeout(wait))
	require.NoError(t, tok.Error())
	told := h.Telemetry().Read(telemetry.Query{Device: "d1"})
	require.Len(t, told, 1)
	require.Equal(t, "m1", told[0].Lookup("message-id"))
	require.Equal(t, `{"t":20}`, string(told[0].Body))

	d.Publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 0, false, `{"firmware":"1.2"}`)
	require.Equal(t, "$iothub/twin/res/204/?$rid=1&$version=2", hear().Topic())
	got, err := h.UpdateTwin("d1", twin.Change{Desired: []byte(`{"interval":5}`), Tags: []byte(`{"site":"b"}`)})
	require.NoError(t, err)
	require.Equal(t, int64(2), got.Desired.Version)
	m := hear()
	require.Equal(t, "$iothub/twin/PATCH/properties/desired/?$version=2", m.Topic())
	require.JSONEq(t, `{"interval":5,"$version":2}`, string(m.Payload()))
	d.Publish("$iothub/twin/GET/?$rid=2", 0, false, "")
	m = hear()
	require.Equal(t, "$iothub/twin/res/200/?$rid=2", m.Topic())
	require.JSONEq(t, `{"desired":{"interval":5,"$version":2},"reported":{"firmware":"1.2","$version":2}}`, string(m.Payload()))
	got, err = h.Twin("d1")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"firmware": "1.2"}, got.Reported.Properties)
	require.Equal(t, map[string]any{"site": "b"}, got.Tags)
	require.Equal(t, json.Number("5"), got.Desired.Properties["interval"])

	answered := make(chan mqttd.MethodResult, 1)
	go func() {
		r, err := h.InvokeMethod(t.Context(), "d1", mqttd.Method{Name: "reboot", Payload: []byte(`{"in":1}`)})
		if err == nil {
			answered <- r
		}
		close(answered)
	}()
	m = hear()
	rid, ok := strings.CutPrefix(m.Topic(), "$iothub/methods/POST/reboot/?$rid=")
	require.True(t, ok, m.Topic())
	d.Publish("$iothub/methods/res/200/?$rid="+rid, 0, false, `{"ok":true}`)
	require.Equal(t, mqttd.MethodResult{Status: 200, Payload: []byte(`{"ok":true}`)}, <-answered)

	var refusal *c2d.Refusal
	_, err = h.Twin("d2")
	require.ErrorAs(t, err, &refusal)
	_, err = h.UpdateTwin("d2", twin.Change{})
	require.ErrorAs(t, err, &refusal)
	_, err = h.InvokeMethod(t.Context(), "d2", mqttd.Method{Name: "m"})
	require.ErrorAs(t, err, &refusal)
}

// A module's client is told at once that there is nothing for it here.
func TestModulesAreRefused(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	o := options(t, h, "d1").SetClientID("d1/m1").SetUsername(h.Hostname() + "/d1/m1/?api-version=2021-04-12")
	_, err := connect(t, o)
	require.ErrorContains(t, err, "identifier rejected")
}
