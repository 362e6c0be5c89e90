package bridgetest

import (
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// HoldPort reserves a port of 127.0.0.1 for a server that ends and comes back during the test: by a socket that is bound
// and does not listen. Whoever connects meanwhile is refused, a server may listen there (Go sets SO_REUSEADDR, too), and
// the kernel gives the port to nobody else: neither to another listener nor to a connection, which would be one with
// itself if it is to this very port.
func HoldPort(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return name.(*syscall.SockaddrInet4).Port
}
