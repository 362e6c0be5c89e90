package mapping

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pick makes a subject or a pattern of a few tokens of a small alphabet.
func pick(r *rand.Rand, wild bool) string {
	var tokens []string
	for i := range 1 + r.IntN(4) {
		words := []string{"a", "b", "c"}
		if wild {
			words = append(words, "*", fmt.Sprintf("{x%d}", i))
			if r.IntN(6) == 0 {
				return strings.Join(append(tokens, ">"), ".")
			}
		}
		tokens = append(tokens, words[r.IntN(len(words))])
	}
	return strings.Join(tokens, ".")
}

// The trie finds what trying one pattern after the other finds, in the same order.
func TestTrieFindsWhatALoopFinds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var patterns []*pattern
		var tr trie
		for i := range 1 + r.IntN(40) {
			p, err := parsePattern(pick(r, true))
			require.NoError(t, err)
			patterns = append(patterns, p)
			tr.insert(p, int32(i))
		}
		for range 50 {
			subject := pick(r, false)
			offs := splitSubject(subject, nil)
			after := int32(-1)
			for i, p := range patterns {
				if p.mismatch(subject, offs) == "" {
					require.Equal(t, int32(i), tr.next(subject, offs, after), "%s after %d", subject, after)
					after = int32(i)
				}
			}
			require.Equal(t, int32(noRoute), tr.next(subject, offs, after))
		}
		for i, p := range patterns {
			want := int32(noRoute)
			for j, q := range patterns[:i] {
				if j%3 != 0 && subset(strings.Split(p.filter, "."), strings.Split(q.filter, ".")) {
					want = int32(j)
					break
				}
			}
			require.Equal(t, want, tr.cover(p, int32(i), func(j int32) bool { return j%3 != 0 }), "%s", p.filter)
		}
	}
}

func TestConditions(t *testing.T) {
	table := newTable(t,
		Route{Name: "urgent", Subject: "c.{d}", Device: "urgent", When: `header["Kind"] == "urgent"`},
		Route{Name: "other", Subject: "c.{d}", Device: "other", When: `header["Kind"] != "normal"`},
		Route{Name: "json", Subject: "c.{d}", Device: "json", When: `json?.kind == "j"`},
		Route{Name: "flag", Subject: "c.{d}", Device: "flag", When: `json?.flag`},
		Route{Name: "both", Subject: "c.{d}", Device: "both", When: `d in ["a", "b"] && len(payload) > 3 && sequence == 7`},
		Route{Name: "bad", Subject: "c.bad", Device: "bad", When: `json.kind == "j"`},
		Route{Name: "rest", Subject: "c.*", Device: "rest"},
	)
	for _, c := range []struct{ subject, kind, payload, want string }{
		{"c.x", "urgent", "", "urgent"}, {"c.x", "-", "", "other"}, {"c.x", "odd", "", "other"}, {"c.x", "normal", "", "rest"},
		{"c.x", "normal", `{"kind":"j"}`, "json"}, {"c.x", "normal", `{"flag":true}`, "flag"}, {"c.x", "normal", `{"flag":false}`, "rest"},
		{"c.x", "normal", `{"flag":"true"}`, "!bad-expression"}, {"c.a", "normal", "long enough", "both"}, {"c.a", "normal", "no", "rest"},
		{"c.bad", "normal", "no json", "!bad-expression"}, {"c.bad", "normal", `{}`, "rest"},
	} {
		in := input(c.subject)
		if c.kind != "-" {
			in = input(c.subject, "Kind", c.kind)
		}
		in.Payload = []byte(c.payload)
		require.Equal(t, []string{c.want}, devicesOf(table.Map(in)), "%+v", c)
		require.Equal(t, table.Map(in), table.Explain(in).Results)
	}
	in := input("c.x", "Kind", "normal")
	in.Payload = []byte(`{"flag":"true"}`)
	err := table.Map(in)[0].Err
	require.EqualError(t, err, "route flag: when: {json?.flag}: gives neither true nor false")
	in.Header["Downlink-Via"] = []string{"prod"}
	require.Equal(t, []string{"-loop"}, devicesOf(table.Map(in)))
}

func TestConditionsThatFailStopTheMessage(t *testing.T) {
	r := Route{Name: "a", Subject: "c", Device: "a", When: "json.x.y == 1"}
	rest := Route{Name: "b", Subject: "c", Device: "b"}
	require.Equal(t, []string{"!bad-expression"}, devicesOf(newTable(t, r, rest).Map(input("c"))))
	r.Also = true
	require.Equal(t, []string{"!bad-expression", "b"}, devicesOf(newTable(t, r, rest).Map(input("c"))))
}

func TestDefaultRoutes(t *testing.T) {
	table := newTable(t,
		Route{Name: "rest", Stream: "S", Default: true, Device: "rest"},
		Route{Name: "never", Stream: "S", Default: true, Drop: "never"},
		Route{Name: "audit", Subject: "c.audit.>", Also: true, Device: "audit"},
		Route{Name: "one", Subject: "c.{d}", Device: "{d}", When: `d != "x"`},
		Route{Name: "core", Source: "core", Subject: "c.>", Default: true, Drop: "core"},
	)
	require.Equal(t, []string{"a"}, devicesOf(table.Map(input("c.a"))))
	require.Equal(t, []string{"rest"}, devicesOf(table.Map(input("c.x"))))
	require.Equal(t, []string{"rest"}, devicesOf(table.Map(input("anything.at.all"))))
	require.Equal(t, []string{"audit"}, devicesOf(table.Map(input("c.audit.x"))), "it was taken")
	in := input("c.x")
	in.Stream = ""
	require.Equal(t, []string{"-core"}, devicesOf(table.Map(in)))
	for _, s := range []string{"c.a", "c.x", "other", "c.audit.x"} {
		require.Equal(t, table.Map(input(s)), table.Explain(input(s)).Results, s)
	}
	x := table.Explain(input("c.audit.x"))
	require.Equal(t, "not tried: audit took the message", x.Routes[0].Why)
	require.Equal(t, "when is not true", table.Explain(input("c.x")).Routes[3].Why)
	require.Equal(t, []string{">", "c.audit.>", "c.*"}, table.Subjects("S"))

	w := table.Warnings()
	require.Len(t, w, 1)
	require.EqualError(t, w[0], `routes[1].subject: ">": no message ever gets here: routes[0] (rest) takes all of them; put this route before it, or set also: true there`)
	w = newTable(t, Route{Name: "rest", Stream: "S", Default: true, Device: "rest"}, Route{Name: "all", Subject: ">", Device: "a", Also: true}).Warnings()
	require.Len(t, w, 1)
	require.ErrorContains(t, w[0], "leaves nothing for a default")
	require.Empty(t, newTable(t, Route{Subject: ">", Device: "a", When: "sequence > 3"}, Route{Subject: "c", Device: "a"}).Warnings())
}

func TestDeny(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Allow: []string{"a*"}, Deny: []string{"*9", "ax"}}
	table := newTable(t, r)
	for d, want := range map[string]string{"a1": "a1", "a9": "a9!not-allowed", "ax": "ax!not-allowed", "axx": "axx", "b": "b!not-allowed"} {
		require.Equal(t, []string{want}, devicesOf(table.Map(input("c."+d))), d)
	}
	r.Allow = nil
	require.Equal(t, []string{"b"}, devicesOf(newTable(t, r).Map(input("c.b"))))
}
