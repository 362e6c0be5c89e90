package amqpd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 30 * time.Second

// hub is a backend that remembers, and refuses what it is told to.
type hub struct {
	mu       sync.Mutex
	messages []c2d.Message
	refuse   map[string]*c2d.Refusal // by To
	grants   map[string]amqpd.Grant  // by token
	panics   bool
}

func newHub() *hub {
	return &hub{
		refuse: map[string]*c2d.Refusal{
			"/devices/nobody/messages/devicebound": {Condition: "amqp:not-found", Code: 404001, Text: "no device nobody"},
			"/devices/full/messages/devicebound":   {Condition: "amqp:resource-limit-exceeded", Code: 403004, Text: "50 messages are pending"},
		},
		grants: map[string]amqpd.Grant{
			"good":     {Policy: "service", ServiceConnect: true, Expires: time.Now().Add(time.Hour)},
			"forever":  {Policy: "service", ServiceConnect: true},
			"registry": {Policy: "registryRead", Expires: time.Now().Add(time.Hour)},
			"stale":    {Policy: "service", ServiceConnect: true, Expires: time.Now().Add(-time.Second)},
		},
	}
}

func (h *hub) Enqueue(m c2d.Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.panics {
		panic("scripted")
	}
	if r := h.refuse[m.To]; r != nil {
		return r
	}
	if m.To == "/devices/broken/messages/devicebound" {
		return errors.New("disk on fire: secret path")
	}
	h.messages = append(h.messages, m)
	return nil
}

func (h *hub) Authorize(token string) (amqpd.Grant, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if token == "ghost" {
		return amqpd.Grant{}, &c2d.Refusal{Condition: "amqp:not-found", Code: 404000, Text: "no such policy"}
	}
	g, ok := h.grants[token]
	if !ok {
		return g, errors.New("bad signature")
	}
	return g, nil
}

func (h *hub) allow(token string, g amqpd.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grants[token] = g
}

func (h *hub) got() []c2d.Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]c2d.Message(nil), h.messages...)
}

// endpoint is a running server.
type endpoint struct {
	*hub
	srv    *amqpd.Server
	faults *fault.Injector
	addr   string
	tls    *tls.Config
}

func runEndpoint(t testing.TB, change ...func(*amqpd.Options)) *endpoint {
	t.Helper()
	e := &endpoint{hub: newHub(), faults: new(fault.Injector)}
	o := amqpd.Options{Backend: e.hub, Hostnames: []string{"localhost", "hub1.azure-devices.net"}, Faults: e.faults}
	for _, f := range change {
		f(&o)
	}
	e.srv = amqpd.New(o)
	cert, pool := certificate(t)
	e.tls = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, err)
	e.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- e.srv.Serve(ln) }()
	t.Cleanup(func() {
		e.srv.Close()
		require.NoError(t, <-served)
		require.Zero(t, e.srv.Connections())
	})
	return e
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func (e *endpoint) dial(t testing.TB, sasl amqp.SASLType) *amqp.Conn {
	t.Helper()
	c, err := e.tryDial(t, sasl)
	require.NoError(t, err)
	return c
}

func (e *endpoint) tryDial(t testing.TB, sasl amqp.SASLType) (*amqp.Conn, error) {
	t.Helper()
	nc, err := tls.Dial("tcp", e.addr, e.tls)
	require.NoError(t, err)
	c, err := amqp.NewConn(within(t), nc, &amqp.ConnOptions{HostName: "localhost", SASLType: sasl})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	} else {
		nc.Close()
	}
	return c, err
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	t.Cleanup(cancel)
	return ctx
}

// putToken does the CBS exchange and returns status code and description.
func putToken(t testing.TB, session *amqp.Session, messageID any, props map[string]any, body any) (*amqp.Message, error) {
	t.Helper()
	ctx := within(t)
	receiver, err := session.NewReceiver(ctx, "$cbs", nil)
	require.NoError(t, err)
	sender, err := session.NewSender(ctx, "$cbs", nil)
	require.NoError(t, err)
	defer func() { sender.Close(ctx); receiver.Close(ctx) }()
	m := &amqp.Message{Properties: &amqp.MessageProperties{MessageID: messageID, ReplyTo: ptr("cbs")}, ApplicationProperties: props, Value: body}
	if err := sender.Send(ctx, m, nil); err != nil {
		return nil, err
	}
	reply, err := receiver.Receive(ctx, nil)
	require.NoError(t, err)
	require.NoError(t, receiver.AcceptMessage(ctx, reply))
	return reply, nil
}

func ptr[T any](v T) *T { return &v }

func sasToken(name string) (map[string]any, string) {
	return map[string]any{"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": "localhost"}, name
}

// authorized gives a session on which a good token was put.
func authorized(t testing.TB, c *amqp.Conn) *amqp.Session {
	t.Helper()
	s, err := c.NewSession(within(t), nil)
	require.NoError(t, err)
	props, token := sasToken("good")
	reply, err := putToken(t, s, "id", props, token)
	require.NoError(t, err)
	require.EqualValues(t, 200, reply.ApplicationProperties["status-code"])
	return s
}

func newSender(t testing.TB, s *amqp.Session, o *amqp.SenderOptions) *amqp.Sender {
	t.Helper()
	sender, err := s.NewSender(within(t), "/messages/devicebound", o)
	require.NoError(t, err)
	return sender
}

func command(device string, body string) *amqp.Message {
	m := amqp.NewMessage([]byte(body))
	m.Properties = &amqp.MessageProperties{To: ptr("/devices/" + device + "/messages/devicebound"), MessageID: "m"}
	return m
}

func send(t testing.TB, s *amqp.Sender, m *amqp.Message) amqp.DeliveryState {
	t.Helper()
	r, err := s.SendWithReceipt(within(t), m, nil)
	require.NoError(t, err)
	state, err := r.Wait(within(t))
	require.NoError(t, err)
	return state
}

// takenUp waits until the hub has met all faults that were scripted for a number of times.
func (e *endpoint) takenUp(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { return len(e.faults.Rules()) == 0 }, wait, time.Millisecond)
}

// waitEnd waits until c is over and returns why.
func waitEnd(t testing.TB, c *amqp.Conn) error {
	t.Helper()
	select {
	case <-c.Done():
		return c.Err()
	case <-time.After(wait):
		require.Fail(t, "the connection is still open")
		return nil
	}
}

func dialRaw(t testing.TB, e *endpoint) net.Conn {
	t.Helper()
	nc, err := tls.Dial("tcp", e.addr, e.tls)
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(wait))
	return nc
}
