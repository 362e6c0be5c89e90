package hubdevice_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/hubdevice"
)

const (
	host   = "hub.example.net"
	device = "d1"
	filter = "devices/d1/messages/devicebound/#"
	within = 30 * time.Second
)

var key = []byte("0123456789abcdef0123456789abcdef")

func connectionString() string {
	return "HostName=" + host + ";DeviceId=" + device + ";SharedAccessKey=" + base64.StdEncoding.EncodeToString(key)
}

// peer is the hub's end, scripted packet by packet.
type peer struct {
	listener *net.TCPListener
	config   *tls.Config
	roots    *x509.CertPool
}

func runPeer(t *testing.T) *peer {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return &peer{listener: l, roots: roots, config: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}}
}

// link is one connection of the client, after its CONNECT was read.
type link struct {
	t       *testing.T
	conn    net.Conn
	connect *packets.ConnectPacket
}

func (p *peer) accept(t *testing.T) *link {
	t.Helper()
	require.NoError(t, p.listener.SetDeadline(time.Now().Add(within)))
	var conn *tls.Conn
	for {
		raw, err := p.listener.Accept()
		require.NoError(t, err)
		conn = tls.Server(raw, p.config)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(within)))
		if conn.Handshake() == nil {
			require.NoError(t, conn.SetDeadline(time.Time{}))
			break // else it is somebody who looks for another server, which had this port before
		}
	}
	l := &link{t: t, conn: conn}
	connect, ok := l.read().(*packets.ConnectPacket)
	require.True(t, ok)
	l.connect = connect
	return l
}

// open accepts the client through to its subscription.
func (p *peer) open(t *testing.T) *link {
	t.Helper()
	l := p.accept(t)
	l.connack(packets.Accepted)
	l.suback(1)
	return l
}

func (l *link) read() packets.ControlPacket {
	l.t.Helper()
	require.NoError(l.t, l.conn.SetReadDeadline(time.Now().Add(within)))
	packet, err := packets.ReadPacket(l.conn)
	require.NoError(l.t, err)
	return packet
}

func (l *link) write(p packets.ControlPacket) {
	l.t.Helper()
	require.NoError(l.t, p.Write(l.conn))
}

func (l *link) connack(code byte) {
	p := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	p.ReturnCode = code
	l.write(p)
}

func (l *link) suback(codes ...byte) *packets.SubscribePacket {
	l.t.Helper()
	s, ok := l.read().(*packets.SubscribePacket)
	require.True(l.t, ok)
	p := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	p.MessageID, p.ReturnCodes = s.MessageID, codes
	l.write(p)
	return s
}

func (l *link) publish(id uint16, bag string) { l.publishAt(1, id, bag) }

func (l *link) publishAt(qos byte, id uint16, bag string) {
	l.t.Helper()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = qos, id, "devices/d1/messages/devicebound/"+bag, []byte("body")
	l.write(p)
}

func (l *link) puback() uint16 {
	l.t.Helper()
	p, ok := l.read().(*packets.PubackPacket)
	require.True(l.t, ok)
	return p.MessageID
}

// gone waits until the client closed the connection; DISCONNECT is left out.
func (l *link) gone() {
	l.t.Helper()
	require.NoError(l.t, l.conn.SetReadDeadline(time.Now().Add(within)))
	for {
		p, err := packets.ReadPacket(l.conn)
		if err != nil {
			// Any other end will do: a client that closes with something unread, as a TLS ticket, resets the connection.
			require.NotErrorIs(l.t, err, os.ErrDeadlineExceeded, "still open")
			return
		}
		require.IsType(l.t, &packets.DisconnectPacket{}, p)
	}
}

func newClient(t *testing.T, p *peer, change func(*hubdevice.Options)) *hubdevice.Client {
	t.Helper()
	o := hubdevice.Options{ConnectionString: connectionString(), Address: p.listener.Addr().String(), RootCAs: p.roots}
	if change != nil {
		change(&o)
	}
	c, err := hubdevice.New(o)
	require.NoError(t, err)
	c.Hurry(10*time.Millisecond, 10*time.Millisecond, time.Minute)
	return c
}

// run starts the client; stop cancels it and returns once Run did.
func run(t *testing.T, c *hubdevice.Client) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(within):
			require.Fail(t, "Run does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func receive(t *testing.T, c *hubdevice.Client) *hubdevice.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	m, err := c.Receive(ctx)
	require.NoError(t, err)
	return m
}
