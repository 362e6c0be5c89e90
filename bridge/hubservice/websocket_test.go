package hubservice_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/hubservice"
	"downlink/mapping"
)

func webSocketOptions(h *bridgetest.Hub) hubservice.Options {
	o := options(h)
	o.WebSocket, o.Address = true, h.HTTPAddr()
	return o
}

func TestWebSocket(t *testing.T) {
	h := bridgetest.RunHub(t, "d1", "d2")
	c := run(t, webSocketOptions(h))
	ctx := within(t, 2*soon)
	big := bytes.Repeat([]byte("0123456789abcdef"), 4000) // more than one frame of the hub's
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: "m1", Body: big}))
	require.Equal(t, big, h.Queue("d1")[0].Message.Body)
	require.NoError(t, c.Ready())

	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if err := c.Send(ctx, &mapping.Envelope{Device: "d2", MessageID: "x"}); err != nil {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	require.Zero(t, c.Stats().Reconnects)

	// What is in flight when the tunnel breaks is in doubt, and what comes next is not.
	h.Faults().Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Drop})
	require.Equal(t, bridge.LinkLost, class(t, c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: "m2"})))
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: "m2"}))
	require.Equal(t, 1, c.Stats().Reconnects)
}

// A message that waits for credit when the tunnel breaks never left: it is sent
// on the next one, and nobody is told of a loss. That takes the count of transfer
// frames, which must hold through a WebSocket.
func TestWebSocketCountsWhatLeft(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	o := webSocketOptions(h)
	o.Stall = 2 * time.Second // long enough for all that there is credit for to leave, and for what is not withheld to be answered
	c := run(t, o)
	ctx := within(t, 2*soon)
	// The hub keeps 100 transfers to itself and with them all the credit there is.
	stop := h.Faults().Add(fault.Transfer, 100, nil, fault.Action{Kind: fault.Withhold})
	defer stop()
	var resend, accepted atomic.Int64
	var wg sync.WaitGroup
	for n := range 150 {
		wg.Go(func() {
			err := c.Send(ctx, &mapping.Envelope{Device: "d1", MessageID: fmt.Sprint(n), ExpiresAt: time.Now().Add(time.Hour)})
			switch {
			case err == nil || class(t, err) == bridge.QueueFull:
				accepted.Add(1)
			case class(t, err) == bridge.Resend:
				resend.Add(1)
			default:
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 100, resend.Load(), "those that had left")
	require.EqualValues(t, 50, accepted.Load(), "those that had not")
}

// proxy is an HTTP proxy that tunnels to one address, whatever is asked for.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
	auth  []string
}

func runProxy(t *testing.T, to string, secure bool) *proxy {
	p := &proxy{}
	var wg sync.WaitGroup
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host)
		p.auth = append(p.auth, r.Header.Get("Proxy-Authorization"))
		p.mu.Unlock()
		if r.Header.Get("Proxy-Authorization") == "" {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		wg.Add(2) // before Close stops to wait for the connection, which it does when it is taken over
		in, read, err := http.NewResponseController(w).Hijack()
		if err != nil {
			wg.Add(-2)
			_ = out.Close()
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { defer wg.Done(); _, _ = io.Copy(out, read); _ = out.Close() }()
		go func() { defer wg.Done(); _, _ = io.Copy(in, out); _ = in.Close() }()
	}))
	if secure {
		p.StartTLS()
	} else {
		p.Start()
	}
	t.Cleanup(func() { p.Close(); wg.Wait() })
	return p
}

// Through a proxy, by HTTP or HTTPS, the hub goes by its own name: port 443, and a
// certificate that only the embedded hub's CA has signed.
func TestWebSocketThroughAProxy(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	for name, secure := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			p := runProxy(t, h.HTTPAddr(), secure)
			o := webSocketOptions(h)
			o.Address = "" // localhost:443, where nobody listens
			if secure {
				o.RootCAs.AddCert(p.Certificate())
			}
			client := func(user *url.Userinfo) *hubservice.Client {
				c, err := hubservice.New(o)
				require.NoError(t, err)
				c.SetProxy(func(r *http.Request) (*url.URL, error) {
					if r.URL.String() != "https://localhost:443/$iothub/websocket" { // https: HTTPS_PROXY is what counts
						return nil, fmt.Errorf("asked for %s", r.URL)
					}
					u, err := url.Parse(p.URL)
					u.User = user
					return u, err
				})
				runThis(t, c)
				return c
			}
			c := client(url.UserPassword("ann", "hush"))
			require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
			p.mu.Lock()
			require.Equal(t, []string{"CONNECT localhost:443"}, p.asked)
			require.Equal(t, []string{"Basic YW5uOmh1c2g="}, p.auth)
			p.mu.Unlock()

			c = client(nil)
			require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), "Proxy Authentication Required") }, soon, time.Millisecond)
		})
	}
}

// Something that speaks HTTPS but is no hub.
func TestWebSocketToSomethingElse(t *testing.T) {
	other := httptest.NewUnstartedServer(http.NotFoundHandler())
	other.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of certificates that the client does not trust
	other.StartTLS()
	t.Cleanup(other.Close)
	o := webSocketOptions(bridgetest.RunHub(t))
	o.ConnectionString = strings.Replace(o.ConnectionString, "localhost", "example.com", 1) // the name that httptest certifies
	o.Address = other.Listener.Addr().String()
	c := run(t, o)
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), "name its file in ca_file") }, soon, time.Millisecond)
	o.RootCAs = x509.NewCertPool()
	o.RootCAs.AddCert(other.Certificate())
	c = run(t, o)
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), "got 404") }, soon, time.Millisecond)
}

// The hub sends empty frames when it is asked to: an idle connection stays, over
// either transport.
func TestIdleConnectionStays(t *testing.T) {
	t.Parallel()
	h := bridgetest.RunHub(t)
	for name, o := range map[string]hubservice.Options{"amqp": options(h), "websocket": webSocketOptions(h)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.IdleTimeout = 4 * time.Second
			c := run(t, o)
			require.Eventually(t, func() bool { return c.Ready() == nil }, soon, time.Millisecond)
			require.Never(t, func() bool { return c.Ready() != nil || c.Stats().Reconnects > 0 }, 2*o.IdleTimeout+time.Second, 10*time.Millisecond)
		})
	}
}

// freezer is a TCP relay that can stop passing anything on, without closing anything.
type freezer struct {
	net.Listener
	frozen atomic.Bool
}

func runFreezer(t *testing.T, to string) *freezer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &freezer{Listener: ln}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	// Once frozen, a connection stays so: the other end is gone for good.
	pipe := func(dst, src net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := src.Read(b)
			if err != nil {
				return
			}
			if f.frozen.Load() {
				continue
			}
			if _, err := dst.Write(b[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			wg.Go(func() { pipe(out, in) })
			wg.Go(func() { pipe(in, out) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return f
}

// The peer vanishes without a FIN: the client notices within IdleTimeout, says
// so, and goes on when there is a way again.
func TestHalfOpenSocket(t *testing.T) {
	h := bridgetest.RunHub(t, "d1")
	for name, x := range map[string]struct {
		o  hubservice.Options
		to string
	}{"amqp": {options(h), h.AMQPAddr()}, "websocket": {webSocketOptions(h), h.HTTPAddr()}} {
		t.Run(name, func(t *testing.T) {
			f := runFreezer(t, x.to)
			o := x.o
			o.Address, o.IdleTimeout = f.Addr().String(), 2*time.Second
			c := run(t, o)
			ctx := within(t, 2*soon)
			require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
			f.frozen.Store(true)
			frozen := time.Now()
			require.Eventually(t, func() bool { return c.Ready() != nil }, soon, time.Millisecond)
			require.Less(t, time.Since(frozen), 5*o.IdleTimeout) // with time to spare on a busy machine
			f.frozen.Store(false)
			require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
		})
	}
}
