package emulator_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/mqttd"
)

// gone waits until the hub has closed a connection, whatever it said before.
func gone(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(wait)))
	_, err := io.Copy(io.Discard, c)
	require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "the connection stays open")
	c.Close()
}

// Whatever comes in, in the clear or through TLS, ends its own connection; the
// hub goes on serving, and leaves nothing behind when it closes.
func TestHostilePeers(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	garbage := map[string]string{
		"HTTP":         "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\x00\xff\xff\xff\xff",
		"zeros":        strings.Repeat("\x00", 70_000),
		"ones":         strings.Repeat("\xff", 70_000),
		"AMQP":         "AMQP\x00\x01\x00\x00\xff\xff\xff\xff\x02\x00\x00\x00",
		"AMQP, deep":   "AMQP\x00\x01\x00\x00\x00\x00\x02\x00\x02\x00\x00\x00" + strings.Repeat("\xd0\x00\x00\x01\xf0\x00\x00\x00\x01", 50),
		"MQTT, long":   "\x10\xff\xff\xff\x7f" + strings.Repeat("a", 70_000),
		"long header":  "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 2<<20),
		"TLS in TLS":   "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 600),
		"many headers": "GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 50_000) + "\r\n",
	}
	var peers sync.WaitGroup
	for _, addr := range []string{h.AMQPAddr(), h.MQTTAddr(), h.HTTPAddr()} {
		for _, text := range garbage {
			peers.Go(func() {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					_, _ = io.WriteString(c, text)
					_ = c.(*net.TCPConn).CloseWrite()
					gone(t, c)
				}
				s, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(s, text)
				_ = s.CloseWrite()
				gone(t, s)
			})
		}
	}
	peers.Wait()
	d := connected(t, h, "d1")
	d.subscribe(t, "d1", 1)
	require.NoError(t, h.Enqueue(message("d1", "m1", "still here")))
	require.Equal(t, "still here", string(d.next(t).Payload()))
}

// A peer that opens a connection and does not finish its TLS handshake is cut off.
func TestStalledHandshake(t *testing.T) {
	h := runHub(t, emulator.Options{MQTT: mqttd.Behaviour{ConnectTimeout: 500 * time.Millisecond}})
	for _, text := range []string{"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		c, err := net.Dial("tcp", h.MQTTAddr())
		require.NoError(t, err)
		_, err = io.WriteString(c, text)
		require.NoError(t, err)
		gone(t, c)
	}
	var s *tls.Conn
	require.Eventually(t, func() bool { // in time, which on a busy machine not every handshake is
		var err error
		s, err = tls.Dial("tcp", h.MQTTAddr(), &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"})
		return err == nil
	}, wait, tick)
	gone(t, s) // no CONNECT either
}

func TestMaxConnections(t *testing.T) {
	h := runHub(t, emulator.Options{MaxConnections: 2, Devices: []string{"d1", "d2", "d3"}})
	one, two := connected(t, h, "d1"), connected(t, h, "d2")
	c, err := net.Dial("tcp", h.MQTTAddr())
	require.NoError(t, err)
	gone(t, c)
	require.True(t, one.IsConnected())
	require.True(t, two.IsConnected())
	c, err = tls.Dial("tcp", h.AMQPAddr(), &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"})
	require.NoError(t, err, "each listener has a limit of its own")
	require.NoError(t, c.Close())
	one.Disconnect(0)
	require.Eventually(t, func() bool {
		d, err := connect(t, options(t, h, "d3"))
		return err == nil && d.IsConnected()
	}, wait, tick, "a place is free again")
}
