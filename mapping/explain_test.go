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
