package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// streams are a command's standard streams. Output for people and programs goes
// to out, logs and questions to err.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// terminal reports whether f is an interactive terminal. The null device is a
// character device too, and nobody answers there.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// newRootCmd builds a fresh command tree. started tells whether a command's own
// code began to run.
func newRootCmd(s streams) (root *cobra.Command, started *atomic.Bool) {
	logs := &logFlags{}
	root = &cobra.Command{
		Use:   "downlink",
		Short: "NATS to IoT Hub devices, and on to the NATS beside them",
		Long: `downlink carries messages from NATS through Azure IoT Hub to devices, and from
the device on to the NATS beside it.

Start with:   downlink demo
Then:         downlink init downlink.yaml
              downlink bridge -c downlink.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(s.err)
			_ = cmd.Help()
			return usagef("which command? try: downlink demo")
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.Version = buildVersion().String()
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(flagError)
	logs.register(root)
	root.AddCommand(
		newDemoCmd(s, logs),
		newInitCmd(s),
		newCheckCmd(s),
		newPermissionsCmd(s),
		newBridgeCmd(s, logs),
		newRelayCmd(s, logs),
		newHubCmd(s, logs),
		newExplainCmd(s, logs),
		newTestCmd(s),
		newSendCmd(s, logs),
		newBenchCmd(s),
		newSoakCmd(s, logs),
		newListenCmd(s, logs),
		newPubCmd(s, logs),
		newSubCmd(s, logs),
		newFeedbackCmd(s, logs),
		newDeadCmd(s, logs),
		newMailboxCmd(s, logs),
		newTraceCmd(s, logs),
		newStatusCmd(s, logs),
		newReadyCmd(s),
		newVersionCmd(s),
	)
	started = &atomic.Bool{}
	markStart(root, started)
	return root, started
}

// markStart makes every command note that its own code began.
func markStart(cmd *cobra.Command, started *atomic.Bool) {
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			started.Store(true)
			return inner(c, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markStart(sub, started)
	}
}

// onlyCommands are the arguments of a command that does nothing itself.
func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(cmd, args[0])
}

// flagError says what a flag takes, where pflag quotes Go's parsers.
func flagError(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	var takes string
	switch invalid.GetFlag().Value.Type() {
	case "bool":
		takes = "true or false"
	case "int", "int64":
		takes = "a whole number"
	case "uint32", "uint64":
		takes = "a whole number from 0"
	case "float64":
		takes = "a number"
	case "duration":
		takes = "a time such as 500ms, 90s or 1h30m"
	default:
		return err
	}
	return fmt.Errorf("--%s: %q is not %s", invalid.GetFlag().Name, invalid.GetValue(), takes)
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf(", did you mean %q?", near[0])
	}
	return fmt.Errorf("unknown command %q%s (%s --help lists the commands)", name, hint, cmd.CommandPath())
}

// logFlags are the log settings of the command line; empty means: as configured, or the default.
type logFlags struct{ level, format string }

func (f *logFlags) register(root *cobra.Command) {
	root.PersistentFlags().StringVar(&f.level, "log-level", "", "log level on stderr: debug, info, warn or error")
	root.PersistentFlags().StringVar(&f.format, "log-format", "", "log format: text or json")
}

// logger returns the log on w. The flags win over level and format, which may be empty.
func (f *logFlags) logger(w io.Writer, level, format string) (*slog.Logger, error) {
	if f.level != "" {
		level = f.level
	}
	if f.format != "" {
		format = f.format
	}
	o := &slog.HandlerOptions{}
	switch strings.ToLower(level) {
	case "debug":
		o.Level = slog.LevelDebug
	case "", "info":
		o.Level = slog.LevelInfo
	case "warn":
		o.Level = slog.LevelWarn
	case "error":
		o.Level = slog.LevelError
	default:
		return nil, usagef("--log-level: %q is none of debug, info, warn, error", level)
	}
	switch strings.ToLower(format) {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, usagef("--log-format: %q is none of text, json", format)
}

// ifAsked is the log of a command whose own errors say all that its user must know;
// nil without --log-level.
func (f *logFlags) ifAsked(w io.Writer) (*slog.Logger, error) {
	log, err := f.logger(w, "", "")
	if err != nil || f.level == "" {
		return nil, err
	}
	return log, nil
}

// exactArgs is cobra.ExactArgs with a message that names what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s: missing %s (usage: %s)", cmd.Name(), names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return fmt.Errorf("%s: unexpected argument %q (usage: %s)", cmd.Name(), args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// background runs f in a goroutine under its own cancellable context and returns
// a function that cancels it and waits for its result.
func background(ctx context.Context, f func(context.Context) error) (stop func() error, done <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	finished := make(chan struct{})
	var err error
	go func() {
		defer close(finished)
		err = f(ctx)
	}()
	return func() error {
		cancel()
		<-finished
		return err
	}, finished
}
