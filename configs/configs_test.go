package configs_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
	"downlink/configs"
)

func TestEveryFileLoads(t *testing.T) {
	entries, err := configs.Files.ReadDir(".")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(entries), 5)
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			c, err := config.Load(e.Name(), config.LoadOptions{SkipSecrets: true, NoEnvironment: true})
			require.NoError(t, err)
			require.Empty(t, c.Warnings)
		})
	}
}

// The demo has to run anywhere, beside anything: no fixed ports, no files.
func TestDemoNeedsNothing(t *testing.T) {
	c, err := config.Parse("demo.yaml", []byte(configs.Demo))
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:0", c.HTTP)
	require.Equal(t, "127.0.0.1:0", c.Bridge.NATS.Embedded.Listen)
	require.Equal(t, "127.0.0.1:0", c.Relay.NATS.Embedded.Listen)
	require.Len(t, c.Bridge.Hubs, 1)
	require.True(t, c.Bridge.Hubs[0].Embedded)
	require.Len(t, c.Relay.Devices, 2)
	for _, d := range c.Relay.Devices {
		require.NotEmpty(t, d.Embedded)
	}
}

func TestInitHasBothSides(t *testing.T) {
	c, err := config.Parse("init.yaml", []byte(configs.Init))
	require.NoError(t, err)
	require.NotNil(t, c.Bridge)
	require.NotNil(t, c.Relay)
}
