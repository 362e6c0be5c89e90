package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/config"
)

// sideFlags choose a configuration's file and section.
type sideFlags struct{ side string }

func (f *sideFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.side, "side", "", "only this section: bridge or relay (default: those that the file has)")
}

// load reads the file's chosen section.
func (f *sideFlags) load(path string, skipSecrets bool) (*config.Config, error) {
	side := config.Side(f.side)
	if side != "" && side != config.BridgeSide && side != config.RelaySide {
		return nil, usagef("--side: %q is neither bridge nor relay", f.side)
	}
	c, err := config.Load(path, config.LoadOptions{Side: side, SkipSecrets: skipSecrets})
	if err != nil {
		return nil, asUsage(err)
	}
	switch {
	case side == config.BridgeSide && c.Bridge == nil, side == config.RelaySide && c.Relay == nil:
		return nil, usagef("%s: it has no %s section", path, side)
	case side == config.BridgeSide:
		c.Relay = nil
	case side == config.RelaySide:
		c.Bridge = nil
	}
	return c, nil
}

type checkFlags struct {
	sideFlags
	strict, schema, connect, devices, noSecrets, json bool
}

func newCheckCmd(s streams) *cobra.Command {
	f := &checkFlags{}
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration, and with --connect its connections and rights",
		Long: `Check a configuration and the files that it names: every mistake and warning at
once, one line each, as FILE:LINE: path: what is wrong; remedy.

With --connect the servers are tried, too: NATS (login, version, JetStream, each
stream, each permission) and the hub (TLS, credential, attaching as sender and,
if it would be read, to the feedback). Nothing is sent, received, made or
changed. A relay's devices are tried up to TLS only, since connecting as a device
ends the connection that the device has; --connect-devices does it all the same.

Exit codes: 0 well; 1 something failed with --connect, or warnings with --strict;
2 the configuration is wrong.`,
		Example: `  downlink check downlink.yaml
  downlink check --no-secrets --strict bridge.yaml
  downlink check --connect bridge.yaml --json
  downlink check --schema > downlink.schema.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.schema {
				return exactArgs()(cmd, args)
			}
			return exactArgs("FILE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.schema {
				_, err := s.out.Write(config.Schema())
				return err
			}
			if f.devices {
				f.connect = true
			}
			if f.connect && f.noSecrets {
				return usagef("--no-secrets: without secrets there is no --connect")
			}
			return f.run(cmd.Context(), s.out, args[0])
		},
	}
	f.register(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&f.connect, "connect", false, "try each connection and each right as well; changes nothing")
	fs.BoolVar(&f.devices, "connect-devices", false, "with --connect, connect as each device of the relay, too: this ends the device's own connection")
	fs.BoolVar(&f.noSecrets, "no-secrets", false, "do not read the files that the configuration names, on a machine that does not have them")
	fs.BoolVar(&f.strict, "strict", false, "exit code 1 if there are warnings")
	fs.BoolVar(&f.schema, "schema", false, "print the JSON Schema of the file, for editors, and end")
	fs.BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

// problem is a mistake or a warning, for programs.
type problem struct {
	Severity string `json:"severity"` // error or warning
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Path     string `json:"path,omitempty"`
	Text     string `json:"text"`
}

// checked is the whole outcome.
type checked struct {
	File     string      `json:"file"`
	OK       bool        `json:"ok"`
	Problems []problem   `json:"problems"`
	Checks   []app.Check `json:"checks,omitempty"` // with --connect
}

func (f *checkFlags) run(ctx context.Context, out io.Writer, path string) error {
	result := &checked{File: path, Problems: []problem{}}
	c, err := f.load(path, f.noSecrets)
	var wrong *config.Error
	if err != nil && !errors.As(err, &wrong) {
		return err // wrong use
	}
	if err != nil {
		result.Problems = problemsOf(err)
	} else {
		for _, w := range c.Warnings {
			result.Problems = append(result.Problems, problemOf("warning", w))
		}
	}
	if !f.json {
		if err := printProblems(out, result.Problems); err != nil {
			return err
		}
	}
	failed := 0
	if err == nil && f.connect {
		var broken error
		app.CheckConnections(ctx, app.CheckOptions{Config: c, Devices: f.devices, Report: func(k app.Check) {
			if k.State == app.CheckFailed {
				failed++
			}
			result.Checks = append(result.Checks, k)
			if !f.json {
				broken = errors.Join(broken, printCheck(out, k))
			}
		}})
		if broken != nil {
			return broken
		}
	}
	result.OK = err == nil && failed == 0 && (!f.strict || len(result.Problems) == 0)
	if f.json {
		if err := json.NewEncoder(out).Encode(result); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return usagef("%s: %s", path, counted(len(result.Problems), "mistake"))
	case failed > 0:
		return fmt.Errorf("%s: %s failed", path, counted(failed, "check"))
	case !result.OK:
		return fmt.Errorf("%s: %s, and --strict takes none", path, counted(len(result.Problems), "warning"))
	case f.json:
		return nil
	}
	_, err = fmt.Fprintf(out, "%s: ok%s\n", path, sections(c))
	return err
}

// problemsOf takes the joined errors of config.Load apart.
func problemsOf(err error) []problem {
	var list []problem
	var usage *usageError
	if errors.As(err, &usage) {
		err = usage.err
	}
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the joined list itself
		all = joined.Unwrap()
	}
	for _, e := range all {
		var place *config.Error
		if !errors.As(e, &place) {
			place = &config.Error{Err: e}
		}
		list = append(list, problemOf("error", place))
	}
	return list
}

func problemOf(severity string, e *config.Error) problem {
	return problem{Severity: severity, File: e.File, Line: e.Line, Path: e.Path, Text: e.Err.Error()}
}

func printProblems(out io.Writer, list []problem) error {
	for _, p := range list {
		text := (&config.Error{File: p.File, Line: p.Line, Path: p.Path, Err: errors.New(p.Text)}).Error()
		if p.Severity == "warning" {
			text = "warning: " + text
		}
		if _, err := fmt.Fprintln(out, visible(text)); err != nil {
			return err
		}
	}
	return nil
}

// printCheck prints one line: what was tried and how it ended.
func printCheck(out io.Writer, k app.Check) error {
	line := fmt.Sprintf("%-7s  %s: %s", k.State, k.Side, k.Name)
	if k.Detail != "" {
		line += ": " + k.Detail
	}
	if k.Remedy != "" {
		line += "; " + k.Remedy
	}
	_, err := fmt.Fprintln(out, visible(line))
	return err
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// sections says what a good file has.
func sections(c *config.Config) string {
	var has []string
	if c.Bridge != nil {
		has = append(has, fmt.Sprintf("a bridge with %s", counted(len(c.Bridge.Routes), "route")))
	}
	if c.Relay != nil {
		has = append(has, fmt.Sprintf("a relay for %s", counted(len(c.Relay.Devices), "device")))
	}
	text := ", " + strings.Join(has, ", ")
	if n := len(c.Warnings); n > 0 {
		text += ", " + counted(n, "warning")
	}
	return text
}
