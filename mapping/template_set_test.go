package mapping

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTemplates(t *testing.T) {
	compile := func(templates []Template, routes ...Route) (*Table, error) {
		for i := range routes {
			routes[i].Stream = "S"
		}
		return Compile(routes, TableOptions{Templates: templates})
	}
	common := Template{Name: "common", Properties: []PropertyRule{{Name: "site", Value: "{site}"}, {Name: "Env", Value: "prod"}, {Headers: "X-*"}}}
	user := Template{Name: "user", Properties: []PropertyRule{{Name: "user", Value: `{header["User"]}`}}}
	table, err := compile([]Template{common, user},
		Route{Subject: "c.{site}", Device: "d", Use: []string{"user", "common"}, Properties: []PropertyRule{{Name: "env", Value: "test"}, {Name: "own", Value: "1"}}},
		Route{Subject: "d.{site}.x", Device: "d", Use: []string{"common"}},
	)
	require.NoError(t, err)
	require.Empty(t, table.Warnings())
	require.Equal(t, []Property{{Name: "user", Value: "ann"}, {Name: "site", Value: "b"}, {Name: "X-A", Value: "1"}, {Name: "env", Value: "test"}, {Name: "own", Value: "1"}},
		table.Map(input("c.b", "User", "ann", "X-A", "1"))[0].Envelope.Properties)
	require.Equal(t, []Property{{Name: "site", Value: "m"}, {Name: "Env", Value: "prod"}}, table.Map(input("d.m.x"))[0].Envelope.Properties)

	// A mistake stands where the template is, once, whoever uses it.
	_, err = compile([]Template{common}, Route{Subject: "c.{place}", Device: "d", Use: []string{"common"}}, Route{Subject: "d.{place}", Device: "d", Use: []string{"common"}})
	require.EqualError(t, err, `templates[0].properties[0].value: {site}: at character 1: unknown name site; known here: cloudevent, header, json, payload, place, sequence, stream, subject, target, time (as used by routes[0])`)
	_, err = compile([]Template{common, {Name: "more", Properties: []PropertyRule{{Name: "SITE", Value: "x"}}}}, Route{Subject: "c.{site}", Device: "d", Use: []string{"common", "more"}})
	require.ErrorContains(t, err, `templates[1].properties[0].name: "SITE" is set twice`)
	_, err = compile([]Template{{Name: "a", Properties: []PropertyRule{{Name: "x", Value: "{"}}}, {Name: "a"}, {}}, Route{Subject: "c", Device: "d", Use: []string{"a"}})
	require.EqualError(t, err, `templates[0].properties[0].value: "{": unclosed { at character 1; write {{ for a literal brace
templates[1].name: "a" is the name of templates[0] too; give each template its own
templates[2].name: is missing; routes name it in use`)

	table, err = compile([]Template{user}, Route{Subject: "c", Device: "d"})
	require.NoError(t, err)
	require.Len(t, table.Warnings(), 1)
	require.EqualError(t, table.Warnings()[0], `templates[0].name: "user": no route uses it`)
	table, err = compile([]Template{{Name: "bad", Properties: []PropertyRule{{Name: "p", Value: "{payload}"}}}}, Route{Subject: "c", Device: "d", Use: []string{"bad"}})
	require.NoError(t, err)
	in := input("c")
	in.Payload = []byte("\x01")
	require.Equal(t, "templates[0].properties[0].value", table.Map(in)[0].Err.Field)
}

func TestCloudEvents(t *testing.T) {
	r := Route{Subject: "c", Device: "d", Properties: []PropertyRule{
		{Name: "type", Value: "{cloudevent.type}"}, {Name: "src", Value: `{cloudevent["source"]}`}, {Name: "ext", Value: `{upper(cloudevent.tenant ?? "none")}`},
		{Name: "ct", Value: "{cloudevent.datacontenttype}"}, {Name: "n", Value: "{len(cloudevent)}"},
	}}
	value := func(header ...string) map[string]string {
		m := map[string]string{}
		for _, p := range envelope(t, r, input("c", header...)).Properties {
			m[p.Name] = p.Value
		}
		return m
	}
	event := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-type", "com.example.a", "ce-source", "/a%20b%25", "ce-tenant", "acme"}
	require.Equal(t, map[string]string{"type": "com.example.a", "src": "/a b%", "ext": "ACME", "n": "5"}, value(event...))
	require.Equal(t, map[string]string{"type": "com.example.a", "src": "/a b%", "ext": "ACME", "n": "6", "ct": "text/plain"}, value(append(event, "Content-Type", "text/plain")...))
	require.Empty(t, envelope(t, Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "x", Value: "{cloudevent.Type}"}}}, input("c", event...)).Properties)
	require.Equal(t, "a/b", value(append(event, "Content-Type", "text/plain", "ce-datacontenttype", "a/b")...)["ct"])
	require.Equal(t, map[string]string{"type": "t", "ext": "NONE", "n": "2", "src": "%zz"}, func() map[string]string {
		m := value("Ce-Specversion", "1.0", "Ce-Type", "t", "CE-SOURCE", "%zz")
		require.Equal(t, "3", m["n"])
		m["n"] = "2"
		return m
	}(), "letter case is no matter, and what is not encoded stays")
	require.Equal(t, map[string]string{"ext": "NONE", "n": "0"}, value("ce-type", "t", "Content-Type", "x"), "without specversion it is none")
}

func TestFunctions(t *testing.T) {
	for expr, want := range map[string]string{
		`{sha256("a")}`:                          "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
		`{hex("aé")}`:                            "61c3a9",
		`{fromHex("61c3a9")}`:                    "aé",
		`{urlEncode("a b/ü~%")}`:                 "a%20b%2F%C3%BC~%25",
		`{urlDecode("a%20b")}`:                   "a b",
		`{toBase64("a?")}`:                       "YT8=",
		`{fromBase64("YT8=")}`:                   "a?",
		`{bucket("pump7", 10)}`:                  "6",
		`{join(uniq(split("a,b,a", ",")), "-")}`: "a-b",
		`{len(uniq(json.list))}`:                 "3",
		`{upper("a")}{lower("B")}`:               "Ab",
	} {
		in := input("c")
		in.Payload = []byte(`{"list":[1,"1",1,null,null]}`)
		require.Equal(t, want, envelope(t, Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "v", Value: expr}}}, in).Properties[0].Value, expr)
	}
	for _, expr := range []string{`{fromHex("x")}`, `{urlDecode("%")}`, `{fromBase64("?")}`, `{bucket("a", 0)}`, `{uniq(json.deep)[0]}`, `{sha256(header["X"])}`} {
		in := input("c")
		in.Payload = []byte(`{"deep":[[1]]}`)
		require.Equal(t, ReasonExpression, routeError(t, Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "v", Value: expr}}}, in).Reason, expr)
	}
}
