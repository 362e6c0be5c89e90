// Package process runs programs whose output goes to files, to be killed, frozen
// and looked at: for `downlink soak` and for the tests that kill processes.
package process

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Process is one running program. Safe for concurrent use.
type Process struct {
	Name    string
	LogFile string // what it says on stdout and stderr

	cmd      *exec.Cmd
	ended    chan struct{} // closed when it has ended
	expected atomic.Bool
}

// running are the processes that were started and have not ended.
var running struct {
	mu  sync.Mutex
	all map[*Process]bool
}

// KillAll kills every process that still runs: for a program that ends at once. More must not be started meanwhile.
func KillAll() {
	running.mu.Lock()
	all := slices.Collect(maps.Keys(running.all))
	running.mu.Unlock()
	for _, p := range all {
		p.Kill()
	}
}

func (p *Process) register() {
	running.mu.Lock()
	defer running.mu.Unlock()
	if running.all == nil {
		running.all = make(map[*Process]bool)
	}
	running.all[p] = true
}

func (p *Process) forget() {
	running.mu.Lock()
	defer running.mu.Unlock()
	delete(running.all, p)
}

// Start starts a program whose output goes to logFile, which is made anew. It is
// in a process group of its own, so that an interrupt from the terminal does not
// reach it, and on Linux it ends with this process, however that ends. The
// caller must end it, by Kill or otherwise.
func Start(name, logFile, program string, args ...string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer log.Close() // the process has its own
	p := &Process{Name: name, LogFile: logFile, cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = attributes()
	started := make(chan error)
	go func() {
		// The process ends with the thread that started it, so the thread waits for it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		if err == nil {
			p.register()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			p.forget()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Surprise is an error if the process ended without having been told to.
func (p *Process) Surprise() error {
	select {
	case <-p.ended:
		if !p.expected.Load() {
			return fmt.Errorf("%s ended by itself: %v", p.Name, p.cmd.ProcessState)
		}
	default:
	}
	return nil
}

// Kill is kill -9, which ends a frozen process, too. It returns when the process is gone.
func (p *Process) Kill() {
	p.expected.Store(true)
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.ended
}

// Terminate asks the process to end (SIGTERM), and does not wait for it.
func (p *Process) Terminate() error {
	p.expected.Store(true)
	return p.signal(terminate)
}

// Freeze stops the process as SIGSTOP does, until Wake. It fails where the system cannot do that.
func (p *Process) Freeze() error { return p.signal(freeze) }

// Wake ends Freeze.
func (p *Process) Wake() error { return p.signal(wake) }

func (p *Process) signal(s os.Signal) error {
	if s == nil {
		return fmt.Errorf("%s: %w on this system", p.Name, errors.ErrUnsupported)
	}
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

// Log is what the process has said so far, or why that cannot be read.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Line is the first whole line of the log that has text in it; false: there is none yet.
func (p *Process) Line(text string) (string, bool) {
	for line := range strings.Lines(p.Log()) {
		if strings.Contains(line, text) && strings.HasSuffix(line, "\n") {
			return line, true
		}
	}
	return "", false
}

// Tail is the last n lines of a JSON log that are not debug output.
func (p *Process) Tail(n int) string {
	var lines []string
	for line := range strings.Lines(p.Log()) {
		if !strings.Contains(line, `"level":"DEBUG"`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
