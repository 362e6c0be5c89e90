package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/virtual"
)

// Every mistake of a file is on a line of its own, as Load says it, and for programs in pieces.
func TestCheckFile(t *testing.T) {
	const bad = "../../bridge/config/testdata/bad/"
	want, err := os.ReadFile(bad + "many.txt")
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(want)), "\n")
	require.Greater(t, len(lines), 3)
	got := cli(t, "check", bad+"many.yaml", "--no-secrets")
	require.Equal(t, exitUsage, got.code)
	require.Equal(t, fmt.Sprintf("downlink: %smany.yaml: %d mistakes\n", bad, len(lines)), got.stderr)
	for i, line := range strings.Split(strings.TrimSpace(got.stdout), "\n") {
		require.Contains(t, line, bad+"many.yaml:")
		require.Contains(t, line, lines[i][strings.Index(lines[i], ":"):], "line %d", i)
	}

	got = cli(t, "check", bad+"many.yaml", "--no-secrets", "--json")
	require.Equal(t, exitUsage, got.code)
	var j checked
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &j))
	require.False(t, j.OK)
	require.Len(t, j.Problems, len(lines))
	for _, p := range j.Problems {
		require.Equal(t, "error", p.Severity)
		require.Equal(t, bad+"many.yaml", p.File)
		require.Positive(t, p.Line)
		require.NotEmpty(t, p.Text)
	}
}

func TestCheckWarnsAndIsStrict(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`version: 1
bridge:
  hubs: [{name: main, embedded: true}]
  routes:
    - {name: all, subject: "cmd.>", source: core, device: d}
    - {name: never, subject: "cmd.a", source: core, device: e}
`), 0o600))
	got := cli(t, "check", file)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Regexp(t, `^warning: .*x\.yaml:6: bridge\.routes\[1\].*\n.*x\.yaml: ok, a bridge with 2 routes, 1 warning\n$`, got.stdout)
	got = cli(t, "check", file, "--strict")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "1 warning, and --strict takes none")
	var j checked
	require.NoError(t, json.Unmarshal([]byte(cli(t, "check", file, "--json").stdout), &j))
	require.Equal(t, []problem{{Severity: "warning", File: file, Line: 6, Path: "bridge.routes[1].subject",
		Text: `"cmd.a": no message ever gets here: routes[0] (all) takes all of them; put this route before it, or set also: true there`}}, j.Problems)

	for want, args := range map[string][]string{
		"missing FILE":                     {"check"},
		"it has no relay section":          {"check", file, "--side", "relay"},
		`"both" is neither`:                {"check", file, "--side", "both"},
		"without secrets there is no --co": {"check", file, "--connect", "--no-secrets"},
		`unexpected argument`:              {"check", "--schema", file},
	} {
		got := cli(t, args...)
		require.Equal(t, exitUsage, got.code, args)
		require.Contains(t, got.stderr, want)
		require.Empty(t, got.stdout)
	}
	require.Equal(t, result{exitOK, string(config.Schema()), ""}, cli(t, "check", "--schema"))
}

// site is a configuration for a real hub's connection strings and a nats-server with logins.
type site struct {
	t    *testing.T
	hub  *bridgetest.Hub
	dir  string
	file string
	nats *bridgetest.NATS
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.hub = bridgetest.RunHubWith(t, emulator.Options{
		Devices:  []string{"d1", "good"},
		Virtual:  []virtual.Rule{{Pattern: "good", Behaviour: virtual.Behaviour{Kind: virtual.Complete}}},
		Feedback: feedback.Rules{Every: time.Millisecond, BatchSize: 1},
	})
	s.write("hub", s.hub.ServiceConnectionString)
	s.write("device", s.hub.DeviceConnectionString("d1"))
	s.write("password", "p")
	s.serve("permissions: {}")
	return s
}

func (s *site) write(name, text string) {
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
}

// serve runs a server whose users bridge and relay have these permissions, and writes the file that names it.
func (s *site) serve(permissions string) {
	s.t.Helper()
	s.write("nats.conf", "authorization: {users: [{user: admin, password: p}, {user: process, password: p\n"+permissions+"\n}]}\n")
	o, err := server.ProcessConfigFile(filepath.Join(s.dir, "nats.conf"))
	require.NoError(s.t, err)
	s.nats = bridgetest.RunNATS(s.t, func(to *server.Options) { to.Users = o.Users })
	s.file = filepath.Join(s.dir, "site.yaml")
	s.write("site.yaml", fmt.Sprintf(`version: 1
bridge:
  name: cloud
  nats: {url: [%[1]q], user: process, password_file: password}
  hubs: [{name: main, connection_string_file: hub, amqp_address: %[2]q, ca_file: %[3]q}]
  routes:
    - {name: r, subject: "cmd.{d}", stream: COMMANDS, device: "{d}", message: {ack: full}}
    - {name: c, subject: "ask.{d}", source: core, device: "{d}"}
relay:
  name: edge
  nats: {url: [%[1]q], user: process, password_file: password}
  devices: [{connection_string_file: device, mqtt_address: %[4]q, ca_file: %[3]q}]
  publish: {subject: "out.{device}", stream: EDGE, create: true}
`, s.nats.URL(), s.hub.AMQPAddr(), s.hub.CAFile(), s.hub.MQTTAddr()))
}

func (s *site) stream(name string, subjects ...string) {
	s.t.Helper()
	js := s.nats.JetStream(s.t, nats.UserInfo("admin", "p"))
	_, err := js.CreateStream(s.t.Context(), jetstream.StreamConfig{Name: name, Subjects: subjects})
	require.NoError(s.t, err)
}

func (s *site) permissions(side string) string {
	s.t.Helper()
	got := cli(s.t, "permissions", s.file, "--side", side)
	require.Equal(s.t, exitOK, got.code, got.stderr)
	return got.stdout
}

// A login with just what downlink permissions printed, pasted, passes; nothing is changed by it.
func TestCheckConnect(t *testing.T) {
	s := newSite(t)
	s.serve(s.permissions("bridge"))
	s.stream("COMMANDS", "cmd.>")
	// A device has a record of feedback for us, which stays.
	require.NoError(t, s.hub.Enqueue(c2d.Message{To: "/devices/good/messages/devicebound", MessageID: "m", Ack: "full"}))
	waiting := func() bool { f := s.hub.Feedback().Status(); return f.Batches == 1 && f.Locked == 0 }
	require.Eventually(t, waiting, patience, time.Millisecond)

	got := cli(t, "check", "--connect", s.file, "--side", "bridge")
	require.Equal(t, exitOK, got.code, got.stdout+got.stderr)
	for _, want := range []string{
		"ok       bridge: NATS: ", "ok       bridge: rights: stream COMMANDS: 6 of 6", "ok       bridge: stream COMMANDS: cmd.>\n",
		"ok       bridge: stream CLOUD_MAILBOX: not there yet; it is made when it is needed\n",
		"ok       bridge: core NATS ask.*: no stream stores it\n",
		"ok       bridge: hub main: TLS to ", `ok       bridge: hub main: authorize and attach to send: policy "service", primary`,
		"ok       bridge: hub main: attach to the feedback\n", "site.yaml: ok, a bridge with 2 routes\n",
	} {
		require.Contains(t, got.stdout, want)
	}
	require.NotContains(t, got.stdout, "failed")
	require.True(t, waiting(), "feedback was taken")
	require.Zero(t, s.hub.UnknownSends()+s.hub.Sends("d1"))
	js := s.nats.JetStream(t, nats.UserInfo("admin", "p"))
	names := js.StreamNames(t.Context())
	var all []string
	for name := range names.Name() {
		all = append(all, name)
	}
	require.Equal(t, []string{"COMMANDS"}, all, "something was made")
	commands, err := js.Stream(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Zero(t, commands.CachedInfo().State.Consumers)
}

// Each missing right, stream and credential is named, with what to do.
func TestCheckConnectFails(t *testing.T) {
	s := newSite(t)
	s.serve(strings.Replace(s.permissions("bridge"), `      "cloud.dead.>"`+"\n", "", 1))
	s.stream("OTHER", "ask.>")
	s.write("hub", strings.Replace(s.hub.ServiceConnectionString, "SharedAccessKey=", "SharedAccessKey=AAAA", 1))
	got := cli(t, "check", "--connect", s.file, "--side", "bridge")
	require.Equal(t, exitFailed, got.code, got.stdout)
	for _, want := range []string{
		"failed   bridge: right to publish cloud.dead.>: not allowed (dead letters); add it to the login's permissions",
		"failed   bridge: stream COMMANDS: does not exist; nats stream add COMMANDS --subjects 'cmd.*', or set create: true",
		"failed   bridge: core NATS ask.*: stream OTHER stores it",
		"failed   bridge: hub main: authorize and attach to send: ",
	} {
		require.Contains(t, got.stdout, want)
	}
	require.Contains(t, got.stderr, "4 checks failed")
	require.NotContains(t, got.stdout+got.stderr, "AAAA")

	var j checked
	got = cli(t, "check", "--connect", s.file, "--side", "bridge", "--json")
	require.Equal(t, exitFailed, got.code)
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &j))
	failed := 0
	for _, c := range j.Checks {
		if c.State == "failed" {
			failed++
			require.NotEmpty(t, c.Remedy, c.Name)
		}
	}
	require.Equal(t, 4, failed)
	require.False(t, j.OK)

	s.stream("COMMANDS", "other.>")
	require.Contains(t, cli(t, "check", "--connect", s.file, "--side", "bridge").stdout, "failed   bridge: stream COMMANDS: stores other.>, and nothing of cmd.*; ")
	s.write("password", "wrong")
	require.Contains(t, cli(t, "check", "--connect", s.file, "--side", "bridge").stdout, "authorization violation; check the credentials in bridge.nats")
	s.nats.Stop()
	require.Contains(t, cli(t, "check", "--connect", s.file, "--side", "bridge").stdout, "connection refused; check that the server runs")
}

// The device's own connection is left alone unless that is asked for.
func TestCheckConnectLeavesTheDeviceAlone(t *testing.T) {
	s := newSite(t)
	s.serve(s.permissions("relay"))
	listener := start(t, "listen", "d1", "-c", s.file)
	connected := func() string {
		for _, c := range s.hub.Connections() {
			if c.Device == "d1" {
				return c.Remote
			}
		}
		return ""
	}
	require.Eventually(t, func() bool { return connected() != "" }, patience, time.Millisecond, "%s", listener.errs)
	before := connected()
	got := cli(t, "check", "--connect", s.file, "--side", "relay")
	require.Equal(t, exitOK, got.code, got.stdout+got.stderr)
	require.Contains(t, got.stdout, "ok       relay: device d1: TLS to ")
	require.Contains(t, got.stdout, "skipped  relay: device d1: connect as the device: that would end the connection")
	require.Contains(t, got.stdout, "ok       relay: stream EDGE: not there yet")
	require.Equal(t, before, connected())

	got = cli(t, "check", "--connect-devices", s.file, "--side", "relay")
	require.Equal(t, exitOK, got.code, got.stdout+got.stderr)
	require.Contains(t, got.stdout, "ok       relay: device d1: connect as the device\n")
	require.NotEqual(t, before, connected())
	require.NoError(t, s.hub.DisableDevice("d1"))
	got = cli(t, "check", "--connect-devices", s.file, "--side", "relay")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "failed   relay: device d1: connect as the device: ")
}

func TestPermissionsOfBothSides(t *testing.T) {
	got := cli(t, "permissions", "../../configs/init.yaml")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Equal(t, 2, strings.Count(got.stdout, "permissions: {"))
	require.Contains(t, got.stdout, "ServiceConnect")
	require.Contains(t, got.stdout, "the device's own key")

	got = cli(t, "permissions", "../../configs/init.yaml", "--json")
	require.Equal(t, exitOK, got.code)
	var sides []struct {
		Side, Name  string
		NATS        []struct{ Op, Subject, For string }
		Permissions map[string]map[string][]string
		Hubs        []struct{ Credential string }
	}
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &sides))
	require.Len(t, sides, 2)
	require.Equal(t, "bridge", sides[0].Side)
	require.Equal(t, "relay", sides[1].Side)
	n := 0
	for _, op := range sides[0].Permissions {
		n += len(op["allow"])
	}
	require.Len(t, sides[0].NATS, n)

	// With Entra ID: the actions, and feedback only if it is read.
	file := filepath.Join(t.TempDir(), "x.yaml")
	for feedback, want := range map[string]bool{"never": false, "auto": true} {
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `version: 1
bridge:
  hubs: [{name: main, host: h.azure-devices.net, entra: {}, feedback: %s}]
  routes: [{name: a, subject: "a.{d}", source: core, device: "{d}"}]
`, feedback), 0o600))
		got := cli(t, "permissions", file)
		require.Equal(t, exitOK, got.code, got.stderr)
		require.Contains(t, got.stdout, "Microsoft.Devices/IotHubs/cloudToDeviceMessages/send/action")
		require.Equal(t, want, strings.Contains(got.stdout, "cloudToDeviceMessages/feedback/action"))
		require.Contains(t, got.stdout, `"a.* downlink"`)
		require.NotContains(t, got.stdout, "MAILBOX", "core NATS is never parked")
	}
	require.Equal(t, exitUsage, cli(t, "permissions").code)
	require.Equal(t, exitUsage, cli(t, "permissions", filepath.Join(t.TempDir(), "absent")).code)
}
