package dryrun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUpdate: what is right, comments and everything outside an expectation stay.
func TestUpdate(t *testing.T) {
	f := read(t, `# the file
config: plan.yaml # both sides
lookups: {aliases: {p: pump7}}

cases:
  # the first
  - name: fields keep their place
    expect: # what
      device: wrong # the alias
      ack: full # kept
      ttl: 60m
      properties:
        # of the verb
        verb: start # was start
        gone: x
      edge: {subject: x, headers: {a: b}}
    subject: cmd.p.stop # not the last key

  # the second
  - subject: cmd.p.x
    expect: {drop: tests} # another fate

  - expect: {route: one} # right already
    subject: cmd.p.y
  - expect: {device: x} # wrong
    subject: cmd.p.z

  - subject: cmd.p.all
    expect:
      # the recorder
      - {device: x, priority: 1, order: device}
      - {device: y} # the pump

  - subject: cmd.p.all
    expect: {device: x}
  - name: "too\tlarge"

    subject: cmd.p.ü
    expect: {dead: absent, error: none}
  - c2d: {device: d, properties: {verb: a.b}}
    expect: {subject: x, headers: {Downlink-Device: [d], x: y}}
  - subject: cmd.ü.x
  - subject: ask.d # the end

# after it
`)
	text, changed, err := f.Update()
	require.NoError(t, err)
	require.Equal(t, 9, changed)
	const second = "  - subject: cmd.p.all\n    expect:\n      - route"
	require.Equal(t, `# the file
config: plan.yaml # both sides
lookups: {aliases: {p: pump7}}

cases:
  # the first
  - name: fields keep their place
    expect: # what
      device: pump7 # the alias
      ack: full # kept
      ttl: 60m
      properties:
        # of the verb
        verb: stop # was start
      edge: {subject: edge.pump7.stop, headers: {Downlink-Device: pump7, Downlink-Expires: "2026-01-01T01:00:00.0000000Z", Downlink-Message-Id: 'S:1:dfct6ww35s00', Downlink-Via: edge-1, verb: stop}}
    subject: cmd.p.stop # not the last key

  # the second
  - subject: cmd.p.x
    expect: # another fate
      route: one
      device: pump7
      ack: full
      ttl: 1h
      max_age: 10m
      coalesce: x
      properties: {verb: x}

  - expect: {route: one} # right already
    subject: cmd.p.y
  - expect: {device: pump7} # wrong
    subject: cmd.p.z

  - subject: cmd.p.all
    expect:
      # the recorder
      - {device: recorder, priority: 3, order: none}
      - {device: pump7} # the pump

`, text[:strings.Index(text, second)])
	require.Equal(t, `  - subject: cmd.p.all
    expect:
      - route: all
        device: recorder
        hub: other
        priority: 3
        order: none
        properties: {}
      - route: one
        device: pump7
        ack: full
        ttl: 1h
        max_age: 10m
        coalesce: all
        properties: {verb: all}
  - name: "too\tlarge"

    subject: cmd.p.ü
    expect:
      route: one
      device: pump7
      ack: full
      ttl: 1h
      max_age: 10m
      coalesce: ü
      properties: {verb: ü}
  - c2d: {device: d, properties: {verb: a.b}}
    expect: {subject: edge.d.a%2Eb, headers: {Downlink-Device: [d], Downlink-Via: edge-1, verb: a.b}}
  - subject: cmd.ü.x
    expect:
      route: one
      dead: bad-device
      error: 'device: character 1 is not legal in a device ID; legal are ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '''
  - subject: ask.d # the end
    expect:
      route: ask
      device: d
      properties: {}

# after it
`, text[strings.Index(text, second):])

	again, changed, err := read(t, text).Update()
	require.NoError(t, err)
	require.Zero(t, changed)
	require.Equal(t, text, again)
}

func TestUpdateEnds(t *testing.T) {
	for cases, want := range map[string]string{
		"- subject: ask.d":                                                 "- subject: ask.d\n  expect:\n    route: ask\n    device: d\n    properties: {}\n", // no line end
		"- subject: ask.d\n  expect:":                                      "- subject: ask.d\n  expect:\n    route: ask\n    device: d\n    properties: {}\n",
		"- subject: ask.d\n  expect: {device: x}":                          "- subject: ask.d\n  expect: {device: d}\n",
		"-\n  subject: ask.d\n  payload: |\n    a\n\n    b\n":              "-\n  subject: ask.d\n  payload: |\n    a\n\n    b\n  expect:\n    route: ask\n    device: d\n    properties: {}\n",
		"- subject: ask.d\n  expect: {body: x}\n  payload: \"a\\nb: c\"\n": "- subject: ask.d\n  expect: {body: \"a\\nb: c\"}\n  payload: \"a\\nb: c\"\n",
	} {
		text, changed, err := read(t, head+cases).Update()
		require.NoError(t, err, cases)
		require.Equal(t, 1, changed, cases)
		require.Equal(t, head+want, text)
	}
	// Bytes that are no text are written as such, and read.
	binary := read(t, head+"- subject: ask.d\n  payload: !!binary /wA=\n  expect: {body: x}\n")
	text, _, err := binary.Update()
	require.NoError(t, err)
	require.Equal(t, head+"- subject: ask.d\n  payload: !!binary /wA=\n  expect: {body: !!binary /wA=}\n", text)
	require.Equal(t, "\xff\x00", string(read(t, text).Cases[0].in.Payload))
	// The cases need not be last, and lookups may follow.
	text, _, err = read(t, "cases:\n- subject: ask.d\nconfig: plan.yaml\nlookups: {aliases: {}}\n").Update()
	require.NoError(t, err)
	require.Equal(t, "cases:\n- subject: ask.d\n  expect:\n    route: ask\n    device: d\n    properties: {}\nconfig: plan.yaml\nlookups: {aliases: {}}\n", text)
	// A comment behind an expectation stays, once.
	text, _, err = read(t, head+"- subject: ask.d\n  expect:\n    device: x\n  # of the next\n# too\n- subject: cmd.p.y\n  expect: {device: pump7}\n# last").Update()
	require.NoError(t, err)
	require.Equal(t, head+"- subject: ask.d\n  expect:\n    device: d\n  # of the next\n# too\n- subject: cmd.p.y\n  expect: {device: pump7}\n# last", text)
	flow := read(t, head+"- {subject: ask.d}\n- subject: ask.d\n- {subject: ask.e}\n")
	_, _, err = flow.Update()
	require.EqualError(t, err, flow.Name+":4: cases[0]: a case in { } cannot be updated; write it in block style, a key a line\n"+
		flow.Name+":6: cases[2]: a case in { } cannot be updated; write it in block style, a key a line")
}

// FuzzFile: no panic, and whatever can be updated is right afterwards.
func FuzzFile(f *testing.F) {
	examples, err := filepath.Glob("../../configs/examples/*.test.yaml")
	require.NoError(f, err)
	for _, name := range examples {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(string(b))
	}
	f.Add(head + "- subject: cmd.p.x\n  expect: {drop: x} # c\n- subject: ask.d")
	f.Add(head + "- subject: ask.d\n  expect: {body: x}\n  payload: |\n    a\n\n    b\n")
	name := filepath.Join(folder(f, ""), "cases.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parse(name, []byte(text))
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		file.Run()
		file.Unreached()
		if updated, _, err := file.Update(); err == nil {
			again, err := parse(name, []byte(updated))
			require.NoError(t, err)
			for _, r := range again.Run() {
				require.Empty(t, r.Diffs)
			}
		}
	})
}
