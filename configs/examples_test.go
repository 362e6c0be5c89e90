package configs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
	"downlink/bridge/dryrun"
)

// TestExamples holds every example to its cases, and each of its routes to at least one.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.yaml")
	require.NoError(t, err)
	page, err := os.ReadFile("examples/README.md")
	require.NoError(t, err)
	examples := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".test.yaml") {
			require.FileExists(t, strings.TrimSuffix(file, ".test.yaml")+".yaml", "cases without an example")
			continue
		}
		examples++
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(text), "# "), "an example begins with its idea")
			require.Contains(t, string(page), "["+name+"]("+name+".yaml)", "the README lists it")
			c, err := config.Load(file, config.LoadOptions{SkipSecrets: true, NoEnvironment: true})
			require.NoError(t, err)
			require.Empty(t, c.Warnings)

			f, err := dryrun.Read("examples/" + name + ".test.yaml")
			require.NoError(t, err)
			require.Empty(t, f.Unreached(), "routes without a case")
			require.GreaterOrEqual(t, len(f.Cases), 2)
			for _, r := range f.Run() {
				require.Empty(t, r.Diffs, "line %d: %s", r.Line, r.Name)
			}
			same, changed, err := f.Update()
			require.NoError(t, err)
			require.Zero(t, changed)
			cases, err := os.ReadFile("examples/" + name + ".test.yaml")
			require.NoError(t, err)
			require.Equal(t, string(cases), same, "an update of what is right changes nothing")
		})
	}
	require.GreaterOrEqual(t, examples, 20)
}
