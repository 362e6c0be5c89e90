package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestStackStopsFromTheTop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var order []string
		s := stack{log: slog.New(slog.DiscardHandler)}
		for layer, name := range []string{"connection", "sender", "flow"} {
			s.add(layer, name, func(ctx context.Context) error {
				<-ctx.Done()
				order = append(order, name)
				return ctx.Err()
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.run(ctx) }()
		synctest.Wait()
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, []string{"flow", "sender", "connection"}, order)
	})
}

func TestStackEndsWithItsFirstFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := stack{log: slog.New(slog.DiscardHandler)}
		s.add(0, "steady", func(ctx context.Context) error { <-ctx.Done(); return nil })
		s.add(1, "shaky", func(context.Context) error { return errors.New("fell over") })
		require.EqualError(t, s.run(t.Context()), "shaky: fell over")

		s = stack{log: slog.New(slog.DiscardHandler)}
		s.add(0, "quitter", func(context.Context) error { return nil })
		require.EqualError(t, s.run(t.Context()), "quitter ended by itself")
	})
}
