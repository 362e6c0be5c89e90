package bridgetest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
)

// Hub is an embedded hub that lives as long as its test.
type Hub struct {
	*emulator.Hub
	// ServiceConnectionString is that of the policy service.
	ServiceConnectionString string

	t testing.TB
}

// RunHub starts a hub on free ports of 127.0.0.1 with these devices registered.
func RunHub(t testing.TB, devices ...string) *Hub {
	t.Helper()
	return RunHubWith(t, emulator.Options{Devices: devices})
}

// RunHubWith starts a hub with these options; without a data directory it gets one of the test's.
func RunHubWith(t testing.TB, o emulator.Options) *Hub {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	h, err := emulator.Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	service, err := h.ConnectionString("service")
	require.NoError(t, err)
	return &Hub{Hub: h, ServiceConnectionString: service, t: t}
}

// DeviceConnectionString is the connection string of a device, registered or
// not. It hides the embedded hub's method, which returns an error besides.
func (h *Hub) DeviceConnectionString(id string) string {
	h.t.Helper()
	s, err := h.Hub.DeviceConnectionString(id)
	require.NoError(h.t, err)
	return s
}
