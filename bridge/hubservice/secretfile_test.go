package hubservice_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/hubservice"
	"downlink/bridge/internal/sas"
	"downlink/mapping"
)

// mount is a volume with a secret, swapped the way Kubernetes does it: the file is
// a link through ..data, and ..data is a link that is replaced whole.
type mount struct {
	dir string
	n   int
}

func (m *mount) file() string { return filepath.Join(m.dir, "hub") }

func (m *mount) set(t *testing.T, text string) {
	t.Helper()
	m.n++
	version := fmt.Sprintf("..v%d", m.n)
	require.NoError(t, os.Mkdir(filepath.Join(m.dir, version), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, version, "hub"), []byte(text+"\n"), 0o600))
	next := filepath.Join(m.dir, "..next")
	require.NoError(t, os.Symlink(version, next))
	require.NoError(t, os.Rename(next, filepath.Join(m.dir, "..data")))
	if m.n == 1 {
		require.NoError(t, os.Symlink("..data/hub", m.file()))
	}
}

// A secret's file is rotated in place and by symlinks: the new key goes to the
// hub on the link that is up; a wrong one is told and costs nothing.
func TestSecretFileRotates(t *testing.T) {
	data := t.TempDir()
	h := bridgetest.RunHubWith(t, emulator.Options{DataDir: data, Devices: []string{"d1"}})
	keys, err := identity.Open(data)
	require.NoError(t, err)
	policy, ok := keys.Policy("service")
	require.True(t, ok)
	second := sas.ConnectionString{HostName: h.Hostname(), KeyName: "service", Key: policy.Secondary}.Reveal()
	wrong := sas.ConnectionString{HostName: h.Hostname(), KeyName: "service", Key: []byte("a key that is no key of the hub.")}.Reveal()

	volume := &mount{dir: t.TempDir()}
	volume.set(t, h.ServiceConnectionString)
	plain := filepath.Join(t.TempDir(), "hub")
	require.NoError(t, os.WriteFile(plain, []byte(h.ServiceConnectionString), 0o600))
	for name, x := range map[string]struct {
		file string
		set  func(text string)
	}{
		"in place": {plain, func(text string) { require.NoError(t, os.WriteFile(plain, []byte(text), 0o600)) }},
		"symlink":  {volume.file(), func(text string) { volume.set(t, text) }},
	} {
		t.Run(name, func(t *testing.T) {
			hub := config.Hub{ConnectionStringFile: x.file}
			o := options(h)
			o.Reread = hub.ReadAgain
			c, err := hubservice.New(o)
			require.NoError(t, err)
			c.SetCheck(5 * time.Millisecond)
			runThis(t, c)
			ctx := within(t, 2*soon)
			require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))

			x.set(wrong)
			require.Eventually(t, func() bool {
				return strings.Contains(fmt.Sprint(c.Ready()), "cannot renew the token, which expires at ")
			}, soon, time.Millisecond)
			require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
			x.set(second)
			require.Eventually(t, func() bool { return c.Ready() == nil }, soon, time.Millisecond)

			x.set("HostName=localhost;DeviceId=d1;SharedAccessKey=AAAA")
			require.Eventually(t, func() bool {
				return strings.Contains(c.Stats().Notice, x.file+": a device connection string; the bridge needs the hub's")
			}, soon, time.Millisecond)
			require.NoError(t, os.Remove(x.file))
			require.Eventually(t, func() bool {
				return strings.Contains(c.Stats().Notice, "connection_string_file: cannot read the secret from "+x.file)
			}, soon, time.Millisecond)
			require.NoError(t, c.Ready(), "what was read before goes on")
			require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
			require.Zero(t, c.Stats().Reconnects)
		})
	}
}

// A ready-made token in the connection string lasts until it expires; the next
// one in the file is taken over without a new connection.
func TestReadyMadeToken(t *testing.T) {
	t.Parallel()
	h := bridgetest.RunHub(t, "d1")
	keys, err := sas.Parse(h.ServiceConnectionString)
	require.NoError(t, err)
	ready := func(d time.Duration) string {
		return "HostName=localhost;SharedAccessSignature=" + sas.Sign("localhost", "service", keys.Key, time.Now().Add(d))
	}
	file := filepath.Join(t.TempDir(), "hub")
	require.NoError(t, os.WriteFile(file, []byte(ready(8*time.Second)), 0o600))
	hub := config.Hub{ConnectionStringFile: file}
	o := options(h)
	o.ConnectionString, _, err = hub.ReadAgain()
	require.NoError(t, err)
	o.Reread = hub.ReadAgain
	c, err := hubservice.New(o)
	require.NoError(t, err)
	c.SetCheck(5 * time.Millisecond)
	runThis(t, c)
	ctx := within(t, 2*soon)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	expires := c.Stats().TokenExpires
	require.NoError(t, os.WriteFile(file, []byte(ready(time.Hour)), 0o600))
	require.Eventually(t, func() bool { return c.Stats().TokenExpires.After(expires) }, soon, time.Millisecond)
	require.Eventually(t, func() bool { return time.Now().After(expires.Add(time.Second)) }, soon, 50*time.Millisecond)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.Zero(t, c.Stats().Reconnects)
}
