package hubdevice_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/hubdevice"
	"downlink/bridge/internal/sas"
)

func TestMain(m *testing.M) { bridgetest.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	const secret = "c2VjcmV0LWtleS1tYXRlcmlhbA=="
	tests := []struct{ name, text, want string }{
		{"empty", "", "empty"},
		{"module", "HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=" + secret, `module "m" of device "d"; cloud-to-device messages go to devices only`},
		{"service", "HostName=h;SharedAccessKeyName=service;SharedAccessKey=" + secret, `kind "service"; the relay needs a device's`},
		{"event hubs", "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=" + secret + ";EntityPath=e", `kind "Event Hubs"`},
		{"x509", "HostName=h;DeviceId=d;x509=true", "X.509"},
		{"slash", "HostName=h;DeviceId=a/b;SharedAccessKey=" + secret, `"/" is not allowed`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := hubdevice.New(hubdevice.Options{ConnectionString: test.text})
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), secret)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := hubdevice.New(hubdevice.Options{ConnectionString: connectionString(), Address: "nohost"})
	require.ErrorContains(t, err, `address "nohost" is not host:port`)
	_, err = hubdevice.New(hubdevice.Options{ConnectionString: connectionString(), TokenLifetime: time.Second})
	require.ErrorContains(t, err, "at least 2s")
}

func TestConnectPacket(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, func(o *hubdevice.Options) { o.Version = "1.2 beta" })
	require.ErrorContains(t, c.Ready(), "not connected yet")
	run(t, c)

	l := p.accept(t)
	require.Equal(t, "MQTT", l.connect.ProtocolName)
	require.EqualValues(t, 4, l.connect.ProtocolVersion)
	require.False(t, l.connect.CleanSession)
	require.EqualValues(t, 60, l.connect.Keepalive)
	require.Equal(t, "d1", l.connect.ClientIdentifier)
	require.Equal(t, "hub.example.net/d1/?api-version=2021-04-12&DeviceClientType=downlink%2F1.2%20beta", l.connect.Username)
	password := string(l.connect.Password)
	require.True(t, strings.HasPrefix(password, "SharedAccessSignature sr=hub.example.net%2Fdevices%2Fd1&"), "no policy, device's own resource")
	require.NotContains(t, password, "skn=")
	token, err := sas.ParseToken(password)
	require.NoError(t, err)
	require.True(t, token.Verify(key))
	require.WithinDuration(t, time.Now().Add(time.Hour), token.Expiry, time.Minute)

	l.connack(packets.Accepted)
	s := l.suback(1)
	require.Equal(t, []string{filter}, s.Topics)
	require.Equal(t, []byte{1}, s.Qoss)
	require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond)
	require.True(t, c.Stats().Connected)
}

func TestGatewayHostName(t *testing.T) {
	p := runPeer(t) // its certificate is for the gateway's name
	c := newClient(t, p, func(o *hubdevice.Options) {
		o.ConnectionString = strings.Replace(connectionString(), host, "cloud.example.net", 1) + ";GatewayHostName=" + host
	})
	run(t, c)
	l := p.accept(t)
	require.True(t, strings.HasPrefix(l.connect.Username, "cloud.example.net/d1/?"))
	require.True(t, strings.HasPrefix(string(l.connect.Password), "SharedAccessSignature sr=cloud.example.net%2Fdevices%2Fd1&"))
}

func TestMessagesRightAfterConnack(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	run(t, c)
	l := p.accept(t)
	l.connack(packets.Accepted)
	l.publish(1, "%24.mid=a&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&x=1%262") // before the SUBSCRIBE is answered
	m := receive(t, c)
	require.Equal(t, "a", m.C2D().MessageID)
	require.Equal(t, device, m.C2D().Device)
	require.Equal(t, "1&2", m.C2D().Properties[0].Value)
	require.Equal(t, "body", string(m.C2D().Body))
	l.suback(1)
	m.Ack()
	require.EqualValues(t, 1, l.puback())
	require.Eventually(t, func() bool { return c.Stats().Acked == 1 }, within, time.Millisecond)
}

func TestPubackInArrivalOrder(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	stop := run(t, c)
	l := p.open(t)
	var got []*hubdevice.Message
	for id := uint16(10); id < 20; id++ {
		l.publish(id, fmt.Sprintf("%%24.mid=%d", id))
		got = append(got, receive(t, c))
	}
	l.publishAt(0, 0, "%24.mid=unacknowledged") // QoS 0 holds nobody up
	require.Equal(t, "unacknowledged", receive(t, c).C2D().MessageID)
	for _, i := range []int{3, 9, 1, 2, 0, 0, 3} {
		got[i].Ack()
	}
	for want := uint16(10); want < 14; want++ {
		require.Equal(t, want, l.puback())
	}
	for _, i := range []int{8, 7, 6, 5, 4} {
		got[i].Ack()
	}
	for want := uint16(14); want < 20; want++ {
		require.Equal(t, want, l.puback())
	}
	require.Eventually(t, func() bool { return c.Stats().Unacked == 0 }, within, time.Millisecond)
	stop()
	l.gone()
}

func TestAckOfAnOldConnectionIsDropped(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	run(t, c)
	first := p.open(t)
	first.publish(1, "%24.mid=a")
	first.publish(2, "%24.mid=b")
	first.publish(3, "%24.mid=c")
	old := receive(t, c) // b and c stay behind: they must not come twice
	require.Equal(t, "a", old.C2D().MessageID)
	require.Eventually(t, func() bool { return c.Stats().Received == 3 }, within, time.Millisecond)
	first.conn.Close()

	second := p.open(t)
	for i, id := range []string{"a", "b", "c", "d"} {
		second.publish(uint16(i+1), "%24.mid="+id)
	}
	old.Ack() // its packet identifier is that of a message which is not acked
	var again []*hubdevice.Message
	for _, id := range []string{"a", "b", "c", "d"} {
		m := receive(t, c)
		require.Equal(t, id, m.C2D().MessageID)
		again = append(again, m)
	}
	again[1].Ack() // waits for the first
	again[0].Ack()
	require.EqualValues(t, 1, second.puback())
	require.EqualValues(t, 2, second.puback())
	old.Ack()
	again[2].Ack()
	require.EqualValues(t, 3, second.puback())
}

func TestTokenRenewal(t *testing.T) {
	t.Parallel()
	p := runPeer(t)
	// So long that a slow machine does not renew before the messages are there.
	c := newClient(t, p, func(o *hubdevice.Options) { o.TokenLifetime, o.Grace = 8*time.Second, within })
	run(t, c)
	first := p.open(t)
	token, err := sas.ParseToken(string(first.connect.Password))
	require.NoError(t, err)
	first.publish(7, "%24.mid=a")
	first.publish(8, "%24.mid=b")
	m := receive(t, c)
	// b was not handed out, so it does not delay the renewal; a does, until its PUBACK.
	time.AfterFunc(time.Until(token.Expiry)-time.Second/10, m.Ack)
	require.EqualValues(t, 7, first.puback())
	require.IsType(t, &packets.DisconnectPacket{}, first.read())

	second := p.open(t)
	renewed, err := sas.ParseToken(string(second.connect.Password))
	require.NoError(t, err)
	require.True(t, renewed.Expiry.After(token.Expiry))
	require.True(t, renewed.Verify(key))
	second.publish(9, "%24.mid=b")
	require.Equal(t, "b", receive(t, c).C2D().MessageID)
	require.NoError(t, c.Ready(), "a renewal is no failure")
}

func TestShutdownWaitsForAcks(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, func(o *hubdevice.Options) { o.Grace = within })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	l := p.open(t)
	l.publish(1, "%24.mid=a")
	l.publish(2, "%24.mid=b")
	m := receive(t, c)
	require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond)
	cancel()
	require.Eventually(t, func() bool { return c.Ready() != nil }, within, time.Millisecond)
	require.ErrorContains(t, c.Ready(), "stopping")
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	_, err := c.Receive(short)
	require.ErrorIs(t, err, context.DeadlineExceeded, "nothing is handed out any more")
	select {
	case <-done:
		require.Fail(t, "Run ended before the message was acked")
	default:
	}
	m.Ack()
	require.EqualValues(t, 1, l.puback())
	require.IsType(t, &packets.DisconnectPacket{}, l.read())
	require.NoError(t, <-done)
	require.ErrorContains(t, c.Ready(), "stopped")
}

func TestShutdownGrace(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, func(o *hubdevice.Options) { o.Grace = 50 * time.Millisecond })
	stop := run(t, c)
	l := p.open(t)
	l.publish(1, "%24.mid=a")
	m := receive(t, c)
	stop()
	require.IsType(t, &packets.DisconnectPacket{}, l.read())
	m.Ack() // too late, and no panic
}

func TestShutdownWhileConnecting(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	stop := run(t, c)
	l := p.accept(t) // and never answers
	stop()
	l.gone()
}

func TestUnauthorized(t *testing.T) {
	for _, code := range []byte{packets.ErrRefusedBadUsernameOrPassword, packets.ErrRefusedNotAuthorised} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			p := runPeer(t)
			c := newClient(t, p, nil)
			run(t, c)
			p.accept(t).connack(code)
			require.Eventually(t, func() bool {
				err := c.Ready()
				return err != nil && strings.Contains(err.Error(), "unauthorized") && strings.Contains(err.Error(), "check the key")
			}, within, time.Millisecond)
			p.open(t) // it keeps trying
			require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond)
		})
	}
}

func TestReadyNamesTheProblem(t *testing.T) {
	tests := []struct {
		name, want string
		play       func(t *testing.T, p *peer)
	}{
		{"disabled", "CONNACK 3", func(t *testing.T, p *peer) { p.accept(t).connack(packets.ErrRefusedServerUnavailable) }},
		{"identifier", "rejected the client id", func(t *testing.T, p *peer) { p.accept(t).connack(packets.ErrRefusedIDRejected) }},
		{"no CONNACK", "instead of answering CONNECT", func(t *testing.T, p *peer) { p.accept(t).conn.Close() }},
		{"subscription refused", "SUBACK 0x80", func(t *testing.T, p *peer) {
			l := p.accept(t)
			l.connack(packets.Accepted)
			l.suback(0x80)
		}},
		{"two SUBACK codes", "SUBACK of 4 bytes", func(t *testing.T, p *peer) {
			l := p.accept(t)
			l.connack(packets.Accepted)
			l.suback(1, 1)
		}},
		{"QoS 2", "PUBLISH at QoS 2", func(t *testing.T, p *peer) { p.open(t).publishAt(2, 1, "a=b") }},
		{"huge packet", "PUBLISH of 268435455 bytes", func(t *testing.T, p *peer) {
			_, err := p.open(t).conn.Write([]byte{0x32, 0xff, 0xff, 0xff, 0x7f})
			require.NoError(t, err)
		}},
		{"not MQTT", "unexpected packet type 4", func(t *testing.T, p *peer) {
			_, err := p.accept(t).conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			require.NoError(t, err)
		}},
		{"too many unacked", "more than 1024 messages", func(t *testing.T, p *peer) {
			l := p.open(t)
			for i := range 1025 {
				l.publish(uint16(i+1), "a=b")
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := runPeer(t)
			c := newClient(t, p, nil)
			run(t, c)
			test.play(t, p)
			require.Eventually(t, func() bool {
				err := c.Ready()
				return err != nil && strings.Contains(err.Error(), test.want)
			}, within, time.Millisecond)
			p.open(t) // whatever it was, it tries again
			require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond)
		})
	}
}

func TestUnknownCA(t *testing.T) {
	p := runPeer(t)
	p.roots = x509.NewCertPool()
	c := newClient(t, p, nil)
	go func() { // fail the handshakes
		for {
			raw, err := p.listener.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, p.config)
			conn.Handshake()
			conn.Close()
		}
	}()
	run(t, c)
	require.Eventually(t, func() bool { return strings.Contains(c.Ready().Error(), "set ca_file") }, within, time.Millisecond)
}

func TestAnotherClientUsesTheIdentity(t *testing.T) {
	t.Parallel()
	p := runPeer(t)
	c := newClient(t, p, nil)
	c.Hurry(10*time.Millisecond, 10*time.Millisecond, 5*time.Second) // what the test itself ends lives for less, on any machine
	run(t, c)
	for range 3 {
		require.NotContains(t, c.Ready().Error(), "another client")
		l := p.open(t)
		require.Eventually(t, func() bool { return c.Stats().Connected }, within, time.Millisecond)
		l.conn.Close()
		require.Eventually(t, func() bool { return !c.Stats().Connected }, within, time.Millisecond)
	}
	require.ErrorContains(t, c.Ready(), "another client uses this device's identity")
	p.open(t)
	require.Eventually(t, func() bool { return c.Stats().Connected }, within, time.Millisecond)
	require.ErrorContains(t, c.Ready(), "another client", "connected, but for how long")
	require.Eventually(t, func() bool { return c.Ready() == nil }, within, time.Millisecond, "a connection that lasts is a good one")
}

func TestStrayTopicIsLeftAlone(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	run(t, c)
	l := p.open(t)
	stray := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	stray.TopicName, stray.Qos, stray.MessageID = "$iothub/methods/POST/reboot/?$rid=1", 1, 5
	l.write(stray)
	l.publish(6, "%24.mid=a")
	m := receive(t, c)
	require.Equal(t, "a", m.C2D().MessageID)
	m.Ack()
	require.EqualValues(t, 6, l.puback())
}

func TestExpiredSignature(t *testing.T) {
	p := runPeer(t)
	token := sas.Sign(host+"/devices/"+device, "", key, time.Now().Add(-time.Minute))
	c := newClient(t, p, func(o *hubdevice.Options) {
		o.ConnectionString = "HostName=" + host + ";DeviceId=" + device + ";SharedAccessSignature=" + token
	})
	run(t, c)
	require.Eventually(t, func() bool { return strings.Contains(c.Ready().Error(), "SharedAccessSignature expired at") }, within, time.Millisecond)
	require.NotContains(t, c.Ready().Error(), "sig=")
}

func TestRunTwice(t *testing.T) {
	p := runPeer(t)
	c := newClient(t, p, nil)
	run(t, c)
	p.open(t)
	require.ErrorContains(t, c.Run(t.Context()), "running already")
}
