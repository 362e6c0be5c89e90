package bridgetest

import (
	"net"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHoldPort: a server can come and go there, and between its lives nobody is let in.
func TestHoldPort(t *testing.T) {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(HoldPort(t)))
	for range 2 {
		_, err := net.Dial("tcp", addr)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		l, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, l.Close())
	}
}
