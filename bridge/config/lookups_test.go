package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

func TestLookupFiles(t *testing.T) {
	dir := folder(t, map[string]string{"hub": service, "tables/aliases.csv": "pump,berlin-7\n", "c.yaml": `version: 1
bridge:
  hubs: [{connection_string_file: hub}]
  lookups:
    - {name: aliases, file: tables/aliases.csv}
  routes: [{subject: "cmd.{alias}", stream: C, device: '{lookup("aliases", alias)}'}]
`})
	file := filepath.Join(dir, "c.yaml")
	c, err := config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "tables/aliases.csv"), c.Bridge.Lookups[0].File, "relative to the configuration")

	table := filepath.Join(dir, "tables/aliases.csv")
	require.NoError(t, os.WriteFile(table, []byte("pump,berlin-7\nfan\n"), 0o600))
	_, err = config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.EqualError(t, err, file+":5: bridge.lookups[0].file: "+table+": line 2: has no value; write key,value")
	_, err = config.Load(file, config.LoadOptions{NoEnvironment: true, SkipSecrets: true})
	require.NoError(t, err, "what looks at the configuration alone reads no other file")
	require.NoError(t, os.Remove(table))
	_, err = config.Load(file, config.LoadOptions{NoEnvironment: true})
	require.EqualError(t, err, file+":5: bridge.lookups[0].file: cannot read "+table+": no such file or directory")
}
