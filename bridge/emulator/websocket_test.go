package emulator_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"testing"

	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
)

func TestOverWebSocket(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	o := options(t, h, "d1")
	o.Servers = nil
	d, err := connect(t, o.AddBroker("wss://"+h.HTTPAddr()+"/$iothub/websocket"))
	require.NoError(t, err)
	d.subscribe(t, "d1", 1)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"}}}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/$iothub/websocket", "/$servicebus/websocket/", "/%24iothub/websocket"} {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		ws, _, err := websocket.Dial(ctx, "wss://"+h.HTTPAddr()+path, &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"AMQPWSB10"}})
		require.NoError(t, err)
		require.Equal(t, "AMQPWSB10", ws.Subprotocol())
		c, err := amqp.NewConn(ctx, websocket.NetConn(context.Background(), ws, websocket.MessageBinary), &amqp.ConnOptions{HostName: "localhost"})
		require.NoError(t, err)
		session, err := c.NewSession(ctx, nil)
		require.NoError(t, err)
		require.EqualValues(t, 200, putToken(t, session, "localhost", policyToken(t, h, "service")))
		sender, err := session.NewSender(ctx, "/messages/devicebound", nil)
		require.NoError(t, err)
		to := "/devices/d1/messages/devicebound"
		s := &service{session, sender}
		require.IsType(t, &amqp.StateAccepted{}, s.send(t, &amqp.Message{Properties: &amqp.MessageProperties{To: &to}, Data: [][]byte{make([]byte, 60_000)}}))
		m := d.next(t)
		require.Len(t, m.Payload(), 60_000)
		m.Ack()
		_ = c.Close() // the hub hangs up without the WebSocket's farewell
	}
	require.Eventually(t, func() bool { return h.Counts("d1").Completed == 3 }, wait, tick)
	require.Len(t, h.Connections(), 1)
	// The hub closes with the device still on its WebSocket.
}

func TestWebSocketNeedsItsSubprotocol(t *testing.T) {
	h := runHub(t, emulator.Options{})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "wss://"+h.HTTPAddr()+"/$iothub/websocket", &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"soap"}})
	require.NoError(t, err)
	_, _, err = ws.Read(ctx)
	require.Equal(t, websocket.StatusPolicyViolation, websocket.CloseStatus(err))
	res, err := client.Get("https://" + h.HTTPAddr() + "/$iothub/websocket")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusUpgradeRequired, res.StatusCode)
}
