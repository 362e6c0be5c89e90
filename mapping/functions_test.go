package mapping

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFunctionsPage: the table of functions in docs/mapping.md has all that there are, no others, and each as it may be written.
func TestFunctionsPage(t *testing.T) {
	b, err := os.ReadFile("../docs/mapping.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(b), "\n## What an expression can use\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	_, table, found := strings.Cut(section, "|---|---|\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n\n")

	var names []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(table, -1) {
		name, _, _ := strings.Cut(m[1], "(")
		if !strings.HasPrefix(name, "time.") {
			names = append(names, name)
		}
		_, err := Compile([]Route{{Subject: "c.{site}.{device}", Stream: "S", Device: "d", Properties: []PropertyRule{{Name: "p", Value: "{toJSON(" + m[1] + ")}"}}}},
			TableOptions{LookupNames: []string{"aliases", "groups"}})
		require.NoError(t, err, m[1])
	}
	slices.Sort(names)
	known := slices.Sorted(slices.Values(slices.Concat(builtins, functionNames)))
	require.Equal(t, known, slices.Compact(names))
}
