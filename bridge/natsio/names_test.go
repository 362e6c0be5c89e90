package natsio

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b    string
		collide bool
	}{
		{"a.b", "a.b", true}, {"a.*", "a.b", true}, {"a.*.c", "a.b.*", true}, {"a.>", "a", false}, {"a.>", "a.b.c", true},
		{">", "x", true}, {"a.*", "b.*", false}, {"a.*", "a.b.c", false}, {"*.b", "a.*", true},
	} {
		require.Equal(t, c.collide, collide(c.a, c.b), "%s %s", c.a, c.b)
		require.Equal(t, c.collide, collide(c.b, c.a), "%s %s", c.a, c.b)
	}
	require.True(t, matches("a.*.c", "a.b.c"))
	require.True(t, matches("a.>", "a.b.c"))
	require.False(t, matches("a.>", "a"))
	require.False(t, matches("a.*", "a.b.c"))
	require.False(t, matches("a.b.c", "a.b"))
	require.Equal(t, []string{"a.*.*", "z"}, disjoint([]string{"a.*.c", "z", "a.b.*"}))
	require.Equal(t, []string{"a.>"}, disjoint([]string{"a.>", "a.b", "a.b.c"}))
	require.Equal(t, []string{"*.>"}, disjoint([]string{"*.b", "a.>", "*.*.c"}))
	require.Equal(t, []string{"a", "b"}, disjoint([]string{"b", "a", "b"}))
}

func TestCheckSubject(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\t", "a\x00"} {
		require.Error(t, checkSubject(s), fmt.Sprintf("%q", s))
	}
	for _, s := range []string{"a", "a.b", "a*.b", "é.%20"} {
		require.NoError(t, checkSubject(s), s)
	}
}
