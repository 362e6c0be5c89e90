package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

const toolsFile = `version: 1
http: %s
bridge:
  name: plant
  nats: {url: [%q]}
  hubs:
    - {connection_string_file: hub-service, amqp_address: %q, ca_file: %q}
  routes:
    - name: commands
      subject: "cmd.{device}.{verb}"
      stream: COMMANDS
      create: true
      device: "{device}"
      properties:
        - {name: verb, value: "{verb}"}
    - name: ask
      subject: "ask.{device}"
      source: core
      device: "{device}"
`

// plant is a bridge with its NATS and hub, as one file describes them.
type plant struct {
	nats  *bridgetest.NATS
	hub   *bridgetest.Hub
	js    jetstream.JetStream
	file  string
	pages string
}

func runPlant(t *testing.T, devices ...string) *plant {
	t.Helper()
	p := &plant{nats: bridgetest.RunNATS(t), hub: bridgetest.RunHub(t, devices...), pages: freeAddress(t)}
	p.js = p.nats.JetStream(t)
	dir := t.TempDir()
	p.file = filepath.Join(dir, "bridge.yaml")
	writeTo(t, filepath.Join(dir, "hub-service"), p.hub.ServiceConnectionString+"\n")
	writeTo(t, p.file, fmt.Sprintf(toolsFile, p.pages, p.nats.URL(), p.hub.AMQPAddr(), p.hub.CAFile()))
	return p
}

func (p *plant) start(t *testing.T) *started {
	t.Helper()
	s := start(t, "bridge", "-c", p.file)
	waitPage(t, p.pages, "/readyz", http.StatusOK, "ok")
	return s
}

// publish stores a command for a device.
func (p *plant) publish(t *testing.T, device, body string, header nats.Header) {
	t.Helper()
	_, err := p.js.PublishMsg(t.Context(), &nats.Msg{Subject: "cmd." + device + ".reboot", Data: []byte(body), Header: header})
	require.NoError(t, err)
}

// has waits until a stream holds so many messages.
func (p *plant) has(t *testing.T, stream string, n uint64) {
	t.Helper()
	require.Eventually(t, func() bool {
		s, err := p.js.Stream(t.Context(), stream)
		return err == nil && s.CachedInfo().State.Msgs == n
	}, patience, 10*time.Millisecond, "%s: want %d", stream, n)
}

// settled waits until the bridge has acked all that it has read: a fate is durable a moment before that.
func (p *plant) settled(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		c, err := p.js.Consumer(t.Context(), "COMMANDS", "downlink-plant")
		return err == nil && c.CachedInfo().NumPending == 0 && c.CachedInfo().NumAckPending == 0
	}, patience, 10*time.Millisecond)
}

// bodies waits for the bodies that the hub has queued for a device.
func (p *plant) bodies(t *testing.T, device string, n int) (all []string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(p.hub.Queue(device)) == n }, patience, 10*time.Millisecond)
	for _, m := range p.hub.Queue(device) {
		all = append(all, string(m.Message.Body))
	}
	return all
}

// TestDead: messages for a device that the hub does not know become dead letters,
// and come back in order once it does.
func TestDead(t *testing.T) {
	p := runPlant(t)
	none := cli(t, "dead", "ls", "-c", p.file)
	require.Equal(t, exitFailed, none.code)
	require.Equal(t, "downlink: stream PLANT_DEAD does not exist: no bridge named plant has kept dead letters on this NATS (is it the right server or context, and the right --name?)\n", none.stderr)
	p.start(t)
	require.Equal(t, "no dead letters\n", cli(t, "dead", "ls", "-c", p.file).stdout)
	for i := range 5 {
		p.publish(t, "pump7", fmt.Sprint(i), nats.Header{"X-User": {"ann"}, "Nats-Msg-Id": {fmt.Sprint(i)}})
	}
	p.publish(t, "valve", "\xff\xfe", nil)
	p.has(t, "PLANT_DEAD", 6)
	reply, err := p.nats.Conn(t).Request("ask.core1", []byte("?"), patience)
	require.NoError(t, err)
	require.Equal(t, "dead", reply.Header.Get("Downlink-Status"))
	p.has(t, "PLANT_DEAD", 7)

	list := cli(t, "dead", "ls", "-c", p.file)
	require.Equal(t, exitOK, list.code, list.stderr)
	require.Regexp(t, `^SEQ +TIME +REASON +ROUTE +DEVICE +SUBJECT +ATTEMPTS +TEXT\n`, list.stdout)
	require.Regexp(t, `\n\d +20\S+Z +device-not-found +commands +pump7 +cmd\.pump7\.reboot +1 +amqp:not-found: `, list.stdout)
	require.Equal(t, 8, strings.Count(list.stdout, "\n"))
	require.Contains(t, cli(t, "dead", "ls", "-c", p.file, "--limit", "2").stdout, "… and more")
	require.Len(t, objects(t, cli(t, "dead", "ls", "-c", p.file, "--device", "valve", "--json").stdout), 1)
	require.Len(t, objects(t, cli(t, "dead", "ls", "--name", "plant", "-s", p.nats.URL(), "--route", "ask", "--reason", "device-not-found", "--hub", "main", "--json").stdout), 1)
	require.Equal(t, "no dead letters like that\n", cli(t, "dead", "ls", "-c", p.file, "--until", "1h").stdout)
	require.Len(t, objects(t, cli(t, "dead", "ls", "-c", p.file, "--since", "1h", "--json").stdout), 7)

	first := objects(t, cli(t, "dead", "ls", "-c", p.file, "--device", "valve", "--json").stdout)[0]
	seq := fmt.Sprint(first["seq"])
	shown := cli(t, "dead", "show", seq, "-c", p.file)
	require.Contains(t, shown.stdout, `2 bytes: "\xff\xfe"`)
	require.Regexp(t, `remedy +register device valve at hub main, then downlink dead redrive `+seq, shown.stdout)
	require.Regexp(t, `from +COMMANDS:6\n`, shown.stdout)
	require.Equal(t, "\xff\xfe", cli(t, "dead", "show", seq, "--raw", "-c", p.file).stdout)
	whole := objects(t, cli(t, "dead", "show", fmt.Sprint(objects(t, cli(t, "dead", "ls", "-c", p.file, "--device", "pump7", "--json").stdout)[0]["seq"]), "--json", "-c", p.file).stdout)[0]
	require.Equal(t, map[string]any{"X-User": []any{"ann"}, "Nats-Msg-Id": []any{whole["message"].(map[string]any)["payload"]}}, whole["message"].(map[string]any)["headers"])

	// Nothing has changed: they die again, as new letters.
	dry := cli(t, "dead", "redrive", "--device", "pump7", "--dry-run", "-c", p.file)
	require.Equal(t, exitOK, dry.code, dry.stderr)
	require.Contains(t, dry.stdout, "5 would be brought back, 0 stay\n")
	p.has(t, "PLANT_DEAD", 7)

	require.NoError(t, p.hub.CreateDevice("pump7"))
	require.NoError(t, p.hub.CreateDevice("core1"))
	back := cli(t, "dead", "redrive", "--device", "pump7", "-c", p.file)
	require.Equal(t, exitOK, back.code, back.stderr)
	require.Contains(t, back.stdout, "cmd.pump7.reboot is back as COMMANDS:7\n")
	require.True(t, strings.HasSuffix(back.stdout, "5 brought back, 0 stay\n"), back.stdout)
	require.Equal(t, []string{"0", "1", "2", "3", "4"}, p.bodies(t, "pump7", 5))
	p.has(t, "PLANT_DEAD", 2)

	rest := objects(t, cli(t, "dead", "redrive", "--all", "--json", "-c", p.file).stdout)
	require.Len(t, rest, 2)
	require.Equal(t, "COMMANDS:12", rest[0]["to"], "the valve's")
	require.Equal(t, "accepted", rest[1]["status"], "the one of core NATS")
	require.Equal(t, []string{"?"}, p.bodies(t, "core1", 1))
	p.has(t, "PLANT_DEAD", 1) // the valve is still not known
	require.Equal(t, "COMMANDS", objects(t, cli(t, "dead", "ls", "-c", p.file, "--json").stdout)[0]["message"].(map[string]any)["stream"])

	gone := cli(t, "dead", "redrive", "1", "-c", p.file)
	require.Equal(t, exitFailed, gone.code)
	require.Equal(t, "1 stays: stream PLANT_DEAD has none of this number\n0 brought back, 1 stay\n", gone.stdout)
	require.Contains(t, cli(t, "dead", "show", "1", "-c", p.file).stderr, "no dead letter 1 in stream PLANT_DEAD: it was never there")
}

func TestDeadPurge(t *testing.T) {
	p := runPlant(t)
	bridge := p.start(t)
	for range 3 {
		p.publish(t, "pump7", "x", nil)
	}
	p.has(t, "PLANT_DEAD", 3)
	require.Equal(t, exitOK, bridge.stop(t))
	_, err := p.js.PublishMsg(t.Context(), &nats.Msg{Subject: "plant.dead.x.y", Header: nats.Header{"Downlink-Format": {"2"}, "Downlink-Reason": {"x"}}})
	require.NoError(t, err)
	require.Regexp(t, `\n4 .*stored by a newer version of downlink`, cli(t, "dead", "ls", "-c", p.file).stdout)
	got := cli(t, "dead", "show", "4", "-c", p.file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "stored by a newer version of downlink")

	got = cli(t, "dead", "purge", "--all", "-c", p.file)
	require.Equal(t, exitUsage, got.code)
	require.Equal(t, "3 would be purged, 1 stay: stored by a newer version of downlink, or by somebody else\n", got.stdout)
	require.Contains(t, got.stderr, "give --yes")
	p.has(t, "PLANT_DEAD", 4)
	require.Equal(t, "1 purged\n", cli(t, "dead", "purge", "2", "--yes", "-c", p.file).stdout)
	got = cli(t, "dead", "purge", "2", "--yes", "-c", p.file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "1 not there")
	require.JSONEq(t, `{"purged":1}`, cli(t, "dead", "purge", "--reason", "device-not-found", "--limit", "1", "--yes", "--json", "-c", p.file).stdout)
	require.Equal(t, "1 purged, 1 stay: stored by a newer version of downlink, or by somebody else\n", cli(t, "dead", "purge", "--all", "--yes", "-c", p.file).stdout)
	p.has(t, "PLANT_DEAD", 1)
}

// TestToolsWrongUse: one line that names the place and the remedy, and nothing was asked of any server.
func TestToolsWrongUse(t *testing.T) {
	port := write(t, "port.yaml", "version: 1\nbridge:\n  nats: {embedded: {listen: \"127.0.0.1:0\"}}\n  hubs: [{embedded: true}]\n  routes: [{subject: a, stream: S, device: d}]\n")
	for args, want := range map[string]string{
		"dead":                                "which one? try: downlink dead ls",
		"dead show":                           "missing SEQ",
		"dead show x":                         `"x" is not the number of a dead letter`,
		"dead show 0":                         `"0" is not the number of a dead letter`,
		"dead show 1 --raw --json":            "--raw and --json: give one",
		"dead ls --since yesterday":           `--since: "yesterday" is neither how long ago`,
		"dead ls --since -1h":                 `--since: "-1h"`,
		"dead ls --since 1h --until 2h":       "--until is before --since",
		"dead ls --limit -1":                  "--limit: -1",
		"dead ls --name a.b":                  `--name: "a.b" is no bridge's name`,
		"dead ls -c /does/not/exist":          "/does/not/exist: cannot read",
		"dead ls -c " + port:                  "give --server",
		"dead redrive":                        "which ones?",
		"dead redrive --all --device d":       "give filters or --all, not both",
		"dead redrive 1 --device d":           "give numbers or filters, not both",
		"dead redrive --all --timeout 0s":     "--timeout: 0s",
		"dead purge":                          "which ones?",
		"dead ls --context x --server nats:x": "x",
	} {
		got := cli(t, strings.Fields(args)...)
		require.Equal(t, exitUsage, got.code, "%s: %s", args, got.stderr)
		require.Contains(t, got.stderr, want, args)
		require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
		require.Empty(t, got.stdout, args)
	}
}

func TestToolsWithoutServer(t *testing.T) {
	got := cli(t, "dead", "ls", "-s", "nats://127.0.0.1:1", "--connect-timeout", "100ms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "127.0.0.1:1")
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)

	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.INFO.>"}}}}}
	})
	got = cli(t, "dead", "ls", "-s", n.URL(), "--user", "u", "--password-file", write(t, "password", "p\n"))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, `missing NATS permission: publish to "$JS.API.STREAM.INFO.DOWNLINK_DEAD"`)
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
}

func TestMoment(t *testing.T) {
	for text, want := range map[string]time.Time{
		"": {}, "90m": fixedTime.Add(-90 * time.Minute), "7d": fixedTime.AddDate(0, 0, -7), "2026-01-02": time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
		"2026-01-02T03:04:05+01:00": time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC), "2026-01-02T03:04:05": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		got, err := moment("--since", text, fixedTime)
		require.NoError(t, err, text)
		require.True(t, want.Equal(got), "%s: %s", text, got)
	}
}
