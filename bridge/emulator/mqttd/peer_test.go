package mqttd_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 10 * time.Second

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
	server *mqttd.Server
	addr   string
}

func newFixture(t *testing.T, b mqttd.Behaviour) *fixture {
	t.Helper()
	return newFixtureUntil(t, b, time.Now().Add(time.Hour))
}

func newFixtureUntil(t *testing.T, b mqttd.Behaviour, expiry time.Time) *fixture {
	t.Helper()
	f := &fixture{t: t, store: c2d.New(c2d.Options{}), faults: &fault.Injector{}}
	_, err := f.store.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	f.server = mqttd.New(mqttd.Options{Store: f.store, Authority: doorman{expiry}, Behaviour: b, Faults: f.faults})
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

func TestConnack(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*packets.ConnectPacket)
		code   byte
	}{
		"fine":                 {func(*packets.ConnectPacket) {}, 0},
		"MQTT 3.1":             {func(p *packets.ConnectPacket) { p.ProtocolName, p.ProtocolVersion = "MQIsdp", 3 }, 1},
		"no client ID":         {func(p *packets.ConnectPacket) { p.ClientIdentifier, p.CleanSession = "", true }, 2},
		"illegal client ID":    {func(p *packets.ConnectPacket) { p.ClientIdentifier = "a b" }, 2},
		"module":               {func(p *packets.ConnectPacket) { p.ClientIdentifier = "d1/m1" }, 2},
		"module in user name":  {func(p *packets.ConnectPacket) { p.Username = "hub/d1/m1/?api-version=1" }, 2},
		"client ID differs":    {func(p *packets.ConnectPacket) { p.ClientIdentifier = "d2" }, 2},
		"no user name":         {func(p *packets.ConnectPacket) { p.UsernameFlag, p.PasswordFlag = false, false }, 5},
		"bad user name":        {func(p *packets.ConnectPacket) { p.Username = "hub/d1" }, 5},
		"other hub":            {func(p *packets.ConnectPacket) { p.Username = "hub2/d1/?api-version=1" }, 5},
		"bad password":         {func(p *packets.ConnectPacket) { p.Password = []byte("now") }, 5},
		"no password":          {func(p *packets.ConnectPacket) { p.PasswordFlag = false }, 5},
		"unregistered device":  {func(p *packets.ConnectPacket) { p.ClientIdentifier, p.Username = "d9", "hub/d9/?api-version=1" }, 5},
		"will on a good topic": {func(p *packets.ConnectPacket) { p.WillFlag, p.WillTopic = true, "devices/d1/messages/events/" }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, mqttd.Behaviour{})
			p := f.dial()
			p.write(hello(c.change))
			require.Equal(t, c.code, p.read().(*packets.ConnackPacket).ReturnCode)
			if c.code != 0 {
				require.Empty(t, p.cut())
			} else {
				p.ping()
			}
		})
	}
	t.Run("MQTT 5", func(t *testing.T) {
		p := newFixture(t, mqttd.Behaviour{}).dial()
		_, err := p.Write([]byte("\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03d15"))
		require.NoError(t, err)
		require.Equal(t, []byte{0x20, 2, 0, 1}, p.cut())
	})
	t.Run("the other code for bad credentials", func(t *testing.T) {
		p := newFixture(t, mqttd.Behaviour{CodeBadCredentials: 4}).dial()
		p.write(hello(func(p *packets.ConnectPacket) { p.Password = nil }))
		require.Equal(t, []byte{0x20, 2, 0, 4}, p.cut())
	})
	t.Run("disabled device", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		_, err := f.store.Update(c2d.Device{ID: "d1", Disabled: true}, "*")
		require.NoError(t, err)
		p := f.dial()
		p.write(hello())
		require.Equal(t, []byte{0x20, 2, 0, 3}, p.cut())
	})
}

// Each of these ends its own connection without a word, and no other.
func TestHostilePeersAreCutOff(t *testing.T) {
	connect := func() []byte {
		var b bytes.Buffer
		_ = hello().Write(&b)
		return b.Bytes()
	}
	in := connect()
	after := func(tail ...byte) []byte { return append(connect(), tail...) }
	for name, bytes := range map[string][]byte{
		"not MQTT":                  []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"TLS hello":                 {0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5},
		"type 0":                    {0, 0},
		"type 15":                   {0xf0, 0},
		"CONNACK":                   {0x20, 2, 0, 0},
		"CONNECT flags":             append([]byte{0x11}, in[1:]...),
		"not CONNECT first":         {0xc0, 0},
		"empty CONNECT":             {0x10, 0},
		"length of five bytes":      {0x10, 0xff, 0xff, 0xff, 0xff, 1},
		"CONNECT of 256 MB":         {0x10, 0xff, 0xff, 0xff, 0x7f},
		"CONNECT over 64 KB":        {0x10, 0x81, 0x80, 4},
		"string longer than packet": {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0xff, 0xff},
		"reserved CONNECT flag":     {0x10, 15, 0, 4, 'M', 'Q', 'T', 'T', 4, 3, 0, 60, 0, 3, 'd', '1', '5'},
		"bytes after the end":       {0x10, 16, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 2, 'd', '1', 0, 0},
		"protocol name":             {0x10, 16, 0, 4, 'M', 'Q', 'T', 'X', 4, 2, 0, 60, 0, 4, 'd', '1', '2', '3'},
		"client ID not UTF-8":       {0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 2, 0xff, 0xfe},
		"password without user":     {0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 0x42, 0, 60, 0, 2, 'd', '1'},

		"second CONNECT":              after(in...),
		"PUBLISH QoS 2":               after(0x34, 7, 0, 3, 'a', '/', 'b', 0, 1),
		"PUBLISH QoS 3":               after(0x36, 7, 0, 3, 'a', '/', 'b', 0, 1),
		"PUBLISH to an unknown topic": after(0x30, 5, 0, 3, 'a', '/', 'b'),
		"PUBLISH with wildcard":       after(0x30, 5, 0, 3, 'a', '/', '#'),
		"PUBLISH without topic":       after(0x30, 2, 0, 0),
		"PUBLISH of 320 KB and more":  after(0x30, 0x80, 0x80, 0x20),
		"PUBLISH with identifier 0":   after(0x32, 7, 0, 3, 'a', '/', 'b', 0, 0),
		"PUBLISH shorter than topic":  after(0x30, 4, 0, 9, 'a', '/'),
		"SUBSCRIBE flags":             after(0x80, 6, 0, 1, 0, 1, 'a', 1),
		"SUBSCRIBE QoS 3":             after(0x82, 6, 0, 1, 0, 1, 'a', 3),
		"SUBSCRIBE to nothing":        after(0x82, 2, 0, 1),
		"SUBSCRIBE identifier 0":      after(0x82, 6, 0, 0, 0, 1, 'a', 1),
		"SUBSCRIBE cut":               after(0x82, 5, 0, 1, 0, 1, 'a'),
		"UNSUBSCRIBE cut":             after(0xa2, 7, 0, 1, 0, 1, 'a', 0, 5),
		"UNSUBSCRIBE empty filter":    after(0xa2, 4, 0, 1, 0, 0),
		"UNSUBSCRIBE from nothing":    after(0xa2, 2, 0, 1),
		"PUBACK of three bytes":       after(0x40, 3, 0, 1, 0),
		"PUBACK of one byte":          after(0x40, 1, 0),
		"PUBREC":                      after(0x50, 2, 0, 1),
		"PINGREQ with a body":         after(0xc0, 1, 0),
		"DISCONNECT flags":            after(0xe1, 0),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, mqttd.Behaviour{})
			_, err := f.store.Create(c2d.Device{ID: "bystander"})
			require.NoError(t, err)
			other, _ := f.connect(func(p *packets.ConnectPacket) {
				p.ClientIdentifier, p.Username = "bystander", "hub/bystander/?api-version=1"
			})
			p := f.dial()
			_, err = p.Write(bytes)
			require.NoError(t, err)
			require.LessOrEqual(t, len(p.cut()), 4, "no more than a CONNACK")
			other.ping()
		})
	}
}

func TestSlowAndSilentPeers(t *testing.T) {
	t.Run("no CONNECT", func(t *testing.T) {
		p := newFixture(t, mqttd.Behaviour{ConnectTimeout: 50 * time.Millisecond}).dial()
		require.Empty(t, p.cut())
	})
	t.Run("half a CONNECT", func(t *testing.T) {
		p := newFixture(t, mqttd.Behaviour{ConnectTimeout: 50 * time.Millisecond}).dial()
		_, err := p.Write([]byte{0x10, 20, 0, 4, 'M'})
		require.NoError(t, err)
		require.Empty(t, p.cut())
	})
	t.Run("keep-alive", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		p, _ := f.connect(func(p *packets.ConnectPacket) { p.Keepalive = 1 })
		start := time.Now()
		require.Empty(t, p.cut())
		require.InDelta(t, 1.5, time.Since(start).Seconds(), 0.4)
	})
	t.Run("a device that does not read", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{WriteTimeout: 50 * time.Millisecond, Window: 50})
		p, _ := f.connect()
		require.NoError(t, p.Conn.(*net.TCPConn).SetReadBuffer(4096))
		p.subscribe(0, devicebound)
		// QoS 0 completes what is sent: only the socket's buffers bound it.
		big := make([]byte, 60*1024)
		require.Eventually(t, func() bool {
			_ = f.store.Enqueue(c2d.Message{To: "/devices/d1/messages/devicebound", Body: big})
			return len(f.server.Connections()) == 0
		}, wait, 100*time.Microsecond)
	})
	t.Run("the token expires", func(t *testing.T) {
		f := newFixtureUntil(t, mqttd.Behaviour{}, time.Now().Add(300*time.Millisecond))
		p, _ := f.connect()
		require.Empty(t, p.cut())
		f.offline()
	})
}

func TestSubscribeGrants(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	require.Equal(t, []byte{1}, p.subscribe(2, devicebound), "QoS 2 is granted as 1")
	require.Equal(t, []byte{0}, p.subscribe(0, devicebound))
	require.Equal(t, []byte{1, 1, 1}, p.subscribe(1, "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"))
	require.Equal(t, []byte{0x80, 0x80, 0x80, 0x80}, p.subscribe(1, "#", "devices/d2/messages/devicebound/#", "devices/+/messages/devicebound/#", "devices/d1/messages/devicebound"))
}

func TestQoS0CompletesOnSend(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Window: 2})
	p, _ := f.connect()
	require.Equal(t, []byte{0}, p.subscribe(0, devicebound))
	f.send("1", "2", "3", "4", "5")
	for _, want := range []string{"1", "2", "3", "4", "5"} {
		body, m := p.next()
		require.Equal(t, want, body)
		require.Zero(t, m.Qos)
	}
	f.pending(0)
}

func TestWindowAndPubackOrder(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Window: 3})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	f.send("1", "2", "3", "4", "5")
	var got []*packets.PublishPacket
	for range 3 {
		_, m := p.next()
		require.Equal(t, byte(1), m.Qos)
		require.False(t, m.Dup || m.Retain)
		got = append(got, m)
	}
	p.ping() // the window is full
	p.puback(got[1])
	p.ping()
	f.pending(5) // out of order: ignored
	p.puback(got[0])
	body, m := p.next()
	require.Equal(t, "4", body)
	f.pending(4)
	p.puback(&packets.PublishPacket{MessageID: 999})
	p.puback(got[1])
	p.puback(got[2])
	body, last := p.next()
	require.Equal(t, "5", body)
	p.puback(m)
	p.puback(last)
	f.pending(0)
}

func TestPersistentSession(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, present := f.connect()
	require.False(t, present)
	p.subscribe(1, devicebound)
	f.send("1", "2")
	_, one := p.next()
	_, _ = p.next()
	p.puback(one)
	f.pending(1)
	p.Close()
	f.offline()
	f.send("3")

	p, present = f.connect()
	require.True(t, present)
	body, m := p.next() // before any SUBSCRIBE
	require.Equal(t, "2", body)
	require.False(t, m.Dup, "as the hub's devices report")
	p.puback(m)
	body, m = p.next()
	require.Equal(t, "3", body)
	p.puback(m)
	f.pending(0)

	u := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	u.MessageID, u.Topics = 9, []string{devicebound}
	p.write(u)
	require.IsType(t, &packets.UnsubackPacket{}, p.read())
	f.send("4")
	p.ping()
	p.write(packets.NewControlPacket(packets.Disconnect))
	require.Empty(t, p.cut())
	f.offline()

	p, present = f.connect()
	require.True(t, present)
	p.ping() // unsubscribed: nothing comes
	p, present = f.connect(clean)
	require.False(t, present)
	p.ping()
	p.subscribe(1, devicebound)
	body, _ = p.next()
	require.Equal(t, "4", body)
	p, present = f.connect()
	require.False(t, present, "the clean session ended the persistent one")
	p.ping()
}

func TestSessionEndsWithItsDevice(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	require.NoError(t, f.store.Delete("d1", "*"))
	require.Empty(t, p.cut())
	_, err := f.store.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	_, present := f.connect()
	require.False(t, present)
}

func TestFirstSubscribe(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		f.send("old")
		p, _ := f.connect(clean)
		p.ping()
		p.subscribe(1, devicebound)
		body, _ := p.next()
		require.Equal(t, "old", body)
	})
	t.Run("new", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{FirstSubscribe: mqttd.DeliverNew})
		f.send("old")
		p, _ := f.connect()
		p.subscribe(1, devicebound)
		f.send("new")
		body, m := p.next()
		require.Equal(t, "new", body)
		p.puback(m)
		f.pending(1)
		p.subscribe(1, devicebound) // again: still only the new ones
		p.ping()
		p, present := f.connect() // and on the next connection
		require.True(t, present)
		f.send("newer")
		body, _ = p.next()
		require.Equal(t, "newer", body)
	})
}

func TestSecondConnectionDropsTheFirst(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	first, _ := f.connect()
	first.subscribe(1, devicebound)
	f.send("1")
	_, m := first.next()
	second, present := f.connect()
	require.True(t, present)
	require.Empty(t, first.cut())
	body, again := second.next()
	require.Equal(t, "1", body)
	require.Equal(t, m.TopicName, again.TopicName, "a repeat is identical")
	second.puback(again)
	f.pending(0)
	require.Len(t, f.server.Connections(), 1)
}

func TestRedeliveryOptions(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{Dup: true})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	f.send("1")
	_, m := p.next()
	require.False(t, m.Dup)
	p, _ = f.connect()
	_, m = p.next()
	require.True(t, m.Dup)
}

func TestTelemetryTwinAndMethods(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect(func(p *packets.ConnectPacket) {
		p.WillFlag, p.WillTopic, p.WillMessage, p.WillQos = true, "devices/d1/messages/events/a=b", []byte("gone"), 1
	})
	publish := func(topic string, qos byte, body string) {
		m := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		m.TopicName, m.Qos, m.MessageID, m.Payload, m.Retain = topic, qos, 3, []byte(body), true
		p.write(m)
	}
	publish("devices/d1/messages/events/", 0, "t")
	publish("devices/d1/messages/events/a=b&c", 1, strings.Repeat("x", 256*1024))
	require.Equal(t, uint16(3), p.read().(*packets.PubackPacket).MessageID)
	require.Equal(t, uint64(2), f.store.Counts("d1").Telemetry)

	publish("$iothub/twin/GET/?$rid=1", 0, "")
	p.ping() // no subscription, no answer
	p.subscribe(0, "$iothub/twin/res/#")
	publish("$iothub/twin/GET/?$rid=ab1", 0, "")
	body, m := p.next()
	require.Equal(t, "$iothub/twin/res/200/?$rid=ab1", m.TopicName)
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"$version":1}}`, body)
	publish("$iothub/twin/PATCH/properties/reported/?$rid=2", 0, `{"a":1}`)
	_, m = p.next()
	require.Equal(t, "$iothub/twin/res/501/?$rid=2", m.TopicName)
	publish("$iothub/methods/res/200/?$rid=1", 1, "{}")
	require.IsType(t, &packets.PubackPacket{}, p.read())

	p.Close()
	f.offline()
	require.Equal(t, uint64(3), f.store.Counts("d1").Telemetry, "the will is telemetry")
	p, _ = f.connect()
	publish("devices/d2/messages/events/", 0, "not mine")
	require.Empty(t, p.cut())
}

func TestPropertiesTooLongForATopicAreRejected(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.subscribe(1, devicebound)
	require.NoError(t, f.store.Enqueue(c2d.Message{
		To: "/devices/d1/messages/devicebound", Properties: []c2d.Property{{Name: "p", Value: strings.Repeat("é", 11000)}},
	}))
	f.send("next")
	body, _ := p.next()
	require.Equal(t, "next", body)
	require.Equal(t, uint64(1), f.store.Counts("d1").Rejected)
}

func TestFaults(t *testing.T) {
	with := func(t *testing.T) (*fixture, *peer) {
		f := newFixture(t, mqttd.Behaviour{})
		p, _ := f.connect()
		p.subscribe(1, devicebound)
		return f, p
	}
	once := func(f *fixture, p fault.Point, a fault.Action) { f.faults.Add(p, 1, nil, a) }

	t.Run("connect", func(t *testing.T) {
		f := newFixture(t, mqttd.Behaviour{})
		for _, c := range []struct {
			action fault.Action
			said   []byte
		}{
			{fault.Action{Kind: fault.Drop}, nil},
			{fault.Action{Kind: fault.Drop, After: true}, nil},
			{fault.Action{Kind: fault.Reject}, []byte{0x20, 2, 0, 3}},
			{fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"}, []byte{0x20, 2, 0, 5}},
		} {
			once(f, fault.MQTTConnect, c.action)
			p := f.dial()
			p.write(hello(clean))
			require.Equal(t, string(c.said), string(p.cut()))
		}
		once(f, fault.MQTTConnect, fault.Action{Kind: fault.Delay, Delay: 20 * time.Millisecond})
		f.connect()
		once(f, fault.MQTTConnect, fault.Action{Kind: fault.Withhold})
		p := f.dial()
		p.write(hello())
		require.NoError(t, p.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		_, err := p.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
	t.Run("publish dropped before", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Drop})
		f.send("1")
		require.Empty(t, p.cut())
		p, _ = f.connect()
		body, _ := p.next()
		require.Equal(t, "1", body)
	})
	t.Run("publish dropped after", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Drop, After: true})
		f.send("1")
		require.NotEmpty(t, p.cut())
		require.Equal(t, 1, f.store.Tally("d1")["1"].Delivered)
	})
	t.Run("publish withheld, released, rejected, delayed", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Withhold})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Release})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Reject})
		once(f, fault.MQTTPublish, fault.Action{Kind: fault.Delay, Delay: 10 * time.Millisecond})
		f.send("1", "2", "3")
		body, m := p.next() // 1 is withheld, 2 released once and then rejected, 3 delayed
		require.Equal(t, "3", body)
		p.puback(m)
		f.pending(1)
		p, _ = f.connect()
		body, _ = p.next()
		require.Equal(t, "1", body)
	})
	t.Run("puback", func(t *testing.T) {
		f, p := with(t)
		once(f, fault.Puback, fault.Action{Kind: fault.Withhold})
		once(f, fault.Puback, fault.Action{Kind: fault.Reject})
		once(f, fault.Puback, fault.Action{Kind: fault.Delay, Delay: 10 * time.Millisecond})
		once(f, fault.Puback, fault.Action{Kind: fault.Release})
		f.send("1", "2", "3", "4")
		for range 4 {
			_, m := p.next()
			p.puback(m)
		}
		body, m := p.next()
		require.Equal(t, "4", body, "released: it comes again")
		f.pending(2)
		once(f, fault.Puback, fault.Action{Kind: fault.Drop, After: true})
		p.puback(m)
		require.Empty(t, p.cut())
		f.pending(1)
		p, _ = f.connect()
		body, m = p.next()
		require.Equal(t, "1", body, "its PUBACK was withheld")
		once(f, fault.Puback, fault.Action{Kind: fault.Drop})
		p.puback(m)
		require.Empty(t, p.cut())
		f.pending(1)
	})
}

func TestLapsedLockComesAgainWhereAsked(t *testing.T) {
	store := c2d.New(c2d.Options{Rules: c2d.Rules{Lock: 20 * time.Millisecond}})
	_, err := store.Create(c2d.Device{ID: "d1"})
	require.NoError(t, err)
	s := mqttd.New(mqttd.Options{Store: store, Authority: doorman{time.Now().Add(time.Hour)}, Behaviour: mqttd.Behaviour{Resend: true, Window: 1}})
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { s.ServeConn(there); close(done) }()
	p := &peer{t, here}
	p.write(hello())
	p.read()
	f := &fixture{t: t, store: store}
	p.subscribe(1, devicebound)
	f.send("1")
	_, first := p.next()
	require.Eventually(t, func() bool { store.Sweep(); return store.Queue("d1")[0].State == c2d.Enqueued }, wait, time.Millisecond)
	_, again := p.next()
	require.NotEqual(t, first.MessageID, again.MessageID)
	require.Equal(t, first.TopicName, again.TopicName)
	require.NoError(t, s.Close())
	<-done
	here.Close()
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
