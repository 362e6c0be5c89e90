package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

func TestReferenceIsFresh(t *testing.T) {
	want, err := render("..", "../../../mapping")
	require.NoError(t, err)
	got, err := os.ReadFile("../REFERENCE.md")
	require.NoError(t, err)
	have := strings.Split(string(got), "\n")
	for i, line := range strings.Split(want, "\n") {
		if i >= len(have) || have[i] != line {
			t.Fatalf("REFERENCE.md:%d is stale, run go generate ./bridge/config; it should be: %s", i+1, line)
		}
	}
	require.Len(t, string(got), len(want))
}

func TestEveryFieldIsInThePage(t *testing.T) {
	require.Greater(t, len(config.Fields()), 70)
}

func TestSchemaIsFresh(t *testing.T) {
	want, err := schema("..", "../../../mapping")
	require.NoError(t, err)
	got, err := os.ReadFile("../schema.json")
	require.NoError(t, err)
	require.Equal(t, string(want), string(got), "run go generate ./bridge/config")
	require.Equal(t, string(want), string(config.Schema()))
}
