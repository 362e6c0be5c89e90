package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/hubbench"
)

func TestBenchHub(t *testing.T) {
	got := cli(t, "bench", "hub", "--messages", "500", "--pairs", "2", "--json")
	require.Zero(t, got.code, got.stderr)
	var r hubbench.Result
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	require.Len(t, r.Pairs, 2)
	require.Equal(t, 512, r.Window)

	got = cli(t, "bench", "hub", "--messages", "500", "--pairs", "1")
	require.Zero(t, got.code, got.stderr)
	require.Regexp(t, `(?m)^pair 1 +hub +\d+/s +sink +\d+/s +hub/sink \d+\.\d\d$`, got.stdout)
	require.Regexp(t, `(?m)^median +hub .*hub/sink \d+\.\d\d \(`, got.stdout)
}

func TestBenchHubWrongUse(t *testing.T) {
	for _, args := range [][]string{
		{"bench"}, {"bench", "hub", "--pairs", "0"}, {"bench", "hub", "--messages", "-1"}, {"bench", "hub", "--devices", "3"}, {"bench", "hub", "x"},
	} {
		require.Equal(t, 2, cli(t, args...).code, args)
	}
}
