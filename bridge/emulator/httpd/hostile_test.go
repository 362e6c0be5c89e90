package httpd_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/httpd"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/twin"
)

// pipes is a listener without sockets, for bubbles and fuzzing.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// servePipes serves a hub with device d1 and an echo for the tunnels; the
// caller must close what it returns.
func servePipes(t testing.TB, id *identity.Identity) (*pipes, io.Closer) {
	store := c2d.New(c2d.Options{})
	if _, err := store.Create(c2d.Device{ID: "d1"}); err != nil {
		t.Fatal(err)
	}
	twins := twin.New(nil)
	echo := func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	}
	s := httpd.New(httpd.Options{
		Store: store, Identity: id, Authority: doorman{}, Feedback: feedback.New(feedback.Options{HubName: "hub"}), Twins: twins,
		Devices: &link{twins: twins, invoke: func(httpd.Method) (int, []byte, error) { return 200, nil, nil }},
		Tunnels: map[string]func(net.Conn){"AMQPWSB10": echo, "mqtt": echo},
	})
	p := newPipes()
	served := make(chan error, 1)
	go func() { served <- s.Serve(p) }()
	return p, closer(func() error {
		err := s.Close()
		<-served
		return err
	})
}

type closer func() error

func (c closer) Close() error { return c() }

// A peer that dribbles its request, or never sends it, is cut off.
func TestSlowPeers(t *testing.T) {
	for name, c := range map[string]struct {
		first   string
		dribble bool
		limit   time.Duration
	}{
		"silent":           {"", false, 10 * time.Second},
		"half a line":      {"GET /dev", false, 10 * time.Second},
		"dribbled headers": {"GET /devices?api-version=1 HTTP/1.1\r\nHost: a\r\nA: ", true, 10 * time.Second},
		"dribbled body":    {"PUT /devices/d2?api-version=1 HTTP/1.1\r\nHost: a\r\nAuthorization: w\r\nContent-Length: 60000\r\n\r\n", true, 30 * time.Second},
		"idle afterwards":  {"GET /devices?api-version=1 HTTP/1.1\r\nHost: a\r\nAuthorization: r\r\n\r\n", false, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := identity.Open(t.TempDir())
			require.NoError(t, err)
			synctest.Test(t, func(t *testing.T) {
				p, server := servePipes(t, id)
				start := time.Now()
				conn := p.dial()
				read := make(chan time.Duration, 1)
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					read <- time.Since(start)
				}()
				_, err := io.WriteString(conn, c.first)
				for ; c.dribble && err == nil; time.Sleep(time.Second) {
					_, err = io.WriteString(conn, "a")
				}
				require.LessOrEqual(t, <-read, c.limit+time.Second)
				require.NoError(t, conn.Close())
				require.NoError(t, server.Close())
			})
		})
	}
}

const upgrade = "GET /$iothub/websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"

// frame is a masked WebSocket frame, as clients send it (RFC 6455 §5.2).
func frame(first byte, payload string) string {
	b := []byte{first, 0x80 | 126, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(len(payload)))
	return string(b) + payload
}

// FuzzConnection gives the endpoint whatever bytes, alone and inside a
// WebSocket. It must not panic, must end the connection when the peer does, and
// what it answers must be HTTP.
func FuzzConnection(f *testing.F) {
	const request = " HTTP/1.1\r\nHost: a\r\nAuthorization: rws\r\nContent-Type: application/json\r\n"
	with := func(line, body string) string {
		return line + request + "Content-Length: " + string('0'+byte(len(body)/10)) + string('0'+byte(len(body)%10)) + "\r\n\r\n" + body
	}
	for _, seed := range []string{
		"GET /devices/d1?api-version=1" + request + "\r\n",
		with("PUT /devices/d2?api-version=1", `{"deviceId":"d2"}`),
		with("POST /devices?api-version=1", `[{"id":"a","importMode":"create"}]`),
		with("POST /devices/query?api-version=1", `{"query":"SELECT * FROM devices"}`),
		with("PATCH /twins/d1?api-version=1", `{"properties":{"desired":{"a":1}}}`),
		with("POST /twins/d1/methods?api-version=1", `{"methodName":"m","payload":{}}`),
		"DELETE /devices/d1/commands?api-version=1" + request + "\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(seed), false)
	}
	f.Add([]byte(upgrade+frame(0x82, "hello")), false)
	f.Add([]byte(frame(0x02, "he")+frame(0x00, "l")+frame(0x89, "ping")+frame(0x80, "lo")), true)
	f.Add([]byte(frame(0x81, "text")), true)
	f.Add([]byte(frame(0x88, "\x03\xe8bye")), true)
	f.Add([]byte("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"), true)
	id, err := identity.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, tunnel bool) {
		p, server := servePipes(t, id)
		conn := p.dial()
		if tunnel {
			b = append([]byte(upgrade), b...)
		}
		answered := make(chan []byte, 1)
		go func() {
			var got bytes.Buffer
			_, _ = io.Copy(&got, io.LimitReader(conn, 1<<20))
			_, _ = io.Copy(io.Discard, conn)
			answered <- got.Bytes()
		}()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = conn.Write(b)
		_ = conn.Close()
		got := <-answered
		if len(got) > 0 && !strings.HasPrefix(string(got), "HTTP/1.") {
			t.Fatalf("answered %.60q", got)
		}
		closed := make(chan error, 1)
		go func() { closed <- server.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the connection does not end")
		}
	})
}
