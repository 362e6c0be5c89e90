package hubservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Run connects and stays connected until ctx ends, then closes the connection and
// returns nil once every goroutine of the client is gone. A hub that is
// unreachable or refuses us does not end it; Ready says so. Messages in flight at
// the end fail with bridge.LinkLost: let Sends finish first. Run once.
func (c *Client) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return fmt.Errorf("hub %s: Run called twice", c.options.Hub)
	}
	defer c.health.stopped()
	defer close(c.stopped)

	pause := &backoff.ExponentialBackOff{
		InitialInterval:     c.options.ReconnectMin,
		MaxInterval:         c.options.ReconnectMax,
		Multiplier:          2,
		RandomizationFactor: 0.5,
	}
	for {
		l, err := c.connect(ctx)
		if err == nil {
			c.health.connected(l.expires)
			began := time.Now()
			err = c.serve(ctx, l)
			// A link that lived, or at least carried something, ends the streak; one
			// that dies at once again and again is opened ever more slowly.
			if l.carried() || time.Since(began) > c.options.ReconnectMax {
				pause.Reset()
			}
			if ctx.Err() == nil {
				c.health.disconnected(err, true)
			}
		} else if ctx.Err() == nil {
			c.health.disconnected(err, false)
		}
		if !sleep(ctx, pause.NextBackOff()) {
			c.log.Info("stopped")
			return nil
		}
	}
}

// serve works a link until it breaks or ctx ends, closes it, and returns why.
func (c *Client) serve(ctx context.Context, l *link) error {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	// A renewal asked for before this link came up is done. Before the writer starts, or it would take the
	// request of this link's own first message for one of those.
	select {
	case <-c.renew:
	default:
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.write(c.requests) })
	wg.Go(func() { l.watch(c.options.Stall) })
	wg.Go(func() { c.keepToken(work, l) })
	wg.Go(func() {
		<-l.conn.Done()
		l.fail(orClosed(l.conn.Err()))
	})

	c.links.set(l)

	select {
	case <-l.broken:
	case <-ctx.Done():
		l.fail(errStopped)
	}
	c.links.set(nil)
	close(l.closed)
	cancel()
	l.close() // after fail, so that those it wakes find the cause
	wg.Wait()
	return l.cause()
}

func orClosed(err error) error {
	if err == nil {
		return errors.New("connection closed")
	}
	return err
}

// errTokenEnd is the cause of a link that was given up because its token expired.
var errTokenEnd = errors.New("the token expired")

// keepToken renews the token on the same link, well before it expires (the
// guide: data links stay up), and keeps trying until it succeeds. A failure does
// not end the link before the token does.
func (c *Client) keepToken(ctx context.Context, l *link) {
	expires := l.expires
	for {
		left := time.Until(expires)
		if !c.sleepOrRenew(ctx, left*3/4) {
			return
		}
		next, err := c.renewToken(ctx, l, expires)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.fail(err)
			return
		}
		expires = next
	}
}

// renewToken tries until it has a token or the old one is over.
func (c *Client) renewToken(ctx context.Context, l *link, expires time.Time) (time.Time, error) {
	ctx, cancel := context.WithDeadline(ctx, expires)
	defer cancel()
	pause := &backoff.ExponentialBackOff{
		InitialInterval:     min(time.Second, c.options.TokenLifetime/50),
		MaxInterval:         min(30*time.Second, c.options.TokenLifetime/10),
		Multiplier:          2,
		RandomizationFactor: 0.5,
	}
	var last error
	for {
		token, next, err := c.credential.mint(time.Now())
		readyMade := c.credential.fixed != "" && err == nil // there is no newer one
		if err == nil && !readyMade {
			if err = c.putToken(ctx, l, token); err == nil {
				c.health.renewed(next)
				return next, nil
			}
			if isLinkLoss(err) {
				return time.Time{}, err
			}
		}
		if ctx.Err() == nil && err != nil {
			last = err
			c.health.notRenewed(err, expires)
		}
		wait := pause.NextBackOff()
		if readyMade {
			wait = time.Until(expires)
		}
		if !sleep(ctx, wait) {
			if last != nil {
				return time.Time{}, fmt.Errorf("%w: %w", errTokenEnd, last)
			}
			return time.Time{}, errTokenEnd
		}
	}
}

// putToken bounds one try, so that a silent $cbs is asked again.
func (c *Client) putToken(ctx context.Context, l *link, token string) error {
	ctx, cancel := context.WithTimeout(ctx, min(10*time.Second, c.options.TokenLifetime/10))
	defer cancel()
	return l.cbs.put(ctx, c.host, token)
}

// sleepOrRenew waits for d or for somebody who asks for a new token; false when
// ctx ends.
func (c *Client) sleepOrRenew(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.renew:
		return true
	case <-ctx.Done():
		return false
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
