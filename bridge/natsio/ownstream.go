package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ownStream is a stream that the bridge keeps for itself: it is found or created,
// again after each reconnect, and what is wrong with it is remembered for Ready.
type ownStream struct {
	conn   *Conn
	log    *slog.Logger
	use    string                             // what it is for, as in "for dead letters"
	cannot string                             // what does not work without it, as in "dead letters cannot be stored"
	prefix string                             // of its subjects, with a dot at its end
	config jetstream.StreamConfig             // of a stream that is created; Replicas is set by ensure
	flags  string                             // of the command that makes it, beside its name and subjects
	check  func(jetstream.StreamConfig) error // of what there is; nil: any will do
	create bool
	copies copies

	mu  sync.Mutex
	err error // why it cannot be used, as far as known
}

// copies says how many replicas something of our own gets.
type copies struct {
	replicas int      // zero: as many as the one of sources with most
	sources  []string // streams
}

func (c copies) count(ctx context.Context, js jetstream.JetStream) int {
	n := max(c.replicas, 1)
	if c.replicas > 0 {
		return n
	}
	for _, source := range c.sources {
		if s, err := js.Stream(ctx, source); err == nil {
			n = max(n, s.CachedInfo().Config.Replicas)
		}
	}
	return n
}

// unfitError says that a stream of the right name exists and must not be used.
type unfitError struct{ err error }

func (e *unfitError) Error() string { return e.err.Error() }
func (e *unfitError) Unwrap() error { return e.err }

// run makes sure that the stream exists, again after each reconnect, until ctx is done.
func (s *ownStream) run(ctx context.Context) {
	keepEnsured(ctx, s.conn, s.ensure)
}

// keepEnsured calls ensure now, after each reconnect, soon after a failure and every minute,
// since someone may delete what it made, until ctx is done.
func keepEnsured(ctx context.Context, c *Conn, ensure func(context.Context) error) {
	reconnected, stop := c.notify()
	defer stop()
	retry := newBackOff()
	for {
		wait := time.Minute
		if err := ensure(ctx); err != nil {
			wait = retry.NextBackOff()
		} else {
			retry.Reset()
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-reconnected:
		case <-t.C:
		}
		t.Stop()
	}
}

// ensure finds or creates the stream.
func (s *ownStream) ensure(ctx context.Context) (err error) {
	parent := ctx
	defer func() {
		if parent.Err() == nil {
			s.note(err)
		}
	}()
	if err := s.conn.usable(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout)
	defer cancel()
	js, name := s.conn.js, s.config.Name
	found, err := js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if !s.create {
			return fmt.Errorf("stream %s for %s does not exist: `nats stream add %s --subjects '%s'%s` or set storage.create: true",
				name, s.use, name, strings.Join(s.config.Subjects, ","), s.flags)
		}
		cfg := s.config
		cfg.Replicas = s.copies.count(ctx, js)
		if err = createStream(ctx, js, cfg); err == nil {
			found, err = js.Stream(ctx, name)
		}
	}
	if err != nil {
		return fmt.Errorf("stream %s for %s: %w", name, s.use, apiError(err))
	}
	if s.check != nil {
		if err := s.check(found.CachedInfo().Config); err != nil {
			return &unfitError{fmt.Errorf("stream %s for %s: %w", name, s.use, err)}
		}
	}
	return nil
}

// note keeps for Ready whether the stream can be used.
func (s *ownStream) note(err error) {
	s.mu.Lock()
	was := s.err
	s.err = err
	s.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) && (was == nil || was.Error() != err.Error()) {
		s.log.Warn(s.cannot, "err", err)
	}
}

// used keeps for Ready how a use of the stream went. That it is unfit stays, until it was looked at again.
func (s *ownStream) used(err error) {
	if err == nil && s.unfit() != nil {
		return
	}
	s.note(err)
}

// ready is nil if the stream can be used, as far as known.
func (s *ownStream) ready() error {
	denied := s.conn.deniedOf(func(op, subject string) bool {
		return op == "publish" && (strings.HasPrefix(subject, s.prefix) || hasToken(subject, s.config.Name))
	})
	if denied != "" {
		return errors.New("missing NATS permission: " + denied + " (" + s.use + ")")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// unfit is why the stream that was found must not be used; nil if it may.
func (s *ownStream) unfit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var unfit *unfitError
	if errors.As(s.err, &unfit) {
		return unfit
	}
	return nil
}
