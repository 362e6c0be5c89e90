//go:build unix

package process_test

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/cmd/downlink/process"
)

func start(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start("sh-1", filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", script)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	return p
}

func line(t *testing.T, p *process.Process, text string) (found string) {
	t.Helper()
	require.Eventually(t, func() (ok bool) {
		found, ok = p.Line(text)
		return ok
	}, time.Minute, time.Millisecond)
	return found
}

func TestKillEndsAFrozenProcess(t *testing.T) {
	p := start(t, "echo ready; exec sleep 60")
	require.Equal(t, "ready\n", line(t, p, "ready"))
	require.NoError(t, p.Freeze())
	p.Kill()
	require.NoError(t, p.Surprise())
	require.ErrorIs(t, syscall.Kill(p.PID(), 0), syscall.ESRCH)
	require.Error(t, p.Wake())
}

func TestSurprise(t *testing.T) {
	p := start(t, `echo '{"level":"DEBUG"}'; echo one; echo two; exit 3`)
	<-p.Ended()
	require.ErrorContains(t, p.Surprise(), "sh-1 ended by itself: exit status 3")
	require.Equal(t, "two\n", p.Tail(1))
	require.Equal(t, "one\ntwo\n", p.Tail(9))
}

func TestTerminate(t *testing.T) {
	p := start(t, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	line(t, p, "ready")
	require.NoError(t, p.Terminate())
	<-p.Ended()
	require.NoError(t, p.Surprise())
	line(t, p, "bye")
}

func TestKillAll(t *testing.T) {
	a, b := start(t, "exec sleep 60"), start(t, "exec sleep 60")
	require.NoError(t, b.Freeze())
	process.KillAll()
	<-a.Ended()
	<-b.Ended()
	require.NoError(t, a.Surprise())
}

func TestNoProgram(t *testing.T) {
	_, err := process.Start("none", filepath.Join(t.TempDir(), "log"), "/does/not/exist")
	require.ErrorContains(t, err, "none: ")
	_, err = process.Start("none", "/does/not/exist/log", "/bin/sh")
	require.ErrorContains(t, err, "none: ")
}
