//go:build !linux

package bridgetest

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// HoldPort finds a free port of 127.0.0.1; only on Linux it is kept from others as well.
func HoldPort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
