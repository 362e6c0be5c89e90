package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgram makes this test's binary the program itself, with these arguments.
const asProgram = "DOWNLINK_TEST_ARGS"

func init() {
	if args := os.Getenv(asProgram); args != "" {
		os.Args = append([]string{"downlink"}, strings.Fields(args)...)
		main() // exits
	}
}

// TestDemoLeavesNothing: however the demo ends, the keys of its hub go.
func TestDemoLeavesNothing(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *os.Process, out *os.File){
		"closed stdout": func(t *testing.T, _ *os.Process, out *os.File) {
			t.Helper()
			require.NoError(t, out.Close())
		},
		"hang-up": func(t *testing.T, p *os.Process, _ *os.File) {
			t.Helper()
			require.NoError(t, p.Signal(syscall.SIGHUP))
		},
		"two signals": func(t *testing.T, p *os.Process, _ *os.File) {
			t.Helper()
			require.NoError(t, p.Signal(syscall.SIGTERM))
			if err := p.Signal(syscall.SIGINT); !errors.Is(err, os.ErrProcessDone) {
				require.NoError(t, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "hang-up" && signal.Ignored(syscall.SIGHUP) {
				t.Skip("hang-ups are ignored here, as under nohup, and so by the demo")
			}
			tmp := t.TempDir()
			out, in, err := os.Pipe()
			require.NoError(t, err)
			defer out.Close()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp, asProgram+"=demo")
			var errs strings.Builder
			cmd.Stdout, cmd.Stderr = in, &errs
			require.NoError(t, cmd.Start())
			require.NoError(t, in.Close())
			line, err := bufio.NewReaderSize(out, 16).ReadString('\n') // and no more than that
			require.NoError(t, err)
			require.Contains(t, line, "cloud NATS")
			made, err := filepath.Glob(filepath.Join(tmp, "downlink-demo-*", "hub", "master.key"))
			require.NoError(t, err)
			require.Len(t, made, 1)
			end(t, cmd.Process, out)
			_ = cmd.Wait()
			if name == "closed stdout" {
				require.Equal(t, exitFailed, cmd.ProcessState.ExitCode(), errs.String())
				require.Empty(t, errs.String())
			}
			left, err := os.ReadDir(tmp)
			require.NoError(t, err)
			require.Empty(t, left, errs.String())
		})
	}
}

// TestBridgeLeavesNoKeys: neither does a bridge with an embedded hub of its own, which is told twice to end.
func TestBridgeLeavesNoKeys(t *testing.T) {
	tmp, dir := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "bridge.yaml")
	writeTo(t, file, `version: 1
http: "off"
bridge:
  nats: {embedded: {listen: "127.0.0.1:0", store_dir: nats}}
  hubs: [{embedded: true}]
  routes: [{subject: "a.{x}", stream: S, create: true, device: "{x}"}]
`)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, asProgram+"=bridge -c "+file)
	errs, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(errs)
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
		if !strings.Contains(lines.Text(), `msg="not ready"`) { // which a start says that takes long on a busy machine
			require.NotContains(t, lines.Text(), "level=WARN")
		}
	}
	made, err := filepath.Glob(filepath.Join(tmp, "downlink-hub-*", "master.key"))
	require.NoError(t, err)
	require.Len(t, made, 1)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Process.Signal(syscall.SIGINT); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
	_ = cmd.Wait()
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestTempDirs: the end at once removes what a command still uses.
func TestTempDirs(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var dirs tempDirs
	first, remove, err := dirs.make("x-")
	require.NoError(t, err)
	second, _, err := dirs.make("x-")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(second, "key"), nil, 0o600))
	require.NoError(t, remove())
	require.NoDirExists(t, first)
	require.DirExists(t, second)
	dirs.removeAll()
	require.NoDirExists(t, second)
	_, _, err = dirs.make("x-")
	require.ErrorIs(t, err, os.ErrProcessDone)
}
