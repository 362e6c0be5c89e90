package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

// result is what one command line did.
type result struct {
	code           int
	stdout, stderr string
}

// patience is how long a test waits for what must come: a machine that is busy with other tests is slow, and
// nothing is lost when it comes sooner.
const patience = time.Minute

// cli runs one command line to its end, with empty input.
func cli(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	var out, errs bridgetest.Log
	code := run(ctx, append([]string{}, args...), strings.NewReader(""), &out, &errs) // nil would be this test's own arguments
	require.NoError(t, ctx.Err(), "the command did not end by itself: %v\n%s", args, errs.String())
	return result{code, out.String(), errs.String()}
}

// cliWithin runs a command that goes on until the time of a flag is over, and then says what it knows. How soon it
// knows that is up to the machine, so it is given more and more time until it says want.
func cliWithin(t *testing.T, flag string, limit time.Duration, want string, args ...string) result {
	t.Helper()
	for {
		got := cli(t, append(args[:len(args):len(args)], flag, limit.String())...)
		if strings.Contains(got.stdout+got.stderr, want) || limit > patience/2 {
			return got
		}
		limit *= 4
	}
}

// started is a command that runs in the background.
type started struct {
	out, errs *bridgetest.Log
	cancel    context.CancelFunc
	done      chan struct{}
	code      int // once done is closed
}

// start runs a command; the test's end stops it.
func start(t *testing.T, args ...string) *started {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &started{out: &bridgetest.Log{}, errs: &bridgetest.Log{}, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.code = run(ctx, args, strings.NewReader(""), s.out, s.errs)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.done
	})
	return s
}

// wait waits for the command's own end.
func (s *started) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		require.Fail(t, "the command did not end", "stdout:\n%s\nstderr:\n%s", s.out, s.errs)
	}
	return s.code
}

// stop does what the first signal does, and waits.
func (s *started) stop(t *testing.T) int {
	t.Helper()
	s.cancel()
	return s.wait(t)
}

// says waits for text on stderr.
func (s *started) says(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.errs.String(), text) }, patience, 5*time.Millisecond,
		"not said: %q", text)
}

// line waits for a whole line of output that has text in it.
func (s *started) line(t *testing.T, text string) string {
	t.Helper()
	var found string
	require.Eventually(t, func() bool {
		for l := range strings.Lines(s.out.String()) {
			if strings.Contains(l, text) && strings.HasSuffix(l, "\n") {
				found = l
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "no line with %q", text)
	return found
}

func objects(t *testing.T, text string) []map[string]any {
	t.Helper()
	var all []map[string]any
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var o map[string]any
		err := d.Decode(&o)
		if err == io.EOF {
			return all
		}
		require.NoError(t, err, text)
		all = append(all, o)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	writeTo(t, path, text)
	return path
}

func writeTo(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// TestWrongUse: exit code 2 and one line that says what to do.
func TestWrongUse(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	t.Setenv("DOWNLINK_HUB_CONNECTION_STRING", "")
	t.Setenv("DOWNLINK_DEVICE_CONNECTION_STRING", "")
	eventHubs := write(t, "eh", "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0;EntityPath=h\n")
	service := write(t, "service", "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0\n")
	device := write(t, "device", "HostName=h.azure-devices.net;DeviceId=d1;SharedAccessKey=c2VjcmV0\n")
	bridgeOnly := write(t, "bridge.yaml", "version: 1\nbridge:\n  hubs: [{connection_string_file: "+service+"}]\n  routes: [{subject: a, stream: S, device: d}]\n")
	relayOnly := write(t, "relay.yaml", "version: 1\nrelay:\n  devices: [{connection_string_file: "+device+"}]\n")
	typo := write(t, "typo.yaml", "version: 1\nbridge:\n  hubz: []\n  routes: [{subject: a, drop: x}]\n")
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"brigde"}, `unknown command "brigde", did you mean "bridge"?`},
		{[]string{"--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"hub", "--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"hub", "extra"}, `unexpected argument "extra"`},
		{[]string{"hub", "--amqps", "5671"}, `--amqps: "5671" is not host:port`},
		{[]string{"hub", "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--device", "a b", "--log-level", "error"}, "illegal characters"},
		{[]string{"hub", "connection-string"}, "missing POLICY"},
		{[]string{"hub", "connection-string", "device", ""}, "the ID is empty"},
		{[]string{"hub", "connection-string", "sevrice"}, `no policy "sevrice"`},
		{[]string{"hub", "connection-string", "service", "d1"}, `unexpected argument "d1"`},
		{[]string{"version", "--log-level", "loud", "x"}, `unexpected argument "x"`},
		{[]string{"hub", "--log-level", "loud"}, `"loud" is none of debug, info, warn, error`},
		{[]string{"hub", "--log-format", "xml"}, `"xml" is none of text, json`},
		{[]string{"bridge"}, "-c FILE is required"},
		{[]string{"bridge", "-c", "/does/not/exist.yaml"}, "/does/not/exist.yaml: cannot read"},
		{[]string{"bridge", "-c", typo}, typo + ":3: "},
		{[]string{"bridge", "-c", relayOnly}, "it has no bridge section"},
		{[]string{"relay", "-c", bridgeOnly}, "it has no relay section"},
		{[]string{"bridge", "-c", bridgeOnly, "--log-level", "loud"}, "loud"},
		{[]string{"demo", "--count", "-1"}, "--count: -1"},
		{[]string{"demo", "--timeout", "0s"}, "--timeout: 0s"},
		{[]string{"demo", "--hub-connection-string-file", service}, "device-connection-string-file"},
		{[]string{"demo", "--hub-connection-string-file", service, "--device-connection-string-file", service}, "DeviceId is missing"},
		{[]string{"demo", "--hub-connection-string-file", eventHubs, "--device-connection-string-file", device}, "Event Hubs"},
		{[]string{"demo", "--ca-file", service}, "belong to a hub given by"},
		{[]string{"pub"}, "missing SUBJECT"},
		{[]string{"pub", "a..b"}, "empty tokens"},
		{[]string{"pub", "a.*"}, "wildcard"},
		{[]string{"pub", "a", "b", "c"}, `unexpected argument "c"`},
		{[]string{"pub", "a", "-H", "X"}, "write NAME=VALUE"},
		{[]string{"pub", "a", "--creds", "/does/not/exist"}, "/does/not/exist"},
		{[]string{"sub", "a b"}, "spaces are not allowed"},
		{[]string{"send"}, "missing DEVICE"},
		{[]string{"send", "d1"}, "which hub? give --hub-connection-string-file"},
		{[]string{"send", "d1", "--hub-connection-string-file", "/does/not/exist"}, "no file /does/not/exist"},
		{[]string{"send", "d1", "--hub-connection-string-file", eventHubs}, "Event Hubs"},
		{[]string{"send", "d1", "--hub-connection-string-file", service, "-c", bridgeOnly}, "none of the others can be"},
		{[]string{"send", "d1", "-c", relayOnly}, "it names no hub"},
		{[]string{"send", "d1", "--ack", "some", "--hub-connection-string-file", service}, "--ack: "},
		{[]string{"send", "d1", "--ttl", "49h", "--hub-connection-string-file", service}, "--ttl: "},
		{[]string{"send", "d1", "--ttl", "-1s", "--hub-connection-string-file", service}, "--ttl: "},
		{[]string{"send", "d 1", "--hub-connection-string-file", service}, "DEVICE: "},
		{[]string{"send", "d1", "-p", "verb", "--hub-connection-string-file", service}, "write NAME=VALUE"},
		{[]string{"send", "d1", "-p", "a=1", "-p", "a=2", "--hub-connection-string-file", service}, "given twice"},
		{[]string{"send", "d1", "--data", "@/does/not/exist", "--hub-connection-string-file", service}, "--data: "},
		{[]string{"listen", "d1"}, "which hub?"},
		{[]string{"listen", "d2", "--device-connection-string-file", device}, `is for device "d1", not for "d2"`},
		{[]string{"listen", "d1", "--device-connection-string-file", device}, "give --yes if that is meant"},
		{[]string{"listen", "d1", "--device-connection-string-file", service}, "connection string"},
		{[]string{"listen", "d3", "-c", relayOnly}, `has no device "d3"`},
		{[]string{"soak", "x"}, `unexpected argument "x"`},
		{[]string{"soak", "--for", "0s"}, "--for: 0s is not above 0"},
		{[]string{"soak", "--settle", "-1s"}, "--settle: -1s is not above 0"},
		{[]string{"soak", "--messages-per-second", "0"}, "--messages-per-second: 0 is not between"},
		{[]string{"soak", "--messages-per-second", "NaN"}, "--messages-per-second: NaN is not between"},
		{[]string{"soak", "--devices", "3"}, "--devices: 3 is not between"},
		{[]string{"soak", "--sabotage", "lose"}, `--sabotage: "lose" is none of ack-early, drop, repeat-silently, swap`},
		{[]string{"soak", "--faults", "cut,burn"}, `--faults: "burn" is none of `},
		{[]string{"soak", "--dir", filepath.Dir(service)}, "is not empty"},
		{[]string{"soak", "bridge", "-c", bridgeOnly}, `--sabotage: "" is none of`},
		{[]string{"init", "a", "b"}, `unexpected argument "b"`},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			got := cli(t, test.args...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Contains(t, got.stderr, test.want)
			require.True(t, strings.HasPrefix(got.stderr, "downlink: "), got.stderr)
			require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
			require.Empty(t, got.stdout)
			require.NotContains(t, got.stderr, "c2VjcmV0")
		})
	}
}

func TestSeveralProblemsTakeALineEach(t *testing.T) {
	path := write(t, "two.yaml", "version: 1\nbridge:\n  hubz: []\n  rutes: []\n")
	got := cli(t, "bridge", "-c", path)
	require.Equal(t, exitUsage, got.code)
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	require.GreaterOrEqual(t, len(lines), 2)
	for _, l := range lines {
		require.True(t, strings.HasPrefix(l, "downlink: "+path+":"), l)
	}
}

func TestNoCommand(t *testing.T) {
	got := cli(t)
	require.Equal(t, exitUsage, got.code)
	require.Empty(t, got.stdout)
	require.Contains(t, got.stderr, "Available Commands:")
	require.Contains(t, got.stderr, "downlink: which command? try: downlink demo\n")
}

// TestHelp: every command explains itself, with an example.
func TestHelp(t *testing.T) {
	root, _ := newRootCmd(streams{strings.NewReader(""), io.Discard, io.Discard})
	var visit func(cmd *cobra.Command, path []string)
	visit = func(cmd *cobra.Command, path []string) {
		got := cli(t, append(append([]string{}, path...), "--help")...)
		require.Equal(t, exitOK, got.code)
		require.Empty(t, got.stderr)
		require.Contains(t, got.stdout, "Usage:")
		if len(path) > 0 {
			require.NotEmpty(t, cmd.Example, path)
			require.NotEmpty(t, cmd.Short, path)
		}
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
				visit(sub, append(append([]string{}, path...), sub.Name()))
			}
		}
	}
	visit(root, nil)
}

func TestVersion(t *testing.T) {
	require.Contains(t, cli(t, "version").stdout, "downlink ")
	var v versionInfo
	require.NoError(t, json.Unmarshal([]byte(cli(t, "version", "--json").stdout), &v))
	require.NotEmpty(t, v.Version)
	require.NotEmpty(t, v.Go)
}

// TestOneWishToldTwice: a signal that comes twice at once drains; later, or another one, it ends at once.
func TestOneWishToldTwice(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		again os.Signal
		exits []int
	}{
		"twice at once":    {sameGesture - 1, syscall.SIGTERM, nil},
		"once more, later": {sameGesture, syscall.SIGTERM, []int{exitFailed}},
		"another one":      {0, os.Interrupt, []int{exitFailed}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				signals, done := make(chan os.Signal, 2), make(chan struct{})
				drains := 0
				var exits []int
				go obey(signals, done, func() { drains++ }, io.Discard, func(code int) { exits = append(exits, code) })
				signals <- syscall.SIGTERM
				synctest.Wait()
				require.Equal(t, 1, drains)
				require.Empty(t, exits)
				time.Sleep(c.after)
				signals <- c.again
				synctest.Wait()
				require.Equal(t, 1, drains)
				require.Equal(t, c.exits, exits)
				close(done)
			})
		})
	}
}

// TestSignals: the first signal drains, the second ends at once.
func TestSignals(t *testing.T) {
	var errs bridgetest.Log
	exits := make(chan int, 1)
	ctx, stop := withSignals(t.Context(), &errs, func(code int) { exits <- code })
	defer stop()
	require.NoError(t, ctx.Err())
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	<-ctx.Done()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
	require.Equal(t, exitFailed, <-exits)
	require.Contains(t, errs.String(), "interrupt again: stopping at once")
}

func TestSignalsRelease(t *testing.T) {
	ctx, stop := withSignals(t.Context(), io.Discard, func(int) { t.Error("exit without a signal") })
	stop()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
}

// asBinary makes processes that a test starts from its own binary be downlink itself; TestMain sets it for all of them.
const asBinary = "DOWNLINK_TEST_AS_BINARY"

// TestMain: no goroutine of a command outlives it.
func TestMain(m *testing.M) {
	if os.Getenv(asBinary) != "" {
		main()
	}
	if err := os.Setenv(asBinary, "1"); err != nil {
		panic(err)
	}
	bridgetest.Parallel(4)
	bridgetest.VerifyTestMain(m)
}
