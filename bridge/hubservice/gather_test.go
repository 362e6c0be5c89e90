package hubservice

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// What the peer is slow to read waits and leaves in order; Close lets it leave.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		w := gather(near)
		var want []byte
		for n := range byte(100) {
			f := []byte{n, n, n}
			got, err := w.Write(f)
			require.NoError(t, err)
			require.Equal(t, len(f), got)
			want = append(want, f...)
			clear(f) // go-amqp uses its buffer again
		}
		closed := make(chan error, 1)
		go func() { closed <- w.Close() }()
		got, err := io.ReadAll(far)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		require.NoError(t, <-closed)
		_, err = w.Write([]byte("x"))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// A peer that reads nothing holds up the writer at a bound, and ends the connection in time.
func TestGatherHoldsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		w := gather(near)
		failed := make(chan error, 1)
		var written atomic.Int64
		go func() {
			for {
				n, err := w.Write(make([]byte, 1<<10))
				written.Add(int64(n))
				if err != nil {
					failed <- err
					return
				}
			}
		}()
		synctest.Wait()
		require.LessOrEqual(t, written.Load(), int64(2*gatherMost+2<<10))
		require.Empty(t, failed)
		require.Error(t, <-failed) // after writeTimeout, on the bubble's clock
		_, err := near.Read(make([]byte, 1))
		require.Error(t, err, "the reader finds out")
		_ = w.Close()
	})
}

// A cut ends what Close would wait for.
func TestGatherCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		w := gather(near)
		_, err := w.Write([]byte("nobody reads this"))
		require.NoError(t, err)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = w.Close()
		}()
		synctest.Wait()
		select {
		case <-closed:
			require.Fail(t, "closed with bytes left")
		default:
		}
		near.Close()
		<-closed
	})
}
