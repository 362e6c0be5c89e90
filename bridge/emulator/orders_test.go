package emulator_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
)

// order publishes what Azure's own SDK tests publish to have the hub misbehave.
func order(d *device, id, kind, delay, duration string) mqtt.Token {
	topic := "devices/" + id + "/messages/events/AzIoTHub_FaultOperationType=" + kind +
		"&AzIoTHub_FaultOperationCloseReason=boom&AzIoTHub_FaultOperationDelayInSecs=" + delay
	if duration != "" {
		topic += "&AzIoTHub_FaultOperationDurationInSecs=" + duration
	}
	return d.Publish(topic, 1, false, "x")
}

func isGone(h *emulator.Hub) func() bool {
	return func() bool { return len(h.Connections()) == 0 }
}

func TestDevicesOrderFaults(t *testing.T) {
	for _, kind := range []string{fault.KillTCP, fault.ShutDownMQTT, fault.AuthError} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // it mostly waits
			h := runHub(t, emulator.Options{Devices: []string{"d*1", "dx1"}})
			d, other := connected(t, h, "d*1"), connected(t, h, "dx1")
			suffer := func(d *device, duration string) {
				t.Helper()
				ordered := order(d, "d*1", kind, "0.5", duration)
				require.True(t, ordered.WaitTimeout(wait))
				require.NoError(t, ordered.Error(), "it gets a PUBACK")
				require.Eventually(t, func() bool { return len(h.Connections()) == 1 }, wait, tick)
			}
			suffer(d, "600")
			require.Len(t, h.Telemetry().Read(telemetry.Query{}), 1)
			// In fault mode it does not get in again, and afterwards it does.
			_, err := connect(t, options(t, h, "d*1"))
			require.Error(t, err)
			h.Faults().Clear()
			suffer(connected(t, h, "d*1"), "0.5")
			require.Eventually(t, func() bool { return len(h.Faults().Rules()) == 0 }, wait, tick)
			connected(t, h, "d*1")
			require.True(t, other.IsConnectionOpen(), "another device, whose ID would match as a pattern")
		})
	}
	for _, kind := range []string{fault.Throttling, fault.QuotaExceeded} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // it mostly waits
			h := runHub(t, emulator.Options{Devices: []string{"d1"}})
			d := connected(t, h, "d1")
			require.True(t, order(d, "d1", kind, "0", "600").WaitTimeout(wait))
			require.Eventually(t, func() bool { return len(h.Faults().Rules()) == 1 }, wait, tick)
			require.True(t, d.IsConnectionOpen())
			d.Publish("devices/d1/messages/events/", 1, false, "refused")
			require.Eventually(t, func() bool { return len(h.Connections()) == 0 }, wait, tick)
			require.Len(t, h.Telemetry().Read(telemetry.Query{}), 1, "the order alone")
			// A newer order takes the place of that one.
			h.Faults().Clear()
			d = connected(t, h, "d1")
			require.True(t, order(d, "d1", kind, "0", "5").WaitTimeout(wait))
			require.Eventually(t, func() bool { return len(h.Faults().Rules()) == 1 }, wait, tick)
			require.Eventually(t, func() bool { return len(h.Faults().Rules()) == 0 }, wait, tick)
			sent := d.Publish("devices/d1/messages/events/", 1, false, "taken")
			require.True(t, sent.WaitTimeout(wait))
		})
	}
}

func TestOrdersForAMQPDevicesChangeNothing(t *testing.T) {
	var log bridgetest.Log
	h := runHub(t, emulator.Options{Devices: []string{"d1"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	d := connected(t, h, "d1")
	kinds := append(fault.ForAMQP(), "Unheard")
	for _, kind := range kinds {
		require.True(t, order(d, "d1", kind, "0", "600").WaitTimeout(wait))
	}
	require.True(t, order(d, "d1", fault.KillTCP, "soon", "").WaitTimeout(wait))
	require.Eventually(t, func() bool { return strings.Count(log.String(), "level=WARN") == len(kinds)+1 }, wait, tick)
	require.Contains(t, log.String(), "for a device on AMQP")
	require.Empty(t, h.Faults().Rules())
	require.True(t, d.IsConnectionOpen())
}

func TestOrdersWithoutPuback(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}, MQTT: mqttd.Behaviour{OrderUnacknowledged: true}})
	d := connected(t, h, "d1")
	ordered := order(d, "d1", fault.KillTCP, "0.05", "")
	require.Eventually(t, isGone(h), wait, tick)
	select {
	case <-ordered.Done():
		require.Error(t, ordered.Error())
	default:
	}
}

// A hub closes with orders to come.
func TestCloseCancelsOrders(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	d := connected(t, h, "d1")
	require.True(t, order(d, "d1", fault.KillTCP, "600", "").WaitTimeout(wait))
	begin := time.Now()
	require.NoError(t, h.Close())
	require.Less(t, time.Since(begin), wait)
}

func TestExpireTokensNow(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"pump-1", "valve"}})
	connected(t, h, "pump-1")
	connected(t, h, "valve")
	require.Equal(t, 1, h.ExpireTokens("pump-*"))
	require.Eventually(t, func() bool { return len(h.Connections()) == 1 }, wait, tick)
	require.Equal(t, "valve", h.Connections()[0].Device)

	s := newService(t, h)
	require.Equal(t, 1, h.ExpireServiceTokens())
	require.Zero(t, h.ExpireServiceTokens())
	require.Eventually(t, func() bool {
		_, err := s.session.NewSender(t.Context(), "/messages/devicebound", nil)
		return err != nil
	}, wait, tick)
}

func TestTokensThatAreTakenExpireSoon(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	h.Faults().Script(fault.Rule{Point: fault.MQTTConnect, Times: 1, Action: fault.Action{Kind: fault.Expire, Delay: 50 * time.Millisecond}})
	connected(t, h, "d1")
	require.Eventually(t, isGone(h), wait, tick)
	connected(t, h, "d1")
}

func TestTelemetryFaults(t *testing.T) {
	const topic = "devices/d1/messages/events/"
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	script := func(text string) {
		t.Helper()
		r, err := fault.Parse(text)
		require.NoError(t, err)
		h.Faults().Script(r)
	}
	d := connected(t, h, "d1")
	script("telemetry=delay:50ms")
	begin := time.Now()
	require.True(t, d.Publish(topic, 1, false, "late").WaitTimeout(wait))
	require.GreaterOrEqual(t, time.Since(begin), 50*time.Millisecond)
	script("telemetry=withhold,after") // the PUBACK is lost, the message is not
	d.Publish(topic, 1, false, "kept")
	require.Eventually(t, func() bool { return len(h.Telemetry().Read(telemetry.Query{})) == 2 }, wait, tick)
	script("telemetry=drop")
	d.Publish(topic, 1, false, "lost")
	require.Eventually(t, isGone(h), wait, tick)
	require.Len(t, h.Telemetry().Read(telemetry.Query{}), 2)
}
