package app_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator/c2d"
)

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }

func c2dMessage(device, id string, properties map[string]string) c2d.Message {
	m := c2d.Message{To: "/devices/" + device + "/messages/devicebound", MessageID: id, Body: []byte(id)}
	for k, v := range properties {
		m.Properties = append(m.Properties, c2d.Property{Name: k, Value: v})
	}
	return m
}

const coreYAML = `
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true}]
  routes:
    - name: ignore
      subject: "ask.test.>"
      drop: test traffic
    - name: asks
      subject: "ask.{device}.{verb}"
      source: core
      device: "{device}"
      properties: [{name: verb, value: "{verb}"}]
`

func TestCoreRequestGetsTheOutcome(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "a")
	waitReady(t, runApp(t, hub, fmt.Sprintf(coreYAML, cloud.URL())))
	nc := cloud.Conn(t)
	request := func(subject string) (r bridge.Receipt, m *nats.Msg) {
		m, err := nc.Request(subject, []byte("x"), deadline)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(m.Data, &r))
		return r, m
	}
	got, m := request("ask.a.reboot")
	require.Equal(t, "accepted", got.Status)
	require.Equal(t, "a", got.Device)
	require.Equal(t, "main", got.Hub)
	require.Equal(t, "asks", got.Route)
	require.NotEmpty(t, got.ID)
	require.Equal(t, "accepted", m.Header.Get("Downlink-Status"))

	got, _ = request("ask.nobody.reboot")
	require.Equal(t, "dead", got.Status)
	require.Equal(t, "device-not-found", got.Reason)
	require.Equal(t, "amqp:not-found", got.Condition)

	got, _ = request("ask.test.it")
	require.Equal(t, "dropped", got.Status)
	require.Equal(t, "test traffic", got.Reason)
}

func TestCoreRouteWhoseSubjectAStreamStoresIsRefused(t *testing.T) {
	t.Parallel()
	cloud := bridgetest.RunNATS(t)
	cloud.CreateStream(t, "ASKS", "ask.>")
	hub := bridgetest.RunHub(t, "a")
	a := runApp(t, hub, fmt.Sprintf(coreYAML, cloud.URL()))
	notReady(t, a, "asks", "stream ASKS stores its subject", "stream: ASKS")
	require.Zero(t, hub.Sends("a"))
}
