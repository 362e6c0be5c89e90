package config_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
)

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema()))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource("downlink.json", doc))
	s, err := c.Compile("downlink.json")
	require.NoError(t, err)
	return s
}

// asJSON is a YAML text as an editor sees it; false if it is no YAML.
func asJSON(t *testing.T, text []byte) (any, bool) {
	t.Helper()
	var v any
	if yaml.Unmarshal(text, &v) != nil {
		return nil, false
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, false // a key that is no text
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	require.NoError(t, err)
	return doc, true
}

// An editor with the schema marks nothing in a good file.
func TestSchemaTakesEveryExample(t *testing.T) {
	s := compiled(t)
	files := 0
	for _, pattern := range []string{"../../configs/*.yaml", "../../configs/*/*.yaml", "../../deploy/compose/*.yaml"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range found {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			if _, err := config.Load(file, config.LoadOptions{SkipSecrets: true, NoEnvironment: true}); err != nil {
				continue // not a configuration, such as the cases of an example
			}
			doc, ok := asJSON(t, b)
			require.True(t, ok, file)
			require.NoError(t, s.Validate(doc), file)
			files++
		}
	}
	require.GreaterOrEqual(t, files, 7)
}

// What only the decoder knows is taken as well: one text for a list, units, quoted numbers, an empty section.
func TestSchemaTakesWhatTheDecoderTakes(t *testing.T) {
	text := []byte(`
version: "1"
shutdown_grace: 1d12h
log:
bridge:
  name: 7
  nats: {url: nats://127.0.0.1:4222, user: 007, password_file: p}
  hubs: [{name: main, embedded: "true", window: "12", rate: 0.5, feedback: auto}]
  storage: {create: true, dead_max_bytes: 2 GiB, receipts_max_bytes: 1048576, dead_max_age: 500h}
  routes:
    - {name: a, subject: "a.{d}", source: core, device: "{d}", allow: "x", message: {ttl: 0}}
`)
	_, err := config.Parse("x.yaml", text)
	require.NoError(t, err)
	doc, ok := asJSON(t, text)
	require.True(t, ok)
	require.NoError(t, compiled(t).Validate(doc))
}

// A key that the decoder does not know, the schema does not either.
func TestSchemaRefusesUnknownKeys(t *testing.T) {
	s := compiled(t)
	found, err := filepath.Glob("testdata/bad/*.txt")
	require.NoError(t, err)
	refused := 0
	for _, file := range found {
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		if !strings.Contains(string(want), "unknown key") {
			continue
		}
		b, err := os.ReadFile(strings.TrimSuffix(file, "txt") + "yaml")
		require.NoError(t, err)
		doc, ok := asJSON(t, b)
		if !ok {
			continue // a duplicate key beside it, or no YAML
		}
		require.Error(t, s.Validate(doc), file)
		refused++
	}
	require.GreaterOrEqual(t, refused, 5)
	for _, text := range []string{"version: 1\nbrigde: {}\n", "version: 1\nbridge: {routes: [{subjekt: x}]}\n", "bridge: {}\n", "version: 1\nlog: text\n", "version: 2\nbridge: {}\n", "version: 1\nlog: {level: loud}\n", "version: 1\nshutdown_grace: ten\n"} {
		doc, ok := asJSON(t, []byte(text))
		require.True(t, ok)
		require.Error(t, s.Validate(doc), text)
	}
}
