package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
	"downlink/configs"
)

func TestInit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my.yaml")
	got := cli(t, "init", path)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "wrote "+path)
	require.Contains(t, got.stdout, "downlink bridge -c "+path)
	c, err := config.Load(path, config.LoadOptions{SkipSecrets: true, NoEnvironment: true})
	require.NoError(t, err)
	require.NotNil(t, c.Bridge)
	require.NotNil(t, c.Relay)

	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	got = cli(t, "init", path)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "--force")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(b))

	require.Equal(t, exitOK, cli(t, "init", path, "--force").code)
	b, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, configs.Init, string(b))

	require.Equal(t, configs.Init, cli(t, "init", "-").stdout)
	require.Equal(t, exitFailed, cli(t, "init", filepath.Join(t.TempDir(), "no", "such", "dir.yaml")).code)
}
