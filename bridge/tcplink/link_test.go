package tcplink_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/tcplink"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func dial(t *testing.T, l *tcplink.Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func link(t *testing.T, target string) *tcplink.Link {
	t.Helper()
	l, err := tcplink.Listen(target)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

func says(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_, err := c.Write([]byte(text))
	require.NoError(t, err)
	hears(t, c, text)
}

func hears(t *testing.T, c net.Conn, text string) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	got := make([]byte, len(text))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

func ends(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it is still open")
}

func TestLink(t *testing.T) {
	l := link(t, echo(t))
	a := dial(t, l)
	says(t, a, "hello")
	l.Cut()
	ends(t, a)
	b := dial(t, l)
	says(t, b, "again")
	l.Down()
	ends(t, b)
	if c, err := net.Dial("tcp", l.Addr()); err == nil { // else it was reset before Dial was done
		ends(t, c)
		require.NoError(t, c.Close())
	}
	l.Up()
	says(t, dial(t, l), "up")
}

func TestStall(t *testing.T) {
	l := link(t, echo(t))
	a := dial(t, l)
	says(t, a, "hello")
	l.Stall()
	_, err := a.Write([]byte("wait"))
	require.NoError(t, err)
	require.NoError(t, a.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = a.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "nothing comes")
	l.Flow()
	hears(t, a, "wait")

	l.Stall()
	_, err = a.Write([]byte("lost"))
	require.NoError(t, err)
	l.Cut()
	ends(t, a)
	b := dial(t, l) // and closed in the middle of a stall
	_, err = b.Write([]byte("x"))
	require.NoError(t, err)
}

func TestTarget(t *testing.T) {
	l := link(t, "127.0.0.1:1")
	ends(t, dial(t, l))
	l.Target(echo(t))
	says(t, dial(t, l), "here")
}

// What passes is as late as it is told in each direction, and all of it arrives.
func TestLate(t *testing.T) {
	l := link(t, echo(t))
	const by = 30 * time.Millisecond
	l.Late(by)
	c := dial(t, l)
	for range 2 {
		begin := time.Now()
		says(t, c, "there and back")
		require.GreaterOrEqual(t, time.Since(begin), 2*by)
	}
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = c.Write(sent) })
	got := make([]byte, len(sent))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got))
	writing.Wait()
	l.Cut()
	_, err = c.Read(got)
	require.Error(t, err)
}
