package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// part is something that runs until its context is done. Ending earlier, with or
// without an error, stops the whole stack.
type part struct {
	name string
	run  func(context.Context) error
}

// stack runs layers of parts, the lowest first, and stops them from the top:
// what settles messages outlives what handles them.
type stack struct {
	log    *slog.Logger
	layers [][]part
}

func (s *stack) add(layer int, name string, run func(context.Context) error) {
	for len(s.layers) <= layer {
		s.layers = append(s.layers, nil)
	}
	s.layers[layer] = append(s.layers[layer], part{name, run})
}

// run blocks until ctx is done or a part ends, then until every part has ended.
// It returns nil after an ordered stop, else what the parts failed with.
func (s *stack) run(ctx context.Context) error {
	type running struct {
		stop  context.CancelFunc
		parts sync.WaitGroup
	}
	ended := make(chan struct{}, 1) // a part ended by itself
	var mu sync.Mutex
	var errs []error
	stopping := false
	layers := make([]*running, len(s.layers))
	for i, parts := range s.layers {
		layerCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		layer := &running{stop: stop}
		layers[i] = layer
		for _, p := range parts {
			layer.parts.Go(func() {
				err := p.run(layerCtx)
				if errors.Is(err, context.Canceled) && layerCtx.Err() != nil {
					err = nil
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
				} else if !stopping && layerCtx.Err() == nil {
					errs = append(errs, fmt.Errorf("%s ended by itself", p.name))
				}
				select {
				case ended <- struct{}{}:
				default:
				}
			})
		}
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	mu.Lock()
	stopping = true
	mu.Unlock()
	for i := len(layers) - 1; i >= 0; i-- {
		begin := time.Now()
		layers[i].stop()
		layers[i].parts.Wait()
		for _, p := range s.layers[i] {
			s.log.Debug("stopped", "part", p.name, "after", time.Since(begin).Round(time.Millisecond))
		}
	}
	return errors.Join(errs...)
}
