package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
	"downlink/mapping"
)

const (
	service = "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0"
	device  = "HostName=h.azure-devices.net;DeviceId=pump-7;SharedAccessKey=c2VjcmV0"
)

func parseFile(t *testing.T, name string) *config.Config {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/good", name))
	require.NoError(t, err)
	c, err := config.Parse("/etc/downlink/"+name, b)
	require.NoError(t, err)
	return c
}

func TestFull(t *testing.T) {
	c := parseFile(t, "full.yaml")
	b, r := c.Bridge, c.Relay
	require.Equal(t, "off", c.HTTP)
	require.Equal(t, config.Log{Level: "debug", Format: "json"}, c.Log)
	require.Equal(t, 24*time.Hour, c.ShutdownGrace)

	require.Equal(t, config.NATS{
		URL: []string{"nats://a:4222", "tls://b:4222", "c:4222"}, User: "ann", PasswordFile: "/etc/downlink/secrets/password",
		TLS: config.NATSTLS{CAFile: "/etc/downlink/ca.pem", CertFile: "/etc/downlink/cert.pem", KeyFile: "/abs/key.pem"},
	}, b.NATS)
	require.Equal(t, service, b.Hubs[0].ConnectionString.Reveal())
	require.Equal(t, "/etc/downlink/secrets/second", b.Hubs[1].ConnectionStringFile)
	require.Equal(t, 10, b.Hubs[0].Window)
	require.Equal(t, config.Hub{Tier: "S2", Units: 3, Rate: 2.5, Share: 0.25, DailyMessages: 1_000_000},
		config.Hub{Tier: b.Hubs[0].Tier, Units: b.Hubs[0].Units, Rate: b.Hubs[0].Rate, Share: b.Hubs[0].Share, DailyMessages: b.Hubs[0].DailyMessages})
	require.Equal(t, "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0Mg==", b.Hubs[0].SecondaryConnectionString.Reveal())
	require.Equal(t, "amqp", b.Hubs[0].Transport)
	require.Equal(t, "/etc/downlink/secrets/second-2", b.Hubs[1].SecondaryConnectionStringFile)
	require.Equal(t, "websocket", b.Hubs[1].Transport)
	require.Equal(t, "localhost:8443", b.Hubs[1].HTTPSAddress)
	require.Equal(t, "third.azure-devices.net", b.Hubs[2].Host)
	require.Equal(t, config.Entra{
		TenantID: "11111111-2222-3333-4444-555555555555", ClientID: "66666666-7777-8888-9999-000000000000",
		ClientSecretFile: "/etc/downlink/secrets/entra", Identity: "default", Authority: "https://login.microsoftonline.us/",
	}, *b.Hubs[2].Entra)

	route := b.Routes[1]
	require.Equal(t, "Cmd.{site}.*.{rest...}", route.Subject, "case is kept")
	require.Equal(t, []string{"berlin-*"}, route.Allow, "one text is a list of one")
	require.Equal(t, 36*time.Hour, route.Message.TTL)
	require.Equal(t, []mapping.PropertyRule{{Name: "TenantId", Value: "1"}, {Headers: "X-*", Strip: "X-"}}, route.Properties)
	require.Equal(t, "2026-01-31T12:00:00Z", route.Start)
	require.Equal(t, "retry", route.DeviceNotFound)
	require.Equal(t, "0123", b.Routes[0].Drop)
	require.Equal(t, "route-3", b.Routes[2].Name)
	require.Equal(t, "2026-01-31T12:00:00Z", b.Routes[2].Start, "as the other route of the stream says")

	require.False(t, *b.Storage.Create)
	require.Equal(t, "3", b.Storage.Replicas)
	require.Equal(t, 7*24*time.Hour, b.Storage.DeadMaxAge)
	require.Equal(t, int64(64<<20), b.Storage.DeadMaxBytes)
	require.Equal(t, int64(2<<30), b.Storage.MailboxMaxBytes)
	require.Equal(t, 48*time.Hour, b.Storage.ReceiptsMaxAge)
	require.Equal(t, int64(2<<20), b.Storage.ReceiptsMaxBytes)
	require.Equal(t, []string{"never", "auto"}, []string{b.Hubs[0].Feedback, b.Hubs[1].Feedback})

	require.Equal(t, config.EmbeddedNATS{
		Listen: "127.0.0.1:0", StoreDir: "/etc/downlink/store",
		Streams: []config.Stream{{Name: "EDGE", Subjects: []string{"edge.>"}}},
	}, *r.NATS.Embedded)
	require.Equal(t, "pump-8", r.Devices[1].Embedded)

	require.Equal(t, mapping.TableOptions{Name: "prod", Hubs: []mapping.HubOptions{
		{Name: "main", DocumentedCharset: true}, {Name: "second"}, {Name: "third"},
	}, LookupNames: []string{"groups", "aliases"}, Templates: []mapping.Template{
		{Name: "common", Properties: []mapping.PropertyRule{{Name: "env", Value: "prod"}}},
	}}, b.TableOptions())
	require.Equal(t, []config.Lookup{{Name: "groups", Bucket: "device-groups"}, {Name: "aliases", File: "/etc/downlink/aliases.csv"}}, b.Lookups)
	require.Equal(t, -1, route.Priority)
	require.Equal(t, "none", route.Order)
	require.Equal(t, "{site}", route.Coalesce)
	require.True(t, route.Receipts)
	require.Equal(t, 10*time.Minute, route.Message.MaxAge)
	require.Equal(t, "{group(g)}", b.Routes[3].Devices)
	require.Equal(t, `header["Kind"] != "test"`, route.When)
	require.Equal(t, []string{"berlin-9"}, route.Deny)
	require.Equal(t, []string{"common"}, route.Use)
	require.True(t, b.Routes[4].Default)
	require.Equal(t, b.Routes[1].Route, b.MappingRoutes()[1])
	require.Equal(t, mapping.RelayOptions{Subject: "edge.{device}", AllowSubjects: []string{"cmd.>"}, Name: "pump-site"}, r.MappingOptions())
}

func TestDefaults(t *testing.T) {
	c := parseFile(t, "small.yaml")
	create := true
	require.Equal(t, "127.0.0.1:9464", c.HTTP)
	require.Equal(t, config.Log{Level: "info", Format: "text"}, c.Log)
	require.Equal(t, 10*time.Second, c.ShutdownGrace)
	require.Equal(t, "downlink", c.Bridge.Name)
	require.Equal(t, config.NATS{Embedded: &config.EmbeddedNATS{Listen: "127.0.0.1:4222"}}, c.Bridge.NATS)
	require.Equal(t, []config.Hub{{Name: "main", Embedded: true, Transport: "amqp", Window: 512, Share: 1, PropertyCharset: "utf8", Feedback: "auto"}}, c.Bridge.Hubs)
	require.Equal(t, config.Storage{Create: &create, Replicas: "source", DeadMaxAge: 720 * time.Hour, DeadMaxBytes: 1 << 30, ReceiptsMaxAge: 168 * time.Hour, ReceiptsMaxBytes: 1 << 30}, c.Bridge.Storage)
	require.Equal(t, "drop", c.Bridge.Unmatched)
	require.Equal(t, "route-1", c.Bridge.Routes[0].Name)
	require.Equal(t, "all", c.Bridge.Routes[0].Start, "as the other route of the stream says")
	require.Empty(t, c.Bridge.Routes[2].Start, "core NATS has nothing to start from")
	require.Equal(t, "dead", c.Bridge.Routes[0].DeviceNotFound)

	c = parseFile(t, "aliases.yaml")
	require.Equal(t, []string{"nats://127.0.0.1:4333"}, c.Bridge.NATS.URL)
	require.Equal(t, c.Bridge.NATS, c.Relay.NATS)
}

func TestMadeInGo(t *testing.T) {
	c := &config.Config{Version: 1, Relay: &config.Relay{Devices: []config.Device{{Embedded: "pump-7"}}}}
	c.SetDefaults()
	require.NoError(t, c.Validate())
	require.Equal(t, []string{"nats://127.0.0.1:4222"}, c.Relay.NATS.URL)
	c.Relay.Name = "a b"
	require.EqualError(t, c.Validate(), `relay.name: "a b" is not a name; take up to 64 letters, digits, - and _`)
}

// folder writes files into a folder of the test's and returns its path.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

const both = `version: 1
bridge:
  hubs: [{connection_string_file: secrets/hub}]
  routes: [{subject: "cmd.{device}", stream: C, device: "{device}"}]
relay:
  devices: [{connection_string_file: secrets/device}]
`

func TestSecretFiles(t *testing.T) {
	dir := folder(t, map[string]string{"c.yaml": both, "secrets/hub": service + "\r\n", "secrets/device": device})
	file := filepath.Join(dir, "c.yaml")
	c, err := config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err)
	require.Equal(t, service, c.Bridge.Hubs[0].ConnectionString.Reveal())
	require.Equal(t, device, c.Relay.Devices[0].ConnectionString.Reveal())
	require.NoError(t, c.Validate(), "what was loaded is valid")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "secrets/hub"), []byte("\ufeff"+service+"\n"), 0o600))
	c, err = config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err, "an editor's byte order mark")
	require.Equal(t, service, c.Bridge.Hubs[0].ConnectionString.Reveal())

	require.NoError(t, os.Remove(filepath.Join(dir, "secrets/device")))
	_, err = config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.EqualError(t, err, fmt.Sprintf("%s:6: relay.devices[0].connection_string_file: cannot read the secret from %s/secrets/device: no such file or directory", file, dir))
	c, err = config.Load(file, config.LoadOptions{NoEnvironment: true, Side: config.BridgeSide})
	require.NoError(t, err, "the bridge's machine has no device's secret")
	require.NotEmpty(t, c.Bridge.Hubs[0].ConnectionString)
	c, err = config.Load(file, config.LoadOptions{NoEnvironment: true, SkipSecrets: true})
	require.NoError(t, err)
	require.True(t, c.Bridge.Hubs[0].ConnectionString.IsZero())

	for _, wrong := range []struct{ text, message string }{
		{"", "empty"},
		{"\n", "empty"},
		{service + "\n" + service, "has more than one line; it holds one connection string and nothing else"},
		{device, "a device connection string; the bridge needs the hub's: in the portal under Shared access policies, service"},
		{strings.Replace(service, "=service;", "=device;", 1), "the policy device has no ServiceConnect permission; take the connection string of the policy service"},
		{"hello", `part 1 has no "="; write Name=value;Name=value`},
		{`"` + service + `"`, "has quotes in it; it holds the connection string without quotes"},
		{"\xff\xfeH\x00o\x00s\x00t\x00", "is not UTF-8 text; save it as UTF-8"},
		{strings.Repeat("x", 70<<10), "more than 65536 bytes"},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "secrets/hub"), []byte(wrong.text), 0o600))
		_, err = config.Load(file, config.LoadOptions{NoEnvironment: true, Side: config.BridgeSide})
		require.ErrorContains(t, err, file+":3: bridge.hubs[0].connection_string_file: ")
		require.ErrorContains(t, err, dir+"/secrets/hub")
		require.ErrorContains(t, err, wrong.message)
		require.NotContains(t, err.Error(), "c2VjcmV0")
		require.NotContains(t, err.Error(), "\n")
	}

	_, err = config.Load(filepath.Join(dir, "none.yaml"), config.LoadOptions{})
	require.EqualError(t, err, dir+"/none.yaml: cannot read the configuration: no such file or directory")
	_, err = config.Load(dir, config.LoadOptions{})
	require.EqualError(t, err, dir+": cannot read the configuration: is a directory")
}

func TestOneDeviceTwice(t *testing.T) {
	dir := folder(t, map[string]string{"a": device, "c.yaml": "version: 1\nrelay:\n  devices:\n    - connection_string_file: a\n    - connection_string: " + device + "\n"})
	_, err := config.Load(filepath.Join(dir, "c.yaml"), config.LoadOptions{NoEnvironment: true})
	require.ErrorContains(t, err, `c.yaml:5: relay.devices[1]: "pump-7" is devices[0] already; a device has one connection`)
}

func TestEnvironment(t *testing.T) {
	dir := folder(t, map[string]string{"c.yaml": both, "hub": service, "device": device, "bad": "x"})
	file := filepath.Join(dir, "c.yaml")
	t.Setenv("DOWNLINK_HTTP", "127.0.0.1:1")
	t.Setenv("DOWNLINK_LOG_LEVEL", "debug")
	t.Setenv("DOWNLINK_LOG_FORMAT", "")
	t.Setenv("DOWNLINK_SHUTDOWN_GRACE", "1m")
	t.Setenv("DOWNLINK_HUB_CONNECTION_STRING", service)
	t.Setenv("DOWNLINK_DEVICE_CONNECTION_STRING_FILE", filepath.Join(dir, "device"))
	t.Setenv("DOWNLINK_NATS_ULR", "x")
	t.Setenv("DOWNLINK_TEST_HUB", "x")

	c, err := config.Load(file, config.LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:1", c.HTTP)
	require.Equal(t, config.Log{Level: "debug", Format: "text"}, c.Log)
	require.Equal(t, time.Minute, c.ShutdownGrace)
	require.Equal(t, service, c.Bridge.Hubs[0].ConnectionString.Reveal())
	require.Empty(t, c.Bridge.Hubs[0].ConnectionStringFile)
	require.Equal(t, device, c.Relay.Devices[0].ConnectionString.Reveal())
	require.Len(t, c.Warnings, 1)
	require.EqualError(t, c.Warnings[0], "DOWNLINK_NATS_ULR: unknown environment variable, which is ignored; did you mean DOWNLINK_NATS_URL?")

	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	flags.String("http", "unset", "")
	flags.String("log-level", "unset", "")
	flags.Duration("shutdown-grace", time.Hour, "")
	flags.String("hub-connection-string-file", "", "")
	require.NoError(t, flags.Parse([]string{"--http=off", "--hub-connection-string-file", filepath.Join(dir, "hub")}))
	c, err = config.Load(file, config.LoadOptions{Flags: flags})
	require.NoError(t, err)
	require.Equal(t, "off", c.HTTP)
	require.Equal(t, "debug", c.Log.Level, "a flag that was not set does not count")
	require.Equal(t, time.Minute, c.ShutdownGrace)
	require.Equal(t, filepath.Join(dir, "hub"), c.Bridge.Hubs[0].ConnectionStringFile, "the flag replaces both variables")
	require.Equal(t, service, c.Bridge.Hubs[0].ConnectionString.Reveal())

	t.Setenv("DOWNLINK_NATS_URL", "nats://x:1, nats://y:2")
	_, err = config.Load(file, config.LoadOptions{})
	require.EqualError(t, err, "DOWNLINK_NATS_URL: a bridge and a relay run here; set bridge.nats.url and relay.nats.url in the file")
	c, err = config.Load(file, config.LoadOptions{Side: config.RelaySide})
	require.NoError(t, err)
	require.Equal(t, []string{"nats://x:1", "nats://y:2"}, c.Relay.NATS.URL)
	require.Equal(t, []string{"nats://127.0.0.1:4222"}, c.Bridge.NATS.URL)
	require.Empty(t, c.Bridge.Hubs[0].ConnectionString, "the bridge's secret is none of the relay's business")

	for name, message := range map[string]string{
		"DOWNLINK_HTTP":                       `DOWNLINK_HTTP: http: "wrong" is not host:port`,
		"DOWNLINK_LOG_LEVEL":                  `DOWNLINK_LOG_LEVEL: log.level: "wrong" is not debug, info, warn or error`,
		"DOWNLINK_SHUTDOWN_GRACE":             `DOWNLINK_SHUTDOWN_GRACE: shutdown_grace: "wrong" is not a duration; write a number with its unit, such as 500ms, 10s, 1h30m or 7d`,
		"DOWNLINK_HUB_CONNECTION_STRING":      `DOWNLINK_HUB_CONNECTION_STRING: bridge.hubs[0].connection_string: part 1 has no "="; write Name=value;Name=value`,
		"DOWNLINK_HUB_CONNECTION_STRING_FILE": "DOWNLINK_HUB_CONNECTION_STRING_FILE: bridge.hubs[0].connection_string_file: set as well as DOWNLINK_HUB_CONNECTION_STRING; unset one",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "wrong")
			_, err := config.Load(file, config.LoadOptions{Side: config.BridgeSide})
			require.EqualError(t, err, message)
		})
	}

	c, err = config.LoadBytes(file, []byte(strings.NewReplacer("[{connection_string_file: secrets/hub}]", "[{embedded: true}]",
		"[{connection_string_file: secrets/device}]", "[{embedded: x}]").Replace(both)), config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:9464", c.HTTP)
	require.Empty(t, c.Warnings)
}

// In a container the file need not say what the environment does.
func TestEnvironmentAlone(t *testing.T) {
	t.Setenv("DOWNLINK_HUB_CONNECTION_STRING", service)
	t.Setenv("DOWNLINK_DEVICE_CONNECTION_STRING", device)
	c, err := config.LoadBytes("c.yaml", []byte("version: 1\nbridge: {routes: [{subject: x, source: core, device: y}]}\nrelay:\n"), config.LoadOptions{})
	require.NoError(t, err)
	require.Equal(t, "main", c.Bridge.Hubs[0].Name)
	require.Equal(t, device, c.Relay.Devices[0].ConnectionString.Reveal())

	// A real connection string takes the embedded hub out of the path.
	c, err = config.LoadBytes("c.yaml", []byte("version: 1\nbridge: {hubs: [{embedded: true}], routes: [{subject: x, source: core, device: y}]}\n"), config.LoadOptions{})
	require.NoError(t, err)
	require.False(t, c.Bridge.Hubs[0].Embedded)
	require.Len(t, c.Warnings, 1)
	require.EqualError(t, c.Warnings[0], "DOWNLINK_DEVICE_CONNECTION_STRING: set, but the file has no relay section")

	_, err = config.LoadBytes("c.yaml", []byte("version: 1\nrelay: {devices: [{embedded: a}, {embedded: b}]}\n"), config.LoadOptions{})
	require.ErrorContains(t, err, "DOWNLINK_DEVICE_CONNECTION_STRING: relay.devices[0].connection_string: the relay has 2 devices; set their connection strings in the file")
}

func TestSecretsNeverPrint(t *testing.T) {
	s := config.NewSecret("hush")
	type hidden struct{ s config.Secret }
	hub := config.Hub{Name: "main", ConnectionString: s}
	c := &config.Config{Bridge: &config.Bridge{Hubs: []config.Hub{hub}}}
	var out []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		for _, v := range []any{s, &s, hub, &hub, *c.Bridge, hidden{s}, []config.Secret{s}, map[string]config.Secret{"a": s}} {
			out = append(out, fmt.Sprintf(verb, v))
		}
	}
	j, err := json.Marshal(c)
	require.NoError(t, err)
	y, err := yaml.Marshal(c)
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "hub", hub)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "hub", hub)
	out = append(out, string(j), string(y), log.String())
	for _, text := range out {
		require.NotContains(t, text, "hush")
		require.NotContains(t, strings.ToLower(text), "68757368") // %x
	}
	require.Contains(t, string(j), "redacted")
	require.Contains(t, string(y), "<redacted>")
	require.Equal(t, "<redacted>", s.String())
	require.Equal(t, `"<redacted>"`, fmt.Sprintf("%q", s))
	require.Empty(t, config.Secret{}.String())
	require.Equal(t, "hush", s.Reveal())
}

func TestBothSidesOfOneFileHavePagesOfTheirOwn(t *testing.T) {
	text := []byte(`
version: 1
bridge:
  hubs: [{embedded: true}]
  routes: [{subject: "a.{x}", stream: S, device: "{x}"}]
relay:
  devices: [{embedded: d}]
`)
	for side, want := range map[config.Side]string{config.BridgeSide: "127.0.0.1:9464", config.RelaySide: "127.0.0.1:9465", "": "127.0.0.1:9464"} {
		c, err := config.LoadBytes("both.yaml", text, config.LoadOptions{NoEnvironment: true, Side: side})
		require.NoError(t, err)
		require.Equal(t, want, c.HTTP, "side %q", side)
	}
}

// TestDurationTooLarge: a duration that is well written is not told that it is none.
func TestDurationTooLarge(t *testing.T) {
	for text, want := range map[string]string{
		"9999999d": "is too large; a duration has at most 106751d", "106752d": "is too large", "99999999999999999999d": "is too large",
		"106751d24h": "is too large", "9999999h": "is too large", "1d9999999h": "is too large", "-9999999h": "is too large",
		"1d-1h": "is not a duration", "9999999days": "is not a duration", "9999999dd": "is not a duration", "": "is not a duration", "5": "is not a duration", "h": "is not a duration",
	} {
		_, err := config.ParseDuration(text)
		require.ErrorContains(t, err, want, text)
	}
	for _, text := range []string{"106751d", "1d12h", "1.5h", ".5s", "0", "-1h", "1h30m", "7d"} {
		_, err := config.ParseDuration(text)
		require.NoError(t, err, text)
	}
}
