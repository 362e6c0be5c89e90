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
		{Route{Subject: "a.{x}", When: "true", Stream: "S", Device: "d"}, Route{Subject: "a.b", Stream: "S", Device: "d"}, true},
		{Route{Subject: "a.{x}", When: `x == "1"`, Stream: "S", Device: "d"}, Route{Subject: "a.{x}", When: `x == "1"`, Stream: "S", Device: "d"}, true},
		{Route{Subject: "a.{x}", When: `x == "1"`, Stream: "S", Device: "d"}, Route{Subject: "a.{x}", When: `x == "2"`, Stream: "S", Device: "d"}, false},
		{Route{Subject: "a.{x}.{y}", When: `x == "1"`, Stream: "S", Device: "d"}, Route{Subject: "a.{y}.{x}", When: `x == "1"`, Stream: "S", Device: "d"}, false},
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

func TestNeverTrue(t *testing.T) {
	table, err := Compile([]Route{{Subject: "a.*", When: "false", Drop: "x"}, {Subject: "a.b", Drop: "y"}}, TableOptions{})
	require.NoError(t, err)
	require.Len(t, table.Warnings(), 1, "and it takes nothing from the second")
	require.EqualError(t, table.Warnings()[0], `routes[0].when: "false": no message ever gets here, since it is never true; remove the route`)
}

func TestDoubledBraces(t *testing.T) {
	for _, text := range []string{"{{x}}", "a {{ .Device }}", "{{$x}}", "{x}{{y}}"} {
		require.NotEmpty(t, doubledBraces(text), text)
	}
	for _, text := range []string{"", "{x}", "{{{x}}}", `{{"a": 1}}`, "{{}}", "{{", `{{"a": "{x}"}}`} {
		require.Empty(t, doubledBraces(text), text)
	}
}

// Wherever a template is: as a mistake where braces are never legal, else as a warning.
func TestDoubledBracesEverywhere(t *testing.T) {
	route := Route{
		Subject: "a.{x}", Stream: "S", Device: "{x}", Use: []string{"set"}, Coalesce: "{{x}}",
		Message:    MessageRule{MessageID: "{{x}}", CorrelationID: "{{x}}", UserID: "{{x}}", ContentType: "{{x}}", ContentEncoding: "{{x}}"},
		Properties: []PropertyRule{{Name: "own", Value: "{{x}}"}},
	}
	set := Template{Name: "set", Properties: []PropertyRule{{Name: "p", Value: "{{x}}"}, {Headers: "X-*", Strip: "Y-"}}}
	table, err := Compile([]Route{route}, TableOptions{Templates: []Template{set}})
	require.NoError(t, err)
	var paths []string
	for _, w := range table.Warnings() {
		paths = append(paths, w.Path)
	}
	require.Equal(t, []string{
		"routes[0].message.message_id", "routes[0].message.correlation_id", "routes[0].message.user_id",
		"routes[0].message.content_type", "routes[0].message.content_encoding", "routes[0].coalesce",
		"routes[0].properties[0].value", "templates[0].properties[0].value", "templates[0].properties[1].strip",
	}, paths)
	for field, r := range map[string]Route{
		"hub":     {Subject: "a.{x}", Stream: "S", Device: "{x}", Hub: "{{x}}"},
		"device":  {Subject: "a.{x}", Stream: "S", Device: "{x}-{{x}}"},
		"devices": {Subject: "a.{x}", Stream: "S", Devices: "{x},{{x}}"},
	} {
		_, err := Compile([]Route{r}, TableOptions{Hubs: []HubOptions{{Name: "main"}}})
		require.ErrorContains(t, err, "routes[0]."+field+": \"", field)
		require.ErrorContains(t, err, "doubled braces stand for literal ones", field)
	}
}
