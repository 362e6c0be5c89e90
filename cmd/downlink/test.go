package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/dryrun"
)

func newTestCmd(s streams) *cobra.Command {
	t := &tester{streams: s}
	cmd := &cobra.Command{
		Use:   "test FILE…",
		Short: "Check a configuration's mapping against cases",
		Long: `Run cases: messages, and what the mapping of a configuration must make of them.
It needs neither NATS nor a hub. Each FILE is YAML:

  config: bridge.yaml              # relative to this file
  lookups: {aliases: {p: pump7}}   # values, instead of buckets and files
  cases:
    - name: a reboot
      subject: cmd.berlin.pump7.reboot
      headers: {X-User: ann}
      payload: now                 # or json: {…}, or payload_file: FILE
      expect:
        device: berlin-pump7
        properties: {verb: reboot, X-User: ann}
    - name: nobody's
      subject: cmd.x
      expect: {drop: no-route}     # or dead: REASON

What a case does not name is not compared; properties are, as a whole. A case
with c2d: instead of subject: is one of the relay's mapping. docs/mapping.md has
every field.

--update makes the expectations what is true now, and leaves all else in the
files as it is: look at the difference before you keep it. Exit code 1: a case
failed; 2: a file or its configuration is wrong.`,
		Example: `  downlink test mapping.test.yaml
  downlink test configs/examples/*.test.yaml --junit report.xml
  downlink test mapping.test.yaml --update && git diff`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactArgs("FILE")(cmd, args)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return t.run(args) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&t.update, "update", false, "make the expectations what is true now")
	fs.StringVar(&t.junit, "junit", "", "write a report as JUnit XML to this file")
	fs.BoolVar(&t.asJSON, "json", false, "print one JSON object")
	fs.BoolVarP(&t.verbose, "verbose", "v", false, "name every case, and the routes that none comes to")
	return cmd
}

type tester struct {
	streams
	update, asJSON, verbose bool
	junit                   string
}

// testedFile is one file in --json.
type testedFile struct {
	File    string       `json:"file"`
	Error   string       `json:"error,omitempty"` // the file is wrong; a line for each mistake
	Updated int          `json:"updated,omitempty"`
	Cases   []testedCase `json:"cases"`
	// Unreached are the configuration's routes that no message of these cases came to.
	Unreached []string `json:"unreached_routes,omitempty"`
}

type testedCase struct {
	Name  string       `json:"name"`
	Line  int          `json:"line"`
	OK    bool         `json:"ok"`
	Diffs []testedDiff `json:"diffs,omitempty"`
	// Why is why a route that was expected does not take the message.
	Why string `json:"why,omitempty"`
}

type testedDiff struct {
	Field string `json:"field"`
	Want  string `json:"want"`
	Got   string `json:"got"`
}

func (t *tester) run(names []string) error {
	report := make([]testedFile, 0, len(names))
	var wrong []error
	for _, name := range names {
		f, err := t.file(name)
		if err != nil {
			f = testedFile{File: name, Error: err.Error(), Cases: []testedCase{}}
			wrong = append(wrong, err)
		}
		report = append(report, f)
	}
	if t.junit != "" {
		if err := writeJUnit(t.junit, report); err != nil {
			return err
		}
	}
	failed, err := t.print(report)
	switch {
	case err != nil:
		return err
	case len(wrong) > 0:
		return asUsage(errors.Join(wrong...))
	case failed > 0:
		return fmt.Errorf("%s failed", several(failed, "case"))
	}
	return nil
}

func (t *tester) file(name string) (testedFile, error) {
	r := testedFile{File: name, Cases: []testedCase{}}
	f, err := dryrun.Read(name)
	if err != nil {
		return r, err
	}
	if t.update {
		text, changed, err := f.Update()
		if err != nil {
			return r, err
		}
		if r.Updated = changed; changed > 0 {
			if err := replaceFile(name, []byte(text)); err != nil {
				return r, err
			}
		}
		if f, err = dryrun.Read(name); err != nil {
			return r, err
		}
	}
	for _, res := range f.Run() {
		c := testedCase{Name: res.Name, Line: res.Line, OK: len(res.Diffs) == 0, Why: res.Why}
		for _, d := range res.Diffs {
			c.Diffs = append(c.Diffs, testedDiff(d))
		}
		r.Cases = append(r.Cases, c)
	}
	r.Unreached = f.Unreached()
	return r, nil
}

// replaceFile changes a file in one step, with the rights that it has.
func replaceFile(name string, b []byte) (err error) {
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Chmod(info.Mode().Perm()), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// print reports for people or programs, and counts what failed.
func (t *tester) print(report []testedFile) (failed int, err error) {
	cases, bad := 0, 0
	for _, f := range report {
		if f.Error != "" {
			bad++
		}
		cases += len(f.Cases)
		for _, c := range f.Cases {
			if !c.OK {
				failed++
			}
		}
	}
	if t.asJSON {
		return failed, json.NewEncoder(t.out).Encode(struct {
			Files  []testedFile `json:"files"`
			Cases  int          `json:"cases"`
			Failed int          `json:"failed"`
		}{report, cases, failed})
	}
	var b strings.Builder
	for i := range report {
		t.printFile(&b, &report[i])
	}
	fmt.Fprintf(&b, "%s, %s: %d passed, %d failed", several(len(report), "file"), several(cases, "case"), cases-failed, failed)
	if bad > 0 {
		fmt.Fprintf(&b, ", %s wrong", several(bad, "file"))
	}
	b.WriteByte('\n')
	_, err = io.WriteString(t.out, b.String())
	return failed, err
}

func (t *tester) printFile(b *strings.Builder, f *testedFile) {
	failed := 0
	for _, c := range f.Cases {
		if !c.OK {
			failed++
		}
	}
	word := "ok   "
	switch {
	case f.Error != "":
		word = "WRONG"
	case failed > 0:
		word = "FAIL "
	}
	fmt.Fprintf(b, "%s %s  %s", word, f.File, several(len(f.Cases), "case"))
	if f.Updated > 0 {
		fmt.Fprintf(b, ", %d updated", f.Updated)
	}
	b.WriteByte('\n')
	for _, c := range f.Cases {
		if !c.OK {
			fmt.Fprintf(b, "  FAIL  %s:%d: %s\n", f.File, c.Line, visible(c.Name))
			for _, line := range c.lines() {
				fmt.Fprintf(b, "        %s\n", line)
			}
		} else if t.verbose {
			fmt.Fprintf(b, "  ok    %s\n", visible(c.Name))
		}
	}
	if t.verbose && len(f.Unreached) > 0 {
		fmt.Fprintf(b, "  note  no case comes to %s\n", visible(strings.Join(f.Unreached, ", ")))
	}
}

// lines are two a field, aligned, and the reason if there is one.
func (c *testedCase) lines() []string {
	wide := 0
	for _, d := range c.Diffs {
		wide = max(wide, len(d.Field))
	}
	var lines []string
	for _, d := range c.Diffs {
		lines = append(lines, fmt.Sprintf("%-*s  want %s", wide, d.Field, visible(d.Want)), fmt.Sprintf("%-*s  got  %s", wide, "", visible(d.Got)))
	}
	if c.Why != "" {
		lines = append(lines, visible(c.Why))
	}
	return lines
}

func several(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// The JUnit report, as far as CI systems agree on it.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string     `xml:"name,attr"`
	Class   string     `xml:"classname,attr"`
	File    string     `xml:"file,attr"`
	Line    int        `xml:"line,attr,omitempty"`
	Failure *junitText `xml:"failure"`
	Error   *junitText `xml:"error"`
}

type junitText struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func writeJUnit(name string, report []testedFile) error {
	all := junitSuites{}
	for _, f := range report {
		suite := junitSuite{Name: f.File}
		class := strings.TrimSuffix(filepath.Base(f.File), filepath.Ext(f.File))
		if f.Error != "" {
			first, _, _ := strings.Cut(f.Error, "\n")
			suite.Errors = 1
			suite.Cases = []junitCase{{Name: "the file", Class: class, File: f.File, Error: &junitText{visible(first), f.Error}}}
		}
		for _, c := range f.Cases {
			one := junitCase{Name: visible(c.Name), Class: class, File: f.File, Line: c.Line}
			if !c.OK {
				suite.Failures++
				fields := make([]string, len(c.Diffs))
				for i, d := range c.Diffs {
					fields[i] = d.Field
				}
				one.Failure = &junitText{"not as expected: " + strings.Join(fields, ", "), strings.Join(c.lines(), "\n")}
			}
			suite.Cases = append(suite.Cases, one)
		}
		suite.Tests = len(suite.Cases)
		all.Tests, all.Failures, all.Errors = all.Tests+suite.Tests, all.Failures+suite.Failures, all.Errors+suite.Errors
		all.Suites = append(all.Suites, suite)
	}
	b, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	err = os.WriteFile(name, append([]byte(xml.Header), append(b, '\n')...), 0o644)
	var path *fs.PathError
	if errors.As(err, &path) {
		return usagef("--junit: cannot write %s: %w", name, path.Err)
	}
	return err
}
