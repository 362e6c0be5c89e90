// Command downlink carries messages from NATS through Azure IoT Hub to devices
// and on to the NATS beside them, and brings what that needs on a laptop: an
// embedded hub, embedded NATS servers, and small commands to look at each step.
//
// Exit codes: 0 all went well, 1 it failed, 2 wrong use or wrong configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"downlink/cmd/downlink/process"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// Without this a closed stdout would kill the process before it has cleaned up; writing to it fails all the same.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := withSignals(context.Background(), os.Stderr, func(code int) {
		process.KillAll()
		temporary.removeAll()
		os.Exit(code)
	})
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code. It prints every
// error once, each line as "downlink: …" on stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root, started := newRootCmd(streams{in: stdin, out: stdout, err: stderr})
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if closedOutput(err) {
		return exitFailed // such as `downlink sub | head -1`: who read has enough, and there is nothing to say about it
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		text, _, _ = strings.Cut(strings.ReplaceAll(text, context.Canceled.Error(), "interrupted"), "\n") // what follows, such as killed children, comes of it
	}
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintln(stderr, "downlink:", line)
		}
	}
	// What fails before a command's own code runs is a wrong command line.
	var usage *usageError
	if !started.Load() || errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// closedOutput reports whether err is that nobody reads stdout any more.
func closedOutput(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && path.Path == os.Stdout.Name() && errors.Is(path.Err, syscall.EPIPE)
}

// usageError is wrong use or wrong configuration: exit code 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// asUsage marks err as wrong use or configuration; nil stays nil.
func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// sameGesture is how close together two deliveries of one signal are one
// wish to stop: timeout(1), for one, signals its child and then the whole group.
const sameGesture = 100 * time.Millisecond

// withSignals returns a context that the first SIGINT, SIGTERM or SIGHUP cancels, so
// that commands drain; the second calls exit at once. stop releases both.
func withSignals(parent context.Context, stderr io.Writer, exit func(int)) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go obey(signals, done, cancel, stderr, exit)
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// obey does what the signals mean, until done is closed.
func obey(signals <-chan os.Signal, done <-chan struct{}, drain func(), stderr io.Writer, exit func(int)) {
	var first os.Signal
	var at time.Time
	for {
		select {
		case s := <-signals:
			switch {
			case first == nil:
				first, at = s, time.Now()
				drain()
			case s == first && time.Since(at) < sameGesture:
			default:
				fmt.Fprintf(stderr, "downlink: %s again: stopping at once\n", s)
				exit(exitFailed)
			}
		case <-done:
			return
		}
	}
}
