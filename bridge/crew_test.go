package bridge

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What succeeds beside a job that goes on failing ends no streak: it is told once, and shown until it is over.
func TestCrewTellsAStreakOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var mended atomic.Bool
		c := &crew[string]{workers: 4, news: make(chan struct{}, 1), log: slog.New(slog.NewTextHandler(&log, nil)), what: "it is broken"}
		c.work = func(_ context.Context, j string) (bool, error) {
			if j == "bad" && !mended.Load() {
				return true, errors.New("full")
			}
			return false, nil
		}
		defer c.drain(t.Context())
		defer mended.Store(true) // or a failure would leave it trying
		c.add(t.Context(), "bad")
		for range 100 {
			time.Sleep(time.Second)
			c.add(t.Context(), "good")
			synctest.Wait()
			require.ErrorContains(t, c.ready(), "full")
		}
		require.Equal(t, 1, strings.Count(log.String(), "it is broken"), log.String())
		mended.Store(true)
		time.Sleep(time.Minute)
		require.NoError(t, c.ready())
		require.Equal(t, 1, strings.Count(log.String(), "over: it is broken"))
		c.add(t.Context(), "good")
		c.drain(t.Context())
		require.Equal(t, 2, strings.Count(log.String(), "it is broken"), log.String())
	})
}
