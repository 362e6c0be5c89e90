package emulator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPortsThatTheSDKsInsistOn(t *testing.T) {
	require.Contains(t, fixedPort("https", "127.0.0.1:443"), "REST and WebSocket at 443 alone")
	require.Contains(t, fixedPort("amqps", ":5671"), "AMQP at 5671 alone")
	require.Contains(t, fixedPort("mqtts", "[::]:8883"), "MQTT at 8883 alone")
	for _, address := range []string{"127.0.0.1:8443", "127.0.0.1:0", "nowhere"} {
		require.Empty(t, fixedPort("https", address))
	}
}
