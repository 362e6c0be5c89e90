package httpd

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/coder/websocket"
)

// websocketPaths are where the SDKs open their tunnels; the second is Python's
// for AMQP. Which protocol is inside, the subprotocol tells: AMQPWSB10 or mqtt.
var websocketPaths = []string{"/$iothub/websocket", "/$servicebus/websocket"}

func isWebSocket(path []string) bool {
	return slices.Contains(websocketPaths, strings.TrimSuffix("/"+strings.Join(path, "/"), "/"))
}

// tunnel hands a WebSocket's bytes to the endpoint of its subprotocol and
// returns when the connection has ended. Who may connect is that endpoint's matter.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request) {
	names := make([]string, 0, len(s.tunnels))
	for name := range s.tunnels {
		names = append(names, name)
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: names,
		// No cookie or other ambient credential counts here, so no origin is a danger.
		InsecureSkipVerify: true,
	})
	if err != nil {
		s.log.Debug("not a WebSocket", "err", err)
		return // answered by Accept
	}
	for name, serve := range s.tunnels {
		if strings.EqualFold(name, ws.Subprotocol()) {
			serve(&tunnelConn{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws})
			return
		}
	}
	_ = ws.Close(websocket.StatusPolicyViolation, "the subprotocol must be AMQPWSB10 or mqtt")
}

// tunnelConn closes without the WebSocket's closing handshake, which would have
// its closer wait for the peer.
type tunnelConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c *tunnelConn) Close() error { return c.ws.CloseNow() }
