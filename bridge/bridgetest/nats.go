// Package bridgetest starts what a test of the bridge needs: a nats-server, an
// embedded hub, an app. Everything ends with the test.
package bridgetest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/tcplink"
)

// NATS is a nats-server with JetStream on a port of 127.0.0.1 and a store in the
// test's temporary directory.
type NATS struct {
	opts *server.Options

	port int // held, so that it is free after a stop

	mu  sync.Mutex
	srv *server.Server
}

const (
	// patience is how long a server may take to come on a busy machine.
	patience = 30 * time.Second
	// answer is how long one answer of JetStream may take: less, so that who asks a server that comes and goes can ask again.
	answer = 10 * time.Second
)

// RunNATS starts a server. Each change may set credentials, TLS or anything else.
func RunNATS(t testing.TB, changes ...func(*server.Options)) *NATS {
	t.Helper()
	port := HoldPort(t)
	n := &NATS{port: port, opts: &server.Options{
		ServerName: "test", Host: "127.0.0.1", Port: port,
		JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	}}
	for _, change := range changes {
		change(n.opts)
	}
	n.start(t)
	t.Cleanup(n.Stop)
	return n
}

func (n *NATS) start(t testing.TB) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	srv, err := server.NewServer(n.opts.Clone())
	require.NoError(t, err)
	srv.Start()
	require.True(t, srv.ReadyForConnections(patience), "nats-server does not accept connections")
	n.srv = srv
}

// Server is the running server.
func (n *NATS) Server() *server.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.srv
}

// URL is the server's address, without credentials.
func (n *NATS) URL() string { return "nats://" + n.Addr() }

// Addr is the server's host:port.
func (n *NATS) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)) }

// Stop ends the server and waits for it. The store stays.
func (n *NATS) Stop() {
	srv := n.Server()
	srv.Shutdown()
	srv.WaitForShutdown()
}

// Start starts it again on the same port and store.
func (n *NATS) Start(t testing.TB) {
	t.Helper()
	n.start(t)
}

// Restart is Stop and Start.
func (n *NATS) Restart(t testing.TB) {
	t.Helper()
	n.Stop()
	n.Start(t)
}

// Conn connects with the options given; it is closed with the test.
func (n *NATS) Conn(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(n.URL(), append([]nats.Option{nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// JetStream connects and returns its JetStream.
func (n *NATS) JetStream(t testing.TB, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(n.Conn(t, opts...), jetstream.WithDefaultTimeout(answer))
	require.NoError(t, err)
	return js
}

// DeleteStream deletes a stream. It waits until the server has removed what another of that name left: until then a
// second one cannot be removed (filestore.go, Delete), and comes to life with the next that is made.
func (n *NATS) DeleteStream(t testing.TB, name string) {
	t.Helper()
	left := filepath.Join(n.Server().StoreDir(), "$G", "streams", "."+name)
	require.Eventually(t, func() bool {
		_, err := os.Stat(left)
		return errors.Is(err, fs.ErrNotExist)
	}, patience, time.Millisecond)
	require.NoError(t, n.JetStream(t).DeleteStream(t.Context(), name))
}

// CreateStream makes a stream with file storage.
func (n *NATS) CreateStream(t testing.TB, name string, subjects ...string) jetstream.Stream {
	t.Helper()
	return n.CreateStreamFrom(t, jetstream.StreamConfig{Name: name, Subjects: subjects})
}

// CreateStreamFrom makes a stream.
func (n *NATS) CreateStreamFrom(t testing.TB, cfg jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := n.JetStream(t).CreateStream(ctx, cfg)
	require.NoError(t, err)
	return s
}

// Link is a TCP relay in front of a server.
type Link struct{ *tcplink.Link }

// Link starts a relay in front of the server.
func (n *NATS) Link(t testing.TB) *Link { return RunLink(t, n.Addr()) }

// RunLink starts a relay to host:port; it is closed with the test.
func RunLink(t testing.TB, target string) *Link {
	t.Helper()
	l, err := tcplink.Listen(target)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return &Link{l}
}

// URL is where NATS clients connect to.
func (l *Link) URL() string { return "nats://" + l.Addr() }
