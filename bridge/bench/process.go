package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// stopTime is how long a process may take to end in good order before it is killed.
const stopTime = 20 * time.Second

// Command is how to start the binary as a part: the program and the arguments
// that make it call Part.
type Command []string

// Own is the running binary's command with these arguments.
func Own(args ...string) (Command, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program's own file: %w", err)
	}
	return append(Command{exe}, args...), nil
}

// process is a part that runs. Its methods are for one goroutine.
type process struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	answer *json.Decoder
	stderr *tail
	ready  Ready
	once   sync.Once
	err    error
}

// start starts a part and waits until it is ready. It is killed when ctx ends.
func (c Command) start(ctx context.Context, s Spec) (*process, error) {
	p := &process{name: s.Part, cmd: exec.CommandContext(ctx, c[0], c[1:]...), stderr: &tail{}}
	p.cmd.Stderr = p.stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.answer = json.NewDecoder(stdout)
	err = json.NewEncoder(p.stdin).Encode(s)
	if err == nil {
		err = p.answer.Decode(&p.ready)
	}
	if err != nil {
		return nil, p.failed(ctx, err)
	}
	return p, nil
}

// stat asks the process what it has used so far.
func (p *process) stat(ctx context.Context) (Stat, error) {
	var s Stat
	_, err := io.WriteString(p.stdin, "{}\n")
	if err == nil {
		err = p.answer.Decode(&s)
	}
	if err != nil {
		return s, p.failed(ctx, err)
	}
	return s, nil
}

// failed is why a process does not answer: what it said last, if it said anything.
func (p *process) failed(ctx context.Context, err error) error {
	if ended := p.stop(); ended != nil {
		err = ended
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("the %s process: %w", p.name, err)
}

// stop ends the process in good order, or else by force, and returns how it
// ended. After the first time it only says so again.
func (p *process) stop() error {
	p.once.Do(func() {
		_ = p.stdin.Close()
		kill := time.AfterFunc(stopTime, func() { _ = p.cmd.Process.Kill() })
		defer kill.Stop()
		p.err = p.cmd.Wait()
		if text := p.stderr.String(); p.err != nil && text != "" {
			p.err = errors.New(strings.TrimPrefix(text, "downlink: "))
		}
	})
	return p.err
}

// tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 2000
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > most {
		t.b = bytes.Clone(t.b[len(t.b)-most:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
