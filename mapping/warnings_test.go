package mapping

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestShadowedRoutes(t *testing.T) {
	for _, c := range []struct {
		earlier, later Route
		shadowed       bool
	}{
		{Route{Subject: "a.>", Stream: "S", Device: "d"}, Route{Subject: "a.{x}.b", Stream: "S", Device: "d"}, true},
		{Route{Subject: "a.*", Stream: "S", Device: "d"}, Route{Subject: "a.>", Stream: "S", Device: "d"}, false},
		{Route{Subject: "a.*", Stream: "S", Device: "d", Also: true}, Route{Subject: "a.*", Stream: "S", Device: "d"}, false},
		{Route{Subject: "a.*", Stream: "S", Device: "d"}, Route{Subject: "a.*", Source: "core", Device: "d"}, false},
		{Route{Subject: "a.*", Stream: "S", Device: "d"}, Route{Subject: "a.*", Drop: "x"}, false},
		{Route{Subject: "a.*", Drop: "x"}, Route{Subject: "a.b", Drop: "y"}, true},
		{Route{Subject: "a.*", Source: "core", Drop: "x"}, Route{Subject: "a.b", Source: "core", Device: "d"}, true},
	} {
		table, err := Compile([]Route{c.earlier, c.later}, TableOptions{})
		require.NoError(t, err)
		if !c.shadowed {
			require.Empty(t, table.Warnings())
			continue
		}
		require.Len(t, table.Warnings(), 1)
		require.Equal(t, "routes[1].subject", table.Warnings()[0].Path)
	}
}

func TestDoubledBraces(t *testing.T) {
	for _, text := range []string{"{{x}}", "a {{ .Device }}", "{{$x}}", "{x}{{y}}"} {
		require.NotEmpty(t, doubledBraces(text), text)
	}
	for _, text := range []string{"", "{x}", "{{{x}}}", `{{"a": 1}}`, "{{}}", "{{", `{{"a": "{x}"}}`} {
		require.Empty(t, doubledBraces(text), text)
	}
}
