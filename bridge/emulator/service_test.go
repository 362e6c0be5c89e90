package emulator_test

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/internal/sas"
)

// service is a back end on the hub's AMQP endpoint, without any of our clients.
type service struct {
	session *amqp.Session
	sender  *amqp.Sender
}

// putToken authenticates a session by CBS and returns the status code.
func putToken(t *testing.T, s *amqp.Session, host, token string) any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	tx, err := s.NewSender(ctx, "$cbs", nil)
	require.NoError(t, err)
	rx, err := s.NewReceiver(ctx, "$cbs", nil)
	require.NoError(t, err)
	id, to, reply := "1", "$cbs", "cbs"
	require.NoError(t, tx.Send(ctx, &amqp.Message{
		Properties: &amqp.MessageProperties{MessageID: id, To: &to, ReplyTo: &reply},
		ApplicationProperties: map[string]any{
			"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": host,
		},
		Value: token,
	}, nil))
	m, err := rx.Receive(ctx, nil)
	require.NoError(t, err)
	require.NoError(t, rx.AcceptMessage(ctx, m))
	require.Equal(t, id, m.Properties.CorrelationID)
	require.NoError(t, tx.Close(ctx))
	require.NoError(t, rx.Close(ctx))
	return m.ApplicationProperties["status-code"]
}

func dialSession(t *testing.T, h *emulator.Hub) *amqp.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := amqp.Dial(ctx, "amqps://"+h.AMQPAddr(), &amqp.ConnOptions{
		HostName: h.Hostname(), TLSConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: h.Hostname()},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	s, err := c.NewSession(ctx, nil)
	require.NoError(t, err)
	return s
}

func policyToken(t *testing.T, h *emulator.Hub, policy string) string {
	t.Helper()
	text, err := h.ConnectionString(policy)
	require.NoError(t, err)
	cs, err := sas.Parse(text)
	require.NoError(t, err)
	return sas.Sign(cs.HostName, cs.KeyName, cs.Key, time.Now().Add(time.Hour))
}

func newService(t *testing.T, h *emulator.Hub) *service {
	t.Helper()
	s := dialSession(t, h)
	require.EqualValues(t, 200, putToken(t, s, h.Hostname(), policyToken(t, h, "service")))
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	tx, err := s.NewSender(ctx, "/messages/devicebound", nil)
	require.NoError(t, err)
	return &service{s, tx}
}

func (s *service) send(t *testing.T, m *amqp.Message) amqp.DeliveryState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	r, err := s.sender.SendWithReceipt(ctx, m, nil)
	require.NoError(t, err)
	state, err := r.Wait(ctx)
	require.NoError(t, err)
	return state
}

func TestFromServiceToDevice(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1", "full"}})
	d := connected(t, h, "d1")
	d.subscribe(t, "d1", 1)
	s := newService(t, h)

	to := "/devices/d1/messages/deviceBound"
	correlation, kind := "c 1", "application/json"
	expiry := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	m := &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: "m1", To: &to, CorrelationID: correlation, ContentType: &kind, AbsoluteExpiryTime: &expiry, UserID: []byte("ann")},
		ApplicationProperties: map[string]any{"iothub-ack": "full", "verb": "re&boot"},
		Data:                  [][]byte{[]byte(`{"a":1}`)},
	}
	require.IsType(t, &amqp.StateAccepted{}, s.send(t, m))
	got := d.next(t)
	require.Equal(t, `{"a":1}`, string(got.Payload()))
	date := strings.ReplaceAll(expiry.UTC().Format("2006-01-02T15:04:05.000"), ":", "%3A") + "0000Z"
	require.Equal(t, "devices/d1/messages/devicebound/%24.exp="+date+"&%24.mid=m1&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound"+
		"&%24.cid=c%201&%24.uid=ann&%24.ct=application%2Fjson&iothub-ack=full&verb=re%26boot", got.Topic())
	got.Ack()
	require.Eventually(t, func() bool { return h.Tally("d1")["m1"].Completed == 1 }, wait, tick)

	for range 50 {
		require.NoError(t, h.Enqueue(message("full", "m", "x")))
	}
	for name, c := range map[string]struct {
		to, id    string
		condition amqp.ErrCond
	}{
		"unknown device": {"/devices/ghost/messages/devicebound", "m", "amqp:not-found"},
		"full queue":     {"/devices/full/messages/devicebound", "m", "amqp:resource-limit-exceeded"},
		"bad id":         {to, "a/b", "com.microsoft:argument-error"},
		"bad to":         {"/devices/d1", "m", "com.microsoft:argument-error"},
	} {
		t.Run(name, func(t *testing.T) {
			state := s.send(t, &amqp.Message{Properties: &amqp.MessageProperties{MessageID: c.id, To: &c.to}, Data: [][]byte{nil}})
			require.IsType(t, &amqp.StateRejected{}, state)
			require.Equal(t, c.condition, state.(*amqp.StateRejected).Error.Condition)
		})
	}
	require.IsType(t, &amqp.StateAccepted{}, s.send(t, m), "a refused message does not break the link")
	require.Equal(t, 51, h.Sends("full"))
}

func TestServiceTokens(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	s := dialSession(t, h)
	device, err := h.DeviceConnectionString("d1")
	require.NoError(t, err)
	cs, err := sas.Parse(device)
	require.NoError(t, err)
	soon := time.Now().Add(time.Hour)
	require.EqualValues(t, 401, putToken(t, s, "localhost", sas.Sign("localhost", "service", cs.Key, soon)), "wrong key")
	require.EqualValues(t, 401, putToken(t, s, "localhost", sas.Sign("localhost", "", cs.Key, soon)), "no policy")
	require.EqualValues(t, 401, putToken(t, s, "localhost", sas.Sign("other", "service", cs.Key, soon)), "other hub")
	require.EqualValues(t, 200, putToken(t, s, "localhost", policyToken(t, h, "iothubowner")))
}

func TestEnqueueInGo(t *testing.T) {
	h := runHub(t, emulator.Options{})
	var r *c2d.Refusal
	require.ErrorAs(t, h.Enqueue(message("ghost", "m", "x")), &r)
	require.Equal(t, 404001, r.Code)
	require.Equal(t, 1, h.UnknownSends())
	require.NoError(t, h.CreateDevice("ghost"))
	require.NoError(t, h.Enqueue(message("ghost", "m", "x")))
	require.Equal(t, 1, h.Sends("ghost"))
	n, err := h.PurgeDevice("ghost")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	d, err := h.Device("ghost")
	require.NoError(t, err)
	require.Zero(t, d.Pending)
}
