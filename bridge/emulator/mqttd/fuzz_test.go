package mqttd_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
)

// FuzzConnection gives a server whatever bytes, alone and after a good CONNECT.
// It must not panic or hang, and must end the connection when the peer does;
// what it answers must be MQTT.
func FuzzConnection(f *testing.F) {
	var good bytes.Buffer
	_ = hello().Write(&good)
	f.Add(good.Bytes(), false)
	f.Add([]byte{0x82, 37, 0, 1, 0, 33, 'd', 'e', 'v', 'i', 'c', 'e', 's', '/', 'd', '1', '/', 'm', 'e', 's', 's', 'a', 'g', 'e', 's', '/', 'd', 'e', 'v', 'i', 'c', 'e', 'b', 'o', 'u', 'n', 'd', '/', '#', 1, 0x40, 2, 0, 1, 0xe0, 0}, true)
	f.Add([]byte("\x82\x1c\x00\x02\x00\x17$iothub/twin/res/#\x01\x32\x1f\x00\x18$iothub/twin/GET/?$rid=1"), true)
	f.Add([]byte("\x82\x1c\x00\x02\x00\x17$iothub/twin/res/#\x01\x30\x37\x00\x2e$iothub/twin/PATCH/properties/reported/?$rid=1{\"a\":1}"), true)
	f.Add([]byte("\x30\x29\x00\x25$iothub/methods/res/200/?$rid=1&x=%zz{}"), true)
	f.Add([]byte("\x31\x2a\x00\x27devices/d1/messages/events/%24.mid=1&a=x"), true)
	f.Add([]byte{0xc0, 0, 0xa2, 5, 0, 1, 0, 1, 'a', 0x30, 2, 0, 0}, true)
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, false)
	f.Fuzz(func(t *testing.T, b []byte, signedIn bool) {
		store := c2d.New(c2d.Options{})
		if _, err := store.Create(c2d.Device{ID: "d1"}); err != nil {
			t.Fatal(err)
		}
		if err := store.Enqueue(c2d.Message{To: "/devices/d1/messages/devicebound", Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		s := mqttd.New(mqttd.Options{Store: store, Authority: doorman{time.Now().Add(time.Hour)}})
		here, there := net.Pipe()
		served := make(chan struct{})
		go func() { s.ServeConn(there); close(served) }()
		answered := make(chan error, 1)
		go func() {
			for {
				if _, err := packets.ReadPacket(here); err != nil {
					answered <- err
					return
				}
			}
		}()
		if signedIn {
			_, _ = here.Write(good.Bytes())
		}
		_ = here.SetWriteDeadline(time.Now().Add(wait))
		_, _ = here.Write(b)
		here.Close()
		select {
		case <-served:
		case <-time.After(wait):
			t.Fatal("the connection has not ended")
		}
		if err := <-answered; err != io.EOF && err != io.ErrClosedPipe && err != io.ErrUnexpectedEOF {
			t.Fatalf("the server's answer is not MQTT: %v", err)
		}
		if n := len(store.Queue("d1")); n > 1 {
			t.Fatalf("%d messages", n)
		}
	})
}
