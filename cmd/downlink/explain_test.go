package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/dryrun"
)

const example = "../../configs/examples/"

func TestExplainText(t *testing.T) {
	got := cli(t, "explain", example+"several-targets.yaml", "cmd.berlin.pump7.start", "-H", "X-User=ann", "-H", "Tag=b", "-H", "Tag=a\x1b\t.", "--data", "now")
	require.Equal(t, exitOK, got.code, got.stderr)
	text := regexp.MustCompile(`COMMANDS:1:[0-9a-z]{12}`).ReplaceAllString(got.stdout, "COMMANDS:1:000000000000")
	require.Equal(t, `cmd.berlin.pump7.start from stream COMMANDS: 3 bytes, 2 headers
  Tag     b
  Tag     a\x1b\t.
  X-User  ann

ROUTES
  audit     cmd.{site}.>                takes it
  gateway   cmd.{site}.{device}.{verb}  no: when is not true (when verb == "reboot" is false)
  commands  cmd.{site}.{device}.{verb}  takes it

ROUTE audit
  capture              {site}     "berlin"
  device               {site}     "berlin"
  properties[0].value  {subject}  "cmd.berlin.pump7.start"

ROUTE commands
  capture  {site}    "berlin"
  capture  {device}  "pump7"
  capture  {verb}    "start"
  device   {site}    "berlin"
  device   {device}  "pump7"

OUTCOME of route audit for device berlin-recorder: sent to hub main
  message ID  COMMANDS:1:000000000000:audit
  property    subject = "cmd.berlin.pump7.start"
  body        3 bytes, as published
  size        106 bytes of 65536, 65430 left
  MQTT topic  180 bytes of 65535, 65355 left

OUTCOME of route commands for device berlin-pump7: sent to hub main
  message ID  COMMANDS:1:000000000000
  body        3 bytes, as published
  size        68 bytes of 65536, 65468 left
  MQTT topic  135 bytes of 65535, 65400 left
`, text)
}

// TestExplainHeaders: a header's value is the one that the bridge receives, without the blanks before it.
func TestExplainHeaders(t *testing.T) {
	got := cli(t, "explain", example+"several-targets.yaml", "cmd.berlin.pump7.start", "-H", "X= \ta ", "--json")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, `"headers":{"X":["a "]}`)
}

// TestExplainJSON: the names in --json are what docs/mapping.md says.
func TestExplainJSON(t *testing.T) {
	dir := t.TempDir()
	writeTo(t, filepath.Join(dir, "body.json"), `{"a":1}`)
	got := cli(t, "explain", example+"freshness.yaml", "cmd.pump7.reboot", "--data", "@"+filepath.Join(dir, "body.json"), "--json", "-H", "A=b")
	require.Equal(t, exitOK, got.code, got.stderr)
	j := objects(t, got.stdout)[0]
	require.Equal(t, example+"freshness.yaml", j["file"])
	message := j["message"].(map[string]any)
	delete(message, "time")
	require.Equal(t, map[string]any{"subject": "cmd.pump7.reboot", "source": "COMMANDS", "seq": 1.0, "stored": false, "headers": map[string]any{"A": []any{"b"}}, "payload_bytes": 7.0}, message)
	routes := j["routes"].([]any)
	require.Equal(t, true, routes[0].(map[string]any)["matched"])
	require.Equal(t, "not tried: commands took the message", routes[1].(map[string]any)["why"])
	outcome := j["outcomes"].([]any)[0].(map[string]any)
	sent := outcome["message"].(map[string]any)
	delete(outcome, "message")
	require.Equal(t, map[string]any{"route": "commands", "device": "pump7", "fate": "sent"}, outcome)
	for _, name := range []string{"message_id", "expires", "send_by"} {
		require.NotEmpty(t, sent[name], name)
		delete(sent, name)
	}
	require.Equal(t, map[string]any{"hub": "main", "properties": []any{}, "body_bytes": 7.0, "order": "device", "receipts": false, "size": 73.0, "bytes_left": 65463.0, "topic_size": 162.0, "topic_bytes_left": 65373.0}, sent)

	j = objects(t, cli(t, "explain", example+"tenant-isolation.yaml", "tenant.acme.reboot", "-H", "Device=globex-1", "--json").stdout)[0]
	require.Equal(t, []any{map[string]any{"route": "acme", "device": "globex-1", "fate": "dead", "reason": "not-allowed", "error": `device: "globex-1" is not among the devices that the route allows`}}, j["outcomes"])
}

func TestExplainFates(t *testing.T) {
	for args, want := range map[string]string{
		"default-route.yaml other":                                               "\nOUTCOME: dead letter, reason no-route\n  no route takes it",
		"default-route.yaml cmd.test.x":                                          "\nOUTCOME of route tests: dropped, reason test traffic\n",
		"default-route.yaml cmd.a.b.c":                                           "\nOUTCOME of route the-rest for device unclaimed: sent",
		"alias-table.yaml cmd.nobody.x":                                          "\nOUTCOME of route commands: dead letter, reason absent\n  device: {lookup(\"aliases\", alias)} is absent",
		"alias-table.yaml cmd.fan.x":                                             "  aliases  file " + example + "tables/aliases.csv  2 keys\n",
		"group-broadcast.yaml broadcast.retired.x":                               "\nOUTCOME of route broadcast: dropped, reason no-devices\n",
		"group-broadcast.yaml broadcast.pumps.x":                                 "  devices              {group(name)}  [\"berlin-pump7\" \"berlin-pump8\" \"paris-pump1\"]\n",
		"request-reply.yaml cmd.d.x":                                             "cmd.d.x from core NATS: 0 bytes",
		"request-reply.yaml cmd.e.x":                                             "note: from core NATS: a message ID that no expression gives is another random one each time\n",
		"request-reply.yaml cmd.d.x --source COMMANDS":                           "  requests  cmd.{device}.{verb}  no: takes core NATS, not stream COMMANDS\n",
		"unordered.yaml price.a.b":                                               "  order       none: others may overtake it\n",
		"priority.yaml alarm.a.b":                                                "  priority    10\n",
		"json-routing.yaml orders --data {":                                      "(when json?.kind == \"setpoint\" && json?.target != nil is false)\n",
		"json-routing.yaml orders --data {\"kind\":\"setpoint\",\"target\":1}":   "takes it (when ",
		"receipts.yaml chat.d -H Downlink-Reply-To=_INBOX.x":                     "  answer      to _INBOX.x once accepted\n",
		"request-reply.yaml cmd.d.x --reply _INBOX.1 -H Downlink-Wait=completed": "  answer      to _INBOX.1 once completed\n",
		"header-copies.yaml cmd.d -H X-Empty=":                                   "  message.correlation_id  {header[\"Correlation-Id\"]}      absent\n",
		"two-hubs.yaml _INBOX.x":                                                 "note: subjects under $… and _INBOX, and the bridge's own, never match\n",
	} {
		fields := strings.Fields(args)
		fields[0] = example + fields[0]
		got := cli(t, append([]string{"explain"}, fields...)...)
		require.Equal(t, exitOK, got.code, "%s: %s", args, got.stderr)
		require.Contains(t, got.stdout, want, args)
	}
}

func TestExplainMany(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b.yaml")
	var b strings.Builder
	b.WriteString("version: 1\nbridge:\n  hubs: [{connection_string_file: x}]\n  lookups: [{name: groups, bucket: g}]\n  routes:\n")
	for i := range 50 {
		fmt.Fprintf(&b, "    - {name: r%d, subject: \"a.%d.{x}\", stream: S, devices: \"{group(x)}\"}\n", i, i)
	}
	b.WriteString("    - {name: core, subject: \"a.7.*\", source: core, device: d}\n")
	writeTo(t, file, b.String())
	var ids []string
	for i := range 12 {
		ids = append(ids, fmt.Sprintf(`"d%d"`, i))
	}
	groups := filepath.Join(filepath.Dir(file), "g.json")
	writeTo(t, groups, `{"all": [`+strings.Join(ids, ",")+`]}`)
	args := []string{"explain", file, "a.7.all", "--lookup", "groups=" + groups}
	got := cli(t, args...)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "ROUTES\n  r7  a.7.{x}  takes it\n  … and 50 routes more that do not take it (--all)\n")
	require.Contains(t, got.stdout, "for device d9: sent")
	require.Contains(t, got.stdout, "\n… and 2 outcomes more (--all)\n")
	require.Contains(t, got.stdout, "note: taken to come from stream S; a route takes this subject from core NATS, too: --source core\n")
	got = cli(t, append(args, "--all")...)
	require.Contains(t, got.stdout, "  r49   a.49.{x}  not tried: r7 took the message\n")
	require.Contains(t, got.stdout, "for device d11: sent")
}

func TestExplainExpired(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	before, after := now.Add(-time.Hour), now.Add(time.Hour)
	r := &explained{}
	r.expired([]dryrun.Outcome{{Fate: dryrun.FateDead}, {Device: "a", Message: &dryrun.Message{Expires: &after}}}, now)
	require.Empty(t, r.Notes)
	r.expired([]dryrun.Outcome{
		{Device: "a", Message: &dryrun.Message{Expires: &after, SendBy: &before}}, {Device: "b", Message: &dryrun.Message{Expires: &before, SendBy: &before}}, {Device: "c", Message: &dryrun.Message{}},
	}, now)
	require.Equal(t, []string{"for a and 1 device more: sent now it would be a dead letter expired, since 2026-01-01T23:00:00.000Z is over"}, r.Notes)
}

// TestExplainNATS: a stored message, and buckets as the bridge reads them.
func TestExplainNATS(t *testing.T) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "COMMANDS", "cmd.>")
	js := n.JetStream(t)
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	writeTo(t, file, fmt.Sprintf(`version: 1
bridge:
  nats: {url: [%q]}
  hubs: [{connection_string_file: none}]
  lookups: [{name: devices, bucket: devices}]
  routes:
    - {name: a, subject: "cmd.{device}", stream: COMMANDS, device: '{lookup("devices", device)?.id}', message: {ttl: 1ms}, properties: [{headers: "X-*"}]}
`, n.URL()))
	_, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "cmd.p", Data: []byte("now"), Header: nats.Header{"X-A": {"1", "2"}}})
	require.NoError(t, err)

	got := cliWithin(t, "--connect-timeout", time.Second, "bucket devices does not exist", "explain", file, "--stream", "COMMANDS", "--seq", "1")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "note: lookup devices was not read, so every key of it is absent here: bucket devices does not exist: `nats kv add devices`; give its values with --lookup devices=FILE\n")
	require.Contains(t, got.stdout, "OUTCOME of route a: dead letter, reason absent\n")

	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "devices"})
	require.NoError(t, err)
	_, err = kv.Put(t.Context(), "p", []byte(`{"id": "pump7"}`))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		m, err := js.Stream(t.Context(), "COMMANDS")
		return err == nil && time.Since(m.CachedInfo().State.LastTime) > time.Millisecond
	}, patience, time.Millisecond)
	got = cli(t, "explain", file, "--stream", "COMMANDS", "--seq", "1")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Regexp(t, `^cmd\.p from COMMANDS:1, stored 20\S+Z: 3 bytes, 1 header\n  X-A  1\n  X-A  2\n\nLOOKUPS\n  devices  bucket devices  1 key\n`, got.stdout)
	require.Contains(t, got.stdout, "OUTCOME of route a for device pump7: sent to hub main\n")
	require.Contains(t, got.stdout, `property    X-A = "1, 2"`)
	require.Contains(t, got.stdout, "note: for pump7: sent now it would be a dead letter expired, since ")
	j := objects(t, cli(t, "explain", file, "--stream", "COMMANDS", "--seq", "1", "--json").stdout)[0]
	require.Equal(t, true, j["message"].(map[string]any)["stored"])
	require.Equal(t, []any{map[string]any{"name": "devices", "from": "bucket devices", "keys": 1.0}}, j["lookups"])

	for args, want := range map[string]string{
		"--stream COMMANDS --seq 2": "COMMANDS:2 is not in its stream (any more)",
		"--stream OTHER --seq 1":    "there is no stream OTHER on this NATS",
	} {
		got = cli(t, append([]string{"explain", file}, strings.Fields(args)...)...)
		require.Equal(t, result{exitFailed, "", "downlink: " + want + "\n"}, got)
	}
	n.Stop()
	got = cli(t, "explain", file, "cmd.p", "--connect-timeout", "100ms")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "devices  bucket devices  NOT READ: NATS: not ready within 100ms: ")
	got = cli(t, "explain", file, "--stream", "COMMANDS", "--seq", "1", "--connect-timeout", "100ms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "downlink: NATS: not ready within 100ms: ")
}

func TestExplainUsage(t *testing.T) {
	file := example + "alias-table.yaml"
	for args, want := range map[string]string{
		"":                                    "explain: missing FILE",
		file:                                  "explain: which message? give its SUBJECT, or --stream and --seq of a stored one",
		file + " a b":                         `explain: unexpected argument "b"`,
		file + " a --seq 1":                   "explain: SUBJECT and --stream exclude each other; a stored message has its subject",
		file + " --stream S":                  "explain: --stream and --seq go together; sequence numbers begin at 1",
		file + " --stream S --seq 1 -H a=b":   "--header: a stored message has its own; leave it out",
		file + " a.*":                         `subject "a.*": cannot publish to a wildcard`,
		file + " a -H x":                      `--header "x": write NAME=VALUE`,
		file + " a --data @none":              "--data: open none: no such file or directory",
		file + " a --source=":                 "--source is empty",
		file + " a --lookup x":                `--lookup "x": write NAME=FILE`,
		file + " a --lookup x=y":              `--lookup "x": the configuration has no lookup of this name`,
		file + " a --lookup aliases=none.csv": "lookup aliases: open none.csv: no such file or directory",
		file + " cmd.a.b --reply x":           "--reply: a message from stream COMMANDS has none",
		"none.yaml a":                         "none.yaml: cannot read the configuration: no such file or directory",
		example + "relay-subjects.yaml a":     example + "relay-subjects.yaml: it has no bridge section",
	} {
		got := cli(t, append([]string{"explain"}, strings.Fields(args)...)...)
		require.Equal(t, exitUsage, got.code, args)
		require.Contains(t, got.stderr, "downlink: "+want, args)
		require.Empty(t, got.stdout, args)
	}
}
