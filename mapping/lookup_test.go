package mapping

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLookup(t *testing.T) {
	l := StaticLookups{"aliases": {"pump": "berlin-7", "12": "twelve", "info": map[string]any{"site": "b"}}}
	value := func(expr string, header ...string) (string, bool) {
		table := withLookups(t, Route{Subject: "c.{a}", Device: "d", Properties: []PropertyRule{{Name: "v", Value: expr}}}, l)
		res := table.Map(input("c.pump", header...))
		require.Nil(t, res[0].Err, "%v", res[0].Err)
		if len(res[0].Envelope.Properties) == 0 {
			return "", false
		}
		return res[0].Envelope.Properties[0].Value, true
	}
	for expr, want := range map[string]string{
		`{lookup("aliases", a)}`:                          "berlin-7",
		`{lookup("aliases", "nobody") ?? "none"}`:         "none",
		`{lookup("aliases", 12)}`:                         "twelve",
		`{lookup("aliases", "info").site}`:                "b",
		`{lookup("aliases", header["X"]) ?? "no"}`:        "no",
		`{upper(lookup("aliases", lower("PUMP")))}`:       "BERLIN-7",
		`x{lookup("aliases", header["X"] ?? "pump")}`:     "xberlin-7",
		`{lookup("aliases", "nobody")?.site ?? "no one"}`: "no one",
	} {
		v, ok := value(expr)
		require.True(t, ok, expr)
		require.Equal(t, want, v, expr)
	}
	_, ok := value(`{lookup("aliases", "nobody")}`)
	require.False(t, ok, "absent is nil")

	table := withLookups(t, Route{Subject: "c.{a}", Device: `{lookup("aliases", a)}`}, l)
	require.Equal(t, "berlin-7", table.Map(input("c.pump"))[0].Envelope.Device)
	err := table.Map(input("c.who"))[0].Err
	require.Equal(t, ReasonAbsent, err.Reason)
	require.Equal(t, `route route-1: device: {lookup("aliases", a)} is absent; give it a default, such as {lookup("aliases", a) ?? "none"}`, err.Error())

	l["aliases"]["who"] = "berlin-8"
	require.Equal(t, "berlin-8", table.Map(input("c.who"))[0].Envelope.Device, "the value of now")
}

func TestLookupMistakes(t *testing.T) {
	for expr, want := range map[string]string{
		`{lookup("alias", d)}`:      `"alias" is not among the lookups: "aliases"`,
		`{group("x")}`:              `group() reads the lookup "groups", which is not there; lookups: "aliases"`,
		`{lookup(d, "x")}`:          "needs the lookup's name as a text in quotes",
		`{lookup("aliases")}`:       "not enough arguments",
		`{lookup("aliases", 1, 2)}`: "too many arguments",
	} {
		_, err := Compile([]Route{{Subject: "c.{d}", Stream: "S", Device: "{d}", Properties: []PropertyRule{{Name: "v", Value: expr}}}}, TableOptions{LookupNames: []string{"aliases"}})
		require.ErrorContains(t, err, want, expr)
	}
	_, err := Compile([]Route{{Subject: "c.{group}", Stream: "S", Devices: "{group(group)}"}}, TableOptions{LookupNames: []string{"groups"}})
	require.ErrorContains(t, err, "rename the capture")
	_, err = CompileRelay(RelayOptions{Subject: `edge.{lookup("aliases", device)}`})
	require.Error(t, err, "the device side has no lookups")
}

func TestParseLookup(t *testing.T) {
	want := map[string]any{"pump": "berlin-7", "007": "1e3", "fans": []any{"f1", "f2"}, "none": []any{}}
	for name, text := range map[string]string{
		"t.yaml": "pump: berlin-7\n007: 1e3\nfans: [f1, f2]\nnone: []\n",
		"t.YML":  "\ufeffpump: berlin-7\n007: 1e3\nfans:\n  - f1\n  - f2\nnone: []\n",
		"t.json": `{"pump":"berlin-7","007":"1e3","fans":["f1","f2"],"none":[]}`,
		"t.csv":  "# aliases\npump, berlin-7\n007,1e3\nfans,f1,f2,,\nnone,,\n",
	} {
		got, err := ParseLookup(name, []byte(text))
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
	}
	for name, texts := range map[string]map[string]string{
		"t.txt":  {"": `extension ".txt"`},
		"t.json": {"[1]": "holds no object", "{": "is not valid JSON near byte", `{"a": [1], "b": {"a": 1}, "a": 2}`: `"a" is a key already`},
		"t.csv":  {"a,b\nc\n": "line 2: has no value", "a,b\na,c\n": `line 2: "a" is a key already`, "a,\"b\n": "line", "a,\xff": "UTF-8"},
		"t.yaml": {"a: [": "line", "- a": "keys and values belong here", "a: 1\na: 2": "line 2: \"a\" is a key already", "[a]: b": "key must be plain text"},
	} {
		for text, want := range texts {
			_, err := ParseLookup(name, []byte(text))
			require.ErrorContains(t, err, want, name)
			require.NotContains(t, err.Error(), "\n")
		}
	}
	got, err := ParseLookup("t.yaml", nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestLookupValue(t *testing.T) {
	for text, want := range map[string]any{
		"berlin-7\n": "berlin-7", " a ": " a ", "": "", `["a","b"]`: []any{"a", "b"}, ` {"n":1} `: map[string]any{"n": 1}, "7": "7", "true": "true",
	} {
		v, err := LookupValue([]byte(text))
		require.NoError(t, err)
		require.Equal(t, want, v, text)
	}
	for _, text := range []string{"[1", "{", "\xff"} {
		_, err := LookupValue([]byte(text))
		require.Error(t, err)
	}
}

func FuzzParseLookup(f *testing.F) {
	f.Add("a.yaml", []byte("a: &x [b, *x]\n"))
	f.Add("a.csv", []byte("a,b\n\"c\",d,e\n"))
	f.Add("a.json", []byte(`{"a":["b",1,null]}`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		table, err := ParseLookup(name, b)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		for _, v := range table {
			if _, isList := asList(v); !isList {
				_, _, _ = valueText(v)
			}
		}
	})
}
