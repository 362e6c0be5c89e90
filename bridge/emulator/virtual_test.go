package emulator_test

import (
	"testing"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/virtual"
)

func TestVirtualDevices(t *testing.T) {
	h := runHub(t, emulator.Options{
		Devices: []string{"pump-1", "valve-1", "real"}, AnyDevice: true,
		Virtual: []virtual.Rule{{Pattern: "pump-*"}, {Pattern: "valve-*", Behaviour: virtual.Behaviour{Kind: virtual.Offline}}},
	})
	s := newService(t, h)
	send := func(id string) {
		t.Helper()
		to := "/devices/" + id + "/messages/devicebound"
		require.IsType(t, &amqp.StateAccepted{}, s.send(t, &amqp.Message{Properties: &amqp.MessageProperties{To: &to}}))
	}
	// More than a queue holds, and one that is created by its first message.
	for range 120 {
		send("pump-1")
		send("pump-2")
	}
	send("valve-1")
	send("real")
	require.Eventually(t, func() bool { return h.Counts("pump-1").Completed+h.Counts("pump-2").Completed == 240 }, wait, tick)
	require.Len(t, h.Queue("valve-1"), 1)
	require.Len(t, h.Queue("real"), 1)
	require.Len(t, h.VirtualConnections(), 2)
	d, err := h.Device("pump-2")
	require.NoError(t, err)
	require.True(t, d.Connected)

	_, err = emulator.Start(emulator.Options{Virtual: []virtual.Rule{{Pattern: "x", Behaviour: virtual.Behaviour{Delay: -1}}}})
	require.ErrorContains(t, err, "hub: virtual devices x: a duration is negative")
}
