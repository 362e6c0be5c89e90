package mqttd_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 30 * time.Second

// doorman lets in who says "please".
type doorman struct{ expiry time.Time }

func (d doorman) AuthorizeDevice(l mqttd.Login, token string) (time.Time, error) {
	if token != "please" || l.Host != "hub" {
		return time.Time{}, errors.New("no")
	}
	return d.expiry, nil
}

// fixture is a server on a real socket, without TLS.
type fixture struct {
	t      *testing.T
	store  *c2d.Store
	faults *fault.Injector
	told   *telemetry.Log
	server *mqttd.Server
	addr   string
}

func newFixture(t *testing.T, b mqttd.Behaviour) *fixture {
	t.Helper()
	return newFixtureUntil(t, b, time.Now().Add(time.Hour))
}

func newFixtureUntil(t *testing.T, b mqttd.Behaviour, expiry time.Time) *fixture {
	t.Helper()
	f := newServer(t, b, expiry)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, f.server.Close())
		require.NoError(t, <-served)
	})
	return f
}

// newServer is a fixture that listens nowhere.
func newServer(t *testing.T, b mqttd.Behaviour, expiry time.Time) *fixture {
	t.Helper()
	f := &fixture{t: t, store: c2d.New(c2d.Options{}), faults: &fault.Injector{}, told: &telemetry.Log{}}
	f.create("d1")
	f.server = mqttd.New(mqttd.Options{Store: f.store, Authority: doorman{expiry}, Behaviour: b, Telemetry: f.told, Faults: f.faults})
	return f
}

// newPipe is a fixture without sockets, for tests in a bubble.
func newPipe(t *testing.T, expiry time.Time) *fixture {
	t.Helper()
	f := newServer(t, mqttd.Behaviour{}, expiry)
	t.Cleanup(func() { require.NoError(t, f.server.Close()) })
	return f
}

func (f *fixture) pipe() *peer {
	here, there := net.Pipe()
	go f.server.ServeConn(there)
	f.t.Cleanup(func() { here.Close() })
	return &peer{f.t, here}
}

func (f *fixture) create(id string) {
	f.t.Helper()
	_, err := f.store.Create(c2d.Device{ID: id})
	require.NoError(f.t, err)
}

func (f *fixture) send(ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		require.NoError(f.t, f.store.Enqueue(c2d.Message{To: "/devices/d1/messages/devicebound", MessageID: id, Body: []byte(id)}))
	}
}

// peer speaks MQTT by hand.
type peer struct {
	t *testing.T
	net.Conn
}

func (f *fixture) dial() *peer {
	f.t.Helper()
	nc, err := net.Dial("tcp", f.addr)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { nc.Close() })
	require.NoError(f.t, nc.SetDeadline(time.Now().Add(wait)))
	return &peer{f.t, nc}
}

func hello(change ...func(*packets.ConnectPacket)) *packets.ConnectPacket {
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion = "MQTT", 4
	p.ClientIdentifier, p.Keepalive = "d1", 60
	p.UsernameFlag, p.Username = true, "hub/d1/?api-version=2021-04-12"
	p.PasswordFlag, p.Password = true, []byte("please")
	for _, c := range change {
		c(p)
	}
	return p
}

func clean(p *packets.ConnectPacket) { p.CleanSession = true }

func (p *peer) write(cp packets.ControlPacket) {
	p.t.Helper()
	require.NoError(p.t, cp.Write(p.Conn))
}

func (p *peer) read() packets.ControlPacket {
	p.t.Helper()
	cp, err := packets.ReadPacket(p.Conn)
	require.NoError(p.t, err)
	return cp
}

// connect signs in and returns the session-present flag.
func (f *fixture) connect(change ...func(*packets.ConnectPacket)) (*peer, bool) {
	f.t.Helper()
	p := f.dial()
	p.write(hello(change...))
	ack := p.read().(*packets.ConnackPacket)
	require.Zero(f.t, ack.ReturnCode)
	return p, ack.SessionPresent
}

func (p *peer) subscribe(qos byte, filters ...string) []byte {
	p.t.Helper()
	s := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	s.MessageID = 7
	for _, f := range filters {
		s.Topics, s.Qoss = append(s.Topics, f), append(s.Qoss, qos)
	}
	p.write(s)
	ack := p.read().(*packets.SubackPacket)
	require.Equal(p.t, uint16(7), ack.MessageID)
	return ack.ReturnCodes
}

const devicebound = "devices/d1/messages/devicebound/#"

// next reads one C2D message and returns its body.
func (p *peer) next() (string, *packets.PublishPacket) {
	p.t.Helper()
	m, ok := p.read().(*packets.PublishPacket)
	require.True(p.t, ok)
	return string(m.Payload), m
}

func (p *peer) puback(m *packets.PublishPacket) {
	p.t.Helper()
	a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	a.MessageID = m.MessageID
	p.write(a)
}

// ping shows that the hub has handled all that was sent before it, and sent nothing.
func (p *peer) ping() {
	p.t.Helper()
	p.write(packets.NewControlPacket(packets.Pingreq))
	require.IsType(p.t, &packets.PingrespPacket{}, p.read())
}

// cut waits until the hub closes the connection, and returns what it said before.
func (p *peer) cut() []byte {
	p.t.Helper()
	var b bytes.Buffer
	_, err := io.Copy(&b, p.Conn)
	require.False(p.t, errors.Is(err, os.ErrDeadlineExceeded), "the connection stays open")
	return b.Bytes()
}

func (f *fixture) pending(n int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return len(f.store.Queue("d1")) == n }, wait, time.Millisecond)
}

func (f *fixture) offline() {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return len(f.server.Connections()) == 0 }, wait, time.Millisecond)
}

func TestServeAfterClose(t *testing.T) {
	s := mqttd.New(mqttd.Options{Store: c2d.New(c2d.Options{}), Authority: doorman{}})
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, s.Serve(l))
	_, err = net.Dial("tcp", l.Addr().String())
	require.Error(t, err)
	here, there := net.Pipe()
	s.ServeConn(there)
	_, err = here.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}
