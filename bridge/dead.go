package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	buriers      = 16 // dead letters stored at once
	volatileLive = 5  // tries to store the dead letter of a message that nobody keeps (core NATS)
)

var errExpired = errors.New("expired before it could be sent")

// burial is a dead letter to store and the message to settle after it.
type burial struct {
	of     *held
	letter DeadLetter
	tries  int
}

// cemetery stores dead letters off the lanes: a message without hope must not
// hold its device up, and storing waits while NATS is away. A letter that cannot
// be stored goes to the end of the queue, so that it does not hold up the others
// for good. What is queued here is bounded by what the sources may hold.
type cemetery struct {
	store   DeadLetters
	log     *slog.Logger
	workers sync.WaitGroup

	mu      sync.Mutex // guards all below
	queue   []burial
	running int
	failing error  // why the last try failed; nil after a success
	stored  uint64 // successes
	idle    chan struct{}
}

// bury takes b on; it never blocks. The message is settled once the letter is durable.
func (c *cemetery) bury(b burial) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, b)
	if c.running < buriers {
		c.running++
		c.workers.Add(1)
		go c.work(b.of.bridge.sendCtx)
	}
}

// work stores letters until there is none. After a failure it pauses, ever longer
// until something can be stored again: few tries in all, however many letters wait.
func (c *cemetery) work(ctx context.Context) {
	defer c.workers.Done()
	pause, seen := newBackoff(retryFirst, retryMax), uint64(0)
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			if c.running--; c.running == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
			c.mu.Unlock()
			return
		}
		b := c.queue[0]
		c.queue = c.queue[1:]
		if c.stored != seen {
			seen = c.stored
			pause.Reset()
		}
		c.mu.Unlock()
		if c.inter(ctx, &b) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause.NextBackOff()):
		}
		c.mu.Lock()
		c.queue = append(c.queue, b)
		c.mu.Unlock()
	}
}

// inter tries to store one letter. False: it is to be tried again.
func (c *cemetery) inter(ctx context.Context, b *burial) bool {
	err := c.store.Store(ctx, b.letter)
	if ctx.Err() != nil && err != nil {
		b.of.letGo(b.receipt())
		return true
	}
	c.note(err)
	b.tries++
	if err != nil && (b.of.durable() || b.tries < volatileLive) {
		return false
	}
	if err != nil {
		c.log.Error("dead letter lost: its message came from core NATS and cannot be stored", "route", b.letter.Route, "subject", b.letter.Message.Subject, "err", err)
	}
	b.of.resolve(b.receipt())
	return true
}

func (c *cemetery) note(err error) {
	c.mu.Lock()
	streak := c.failing != nil
	c.failing = err
	if err == nil {
		c.stored++
	}
	c.mu.Unlock()
	switch {
	case err != nil && !streak:
		c.log.Warn("dead letters cannot be stored; their messages stay at the source", "err", err)
	case err == nil && streak:
		c.log.Info("dead letters are stored again")
	}
}

// drain waits until everything is stored or ctx is done.
func (c *cemetery) drain(ctx context.Context) {
	c.mu.Lock()
	if c.running == 0 {
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

func (c *cemetery) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing
}

func (b burial) receipt() Receipt {
	l := b.letter
	return Receipt{
		ID: l.MessageID, Device: l.Device, Hub: l.Hub, Route: l.Route, Status: "dead", Reason: string(l.Reason),
		Condition: l.Condition, Text: l.Text, Subject: l.Message.Subject, Stream: l.Message.Stream,
		Sequence: l.Message.Sequence, Attempts: l.Attempts, At: l.At,
	}
}

// explain takes an outcome apart for a dead letter.
func explain(err error) (condition, text string) {
	if err == nil {
		return "", ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Err != nil {
			return e.Condition, e.Err.Error()
		}
		return e.Condition, e.Error()
	}
	return "", err.Error()
}
