package c2d

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMatchID(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		want        bool
	}{
		{"", "anything", true}, {"*", "anything", true}, {"d1", "d1", true}, {"d1", "d10", false}, {"d1", "D1", false},
		{"pump-*", "pump-", true}, {"pump-*", "pump-7", true}, {"pump-*", "a-pump-7", false}, {"*-7", "pump-7", true},
		{"*-7", "pump-77", false}, {"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "a1b2b3c", true}, {"a*b*c", "acb", false},
		{"a**b", "ab", true}, {"*b*b", "ab", false}, {"a*b", "a*b", true}, {"a.c", "abc", false},
	} {
		require.Equal(t, c.want, MatchID(c.pattern, c.id), "%q %q", c.pattern, c.id)
	}
}
