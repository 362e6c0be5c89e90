package bridge

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// crew does jobs off the lanes, each until it is done, a bounded number at once.
// After a failure a worker pauses, ever longer until something works again, and the
// job waits behind those that have not failed. A new one ends a worker's pause: what fails for
// one, however many there are, holds up no other.
type crew[J any] struct {
	workers int
	work    func(context.Context, J) (again bool, err error)
	log     *slog.Logger
	what    string // what a streak of failures means, for the log

	running sync.WaitGroup

	mu      sync.Mutex // guards all below
	queue   []J
	failed  []J // to be tried again
	turns   int
	ailing  int           // jobs that failed and are not done yet, also those in hand
	pausing int           // workers
	news    chan struct{} // for one of them
	busy    int
	failing error  // why a try failed last; nil once something succeeds and nothing that failed is left
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
	} else if c.pausing > 0 {
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
}

// take is the next job; every fourth is one that failed before. The caller holds mu.
func (c *crew[J]) take() (j J, before, ok bool) {
	from := &c.queue
	if c.turns++; len(c.queue) == 0 || c.turns%4 == 0 && len(c.failed) > 0 {
		from = &c.failed
	}
	if len(*from) == 0 {
		return j, false, false
	}
	j, *from = (*from)[0], (*from)[1:]
	return j, from == &c.failed, true
}

func (c *crew[J]) run(ctx context.Context) {
	defer c.running.Done()
	pause, seen := newBackoff(retryFirst, retryMax), uint64(0)
	for {
		c.mu.Lock()
		j, before, ok := c.take()
		if !ok {
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
		if c.well != seen {
			seen = c.well
			pause.Reset()
		}
		c.mu.Unlock()
		again, err := c.work(ctx, j)
		if err == nil || ctx.Err() != nil {
			if err == nil {
				c.note(nil, before, false)
			}
			if again {
				c.mu.Lock()
				c.queue = append(c.queue, j)
				c.mu.Unlock()
			}
			continue
		}
		c.note(err, before, again)
		c.mu.Lock()
		if again {
			c.failed = append(c.failed, j)
		}
		fresh := len(c.queue) > 0
		c.pausing++
		c.mu.Unlock()
		if !fresh {
			c.pause(ctx, pause.NextBackOff())
		}
		c.mu.Lock()
		c.pausing--
		c.mu.Unlock()
	}
}

func (c *crew[J]) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-c.news:
	case <-t.C:
	}
}

// note learns from a try: before says whether the job had failed before, again whether it is tried again for that.
// What succeeds meanwhile does not end a streak, or log and readiness would go back and forth with each job.
func (c *crew[J]) note(err error, before, again bool) {
	c.mu.Lock()
	streak := c.failing != nil
	if before {
		c.ailing--
	}
	if err != nil && again {
		c.ailing++
	}
	if err == nil {
		c.well++
	}
	if err != nil || c.ailing == 0 {
		c.failing = err
	}
	over := streak && c.failing == nil
	c.mu.Unlock()
	switch {
	case err != nil && !streak:
		c.log.Warn(c.what, "err", err)
	case over:
		c.log.Info("over: " + c.what)
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
	return len(c.queue) + len(c.failed)
}

func (c *crew[J]) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing
}
