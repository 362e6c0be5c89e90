package emulator_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStartFailuresNamePlaceAndRemedy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	addr := taken.Addr().String()
	for name, c := range map[string]struct {
		o    emulator.Options
		want string
	}{
		"in use":     {emulator.Options{MQTTS: addr}, "hub: mqtts: " + addr + " is in use: stop what listens there, or take another address with --mqtts (port 0 takes a free one)"},
		"foreign":    {emulator.Options{AMQPS: "192.0.2.1:0"}, "hub: amqps: 192.0.2.1:0 is no address of this machine: take 127.0.0.1 or one of its own with --amqps"},
		"no port":    {emulator.Options{HTTPS: "127.0.0.1"}, `write HOST:PORT, such as 127.0.0.1:0, with --https`},
		"device":     {emulator.Options{Devices: []string{"a/b"}}, `hub: device "a/b": com.microsoft:argument-error (400004): the device ID has illegal characters or is of illegal length`},
		"twice":      {emulator.Options{Devices: []string{"a", "a"}}, `hub: device "a": com.microsoft:device-already-exists (409001): device a exists already`},
		"host names": {emulator.Options{Hostnames: []string{"a:1"}}, `hub: identity: host name "a:1": write a name such as localhost or hub.local, without port`},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.DataDir = t.TempDir()
			_, err := emulator.Start(c.o)
			require.ErrorContains(t, err, c.want)
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = emulator.Start(emulator.Options{DataDir: file})
	require.ErrorContains(t, err, "data directory")
}

func TestTemporaryDataDirGoesWithTheHub(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	h, err := emulator.Start(emulator.Options{})
	require.NoError(t, err)
	dir := filepath.Dir(h.CAFile())
	require.DirExists(t, dir)
	require.NoError(t, h.Close())
	require.NoError(t, h.Close())
	require.NoDirExists(t, dir)

	_, err = emulator.Start(emulator.Options{HTTPS: "nowhere"})
	require.Error(t, err)
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestIdentitySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	start := func(addr string) *emulator.Hub {
		var h *emulator.Hub
		require.Eventually(t, func() bool { // between two hubs somebody else may have the port for a moment
			var err error
			h, err = emulator.Start(emulator.Options{DataDir: dir, MQTTS: addr, Devices: []string{"d1"}})
			return err == nil
		}, wait, tick)
		return h
	}
	h := start("")
	o := options(t, h, "d1")
	d, err := connect(t, o)
	require.NoError(t, err)
	addr := h.MQTTAddr()
	require.NoError(t, h.Close(), "with a connection open")
	require.Eventually(t, func() bool { return !d.IsConnected() }, wait, tick)

	h = start(addr)
	defer h.Close()
	d, err = connect(t, o) // same CA, same keys, same port
	require.NoError(t, err)
	require.True(t, d.IsConnected())
	d.Disconnect(0)
}

func TestTLS(t *testing.T) {
	h := runHub(t, emulator.Options{Hostnames: []string{"hub.test"}})
	other := runHub(t, emulator.Options{})
	for _, addr := range []string{h.AMQPAddr(), h.MQTTAddr(), h.HTTPAddr()} {
		for _, name := range []string{"hub.test", "127.0.0.1"} {
			c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: name})
			require.NoError(t, err, name)
			require.NoError(t, c.Close())
		}
		_, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"})
		require.ErrorContains(t, err, "not localhost")
		_, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: other.RootCAs(), ServerName: "hub.test"})
		require.ErrorContains(t, err, "unknown authority")
		_, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: "hub.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		require.ErrorContains(t, err, "protocol version")
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: "hub.test", MaxVersion: tls.VersionTLS12})
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
}

func TestOwnCertificate(t *testing.T) {
	// A certificate that somebody else issued, with its key in the same file.
	dir := t.TempDir()
	other, err := identity.Open(dir)
	require.NoError(t, err)
	_, err = other.Certificate([]string{"hub.test", "10.0.0.7"})
	require.NoError(t, err)
	file := filepath.Join(dir, "server.pem")

	h := runHub(t, emulator.Options{Hostnames: []string{"hub.test"}, TLSCert: file, TLSKey: file})
	for _, addr := range []string{h.AMQPAddr(), h.MQTTAddr(), h.HTTPAddr()} {
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: other.RootCAs(), ServerName: "10.0.0.7"})
		require.NoError(t, err)
		require.NoError(t, c.Close())
		c, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: h.RootCAs(), ServerName: "hub.test"})
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	_, err = emulator.Start(emulator.Options{DataDir: t.TempDir(), Hostnames: []string{"localhost"}, TLSCert: file, TLSKey: file})
	require.ErrorContains(t, err, `is not for host name "localhost"`)
}
