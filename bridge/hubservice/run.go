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
	var weeding sync.WaitGroup
	defer weeding.Wait()
	weeding.Go(func() { c.weed(ctx) })

	pause := &backoff.ExponentialBackOff{
		InitialInterval:     c.options.ReconnectMin,
		MaxInterval:         c.options.ReconnectMax,
		Multiplier:          2,
		RandomizationFactor: 0.5,
	}
	for {
		l, err := c.connect(ctx)
		if err == nil {
			c.health.connected(l.grant.expires)
			began := time.Now()
			err = c.serve(ctx, l)
			// A link that lived, or at least carried something, ends the streak; one
			// that dies at once again and again is opened ever more slowly.
			if l.carried() || time.Since(began) > c.options.ReconnectMax {
				pause.Reset()
			}
			if isUnauthorized(err) {
				l.disown(c.credentials)
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

// weed ends what waits for a link past its time, for no writer sees to it while there
// is none, or while the hub gives no credit. What may still be sent goes to the end of
// the queue: one device has one message in flight, or needs no order.
func (c *Client) weed(ctx context.Context) {
	t := time.NewTicker(weedEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for range len(c.requests) {
			var r *request
			select {
			case r = <-c.requests:
			default: // a writer was faster
				continue
			}
			switch {
			case r.state.Load() == gone:
				continue
			case r.tooLate():
				if r.state.CompareAndSwap(queued, answered) {
					r.result <- result{refused: expired()}
				}
				continue
			}
			select {
			case c.requests <- r:
			case <-ctx.Done():
				return // its Send is told by the end of Run
			}
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
	s := settle(l, c.options.Window)
	wg.Go(func() { l.write(c.requests, s.sent) })
	wg.Go(func() { l.watch(c.options.Stall) })
	wg.Go(func() { l.watchEnds() })
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
	close(l.over)
	cancel()
	l.close() // after fail, so that those it wakes find the cause
	wg.Wait()
	s.end()
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

// pace is how often the token keeper looks at what may have changed.
type pace struct {
	check time.Duration // files and clock
	back  time.Duration // the primary, while the secondary is in use
	jump  time.Duration // of the wall clock against the monotonic one, that asks for a new token
}

var defaultPace = pace{check: 30 * time.Second, back: 10 * time.Minute, jump: time.Minute}

// keepToken renews the token on the same link, well before it expires (the
// guide: data links stay up), and keeps trying until it succeeds. A failure does
// not end the link before the token does.
func (c *Client) keepToken(ctx context.Context, l *link) {
	renewAt := l.grant.taken.Add(l.grant.left * 3 / 4)
	looked := time.Now() // when the primary was tried last
	for {
		again, ok := c.waitRenewal(ctx, l, renewAt, looked)
		if !ok {
			return
		}
		newer, err := c.renewToken(ctx, l, again)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.fail(err)
			return
		}
		looked = time.Now()
		left := time.Until(l.grant.ends())
		if newer {
			renewAt = time.Now().Add(left * 3 / 4)
		} else { // there is no newer one yet
			renewAt = time.Now().Add(max(left/4, c.options.TokenLifetime/100))
		}
	}
}

// waitRenewal waits until there is a reason to renew the token: its time, somebody
// who asks for it, a connection string that has changed, a wall clock that has
// jumped (the token was made with a clock that was wrong, or is), the primary's
// turn while the secondary is in use. again says that the hub has been told to
// look at a token, even if it is the same. ok is false when ctx ends.
func (c *Client) waitRenewal(ctx context.Context, l *link, renewAt, looked time.Time) (again, ok bool) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		t.Reset(max(min(c.pace.check, time.Until(renewAt)), 0))
		select {
		case <-t.C:
		case <-c.renew:
			c.credentials.refresh()
			return true, true
		case <-ctx.Done():
			return false, false
		}
		g := l.grant
		jump := c.wall().Round(0).Sub(g.wall) - time.Since(g.taken)
		switch {
		case c.credentials.refresh():
			return true, true
		case !time.Now().Before(renewAt):
			return false, true
		case jump.Abs() > c.pace.jump:
			c.log.Info("the clock has jumped; renewing the token", "by", jump.Round(time.Second))
			return true, true
		case c.credentials.second() && time.Since(looked) > c.pace.back:
			return true, true
		}
	}
}

// renewToken tries until the hub has a token or the one in use is over. newer is
// false if that one is still the newest there is.
func (c *Client) renewToken(ctx context.Context, l *link, again bool) (newer bool, _ error) {
	old := l.grant
	ctx, cancel := context.WithDeadline(ctx, old.ends())
	defer cancel()
	pause := &backoff.ExponentialBackOff{
		InitialInterval:     min(time.Second, c.options.TokenLifetime/50),
		MaxInterval:         min(30*time.Second, c.options.TokenLifetime/10),
		Multiplier:          2,
		RandomizationFactor: 0.5,
	}
	var last error
	for {
		newer, err := c.renewOnce(ctx, l, old, again)
		if err == nil {
			return newer, nil
		}
		if isLinkLoss(err) {
			return false, err
		}
		if ctx.Err() == nil {
			last = err
			c.health.notRenewed(err, old.expires)
		}
		if !sleep(ctx, pause.NextBackOff()) {
			if last != nil {
				return false, fmt.Errorf("%w: %w", errTokenEnd, last)
			}
			return false, errTokenEnd
		}
	}
}

// renewOnce tries each way that there is.
func (c *Client) renewOnce(ctx context.Context, l *link, old grant, again bool) (newer bool, err error) {
	var tried []*way
	for {
		w, t, mintErr := c.credentials.issue(ctx, &tried, c.wall())
		switch {
		case w == nil && err == nil:
			return false, mintErr
		case w == nil:
			return false, err
		case w == old.way && !t.made && t.text == old.text:
			if again { // looked at: no reason to look again before the clock has jumped once more
				l.mu.Lock()
				l.grant.taken, l.grant.wall, l.grant.left = time.Now(), c.wall().Round(0), time.Until(old.ends())
				l.mu.Unlock()
			}
			return false, nil
		}
		if err = c.putToken(ctx, l, w, t); err == nil {
			c.accepted(l)
			c.health.renewed(t.expires)
			return true, nil
		}
		if !isUnauthorized(err) || isLinkLoss(err) {
			return false, err
		}
		c.credentials.refuse(w)
	}
}

// putToken bounds one try, so that a silent $cbs is asked again.
func (c *Client) putToken(ctx context.Context, l *link, w *way, t token) error {
	ctx, cancel := context.WithTimeout(ctx, min(10*time.Second, c.options.TokenLifetime/10))
	defer cancel()
	return c.authorize(ctx, l, w, t)
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
