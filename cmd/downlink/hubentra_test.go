package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
)

func TestHubEntraFlags(t *testing.T) {
	parse := func(args ...string) (emulator.Options, error) {
		var f hubEntraFlags
		fs := pflag.NewFlagSet("hub", pflag.ContinueOnError)
		f.register(fs)
		require.NoError(t, fs.Parse(args))
		var o emulator.Options
		return o, f.apply(&o)
	}
	o, err := parse()
	require.NoError(t, err)
	require.Nil(t, o.Entra)

	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--entra-ca", "x"}, "--entra-ca goes with --entra-issuer"},
		{[]string{"--entra-issuer", "http://x"}, `--entra-issuer: entra issuer "http://x": want an https URL`},
		{[]string{"--entra-issuer", "https://x", "--entra-ca", "/nowhere"}, "--entra-ca: open /nowhere"},
	} {
		got := cli(t, append([]string{"hub", "--data-dir", t.TempDir(), "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0"}, x.args...)...)
		require.Equal(t, exitUsage, got.code)
		require.Contains(t, got.stderr, x.want)
	}
}

// A bridge signs in at downlink hub with Entra ID.
func TestBridgeSignsInWithEntra(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	_, r := startHub(t, t.TempDir(), "--device", "d1", "--entra-issuer", issuer.URL(), "--entra-ca", issuer.CAFile())
	nats := bridgetest.RunNATS(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), []byte(issuer.Secret), 0o600))
	file := filepath.Join(dir, "bridge.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
version: 1
http: 127.0.0.1:0
bridge:
  nats: {url: [%q]}
  hubs:
    - host: %s
      transport: websocket
      https_address: %q
      ca_file: %q
      entra: {tenant_id: %s, client_id: %s, client_secret_file: secret, authority: %q}
  routes: [{subject: "cmd.{device}.x", stream: COMMANDS, create: true, device: "{device}"}]
`, nats.URL(), r.Hostname, r.HTTPS, issuer.CAFile(r.CAFile), issuer.Tenant, issuer.Client, issuer.Authority()), 0o600))
	b := start(t, "bridge", "-c", file)
	b.says(t, "msg=ready")
	require.Equal(t, exitOK, b.stop(t))

	// So does send, from the same file.
	got := cli(t, "send", "d1", "-c", file, "--data", "x")
	require.Equal(t, exitOK, got.code, got.stderr)
}
