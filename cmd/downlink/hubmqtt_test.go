package main

import (
	"crypto/tls"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/mqttd"
)

func TestHubDeviceFlags(t *testing.T) {
	parse := func(args ...string) (emulator.Options, error) {
		var f hubDeviceFlags
		fs := pflag.NewFlagSet("hub", pflag.ContinueOnError)
		f.register(fs)
		require.NoError(t, fs.Parse(args))
		var o emulator.Options
		err := f.apply(&o)
		return o, err
	}
	o, err := parse()
	require.NoError(t, err)
	require.Equal(t, mqttd.Behaviour{Window: 10, CodeBadCredentials: 5}, o.MQTT)
	o, err = parse("--mqtt-window=1", "--mqtt-first-subscribe=new", "--mqtt-bad-credentials=4", "--mqtt-resend", "--mqtt-dup",
		"--mqtt-no-session-present", "--mqtt-reverse-properties", "--telemetry-keep=7", "--max-connections=8", "--tls-cert=c", "--tls-key=k")
	require.NoError(t, err)
	require.Equal(t, mqttd.Behaviour{
		Window: 1, FirstSubscribe: mqttd.DeliverNew, CodeBadCredentials: 4, Resend: true, Dup: true, NoSessionPresent: true, ReverseProperties: true,
	}, o.MQTT)
	require.Equal(t, 7, o.Telemetry.Messages)
	require.Equal(t, 8, o.MaxConnections)
	require.Equal(t, []string{"c", "k"}, []string{o.TLSCert, o.TLSKey})

	for _, bad := range []string{"--mqtt-window=0", "--mqtt-first-subscribe=some", "--mqtt-bad-credentials=3", "--telemetry-keep=0", "--max-connections=0", "--tls-cert=c", "--tls-key=k"} {
		got := cli(t, "hub", "--data-dir", t.TempDir(), "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", bad)
		require.Equal(t, exitUsage, got.code, bad)
		require.Contains(t, got.stderr, bad[:6])
	}
}

func TestHubWithItsOwnersCertificate(t *testing.T) {
	dir := t.TempDir()
	issuer, err := identity.Open(dir)
	require.NoError(t, err)
	_, err = issuer.Certificate([]string{"hub", "localhost", "10.0.0.7"})
	require.NoError(t, err)
	file := filepath.Join(dir, "server.pem") // certificate and key
	_, r := startHub(t, t.TempDir(), "--hostname", "hub", "--hostname", "localhost", "--tls-cert", file, "--tls-key", file, "--http", "off")
	c, err := tls.Dial("tcp", r.MQTTS, &tls.Config{RootCAs: issuer.RootCAs(), ServerName: "10.0.0.7"})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	pool, err := certPool("--ca-file", r.CAFile)
	require.NoError(t, err)
	c, err = tls.Dial("tcp", r.AMQPS, &tls.Config{RootCAs: pool, ServerName: "hub"})
	require.NoError(t, err, "ca_file is what clients need")
	require.NoError(t, c.Close())

	got := cli(t, "hub", "--data-dir", t.TempDir(), "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0",
		"--hostname", "other", "--tls-cert", file, "--tls-key", file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "with --hostname")
}
