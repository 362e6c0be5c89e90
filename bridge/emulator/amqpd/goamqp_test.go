package amqpd_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
)

func TestSendsAreAcceptedOrRejected(t *testing.T) {
	for name, sasl := range map[string]amqp.SASLType{"no SASL": nil, "ANONYMOUS": amqp.SASLTypeAnonymous(), "EXTERNAL": amqp.SASLTypeExternal("")} {
		t.Run(name, func(t *testing.T) {
			e := runEndpoint(t)
			s := newSender(t, authorized(t, e.dial(t, sasl)), nil)
			require.EqualValues(t, 1<<20, s.MaxMessageSize())
			require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "on")))

			state := send(t, s, command("nobody", "on"))
			require.IsType(t, &amqp.StateRejected{}, state)
			rejected := state.(*amqp.StateRejected).Error
			require.Equal(t, amqp.ErrCondNotFound, rejected.Condition)
			require.Equal(t, "no device nobody", rejected.Description)
			require.EqualValues(t, 404001, rejected.Info["com.microsoft:error-code"])
			require.NotEmpty(t, rejected.Info["com.microsoft:tracking-id"])

			state = send(t, s, command("full", "on"))
			require.Equal(t, amqp.ErrCondResourceLimitExceeded, state.(*amqp.StateRejected).Error.Condition)

			state = send(t, s, command("broken", "on"))
			require.Equal(t, amqp.ErrCondInternalError, state.(*amqp.StateRejected).Error.Condition)
			require.NotContains(t, state.(*amqp.StateRejected).Error.Description, "secret")

			require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "off")))
			got := e.got()
			require.Len(t, got, 2)
			require.Equal(t, c2d.Message{To: "/devices/d1/messages/devicebound", MessageID: "m", Body: []byte("on")}, got[0])
		})
	}
}

func TestMessageMapping(t *testing.T) {
	e := runEndpoint(t)
	s := newSender(t, authorized(t, e.dial(t, nil)), nil)
	expiry := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	m := command("a%2Fb", "body")
	m.Data = append(m.Data, []byte(" and more"))
	m.Header = &amqp.MessageHeader{Durable: true, Priority: 7, TTL: time.Minute}
	m.Annotations = amqp.Annotations{"x-opt": "y"}
	m.Properties.MessageID = amqp.UUID{0x01, 0x02, 15: 0xff}
	m.Properties.CorrelationID = uint64(7)
	m.Properties.UserID = []byte("ann")
	m.Properties.ContentType = ptr("application/json")
	m.Properties.ContentEncoding = ptr("utf-8")
	m.Properties.AbsoluteExpiryTime = &expiry
	m.ApplicationProperties = map[string]any{"iothub-ack": "full", "verb": "reboot"}
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, m))
	require.Equal(t, c2d.Message{
		To: "/devices/a%2Fb/messages/devicebound", MessageID: "01020000-0000-0000-0000-0000000000ff", CorrelationID: "7", UserID: "ann",
		ContentType: "application/json", ContentEncoding: "utf-8", ExpiresAt: expiry.UTC(), Ack: "full",
		Properties: []c2d.Property{{Name: "verb", Value: "reboot"}}, Body: []byte("body and more"),
	}, e.got()[0])

	for _, c := range []struct {
		value any
		text  string
	}{
		{int32(-5), "-5"}, {int8(-1), "-1"}, {int16(300), "300"}, {int64(1 << 40), "1099511627776"},
		{uint8(1), "1"}, {uint16(2), "2"}, {uint32(3), "3"}, {uint64(4), "4"},
		{true, "true"}, {false, "false"}, {float32(1.5), "1.5"}, {0.1, "0.1"}, {nil, ""}, {"", ""}, {"Grüße", "Grüße"},
		{time.UnixMilli(1700000000123), "2023-11-14T22:13:20.123Z"}, {amqp.UUID{15: 1}, "00000000-0000-0000-0000-000000000001"},
	} {
		m := command("d1", "")
		m.ApplicationProperties = map[string]any{"p": c.value}
		require.IsType(t, &amqp.StateAccepted{}, send(t, s, m))
		got := e.got()
		require.Equal(t, []c2d.Property{{Name: "p", Value: c.text, Null: c.value == nil}}, got[len(got)-1].Properties)
	}

	for _, id := range []struct {
		value any
		text  string
	}{{uint64(1 << 50), "1125899906842624"}, {[]byte("bin"), "bin"}, {[]byte{0xff, 0xfe}, "//4="}, {"text", "text"}} {
		m := command("d1", "")
		m.Properties.MessageID = id.value
		require.IsType(t, &amqp.StateAccepted{}, send(t, s, m))
		got := e.got()
		require.Equal(t, id.text, got[len(got)-1].MessageID)
	}

	for text, value := range map[string]any{"text body": "text body", "bytes": []byte("bytes")} {
		m := command("d1", "")
		m.Data, m.Value = nil, value
		require.IsType(t, &amqp.StateAccepted{}, send(t, s, m))
		got := e.got()
		require.Equal(t, text, string(got[len(got)-1].Body))
	}

	for name, change := range map[string]func(*amqp.Message){
		"binary property": func(m *amqp.Message) { m.ApplicationProperties = map[string]any{"p": []byte{1}} },
		"list body":       func(m *amqp.Message) { m.Data, m.Value = nil, []any{"a"} },
		"sequence body":   func(m *amqp.Message) { m.Data, m.Sequence = nil, [][]any{{"a"}} },
	} {
		m := command("d1", "")
		change(m)
		state := send(t, s, m)
		require.IsType(t, &amqp.StateRejected{}, state, name)
		require.EqualValues(t, "com.microsoft:argument-error", state.(*amqp.StateRejected).Error.Condition, name)
	}
}

func TestCBS(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	session, err := c.NewSession(within(t), nil)
	require.NoError(t, err)

	for _, id := range []any{nil, "text", uint64(0), uint64(300), amqp.UUID{1, 2}, []byte{1, 2, 3}} {
		props, token := sasToken("good")
		props["type"] = "ServiceBus.Windows.NET:sasToken"
		reply, err := putToken(t, session, id, props, token)
		require.NoError(t, err)
		require.Equal(t, int32(200), reply.ApplicationProperties["status-code"], "int, not another type")
		require.Equal(t, "OK", reply.ApplicationProperties["status-description"])
		if id == nil {
			require.Nil(t, reply.Properties.CorrelationID)
		} else {
			require.Equal(t, id, reply.Properties.CorrelationID)
		}
	}

	good, _ := sasToken("")
	for name, c := range map[string]struct {
		props map[string]any
		body  any
		code  int32
	}{
		"bad signature":     {good, "wrong", 401},
		"expired":           {good, "stale", 401},
		"refusal's code":    {good, "ghost", 404},
		"no token":          {good, nil, 400},
		"other type":        {map[string]any{"operation": "put-token", "type": "other"}, "good", 400},
		"Entra":             {map[string]any{"operation": "put-token", "type": "Bearer"}, "Bearer x.y.z", 401},
		"other operation":   {map[string]any{"operation": "delete-token", "type": "servicebus.windows.net:sastoken"}, "good", 400},
		"nothing":           {nil, "good", 400},
		"operation of type": {map[string]any{"operation": int32(1)}, "good", 400},
	} {
		reply, err := putToken(t, session, "x", c.props, c.body)
		require.NoError(t, err, name)
		require.Equal(t, c.code, reply.ApplicationProperties["status-code"], name)
		require.NotEmpty(t, reply.ApplicationProperties["status-description"], name)
	}
	newSender(t, session, nil) // the failures took nothing away
}

func TestSenderNeedsAToken(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	session, err := c.NewSession(within(t), nil)
	require.NoError(t, err)
	refusedWith := func(cond amqp.ErrCond, address string) {
		t.Helper()
		_, err := session.NewSender(within(t), address, nil)
		var ae *amqp.Error
		require.ErrorAs(t, err, &ae)
		require.Equal(t, cond, ae.Condition)
	}
	refusedWith(amqp.ErrCondUnauthorizedAccess, "/messages/devicebound")
	props, token := sasToken("registry")
	reply, err := putToken(t, session, "x", props, token)
	require.NoError(t, err)
	require.EqualValues(t, 200, reply.ApplicationProperties["status-code"])
	refusedWith(amqp.ErrCondUnauthorizedAccess, "/messages/devicebound")

	authorized(t, c)
	newSender(t, session, nil) // the token is the connection's, not the session's
	props, token = sasToken("registry")
	_, err = putToken(t, session, "x", props, token)
	require.NoError(t, err)
	for _, a := range []string{"messages/devicebound", "/Messages/DeviceBound", "amqps://localhost/messages/devicebound",
		"amqps://LOCALHOST:5671/messages/deviceBound"} {
		s, err := session.NewSender(within(t), a, nil)
		require.NoError(t, err, a)
		require.NoError(t, s.Close(within(t)))
	}
	refusedWith(amqp.ErrCondNotFound, "/messages/events")
	refusedWith(amqp.ErrCondNotFound, "amqps://localhost")

	receiverRefused := func(cond amqp.ErrCond, address string) {
		t.Helper()
		_, err := session.NewReceiver(within(t), address, nil)
		var ae *amqp.Error
		require.ErrorAs(t, err, &ae)
		require.Equal(t, cond, ae.Condition)
	}
	receiverRefused(amqp.ErrCondNotImplemented, "/messages/serviceBound/feedback")
	receiverRefused(amqp.ErrCondNotFound, "/messages/devicebound")
	newSender(t, session, nil)
}

func TestSettleModes(t *testing.T) {
	e := runEndpoint(t)
	session := authorized(t, e.dial(t, nil))
	n := 0
	for _, snd := range []*amqp.SenderSettleMode{nil, amqp.SenderSettleModeUnsettled.Ptr(), amqp.SenderSettleModeMixed.Ptr(), amqp.SenderSettleModeSettled.Ptr()} {
		for _, rcv := range []*amqp.ReceiverSettleMode{nil, amqp.ReceiverSettleModeFirst.Ptr(), amqp.ReceiverSettleModeSecond.Ptr()} {
			s := newSender(t, session, &amqp.SenderOptions{SettlementMode: snd, RequestedReceiverSettleMode: rcv})
			for range 3 {
				require.NoError(t, s.Send(within(t), command("d1", "x"), nil))
				n++
			}
			// A rejection of a settled message is not told, and does no harm.
			err := s.Send(within(t), command("nobody", "x"), nil)
			if snd != nil && *snd == amqp.SenderSettleModeSettled {
				require.NoError(t, err)
			} else {
				require.Error(t, err)
			}
			require.NoError(t, s.Close(within(t)))
		}
	}
	require.Eventually(t, func() bool { return len(e.got()) == n }, wait, time.Millisecond)
}

func TestLargeMessagesInSmallFrames(t *testing.T) {
	e := runEndpoint(t)
	session := authorized(t, e.dial(t, nil))
	s := newSender(t, session, nil)
	body := strings.Repeat("0123456789", 60<<10/10)
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", body))) // fits a frame, nearly
	body = strings.Repeat("0123456789", 900<<10/10)
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", body)))
	require.Equal(t, body, string(e.got()[1].Body))
	require.Error(t, s.Send(within(t), command("d1", strings.Repeat("x", 1<<20)), nil)) // go-amqp's own check
	require.IsType(t, &amqp.StateAccepted{}, send(t, s, command("d1", "small")))
}

func TestManySessionsAndLinks(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	authorized(t, c)
	var wg sync.WaitGroup
	for i := range 5 {
		session, err := c.NewSession(within(t), nil)
		require.NoError(t, err)
		for j := range 4 {
			s := newSender(t, session, nil)
			wg.Go(func() {
				for n := range 200 {
					if err := s.Send(t.Context(), command(fmt.Sprintf("d%d-%d", i, j), fmt.Sprint(n)), nil); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	next := map[string]int{}
	for _, m := range e.got() {
		require.Equal(t, fmt.Sprint(next[m.To]), string(m.Body))
		next[m.To]++
	}
	require.Len(t, next, 20)
}

func TestWindowOfManyInFlight(t *testing.T) {
	e := runEndpoint(t)
	s := newSender(t, authorized(t, e.dial(t, nil)), nil)
	pipeline(t, s, 5000, 512, func(n int) *amqp.Message {
		if n%7 == 0 {
			return command("nobody", fmt.Sprint(n))
		}
		return command("d1", fmt.Sprint(n))
	}, func(n int, state amqp.DeliveryState) {
		if n%7 == 0 {
			require.IsType(t, &amqp.StateRejected{}, state)
		} else {
			require.IsType(t, &amqp.StateAccepted{}, state)
		}
	})
	require.Len(t, e.got(), 5000-715)
}

// pipeline sends n messages with at most window unsettled.
func pipeline(t testing.TB, s *amqp.Sender, n, window int, message func(int) *amqp.Message, check func(int, amqp.DeliveryState)) {
	receipts := make(chan amqp.SendReceipt, window)
	done := make(chan struct{})
	ctx := t.Context()
	go func() {
		defer close(done)
		i := 0
		for r := range receipts {
			state, err := r.Wait(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			if check != nil {
				check(i, state)
			}
			i++
		}
	}()
	for i := range n {
		r, err := s.SendWithReceipt(ctx, message(i), nil)
		if err != nil {
			t.Error(err)
			break
		}
		receipts <- r
	}
	close(receipts)
	<-done
}

func TestHostName(t *testing.T) {
	e := runEndpoint(t)
	for host, ok := range map[string]bool{"localhost": true, "HUB1.azure-devices.net": true, "localhost:5671": true, "127.0.0.1": true, "[::1]:5671": true, "": true,
		"hub2.azure-devices.net": false, "10.0.0.1": false} {
		nc := dialRaw(t, e)
		c, err := amqp.NewConn(within(t), nc, &amqp.ConnOptions{HostName: host})
		if err == nil {
			_, err = c.NewSession(within(t), nil)
		}
		if ok {
			require.NoError(t, err, host)
			require.NoError(t, c.Close())
			continue
		}
		var ce *amqp.ConnError
		require.ErrorAs(t, err, &ce, host)
		require.NotNil(t, ce.RemoteErr)
		require.EqualValues(t, "com.microsoft:iot-hub-not-found-error", ce.RemoteErr.Condition)
	}
}

func TestSASLPlain(t *testing.T) {
	e := runEndpoint(t)
	s, err := e.dial(t, amqp.SASLTypePlain("service@sas.root.hub1", "good")).NewSession(within(t), nil)
	require.NoError(t, err)
	require.IsType(t, &amqp.StateAccepted{}, send(t, newSender(t, s, nil), command("d1", "x"))) // no CBS needed
	for name, c := range map[string][2]string{
		"wrong token":  {"service@sas.root.hub1", "wrong"},
		"wrong policy": {"iothubowner@sas.root.hub1", "good"},
		"wrong hub":    {"service@sas.root.hub2", "good"},
		"a device":     {"d1@sas.hub1", "good"},
		"stale":        {"service@sas.root.hub1", "stale"},
	} {
		_, err := e.tryDial(t, amqp.SASLTypePlain(c[0], c[1]))
		require.ErrorContains(t, err, "SASL", name)
	}
}

func TestCloseTellsClientsWhy(t *testing.T) {
	e := runEndpoint(t)
	c := e.dial(t, nil)
	authorized(t, c)
	start := time.Now()
	e.srv.Close()
	require.Less(t, time.Since(start), wait/2, "it waits for no time-out")
	var ce *amqp.ConnError
	require.ErrorAs(t, waitEnd(t, c), &ce)
	require.NotNil(t, ce.RemoteErr)
	require.Equal(t, amqp.ErrCondConnectionForced, ce.RemoteErr.Condition)
	e.srv.Close()
}

func TestPanicCostsOneConnection(t *testing.T) {
	e := runEndpoint(t)
	bad, good := e.dial(t, nil), e.dial(t, nil)
	s, other := newSender(t, authorized(t, bad), nil), newSender(t, authorized(t, good), nil)
	e.mu.Lock()
	e.panics = true
	e.mu.Unlock()
	require.Error(t, s.Send(within(t), command("d1", "x"), nil))
	waitEnd(t, bad)
	e.mu.Lock()
	e.panics = false
	e.mu.Unlock()
	require.IsType(t, &amqp.StateAccepted{}, send(t, other, command("d1", "x")))
}

// In a bubble: on a busy machine a heartbeat may come later than a client waits.
func TestHeartbeatsForClientsThatWantThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		srv := amqpd.New(amqpd.Options{Backend: newHub()})
		ended := make(chan struct{})
		go func() { defer close(ended); srv.ServeConn(server) }()
		c, err := amqp.NewConn(t.Context(), client, &amqp.ConnOptions{HostName: "localhost", IdleTimeout: time.Second})
		require.NoError(t, err)
		select {
		case <-c.Done():
			require.NoError(t, c.Err())
		case <-time.After(time.Minute):
		}
		_ = c.Close() // the hub may have closed the pipe before
		<-ended
		srv.Close()
	})
}

func BenchmarkSend(b *testing.B) {
	e := runEndpoint(b, func(o *amqpd.Options) { o.Backend = discard{} })
	s := newSender(b, authorized(b, e.dial(b, nil)), nil)
	m := command("d1", strings.Repeat("x", 200))
	m.ApplicationProperties = map[string]any{"verb": "reboot", "X-User": "ann"}
	b.ReportAllocs()
	b.ResetTimer()
	pipeline(b, s, b.N, 512, func(int) *amqp.Message { return m }, nil)
}

type discard struct{}

func (discard) Enqueue(c2d.Message) error { return nil }
func (discard) Authorize(string) (amqpd.Grant, error) {
	return amqpd.Grant{ServiceConnect: true}, nil
}
