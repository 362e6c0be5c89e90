package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// caseFolder has a copy of an example and cases for it.
func caseFolder(t *testing.T, name, cases string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	b, err := os.ReadFile(example + name + ".yaml")
	require.NoError(t, err)
	writeTo(t, filepath.Join(dir, name+".yaml"), string(b))
	file = filepath.Join(dir, "x.test.yaml")
	writeTo(t, file, "config: "+name+".yaml\ncases:\n"+cases)
	return dir, file
}

// TestTestExamples: the command itself runs every example.
func TestTestExamples(t *testing.T) {
	files, err := filepath.Glob(example + "*.test.yaml")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 20)
	got := cli(t, append([]string{"test"}, files...)...)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.NotContains(t, got.stdout, "FAIL")
	require.Regexp(t, `\n\d+ files, \d+ cases: \d+ passed, 0 failed\n$`, got.stdout)
}

const twoCases = `  - name: a reboot
    subject: cmd.berlin.pump7.reboot
    expect: # what it is
      device: paris-pump7 # the device
      properties: {verb: stop, x: "y"}
  - subject: cmd.x
    expect: {drop: no-route}
`

func TestTestFails(t *testing.T) {
	dir, file := caseFolder(t, "fleet-by-site", twoCases)
	report := filepath.Join(dir, "report.xml")
	got := cli(t, "test", file, "-v", "--junit", report)
	require.Equal(t, result{exitFailed, "FAIL  " + file + "  2 cases\n" +
		"  FAIL  " + file + ":3: a reboot\n" +
		`        device           want "paris-pump7"
                         got  "berlin-pump7"
        properties.verb  want "stop"
                         got  "reboot"
        properties.x     want "y"
                         got  (absent)
  ok    cmd.x
1 file, 2 cases: 1 passed, 1 failed
`, "downlink: 1 case failed\n"}, got)

	b, err := os.ReadFile(report)
	require.NoError(t, err)
	var x junitSuites
	require.NoError(t, xml.Unmarshal(b, &x))
	x.XMLName = xml.Name{}
	failure := `device           want "paris-pump7"
                 got  "berlin-pump7"
properties.verb  want "stop"
                 got  "reboot"
properties.x     want "y"
                 got  (absent)`
	require.Equal(t, junitSuites{Tests: 2, Failures: 1, Suites: []junitSuite{{Name: file, Tests: 2, Failures: 1, Cases: []junitCase{
		{Name: "a reboot", Class: "x.test", File: file, Line: 3, Failure: &junitText{"not as expected: device, properties.verb, properties.x", failure}},
		{Name: "cmd.x", Class: "x.test", File: file, Line: 8},
	}}}}, x)

	j := objects(t, cli(t, "test", file, "--json").stdout)[0]
	require.Equal(t, 1.0, j["failed"])
	one := j["files"].([]any)[0].(map[string]any)["cases"].([]any)[0].(map[string]any)
	require.Equal(t, false, one["ok"])
	require.Equal(t, map[string]any{"field": "device", "want": `"paris-pump7"`, "got": `"berlin-pump7"`}, one["diffs"].([]any)[0])
}

func TestTestWhy(t *testing.T) {
	_, file := caseFolder(t, "fleet-by-site", "  - subject: cmd.x\n    expect: {route: commands, device: x}\n")
	got := cli(t, "test", file)
	require.Contains(t, got.stdout, `
        fate  want sent
              got  dropped (no-route)
        route commands does not take it: the subject has 2 tokens, the route's more
`)
	require.Contains(t, cli(t, "test", file, "--json").stdout, `"why":"route commands does not take it: `)
}

func TestTestUpdate(t *testing.T) {
	dir, file := caseFolder(t, "fleet-by-site", twoCases)
	require.NoError(t, os.Chmod(file, 0o640))
	link := filepath.Join(dir, "link.yaml")
	require.NoError(t, os.Symlink(file, link))
	got := cli(t, "test", link, "--update")
	require.Equal(t, result{exitOK, "ok    " + link + "  2 cases, 1 updated\n1 file, 2 cases: 2 passed, 0 failed\n", ""}, got)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "config: fleet-by-site.yaml\ncases:\n"+strings.NewReplacer("paris-", "berlin-", `verb: stop, x: "y"`, "verb: reboot").Replace(twoCases), string(b))
	info, err := os.Lstat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())
	info, err = os.Lstat(link)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeSymlink)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 3, "nothing is left behind")
	require.Equal(t, exitOK, cli(t, "test", file).code)
}

func TestTestWrong(t *testing.T) {
	dir, file := caseFolder(t, "fleet-by-site", "  - subject: a b\n  - name: x\n")
	_, good := caseFolder(t, "fleet-by-site", "  - subject: cmd.x\n    expect: {drop: no-route}\n")
	report := filepath.Join(dir, "report.xml")
	got := cli(t, "test", good, file, "--junit", report)
	require.Equal(t, exitUsage, got.code)
	require.Equal(t, "downlink: "+file+`:3: cases[0].subject: "a b" is no subject of a message: empty tokens, spaces and wildcards are not allowed
downlink: `+file+":4: cases[1]: neither subject nor c2d; give the NATS subject of the message, or c2d: with what a device receives\n", got.stderr)
	require.Equal(t, "ok    "+good+"  1 case\nWRONG "+file+"  0 cases\n2 files, 1 case: 1 passed, 0 failed, 1 file wrong\n", got.stdout)
	b, err := os.ReadFile(report)
	require.NoError(t, err)
	require.Contains(t, string(b), `<testsuites tests="2" failures="0" errors="1">`)

	for _, args := range []string{"", "none.yaml", good + " --junit " + dir, good + " --update --junit none/report.xml"} {
		got := cli(t, append([]string{"test"}, strings.Fields(args)...)...)
		require.Equal(t, exitUsage, got.code, args)
		require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	}
	got = cli(t, "test", file, "--json")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, objects(t, got.stdout)[0]["files"].([]any)[0].(map[string]any)["error"], "cases[0].subject")
}

// TestMappingPage: what docs/mapping.md shows is what happens.
func TestMappingPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/mapping.md")
	require.NoError(t, err)
	page := string(b)
	part := func(begin string) string {
		_, text, ok := strings.Cut(page, "```"+begin+"\n")
		require.True(t, ok, begin)
		text, _, _ = strings.Cut(text, "```")
		return text
	}
	dir := t.TempDir()
	writeTo(t, filepath.Join(dir, "bridge.yaml"), part("yaml file=bridge.yaml"))
	cases := filepath.Join(dir, "mapping.test.yaml")
	writeTo(t, cases, part("yml file=mapping.test.yaml"))
	got := cli(t, "test", cases)
	require.Equal(t, exitOK, got.code, got.stdout+got.stderr)

	got = cli(t, "explain", filepath.Join(dir, "bridge.yaml"), "cmd.berlin.pump7.motor.start", "-H", "X-User=ann", "--data", `{"delay":5}`)
	require.Equal(t, exitOK, got.code, got.stderr)
	changing := regexp.MustCompile(`COMMANDS:1:\w+|20\d\d-\S+Z`)
	require.Equal(t, changing.ReplaceAllString(part("text"), "…"), changing.ReplaceAllString(got.stdout, "…"))

	// Every field of either format is on the page.
	named := func(name string) { require.Regexp(t, "`"+name+"[`:\\[]", page) }
	got = cli(t, "explain", filepath.Join(dir, "bridge.yaml"), "cmd.berlin.pump7.x", "-H", "A=b", "--json")
	for _, m := range regexp.MustCompile(`"([a-z_]+)":`).FindAllStringSubmatch(got.stdout, -1) {
		named(m[1])
	}
	writeTo(t, cases, "config: bridge.yaml\ncases:\n- {subject: a, x: y, expect: {x: y}}\n- {c2d: {x: y}, expect: {x: y}}\n")
	got = cli(t, "test", cases)
	known := regexp.MustCompile(`known here: (.*)`).FindAllStringSubmatch(got.stderr, -1)
	require.Len(t, known, 4)
	for _, m := range known {
		for name := range strings.SplitSeq(m[1], ", ") {
			named(name)
		}
	}
}
