package mapping

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSubject(t *testing.T) {
	for in, want := range map[string]string{
		"cmd.{site}.{verb...}": "cmd.*.>", "cmd": "cmd", "cmd.*.x.>": "cmd.*.x.>", "{a}.{b_1}": "*.*", "{a...}": ">", "grüße.x": "grüße.x",
	} {
		got, err := Subject(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for in, want := range map[string]string{
		"":                "is empty",
		"a..b":            "token 2 is empty",
		".a":              "token 1 is empty",
		"a.":              "token 2 is empty",
		"a.>.b":           `">" is only allowed as the last token`,
		"a.{x...}.b":      "must be the last token; use {x} for one token",
		"a{x}":            "a capture is a whole token",
		"{x}b.c":          "a capture is a whole token",
		"{x}{y}":          "a capture is a whole token",
		"a*":              "a wildcard is a whole token",
		"a.{x":            "unclosed { at character 3",
		"a.x}":            "} without {",
		"a.{{x}}":         "a brace within a brace",
		"a.{x}.{x}":       "{x} is captured twice",
		"a.{X}":           "{X} is not a capture",
		"a.{}":            "{} is not a capture",
		"a.{1x}":          "is not a capture",
		`a.{header["x"]}`: "is not a capture",
		"a.{in}":          "keyword",
		"a.{payload}":     "already has a meaning",
		"a b":             "has a space",
		"a\tb":            "has a space",
		"a\x01":           "control character",
		"a.\xff":          "not valid UTF-8",
	} {
		_, err := Subject(in)
		require.ErrorContains(t, err, want, in)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestMatchAndCapture(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             []string // nil: no match
	}{
		{"cmd.{a}.{b...}", "cmd.x.y.z", []string{"x", "y.z"}},
		{"cmd.{a}.{b...}", "cmd.x", nil},
		{"cmd.{a}.{b...}", "cmd.x.y", []string{"x", "y"}},
		{"cmd.{a}", "cmd.x.y", nil},
		{"cmd.{a}", "cmd", nil},
		{"{a}.*.>", "p.q.r", []string{"p"}},
		{"{a}.*.>", "p.q", nil},
		{"a.b", "a.b", []string{}},
		{"a.b", "a.bc", nil},
		{"{x...}", "a", []string{"a"}},
	} {
		p, err := parsePattern(c.pattern)
		require.NoError(t, err)
		offs := splitSubject(c.subject, nil)
		require.Equal(t, c.want != nil, p.mismatch(c.subject, offs) == "", c)
		require.Equal(t, c.want != nil, matchSubject(strings.Split(p.filter, "."), c.subject), c)
		for i, want := range c.want {
			require.Equal(t, want, p.captures[i].of(c.subject, offs))
		}
	}
}

func TestSubjectToken(t *testing.T) {
	require.Equal(t, "berlin-pump_7", SubjectToken("berlin-pump_7"))
	require.Equal(t, "a%2Eb%20%2A%3E%25%C3%BC", SubjectToken("a.b *>%ü"))
	require.Empty(t, SubjectToken(""))
}

func TestCover(t *testing.T) {
	for _, c := range []struct {
		in   []string
		max  int
		want []string
	}{
		{nil, 4, []string{}},
		{[]string{"a.b", "a.*", "a.b"}, 4, []string{"a.*"}},
		{[]string{"a.>", "a.b.c", "b"}, 4, []string{"a.>", "b"}},
		{[]string{"a.*.c", "a.b.*"}, 4, []string{"a.*.*"}},
		{[]string{"a.*.c", "a.b.>"}, 4, []string{"a.*.>"}},
		{[]string{"a.b.c", "a.b.d", "a.c.e"}, 2, []string{"a.b.*", "a.c.e"}},
		{[]string{"a.b.c", "a.b.d", "a.c.e"}, 1, []string{"a.>"}},
		{[]string{"a.1", "a.2.x", "b"}, 2, []string{"a.>", "b"}},
		{[]string{"a", "b", "c"}, 2, []string{"*"}},
		{[]string{"a", "b.c"}, 0, []string{">"}},
	} {
		require.Equal(t, c.want, Cover(c.in, c.max), c)
	}
}

// Everything that the inputs take, the cover takes; no two of it overlap.
func TestCoverProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b", "c", "d"}
	subject := func(wild bool) string {
		n := 1 + rnd.IntN(5)
		tok := make([]string, n)
		for i := range tok {
			tok[i] = words[rnd.IntN(len(words))]
			if wild && rnd.IntN(5) == 0 {
				tok[i] = "*"
			}
		}
		if wild && rnd.IntN(5) == 0 {
			tok[n-1] = ">"
		}
		return strings.Join(tok, ".")
	}
	for range 3000 {
		in := make([]string, rnd.IntN(30))
		for i := range in {
			in[i] = subject(true)
		}
		most := 1 + rnd.IntN(8)
		got := Cover(in, most)
		rnd.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		require.Equal(t, got, Cover(in, most), "the order of %q is no matter", in)
		require.LessOrEqual(t, len(got), most)
		for i, a := range got {
			for _, b := range got[:i] {
				require.False(t, overlap(strings.Split(a, "."), strings.Split(b, ".")), "%v", got)
			}
		}
		for _, s := range in {
			require.True(t, coveredBy(s, got), "%s by %v", s, got)
		}
		for range 20 { // and in terms of messages, by the matcher instead of the set algebra
			m := subject(false)
			if coveredMessage(m, in) {
				require.True(t, coveredMessage(m, got), "%s: %v by %v", m, in, got)
			}
		}
		require.Equal(t, got, Cover(got, most))
	}
}

func coveredBy(s string, cover []string) bool {
	for _, c := range cover {
		if subset(strings.Split(s, "."), strings.Split(c, ".")) {
			return true
		}
	}
	return false
}

func coveredMessage(m string, patterns []string) bool {
	for _, p := range patterns {
		if matchSubject(strings.Split(p, "."), m) {
			return true
		}
	}
	return false
}

func TestCoverOfMany(t *testing.T) {
	var in []string
	for i := range 5000 {
		in = append(in, fmt.Sprintf("cmd.site%d.dev%d.go", i%100, i))
	}
	got := Cover(in, 256)
	require.LessOrEqual(t, len(got), 256)
	require.Greater(t, len(got), 200) // no wider than needed, give or take a group
}

func TestCoverOfVeryMany(t *testing.T) {
	var in []string
	for i := range 20_000 {
		in = append(in, fmt.Sprintf("cmd.site%d.fleet%d.*.>", i%300, i))
	}
	begin := spent(t)
	got := Cover(in, 256)
	require.Equal(t, []string{"cmd.>"}, got)
	require.Len(t, Cover(in[:256], 256), 256)
	require.Less(t, spent(t)-begin, 30*time.Second)
}
