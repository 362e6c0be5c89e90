package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

func TestReferenceIsFresh(t *testing.T) {
	want, err := render("..", "../../../mapping")
	require.NoError(t, err)
	got, err := os.ReadFile("../REFERENCE.md")
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run go generate ./bridge/config")
}

func TestEveryFieldIsInThePage(t *testing.T) {
	require.Greater(t, len(config.Fields()), 70)
}
