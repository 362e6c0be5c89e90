package app

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"downlink/bridge/natsio"
)

// coreGuard subscribes the core source only once it is known that no stream stores
// its subjects: such a message would be delivered by the core route and kept by
// the stream for whoever consumes that, and a publisher who counts on
// the stream would get at most once.
type coreGuard struct {
	conn     *natsio.Conn
	source   *natsio.CoreSource
	subjects []string
	routes   []string
	log      *slog.Logger

	mu      sync.Mutex
	refused error
	started bool
}

const (
	conflictCheck = 5 * time.Second        // until an operator may have changed the stream
	connectCheck  = 200 * time.Millisecond // until the connection is up
	blindTries    = 3
)

// Run waits until the subjects are free of streams, then runs the source.
func (g *coreGuard) Run(ctx context.Context) error {
	for tries := 0; ; {
		wait := connectCheck
		if g.conn.Ready() == nil {
			stream, err := natsio.CoreConflict(ctx, g.conn, g.subjects)
			if tries++; err != nil && tries >= blindTries {
				// Most likely this login may not look streams up. It may still be right to run without them.
				g.log.Warn("cannot check whether a stream stores the subjects of the core routes", "err", err)
				err = nil
			}
			if g.note(stream, err) {
				return g.source.Run(ctx)
			}
			wait = conflictCheck
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// note keeps what was found for Ready and reports whether the source may run.
func (g *coreGuard) note(stream string, err error) bool {
	if stream != "" {
		err = fmt.Errorf("route %s: source: core, but stream %s stores its subject; say stream: %s instead, or take the subject out of the stream",
			strings.Join(g.routes, ", "), stream, stream)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil && (g.refused == nil || g.refused.Error() != err.Error()) {
		g.log.Error("core route refused", "err", err)
	}
	g.refused, g.started = err, err == nil
	return g.started
}

// Ready is nil while the source is subscribed.
func (g *coreGuard) Ready() error {
	if err := g.conn.Ready(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.started {
		if g.refused != nil {
			return g.refused
		}
		return fmt.Errorf("route %s: not subscribed yet", strings.Join(g.routes, ", "))
	}
	return g.source.Ready()
}
