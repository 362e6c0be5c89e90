package hubservice

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

// The tunnel's path and subprotocol, as the hub's Node and C# SDKs have them
// (Azure/azure-iot-hub-node amqp_ws.ts).
const (
	webSocketPath     = "/$iothub/websocket"
	webSocketProtocol = "AMQPWSB10"
)

// dial opens the bytes that AMQP goes over: TLS, or a WebSocket.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4}}
	secured := &tls.Config{ServerName: c.host, RootCAs: c.options.RootCAs, MinVersion: tls.VersionTLS12}
	if !c.options.WebSocket {
		return (&tls.Dialer{NetDialer: dialer, Config: secured}).DialContext(ctx, "tcp", c.options.Address)
	}
	target := &url.URL{Scheme: "https", Host: c.options.Address, Path: webSocketPath}
	proxy, err := c.proxy(&http.Request{URL: target})
	if err != nil {
		return nil, fmt.Errorf("the proxy of the environment: %w", err)
	}
	if proxy != nil && proxy.Scheme == "https" {
		secured.ServerName = "" // net/http has one TLS configuration for the proxy and what is behind it
	}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy), DialContext: dialer.DialContext, TLSClientConfig: secured}
	defer transport.CloseIdleConnections()
	ws, _, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: transport},
		Host:         c.host,
		Subprotocols: []string{webSocketProtocol},
	})
	if err != nil {
		return nil, err
	}
	if ws.Subprotocol() != webSocketProtocol {
		_ = ws.CloseNow()
		return nil, fmt.Errorf("%s does not speak %s over WebSocket", c.options.Address, webSocketProtocol)
	}
	// The connection outlives ctx, which ends with its opening.
	return &tunnel{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws}, nil
}

// tunnel closes without the WebSocket's closing handshake, which would wait for
// the hub; AMQP has said good-bye by then.
type tunnel struct {
	net.Conn
	ws *websocket.Conn
}

func (t *tunnel) Close() error { return t.ws.CloseNow() }
