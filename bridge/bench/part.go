package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"

	"downlink/bridge/app"
	"downlink/bridge/config"
)

// Spec says what a process is to be. The field that Part names is set.
type Spec struct {
	Part   string    `json:"part"` // nats, hub, bridge, minimal or raw
	NATS   *NATSSpec `json:"nats,omitempty"`
	Hub    *HubSpec  `json:"hub,omitempty"`
	Bridge string    `json:"bridge,omitempty"` // a configuration
	Loop   *LoopSpec `json:"loop,omitempty"`   // of minimal and raw
	// Profile is a file for a CPU profile of the whole process; none: no profile.
	Profile string `json:"profile,omitempty"`
}

// Ready is a process's first line.
type Ready struct {
	URL string  `json:"url,omitempty"` // of NATS
	Hub Address `json:"hub,omitzero"`
}

// Address is where a hub's service side is. It holds a secret.
type Address struct {
	AMQP             string `json:"amqp"`
	ConnectionString string `json:"connection_string"`
	CAFile           string `json:"ca_file"`
}

// part is one of the things that a process can be.
type part interface {
	// run blocks until ctx is done and everything has ended; ready is called when it is.
	run(ctx context.Context, ready func(Ready)) error
	count() int
}

// Part runs one process of a benchmark: see the package's comment for what it
// reads and writes. It returns when in or ctx ends and everything has stopped.
// The goroutine that reads in ends with in.
func Part(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	var s Spec
	if err := questions.Decode(&s); err != nil {
		return fmt.Errorf("no specification on stdin: %w", err)
	}
	p, err := s.open(errs)
	if err != nil {
		return err
	}
	if s.Profile != "" {
		f, err := os.Create(s.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return p.run(ctx, func(r Ready) {
		if answers.Encode(r) != nil {
			cancel()
			return
		}
		go func() {
			defer cancel()
			for {
				var q struct{}
				if questions.Decode(&q) != nil {
					return
				}
				stat := usage()
				stat.Count = p.count()
				if answers.Encode(stat) != nil {
					return
				}
			}
		}()
	})
}

func (s *Spec) open(errs io.Writer) (part, error) {
	switch {
	case s.Part == "nats" && s.NATS != nil:
		return s.NATS, nil
	case s.Part == "hub" && s.Hub != nil:
		return &hubPart{HubSpec: *s.Hub}, nil
	case s.Part == "bridge":
		return &bridgePart{text: s.Bridge, errs: errs}, nil
	case s.Part == "minimal" && s.Loop != nil:
		return &minimalPart{LoopSpec: *s.Loop}, nil
	case s.Part == "raw" && s.Loop != nil:
		return &rawPart{LoopSpec: *s.Loop}, nil
	}
	return nil, fmt.Errorf("part %q: unknown, or not specified", s.Part)
}

// bridgePart is the bridge, from its configuration.
type bridgePart struct {
	text string
	errs io.Writer
}

func (b *bridgePart) run(ctx context.Context, ready func(Ready)) error {
	c, err := config.LoadBytes("bench.yaml", []byte(b.text), config.LoadOptions{NoEnvironment: true, Side: config.BridgeSide})
	if err != nil {
		return err
	}
	// As in service, but for the log: a warning about each device that waits is what the benchmark provokes.
	log := slog.New(slog.NewTextHandler(b.errs, &slog.HandlerOptions{Level: slog.LevelError}))
	a, err := app.New(app.Options{Config: c, Logger: log})
	if err != nil {
		return err
	}
	waiting, stopWaiting := context.WithCancel(ctx)
	defer stopWaiting()
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		if a.WaitReady(waiting) == nil {
			ready(Ready{})
		}
	}()
	err = a.Run(ctx)
	stopWaiting()
	<-waited
	return err
}

func (b *bridgePart) count() int { return 0 }
