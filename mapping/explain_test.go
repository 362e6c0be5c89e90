package mapping

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExplain(t *testing.T) {
	o := TableOptions{Name: "prod", Hubs: []HubOptions{{Name: "main"}}, LookupNames: []string{"groups"}, Lookups: StaticLookups{"groups": {"all": []any{"p1", "p2"}}}}
	table, err := Compile([]Route{
		{Name: "core", Subject: "cmd.>", Source: "core", Drop: "x"},
		{Name: "tests", Subject: "cmd.test.>", Drop: "tests"},
		{Name: "short", Subject: "cmd.*", Stream: "S", Device: "d"},
		{Name: "long", Subject: "cmd.*.*.*.*", Stream: "S", Device: "d"},
		{Name: "everyone", Subject: "cmd.{site}.>", Stream: "S", Devices: `{group("all")}`, Also: true, Properties: []PropertyRule{{Name: "t", Value: "to {target}"}}},
		{Name: "one", Subject: "cmd.{site}.{rest...}", Stream: "S", Device: "{site}", Coalesce: `{header["K"]}`, Message: MessageRule{UserID: "{json.user}"},
			Properties: []PropertyRule{{Name: "a", Value: `{header["A"] ?? "none"}/{upper(site)}`}, {Headers: "X-*"}}},
		{Name: "late", Subject: "cmd.>", Stream: "S", Device: "d"},
	}, o)
	require.NoError(t, err)
	in := input("cmd.berlin.a.b", "X-A", "1")
	in.Payload = []byte("no json")
	x := table.Explain(in)
	require.Equal(t, table.Map(in), x.Results)
	got, err := json.MarshalIndent(x, "", "\t")
	require.NoError(t, err)
	require.Equal(t, `{
	"routes": [
		{
			"route": "core",
			"subject": "cmd.\u003e",
			"matched": false,
			"why": "takes core NATS, not stream S"
		},
		{
			"route": "tests",
			"subject": "cmd.test.\u003e",
			"matched": false,
			"why": "token 2 is \"berlin\", not \"test\""
		},
		{
			"route": "short",
			"subject": "cmd.*",
			"matched": false,
			"why": "the subject has 4 tokens, the route's 2"
		},
		{
			"route": "long",
			"subject": "cmd.*.*.*.*",
			"matched": false,
			"why": "the subject has 4 tokens, the route's more"
		},
		{
			"route": "everyone",
			"subject": "cmd.{site}.\u003e",
			"matched": true,
			"captures": [
				{
					"name": "site",
					"value": "berlin"
				}
			],
			"values": [
				{
					"field": "devices",
					"expression": "group(\"all\")",
					"list": [
						"p1",
						"p2"
					]
				},
				{
					"field": "properties[0].value",
					"expression": "target",
					"text": "p1"
				}
			]
		},
		{
			"route": "one",
			"subject": "cmd.{site}.{rest...}",
			"matched": true,
			"captures": [
				{
					"name": "site",
					"value": "berlin"
				},
				{
					"name": "rest",
					"value": "a.b"
				}
			],
			"values": [
				{
					"field": "device",
					"expression": "site",
					"text": "berlin"
				},
				{
					"field": "message.user_id",
					"expression": "json.user",
					"error": "payload is not valid JSON near byte 2"
				},
				{
					"field": "coalesce",
					"expression": "header[\"K\"]",
					"absent": true
				},
				{
					"field": "properties[0].value",
					"expression": "header[\"A\"] ?? \"none\"",
					"text": "none"
				},
				{
					"field": "properties[0].value",
					"expression": "upper(site)",
					"text": "BERLIN"
				}
			]
		},
		{
			"route": "late",
			"subject": "cmd.\u003e",
			"matched": false,
			"why": "not tried: one took the message"
		}
	]
}`, string(got))

	x = table.Explain(input("prod.dead.x"))
	require.NotEmpty(t, x.Note)
	require.Empty(t, x.Results)
	require.Len(t, x.Routes, 7)
	in = input("cmd.a")
	in.Stream = "OTHER"
	require.Equal(t, "takes stream S, not OTHER", table.Explain(in).Routes[2].Why)
	in.Stream = ""
	require.Equal(t, "core", table.Explain(in).Results[0].Route)
	require.Equal(t, "takes stream S, not core NATS", func() string {
		in.Subject = "x"
		return table.Explain(in).Routes[2].Why
	}())
}

func TestSources(t *testing.T) {
	table, err := Compile([]Route{
		{Subject: "cmd.test.>", Drop: "tests"},
		{Subject: "cmd.*", Stream: "B", Device: "d", When: `header["X"] == "1"`},
		{Subject: "cmd.*", Stream: "A", Device: "d", When: `header["X"] != "3"`},
		{Subject: "cmd.*", Stream: "A", Device: "d"},
		{Subject: "ask.*", Source: "core", Device: "d"},
		{Subject: "ask.*", Stream: "B", Device: "d", When: "json?.a == 1"},
		{Subject: "hot", Stream: "B", Device: "d", When: "int(payload) > 1"},
		{Subject: "*.x", Stream: "C", Device: "d", Default: true},
	}, TableOptions{Name: "prod", Hubs: []HubOptions{{Name: "main"}}})
	require.NoError(t, err)
	sources := func(subject string, header ...string) []string { return table.Sources(input(subject, header...)) }
	require.Equal(t, []string{"B", "A"}, sources("cmd.a", "X", "1"), "in the order of the routes, each once")
	require.Equal(t, []string{"A"}, sources("cmd.a"))
	require.Equal(t, []string{"A"}, sources("cmd.x"), "a default route only if no other takes it")
	require.Equal(t, []string{"C"}, sources("other.x"))
	require.Equal(t, []string{""}, sources("ask.a"), "the other condition is not true")
	require.Equal(t, []string{"B"}, sources("hot"), "one whose condition fails makes it a dead letter of its own")
	require.Empty(t, sources("cmd.test.a"), "a drop without a source says nothing of it")
	require.Empty(t, sources("nobody"))
	require.Empty(t, sources("prod.dead.x"))

	only, err := Compile([]Route{{Subject: "a", Stream: "S", Device: "d", When: `header["X"] == "1"`}}, TableOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"S"}, only.Sources(input("a")), "the subject alone, so that its condition is told")
	in := input("a")
	in.Stream = "T"
	only.Sources(in)
	require.Equal(t, "T", in.Stream)
}
