package natsio

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := StartServer(ServerOptions{Listen: "127.0.0.1:0", StoreDir: dir, Streams: []Stream{{Name: "EDGE", Subjects: []string{"edge.>"}, Duplicates: time.Hour}}, Logger: testLog(t)})
	require.NoError(t, err)
	c := connectTo(t, s.URL())
	isReady(t, c)
	_, err = c.JetStream().Publish(t.Context(), "edge.x", []byte("1"))
	require.NoError(t, err)
	addr := strings.TrimPrefix(s.URL(), "nats://")
	_, err = StartServer(ServerOptions{Listen: addr})
	require.ErrorContains(t, err, "embedded nats: ")
	require.ErrorContains(t, err, "address already in use")
	c.Close()
	require.NoError(t, s.Close())

	s, err = StartServer(ServerOptions{Listen: addr, StoreDir: dir, Streams: []Stream{{Name: "EDGE", Subjects: []string{"edge.>"}}}})
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, "nats://"+addr, s.URL())
	stream, err := connectTo(t, s.URL()).JetStream().Stream(t.Context(), "EDGE")
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)
	require.Equal(t, time.Hour, stream.CachedInfo().Config.Duplicates, "an existing stream stays as it is")
}

func TestServerOptions(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"localhost": `embedded nats: listen "localhost": not host:port`, "127.0.0.1:x": `"x" is not a port`, "127.0.0.1:70000": "is not a port",
	} {
		_, err := StartServer(ServerOptions{Listen: listen})
		require.ErrorContains(t, err, want)
	}
	_, err := StartServer(ServerOptions{Listen: "127.0.0.1:0", Streams: []Stream{{Name: "a b"}}})
	require.ErrorContains(t, err, "embedded nats: stream a b: ")
	s, err := StartServer(ServerOptions{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	require.DirExists(t, s.temp)
	require.NoError(t, s.Close())
	require.NoDirExists(t, s.temp)
}
