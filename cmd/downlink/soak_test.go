//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/cmd/downlink/process"
	"downlink/cmd/downlink/soak"
)

// buildDownlink builds the binary, which a soak starts again as each of its processes.
func buildDownlink(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "downlink")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// TestSoak: a short run of everything keeps every promise, and each sabotage is found out for what it
// is; however a soak ends, its processes end with it.
func TestSoak(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 40 s")
	}
	program := buildDownlink(t)
	t.Run("runs", func(t *testing.T) {
		t.Parallel()
		testSoakRuns(t, program)
	})
	t.Run("leaves nothing", func(t *testing.T) {
		t.Parallel()
		testSoakLeavesNothing(t, program)
	})
}

func testSoakRuns(t *testing.T, program string) {
	runs := []struct {
		sabotage string
		args     []string
		rule     string // that must be violated
	}{
		{"", []string{"--for", "8s", "--faults", "all"}, ""},
		{"ack-early", []string{"--for", "8s", "--faults", "kill-in-flight"}, "lost"},
		{"swap", []string{"--for", "5s", "--faults", "none"}, "order"},
		{"drop", []string{"--for", "5s", "--faults", "none"}, "lost"},
		{"repeat-silently", []string{"--for", "5s", "--faults", "none"}, "repeat"},
	}
	for _, run := range runs {
		t.Run("sabotage="+run.sabotage, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"soak", "--json", "--seed", "3", "--messages-per-second", "40", "--settle", "4m", "--log-level", "warn"}, run.args...)
			if run.sabotage != "" {
				args = append(args, "--sabotage", run.sabotage)
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.WaitDelay = 20 * time.Second
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			var r soak.Report
			require.NoError(t, json.Unmarshal([]byte(out.String()), &r), "%s\n%s", out.String(), errs.String())
			require.Greater(t, r.Published, 100)
			require.Greater(t, r.Fates["at the edge"], 50)
			if run.sabotage == "" {
				require.NoError(t, err, "%s\n%s", out.String(), errs.String())
				require.Empty(t, r.Violations)
				require.NotEmpty(t, r.Faults)
				return
			}
			var exit *exec.ExitError
			require.True(t, errors.As(err, &exit), "%v", err)
			require.Equal(t, exitFailed, exit.ExitCode(), errs.String())
			require.Contains(t, errs.String(), "soak with seed 3: ")
			require.Greater(t, r.Violated, 0)
			i := slices.IndexFunc(r.Violations, func(v soak.Violation) bool { return v.Rule == run.rule })
			require.GreaterOrEqual(t, i, 0, out.String())
			require.NotEmpty(t, r.Violations[i].Trail)
		})
	}
}

func testSoakLeavesNothing(t *testing.T, program string) {
	for name, signal := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			if signal == syscall.SIGKILL && runtime.GOOS != "linux" {
				t.Skip("only Linux ends children with their parent")
			}
			dir := filepath.Join(t.TempDir(), "state")
			p, err := process.Start("soak", filepath.Join(t.TempDir(), "log"), program, "soak", "--for", "1m", "--faults", "freeze", "--dir", dir)
			require.NoError(t, err)
			t.Cleanup(p.Kill)
			require.Eventually(t, func() bool {
				_, ok := p.Line("freeze: ")
				return ok
			}, 3*patience, 10*time.Millisecond)
			require.NotEmpty(t, processesWith(t, dir))
			require.NoError(t, syscall.Kill(p.PID(), signal))
			<-p.Ended()
			require.Eventually(t, func() bool { return len(processesWith(t, dir)) == 0 }, patience, 20*time.Millisecond)
			if signal == syscall.SIGINT {
				require.ErrorContains(t, p.Surprise(), "exit status 1")
			}
			require.FileExists(t, filepath.Join(dir, "published.jsonl"))
		})
	}
}

// processesWith is the processes that have a text in their command lines, the soak itself aside.
func processesWith(t *testing.T, text string) (found []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-A", "-o", "args").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, text) && !strings.Contains(line, "--dir") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
