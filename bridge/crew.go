package bridge

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// crew does jobs off the lanes, each until it is done, a bounded number at once.
// After a failure a worker pauses, ever longer until something works again, and the
// job goes to the end of the queue, so that it does not hold up the others for good.
type crew[J any] struct {
	workers int
	work    func(context.Context, J) (again bool, err error)
	log     *slog.Logger
	what    string // what a streak of failures means, for the log

	running sync.WaitGroup

	mu      sync.Mutex // guards all below
	queue   []J
	busy    int
	failing error  // why the latest try failed; nil after a success
	well    uint64 // successes
	idle    chan struct{}
}

// add takes a job on; it never blocks. ctx ends the worker's waiting, not the job: work sees it.
func (c *crew[J]) add(ctx context.Context, j J) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, j)
	if c.busy < c.workers {
		c.busy++
		c.running.Add(1)
		go c.run(ctx)
	}
}

func (c *crew[J]) run(ctx context.Context) {
	defer c.running.Done()
	pause, seen := newBackoff(retryFirst, retryMax), uint64(0)
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			if c.busy--; c.busy == 0 {
				c.failing = nil // nothing is left that fails
				if c.idle != nil {
					close(c.idle)
					c.idle = nil
				}
			}
			c.mu.Unlock()
			return
		}
		j := c.queue[0]
		c.queue = c.queue[1:]
		if c.well != seen {
			seen = c.well
			pause.Reset()
		}
		c.mu.Unlock()
		again, err := c.work(ctx, j)
		if err != nil && ctx.Err() == nil {
			c.note(err)
			t := time.NewTimer(pause.NextBackOff())
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		} else if err == nil {
			c.note(nil)
		}
		if again {
			c.mu.Lock()
			c.queue = append(c.queue, j)
			c.mu.Unlock()
		}
	}
}

func (c *crew[J]) note(err error) {
	c.mu.Lock()
	streak := c.failing != nil
	c.failing = err
	if err == nil {
		c.well++
	}
	c.mu.Unlock()
	switch {
	case err != nil && !streak:
		c.log.Warn(c.what, "err", err)
	case err == nil && streak:
		c.log.Info("it works again: " + c.what)
	}
}

// drain waits until everything is done or ctx is.
func (c *crew[J]) drain(ctx context.Context) {
	c.mu.Lock()
	if c.busy == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// waiting is the number of jobs that no worker has.
func (c *crew[J]) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)
}

func (c *crew[J]) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing
}
