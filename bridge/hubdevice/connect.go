package hubdevice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
)

const (
	// The hub drops a silent client after 1.5 times its keep-alive; what it takes is
	// capped at 1177 s. A minute finds dead links soon and costs two small packets.
	keepAlive   = time.Minute
	pingTimeout = 20 * time.Second
	// connectTimeout bounds TCP, TLS and CONNACK together, and SUBACK again.
	connectTimeout = 30 * time.Second
	// quiesce is how long paho may take to write what is queued and DISCONNECT.
	quiesce = time.Second
	// apiVersion is part of the user name (IoT Hub developer guide, MQTT support).
	apiVersion = "2021-04-12"

	opSubscribe = "subscribe"
)

// connection is one MQTT connection, from CONNECT to its end. It is never reused.
type connection struct {
	mqtt    mqtt.Client
	wire    *wire // nil if dialling failed
	inbox   *inbox
	session bool      // the hub had kept the session
	renew   time.Time // zero: the token cannot be renewed
	release func() bool
	dialErr error
	workers sync.WaitGroup
}

// connect dials, connects and subscribes.
func (c *Client) connect(ctx context.Context) (*connection, error) {
	conn, err := c.login(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.subscribe(ctx, conn); err != nil {
		if ctx.Err() != nil {
			c.stopping()
			conn.settle(c.grace) // messages may have been handed out already
		}
		conn.close()
		return nil, err
	}
	return conn, nil
}

// login dials and connects. Messages flow into the inbox from the moment the hub accepted, if it has
// kept the session, so it is in place before CONNECT.
func (c *Client) login(ctx context.Context) (*connection, error) {
	conn := &connection{inbox: newInbox(c.announce), release: func() bool { return true }}
	password, err := c.password(conn)
	if err != nil {
		return nil, err
	}
	c.adopt(conn.inbox)

	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{{Scheme: "ssl", Host: c.address}}
	o.SetProtocolVersion(4) // and never fall back to 3.1
	o.SetClientID(c.device).SetUsername(c.username).SetPassword(password)
	o.SetCleanSession(false)
	o.SetAutoReconnect(false).SetConnectRetry(false)
	o.SetAutoAckDisabled(true)
	o.SetOrderMatters(true)
	o.SetKeepAlive(keepAlive).SetPingTimeout(pingTimeout)
	o.SetConnectTimeout(connectTimeout).SetWriteTimeout(5 * time.Second)
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { c.arrived(conn, m) })
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		raw, err := c.dial(ctx)
		if err != nil {
			conn.dialErr = err
			return nil, err
		}
		conn.wire = newWire(raw)
		// paho's CONNECT takes no context. Once connected, Run ends it in order.
		conn.release = context.AfterFunc(ctx, func() { conn.wire.Close() })
		return conn.wire, nil
	})
	conn.mqtt = mqtt.NewClient(o)
	conn.workers.Go(func() { conn.inbox.pubacks(c.completed) })

	token := conn.mqtt.Connect().(*mqtt.ConnectToken)
	token.Wait() // bounded by the connect time-out and ended by ctx
	if err := token.Error(); err != nil {
		err = c.refusal(conn, token.ReturnCode(), err)
		conn.close()
		return nil, err
	}
	conn.release()
	conn.session = token.SessionPresent()
	return conn, nil
}

// password mints the CONNECT password and says when to renew it.
func (c *Client) password(conn *connection) (string, error) {
	now := time.Now()
	if c.credential.Token != "" {
		t, err := sas.ParseToken(c.credential.Token)
		if err == nil && !now.Before(t.Expiry) {
			err = fmt.Errorf("the connection string's SharedAccessSignature expired at %s; give a new one, or a SharedAccessKey, which renews itself", t.Expiry.UTC().Format(time.RFC3339))
		}
		if err != nil {
			return "", &bridge.Error{Class: bridge.Unauthorized, Op: "connect", Err: err}
		}
		return c.credential.Token, nil
	}
	// se is in whole seconds: what counts for the renewal is what is left after rounding.
	expiry := now.Add(c.lifetime).Truncate(time.Second)
	left := expiry.Sub(now)
	conn.renew = now.Add(left*4/5 - c.jitter(left/20))
	resource := c.credential.HostName + "/devices/" + c.device
	return sas.Sign(resource, "", c.credential.Key, expiry), nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	d := tls.Dialer{
		NetDialer: &net.Dialer{},
		Config:    &tls.Config{ServerName: c.serverName, RootCAs: c.rootCAs, MinVersion: tls.VersionTLS12},
	}
	return d.DialContext(ctx, "tcp", c.address)
}

// subscribe asks for the device's messages at QoS 1: at QoS 0 the hub completes a
// message by sending it. It does so on every connection: a session may have lost it.
func (c *Client) subscribe(ctx context.Context, conn *connection) error {
	filter := "devices/" + c.device + devicebound + "/#"
	token := conn.mqtt.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
	timeout := time.NewTimer(connectTimeout)
	defer timeout.Stop()
	select {
	case <-token.Done():
	case <-conn.wire.ended:
		return c.lost(opSubscribe, conn.wire.cause)
	case <-timeout.C:
		return &bridge.Error{Class: bridge.LinkLost, Op: opSubscribe, Err: errors.New("no SUBACK from the hub")}
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := token.Error(); err != nil {
		select {
		case <-conn.wire.ended:
			err = conn.wire.cause // paho only says that the connection was lost
		default:
		}
		return c.lost(opSubscribe, err)
	}
	// MQTT 3.1.1 §3.9.3: 0x80 is failure.
	switch code, ok := token.Result()[filter]; {
	case !ok || code > 1:
		return &bridge.Error{Class: bridge.Unknown, Op: opSubscribe, Condition: fmt.Sprintf("SUBACK 0x%02x", code),
			Err: fmt.Errorf("the hub refused the subscription %q; C2D needs a hub of the Standard or Free tier, and a device that is no module", filter)}
	case code == 0:
		c.logger.Warn("hub granted QoS 0 only: it completes a message when it sends it, so one may be lost")
	}
	return nil
}

// refusal turns a failed CONNECT into one line with the remedy.
func (c *Client) refusal(conn *connection, code byte, err error) error {
	e := &bridge.Error{Class: bridge.LinkLost, Op: "connect to " + c.address}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(conn.dialErr, &unknown):
		e.Err = fmt.Errorf("%w; if it is the embedded hub or a gateway, set ca_file to its CA", conn.dialErr)
	case errors.As(conn.dialErr, &name):
		e.Err = fmt.Errorf("%w; the certificate must be for the connection string's host name", conn.dialErr)
	case conn.dialErr != nil:
		e.Err = conn.dialErr
	// Which of the two codes the hub sends for a bad token is not documented.
	case code == packets.ErrRefusedBadUsernameOrPassword || code == packets.ErrRefusedNotAuthorised:
		e.Class = bridge.Unauthorized
		e.Err = fmt.Errorf("unauthorized: the hub refused device %q; %s", c.device, remedy)
	case code == packets.ErrRefusedServerUnavailable:
		e.Err = fmt.Errorf("the hub is unavailable to device %q; it answers so for a disabled device as well", c.device)
	case code == packets.ErrRefusedIDRejected:
		e.Err = fmt.Errorf("the hub rejected the client id %q; check DeviceId in the connection string", c.device)
	case code == packets.ErrNetworkError && conn.wire != nil && errors.Is(conn.wire.cause, io.EOF):
		e.Err = fmt.Errorf("the hub closed the connection instead of answering CONNECT; if this goes on, %s", remedy)
	default:
		e.Err = err
	}
	if code <= packets.ErrRefusedNotAuthorised {
		e.Condition = fmt.Sprintf("CONNACK %d", code)
	}
	return e
}

const remedy = "check the key in the connection string, that the device exists and is enabled, and this machine's clock (5 minutes off is too much)"

// lost describes the end of a connection that the hub had accepted.
func (c *Client) lost(op string, cause error) error {
	switch {
	case errors.Is(cause, io.EOF):
		cause = errors.New("the hub closed the connection")
	case errors.Is(cause, errClosedHere): // paho closed it, which it does by itself only then
		cause = fmt.Errorf("no answer to PINGREQ within %s", pingTimeout)
	}
	return &bridge.Error{Class: bridge.LinkLost, Op: op, Err: cause}
}

// settle waits until every message handed out has its PUBACK written, at most d.
func (conn *connection) settle(d time.Duration) {
	conn.inbox.pause()
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	for {
		changed := conn.inbox.settled()
		if changed == nil {
			return
		}
		select {
		case <-changed:
		case <-conn.wire.ended:
			return
		case <-timeout.C:
			return
		}
	}
}

// close ends the connection, in order if it still lives, and waits for what
// belongs to it. Messages not acked by now come again.
func (conn *connection) close() {
	conn.release()
	conn.mqtt.Disconnect(uint(quiesce / time.Millisecond))
	if conn.wire != nil {
		conn.wire.Close()
	}
	conn.inbox.close()
	conn.workers.Wait()
}
