package dryrun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const edgeSection = `relay:
  name: edge-1
  nats: {url: [nats://127.0.0.1:4222]}
  devices: [{connection_string_file: z}]
`

// folder is a folder with plan.yaml (both sides), bridge.yaml, relay.yaml and the cases.
func folder(t testing.TB, cases string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"plan.yaml": planFile + edgeSection, "bridge.yaml": planFile, "relay.yaml": "version: 1\n" + edgeSection, "wrong.yaml": "version: 2\nbridge: {}\n",
		"body.bin": "\xff\x00", "cases.yaml": cases,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

func read(t testing.TB, cases string) *File {
	t.Helper()
	f, err := Read(filepath.Join(folder(t, cases), "cases.yaml"))
	require.NoError(t, err)
	return f
}

const head = "config: plan.yaml\nlookups: {aliases: {p: pump7, 007: 1e3}}\ncases:\n"

func diffs(t testing.TB, oneCase string) []Diff {
	t.Helper()
	list := read(t, head+oneCase).Run()
	require.Len(t, list, 1)
	return list[0].Diffs
}

// TestFields: each field is compared, and a difference names it.
func TestFields(t *testing.T) {
	const sent = "- subject: cmd.p.stop\n  headers: {C: [a, b]}\n  payload: now\n  sequence: 7\n  time: 2026-03-01T12:00:00.0004Z\n  expect: {%}\n"
	for field, c := range map[string]struct{ right, wrong, want, got string }{
		"route":          {"one", "two", `"two"`, `"one"`},
		"device":         {"pump7", "p", `"p"`, `"pump7"`},
		"hub":            {"main", "other", `"other"`, `"main"`},
		"message_id":     {`"S:7:dgrfgbt3vjb4"`, "x", `"x"`, `"S:7:dgrfgbt3vjb4"`},
		"correlation_id": {"'a, b'", "''", `""`, `"a, b"`},
		"user_id":        {"''", "ann", `"ann"`, `""`},
		"content_type":   {"", "text/plain", `"text/plain"`, `""`},
		"ack":            {"full", "none", `"none"`, `"full"`},
		"ttl":            {"60m", "61m", `"61m"`, `"1h"`},
		"expires":        {"2026-03-01T13:00:00Z", "2026-03-01T12:00:00Z", `"2026-03-01T12:00:00Z"`, `"2026-03-01T13:00:00Z"`},
		"max_age":        {"600s", "''", `""`, `"10m"`},
		"priority":       {"0", "1", `"1"`, `"0"`},
		"order":          {"device", "none", `"none"`, `"device"`},
		"coalesce":       {"stop", "one:stop", `"one:stop"`, `"stop"`},
		"receipts":       {"true", "false", `"false"`, `"true"`},
		"reply_to":       {"''", "x", `"x"`, `""`},
		"wait":           {"''", "accepted", `"accepted"`, `""`},
		"body":           {"now", "later", `"later"`, `"now"`},
	} {
		require.Empty(t, diffs(t, strings.ReplaceAll(sent, "%", field+": "+c.right)), field)
		require.Equal(t, []Diff{{field, c.want, c.got}}, diffs(t, strings.ReplaceAll(sent, "%", field+": "+c.wrong)), field)
	}
	require.Equal(t, []Diff{{"properties.other", `""`, "(absent)"}, {"properties.verb", "(absent)", `"stop"`}}, diffs(t, strings.ReplaceAll(sent, "%", "properties: {other: ''}")))
	require.Empty(t, diffs(t, strings.ReplaceAll(sent, "%", "edge: {subject: edge.pump7.stop, body: now}")))
	require.Equal(t, []Diff{{"edge.subject", `"x"`, `"edge.pump7.stop"`}}, diffs(t, strings.ReplaceAll(sent, "%", "edge: {subject: x}")))
	require.Equal(t, []Diff{{"edge.fate", "dead (absent)", "sent"}}, diffs(t, strings.ReplaceAll(sent, "%", "edge: {dead: absent}")))
}

func TestFates(t *testing.T) {
	require.Empty(t, diffs(t, "- {subject: test.x, expect: {route: tests, drop: tests}}"))
	require.Equal(t, []Diff{{"drop", `"other"`, `"tests"`}}, diffs(t, "- {subject: test.x, expect: {drop: other}}"))
	require.Equal(t, []Diff{{"fate", "sent", "dropped (tests)"}}, diffs(t, "- {subject: test.x, expect: {device: x}}"))
	require.Equal(t, []Diff{{"fate", "dropped (tests)", "sent to pump7"}}, diffs(t, "- {subject: cmd.p.x, expect: {drop: tests}}"))
	require.Empty(t, diffs(t, "- {subject: 'cmd.007.x', expect: {device: 1e3}}"), "texts stay as they are written")
	require.Empty(t, diffs(t, "- {subject: nobody, expect: {dead: no-route, error: ''}}"))
	require.Empty(t, diffs(t, "- {subject: cmd.grün.x, expect: {route: one, dead: bad-device, error: 'device: '}}"))
	wrong := diffs(t, "- {subject: cmd.grün.x, expect: {dead: bad-device, error: subject}}")
	require.Len(t, wrong, 1)
	require.Equal(t, "error", wrong[0].Field)
	require.Equal(t, `a text with "subject"`, wrong[0].Want)
	require.Contains(t, wrong[0].Got, `"device: character 3 is not legal`)
	require.Equal(t, []Diff{{"outcomes", "1", "2: sent to recorder, sent to pump7"}}, diffs(t, "- {subject: cmd.p.all, expect: {device: pump7}}"))
	require.Equal(t, []Diff{{"expect[1].device", `"x"`, `"pump7"`}}, diffs(t, "- {subject: cmd.p.all, expect: [{device: recorder}, {device: x}]}"))
	require.Equal(t, []Diff{{"expect", "(absent)", "sent to d; --update writes it"}}, diffs(t, "- {subject: ask.d}"))
	require.Empty(t, diffs(t, "- {subject: ask.d, reply: _INBOX.x, expect: {route: ask, reply_to: _INBOX.x, message_id: '00000000000000000000000000000000'}}"))
	require.Empty(t, diffs(t, "- {subject: ask.d, stream: S, expect: {dead: no-route}}"))
	require.Empty(t, diffs(t, "- {subject: cmd.p.x, source: core, expect: {dead: no-route}}"))
	require.Empty(t, diffs(t, "- {subject: ask.d, json: {b: [1, null], a: x}, expect: {body: '{\"a\":\"x\",\"b\":[1,null]}'}}"))
	require.Empty(t, diffs(t, `- {subject: ask.d, payload_file: body.bin, expect: {device: d}}`))
}

// TestHeadersAsReceived: what nats.go leaves out of a header's value is no part of a case.
func TestHeadersAsReceived(t *testing.T) {
	require.Empty(t, diffs(t, `- {subject: cmd.p.stop, headers: {C: " \t a "}, expect: {correlation_id: "a "}}`))
}

// TestWhy: a route that was expected and did not come says why.
func TestWhy(t *testing.T) {
	for expect, want := range map[string]string{
		"{subject: cmd.p, expect: {route: one}}":                                         "route one does not take it: the subject has 2 tokens, the route's more",
		"{subject: cmd.p.all, expect: {route: ask}}":                                     "route ask does not take it: not tried: one took the message",
		"{subject: cmd.p.x, stream: T, expect: {route: one}}":                            "route one does not take it: takes stream S, not T",
		"{subject: cmd.p.x, expect: {route: two}}":                                       "the configuration has no route two",
		"{subject: cmd.p.x, expect: {route: one, device: x}}":                            "",
		"{subject: cmd.p.x, expect: {device: x}}":                                        "",
		"{subject: cmd.p.x, expect: {route: one}}":                                       "",
		"{subject: _INBOX.x, expect: {route: one}}":                                      "route one does not take it: subjects under $… and _INBOX, and the bridge's own, never match",
		"{subject: cmd.p.x, expect: [{route: all, device: a}, {route: one, device: d}]}": "route all does not take it: token 3 is \"x\", not \"all\"",
	} {
		require.Equal(t, want, read(t, head+"- "+expect).Run()[0].Why, expect)
	}
}

func TestEdge(t *testing.T) {
	require.Empty(t, diffs(t, `- {c2d: {device: d, message_id: m, properties: {a: null, b: "", c: [1, 2]}}, payload: x,
    expect: {subject: edge.d, body: x, headers: {Downlink-Device: d, Downlink-Message-Id: m, Downlink-Null: a, Downlink-Via: edge-1, b: "", c: ["1", "2"]}}}`))
	require.Equal(t, []Diff{{"headers.Downlink-Via", `"x"`, `"edge-1"`}}, diffs(t, `- {c2d: {device: d}, expect: {headers: {Downlink-Device: d, Downlink-Via: x}}}`))
}

func TestCaseNames(t *testing.T) {
	f := read(t, head+"- {subject: ask.d}\n- {name: n, subject: ask.d}\n- {c2d: {device: d}}\n")
	var names []string
	for _, c := range f.Cases {
		names = append(names, c.Name)
	}
	require.Equal(t, []string{"ask.d", "n", "d"}, names)
}

func TestUnreached(t *testing.T) {
	f := read(t, head+"- {subject: ask.d}\n- {subject: cmd.a.all}\n- {c2d: {device: d}}\n")
	require.Equal(t, []string{"tests"}, f.Unreached())
}

// TestMistakes: each wrong file gives its one line.
func TestMistakes(t *testing.T) {
	for cases, want := range map[string]string{
		"":                                                                          "1: the file is empty; it has config: FILE and cases:",
		"x":                                                                         "1: keys and values belong here: config, lookups, cases",
		"config: a.yaml\n---\nconfig: b.yaml":                                       "2: a second document begins here; a file of cases is one",
		"config: [":                                                                 "1: not understood: did not find expected node content; check the indentation, and quote texts with : # or braces",
		"config: &a x":                                                              "1: an anchor or alias; write the value out, or quote it if it is a text",
		"cases:\n- {subject: a}":                                                    "1: config: missing; name the configuration that the cases are for, relative to this file",
		"config: plan.yaml":                                                         "1: cases: missing; a case has subject: and expect:",
		"config: plan.yaml\ncases: {}":                                              `2: cases: a list belongs here; begin each case with "- name: …"`,
		"config: plan.yaml\ncase: []":                                               "2: case: unknown key; known here: config, lookups, cases",
		head + "- x":                                                                "4: cases[0]: keys and values belong here: " + strings.Join(caseKeys, ", "),
		head + "- {subject: a, subject: b}":                                         "4: cases[0].subject: duplicate key, first in line 4; remove one",
		head + "- {subjekt: a, subject: b}":                                         "4: cases[0].subjekt: unknown key; known here: " + strings.Join(caseKeys, ", "),
		head + "- {name: a}":                                                        "4: cases[0]: neither subject nor c2d; give the NATS subject of the message, or c2d: with what a device receives",
		head + "- {subject: a.*}":                                                   `4: cases[0].subject: "a.*" is no subject of a message: empty tokens, spaces and wildcards are not allowed`,
		head + "- {subject: [a]}":                                                   `4: cases[0].subject: a list where a text belongs; quote a text that begins with { or [`,
		head + "- {subject: a, headers: x}":                                         "4: cases[0].headers: names and values belong here, such as {X-User: ann}; {} for none",
		head + "- {subject: a, headers: {x: }}":                                     `4: cases[0].headers.x: has no value; write "" for an empty one, or leave the name out`,
		head + "- {subject: a, headers: {'x y': z}}":                                `4: cases[0].headers: "x y" is no name of a header: it has neither spaces nor a colon`,
		head + "- {subject: a, headers: {x: \"1\\n2\"}}":                            `4: cases[0].headers.x: a header's value is one line`,
		head + "- {subject: a, payload: x, json: 1}":                                "4: cases[0].json: set as well as payload; keep one of them",
		head + "- {subject: a, payload_file: none}":                                 "4: cases[0].payload_file: cannot read none: no such file or directory",
		head + "- {subject: a, json: {[1]: 2}}":                                     "4: cases[0].json: cannot be written as JSON",
		head + "- {subject: a, payload: !!binary '?'}":                              "4: cases[0].payload: !!binary where no base64 follows (illegal base64 data at input byte 0)",
		head + "- {subject: a, source: S}":                                          "4: cases[0].source: \"S\": the only source is core; a stream is named by stream",
		head + "- {subject: a, source: core, stream: S}":                            "4: cases[0].source: set as well as stream; keep one of the two",
		head + "- {subject: a, sequence: x}":                                        `4: cases[0].sequence: "x" is not a whole number`,
		head + "- {subject: a, time: today}":                                        `4: cases[0].time: "today" is not a time such as 2026-01-02T15:04:05Z`,
		head + "- {subject: a, expect: x}":                                          "4: cases[0].expect: keys and values belong here: " + strings.Join(outcomeKeys, ", "),
		head + "- {subject: a, expect: []}":                                         "4: cases[0].expect: one outcome belongs here: its keys and values",
		head + "- {subject: a, expect: [{drop: x}, y]}":                             "4: cases[0].expect[1]: keys and values belong here: " + strings.Join(outcomeKeys, ", "),
		head + "- {subject: a, expect: {drop: x, dead: y}}":                         "4: cases[0].expect.dead: set as well as drop; a message has one fate",
		head + "- {subject: a, expect: {drop: x, hub: y}}":                          "4: cases[0].expect.hub: a message that is dropped or dead has none; remove it",
		head + "- {subject: a, expect: {error: x}}":                                 "4: cases[0].expect.error: goes with dead: and its reason",
		head + "- {subject: a, expect: {dead: }}":                                   "4: cases[0].expect.dead: the reason is missing",
		head + "- {subject: a, expect: {ttl: 1}}":                                   `4: cases[0].expect.ttl: "1" is not a duration; write a number with its unit, such as 500ms, 10s, 1h30m or 7d`,
		head + "- {subject: a, expect: {expires: 1h}}":                              `4: cases[0].expect.expires: "1h" is not a time such as 2026-01-02T15:04:05Z`,
		head + "- {subject: a, expect: {priority: x}}":                              `4: cases[0].expect.priority: "x" is not a whole number`,
		head + "- {subject: a, expect: {ack: yes}}":                                 `4: cases[0].expect.ack: "yes" is none of none, positive, negative, full`,
		head + "- {subject: a, expect: {properties: {x: }}}":                        `4: cases[0].expect.properties.x: has no value; write "" for an empty one, or leave the name out`,
		head + "- {c2d: {}}":                                                        "4: cases[0].c2d.device: missing; a C2D message is for a device",
		head + "- {c2d: {device: d}, stream: S}":                                    "4: cases[0].stream: has no use beside c2d, which is what a device receives; make it a case of its own",
		head + "- {c2d: {device: d}, expect: {device: d}}":                          "4: cases[0].expect.device: unknown key; known here: subject, dead, error, headers, body",
		head + "- {c2d: {device: d}, expect: [{subject: x}]}":                       "4: cases[0].expect: one outcome belongs here: its keys and values",
		"config: plan.yaml\ncases:\n- {subject: a}":                                 "1: lookups.aliases: missing; aliases is the bucket aliases, which cases do not read: give the values that they need",
		"config: plan.yaml\nlookups: {x: {}}\ncases:\n- {subject: a}":               "2: lookups.x: unknown key; known here: aliases",
		"config: plan.yaml\nlookups: {aliases: x}\ncases:\n- {subject: a}":          "2: lookups.aliases: keys and values belong here, such as pump: berlin-7",
		"config: relay.yaml\nlookups: {aliases: {}}\ncases:\n- {subject: a}":        "2: lookups: the configuration has no lookups",
		"config: relay.yaml\ncases:\n- {subject: a}":                                "3: cases[0].subject: the configuration has no bridge section, which maps a subject",
		"config: bridge.yaml\nlookups: {aliases: {}}\ncases:\n- {c2d: {device: d}}": "4: cases[0].c2d: the configuration has no relay section, which maps what a device receives",
		"config: bridge.yaml\nlookups: {aliases: {}}\ncases:\n- {subject: ask.d, expect: {edge: {body: x}}}": "4: cases[0].expect.edge: the configuration has no relay section, which maps what a device receives",
	} {
		file := filepath.Join(folder(t, cases), "cases.yaml")
		_, err := Read(file)
		require.Error(t, err, cases)
		line, _, _ := strings.Cut(err.Error(), "\n")
		require.Contains(t, line, file+":"+want, cases)
	}
	dir := folder(t, "config: wrong.yaml\ncases:\n- {subject: a}\n")
	_, err := Read(filepath.Join(dir, "cases.yaml"))
	require.ErrorContains(t, err, filepath.Join(dir, "wrong.yaml")+":1: version: ")
	_, err = Read(filepath.Join(dir, "none.yaml"))
	require.EqualError(t, err, filepath.Join(dir, "none.yaml")+": cannot read the cases: no such file or directory")
}

func TestAllMistakesAtOnce(t *testing.T) {
	file := filepath.Join(folder(t, head+"- {subject: a b}\n- {name: x}\n"), "cases.yaml")
	_, err := Read(file)
	require.Len(t, strings.Split(err.Error(), "\n"), 2)
}
