package mqttd_test

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
)

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
		start := time.Now()
		p, _ := f.connect(func(p *packets.ConnectPacket) { p.Keepalive = 1 })
		require.Empty(t, p.cut())
		require.GreaterOrEqual(t, time.Since(start), 1500*time.Millisecond, "to the moment, TestKeepAlive has it")
	})
	t.Run("a device that does not read", func(t *testing.T) {
		// Long enough for a busy machine to write what the device does read.
		f := newFixture(t, mqttd.Behaviour{WriteTimeout: time.Second, Window: 50})
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
