package config_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

var update = flag.Bool("update", false, "write the expected errors beside the wrong configurations")

// TestWrong holds one wrong configuration a rule against the message that an
// operator gets.
func TestWrong(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	require.NoError(t, err)
	require.Greater(t, len(files), 40)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			c, err := config.Parse(filepath.Base(file), b)
			require.Nil(t, c)
			require.Error(t, err)
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
			require.NotContains(t, got, "c2VjcmV0", "a secret")
		})
	}
}

func TestErrorsArePlaced(t *testing.T) {
	_, err := config.Parse("x.yaml", []byte("version: 1\nrelay:\n  nmae: x\n"))
	var e *config.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "x.yaml", e.File)
	require.NotZero(t, e.Line)
	require.NotEmpty(t, e.Path)
	for _, one := range list(err) {
		require.ErrorAs(t, one, &e)
	}
}

func list(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	return []error{err}
}
