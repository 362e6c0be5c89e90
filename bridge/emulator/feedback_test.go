package emulator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
)

// outcome is a feedback record as a back end reads it.
type outcome struct {
	OriginalMessageID  string    `json:"originalMessageId"`
	StatusCode         string    `json:"statusCode"`
	Description        string    `json:"description"`
	DeviceID           string    `json:"deviceId"`
	DeviceGenerationID string    `json:"deviceGenerationId"`
	EnqueuedTimeUTC    time.Time `json:"enqueuedTimeUtc"`
}

func (s *service) feedback(t *testing.T) *amqp.Receiver {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	r, err := s.session.NewReceiver(ctx, "/messages/serviceBound/feedback", nil)
	require.NoError(t, err)
	return r
}

// outcomes receives and completes batches until there were n records, and returns them as "message status".
func outcomes(t *testing.T, h *emulator.Hub, r *amqp.Receiver, n int) (out []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for len(out) < n {
		m, err := r.Receive(ctx, nil)
		require.NoError(t, err, "got %v", out)
		var records []outcome
		require.NoError(t, json.Unmarshal(m.GetData(), &records))
		for _, o := range records {
			d, err := h.Device(o.DeviceID)
			require.NoError(t, err)
			require.Equal(t, d.GenerationID, o.DeviceGenerationID)
			require.Equal(t, o.StatusCode, o.Description)
			require.WithinDuration(t, time.Now(), o.EnqueuedTimeUTC, time.Minute)
			out = append(out, o.OriginalMessageID+" "+o.StatusCode)
		}
		require.Equal(t, "localhost", string(m.Properties.UserID))
		require.NoError(t, r.AcceptMessage(ctx, m))
	}
	slices.Sort(out)
	return out
}

func command(device, id, ack string) *amqp.Message {
	to := "/devices/" + device + "/messages/devicebound"
	return &amqp.Message{
		Properties:            &amqp.MessageProperties{To: &to, MessageID: id},
		ApplicationProperties: map[string]any{"iothub-ack": ack}, Data: [][]byte{{}},
	}
}

// Each status code, by what brings it about at a device, and for whom.
func TestFeedbackOfEachStatus(t *testing.T) {
	var c clock
	h := runHub(t, emulator.Options{
		Now:      c.now,
		Devices:  []string{"good", "bad", "slow", "late", "purged", "gone"},
		Rules:    c2d.Rules{MaxDeliveries: 1, Counting: c2d.CountDeliveries},
		Feedback: feedback.Rules{Every: 20 * time.Millisecond},
	})
	s := newService(t, h)
	r := s.feedback(t)
	all := func(device string, change ...func(*amqp.Message)) {
		t.Helper()
		for _, ack := range []string{"none", "positive", "negative", "full"} {
			m := command(device, device+"."+ack, ack)
			for _, f := range change {
				f(m)
			}
			require.IsType(t, &amqp.StateAccepted{}, s.send(t, m))
		}
	}

	acknowledge := func(d *device) {
		t.Helper()
		for range 4 {
			d.next(t).Ack()
		}
	}
	all("good")
	good := connected(t, h, "good")
	good.subscribe(t, "good", 1)
	acknowledge(good)
	require.Equal(t, []string{"good.full Success", "good.positive Success"}, outcomes(t, h, r, 2))

	// No device on MQTT can reject; a fault does so in its place.
	h.Faults().Add(fault.Puback, 0, func(id string) bool { return id == "bad" }, fault.Action{Kind: fault.Reject})
	all("bad")
	bad := connected(t, h, "bad")
	bad.subscribe(t, "bad", 1)
	acknowledge(bad)
	require.Equal(t, []string{"bad.full Rejected", "bad.negative Rejected"}, outcomes(t, h, r, 2))

	// It takes all four, acknowledges none, and disconnects: by the older text that was the last delivery.
	all("slow")
	slow := connected(t, h, "slow")
	slow.subscribe(t, "slow", 1)
	for range 4 {
		slow.next(t)
	}
	slow.Disconnect(0)
	require.Equal(t, []string{"slow.full DeliveryCountExceeded", "slow.negative DeliveryCountExceeded"}, outcomes(t, h, r, 2))

	expiry := time.Now().Add(50 * time.Second)
	all("late", func(m *amqp.Message) { m.Properties.AbsoluteExpiryTime = &expiry })
	c.pass(50 * time.Second)
	require.Equal(t, []string{"late.full Expired", "late.negative Expired"}, outcomes(t, h, r, 2))

	all("purged")
	n, err := h.PurgeDevice("purged")
	require.NoError(t, err)
	require.Equal(t, 4, n)
	require.Equal(t, []string{"purged.full Purged", "purged.negative Purged"}, outcomes(t, h, r, 2))

	all("gone")
	require.NoError(t, h.DeleteDevice("gone"))
	all("good")
	acknowledge(good)
	require.Equal(t, []string{"good.full Success", "good.positive Success"}, outcomes(t, h, r, 2), "nothing of the deleted device")
}

func TestTiers(t *testing.T) {
	condition := func(state amqp.DeliveryState) (string, any) {
		t.Helper()
		require.IsType(t, &amqp.StateRejected{}, state)
		e := state.(*amqp.StateRejected).Error
		return string(e.Condition), e.Info["com.microsoft:error-code"]
	}
	start := time.Now()
	var passed atomic.Int64 // by the clock of the hub, which stands still otherwise
	now := func() time.Time { return start.Add(time.Duration(passed.Load())) }
	t.Run("burst, delay, refusal", func(t *testing.T) {
		h := runHub(t, emulator.Options{Now: now, Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.S3, Burst: 36 * time.Millisecond, Backlog: 61 * time.Millisecond}})
		s := newService(t, h)
		var states []amqp.SendReceipt
		for i := range 12 { // 3 at once, 5 delayed, the rest refused: 12 ms each
			r, err := s.sender.SendWithReceipt(t.Context(), command("d1", fmt.Sprint("m", i), "none"), nil)
			require.NoError(t, err)
			states = append(states, r)
		}
		accepted, refused := 0, 0
		for _, r := range states {
			state, err := r.Wait(t.Context())
			require.NoError(t, err)
			if _, ok := state.(*amqp.StateAccepted); ok {
				accepted++
				continue
			}
			c, code := condition(state)
			require.Equal(t, "com.microsoft:device-container-throttled", c)
			require.EqualValues(t, 429001, code)
			refused++
		}
		require.Equal(t, 8, accepted)
		require.Equal(t, 4, refused)
		require.Len(t, h.Queue("d1"), 8)
		require.Equal(t, throttle.Status{Tier: throttle.S3, Units: 1, Used: 8, Quota: 300_000_000, Delayed: 5, Throttled: 4}, h.Throttle())
	})
	t.Run("quota", func(t *testing.T) {
		h := runHub(t, emulator.Options{Now: now, Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.F1, Daily: 1}})
		s := newService(t, h)
		require.IsType(t, &amqp.StateAccepted{}, s.send(t, command("d1", "m1", "none")))
		c, code := condition(s.send(t, command("d1", "m2", "none")))
		require.Equal(t, "amqp:resource-limit-exceeded", c)
		require.EqualValues(t, 403002, code)
	})
	t.Run("basic", func(t *testing.T) {
		h := runHub(t, emulator.Options{Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.B2}})
		c, _ := condition(newService(t, h).send(t, command("d1", "m1", "none")))
		require.Equal(t, "amqp:not-allowed", c)
	})
	t.Run("connections", func(t *testing.T) {
		h := runHub(t, emulator.Options{Now: now, AnyDevice: true, Throttle: throttle.Options{Tier: throttle.S1, Burst: -1}})
		connected(t, h, "d1")
		_, err := connect(t, options(t, h, "d2"))
		require.Error(t, err)
		require.NotErrorIs(t, err, packets.ErrorRefusedNotAuthorised, "no answer: the connection is dropped")
		passed.Add(int64(10 * time.Millisecond))
		connected(t, h, "d2")
	})
	t.Run("telemetry", func(t *testing.T) {
		h := runHub(t, emulator.Options{Now: now, Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.B1, Daily: 1}})
		d := connected(t, h, "d1")
		require.True(t, d.Publish("devices/d1/messages/events/", 1, false, "x").WaitTimeout(wait))
		d.Publish("devices/d1/messages/events/", 1, false, "x")
		require.Eventually(t, func() bool { return !d.IsConnected() }, wait, tick)
		require.Equal(t, uint64(1), h.Counts("d1").Telemetry)
	})
	t.Run("off", func(t *testing.T) {
		require.Zero(t, runHub(t, emulator.Options{}).Throttle())
	})
	t.Run("wrong", func(t *testing.T) {
		_, err := emulator.Start(emulator.Options{Throttle: throttle.Options{Tier: throttle.F1, Units: 2}})
		require.EqualError(t, err, "hub: units: 2 is more than the 1 a hub of tier F1 can have")
	})
}
