package mapping

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a loop does in each round must not depend on the whole message.
func TestLoopsAreBounded(t *testing.T) {
	for expr, ok := range map[string]bool{
		`map(json, # + payload)`:                      false,
		`map(json, payload + "x")`:                    false,
		`filter(json, # in json)`:                     false,
		`filter(json, # in ["a", "b"])`:               true,
		`filter(json, # in lookup("t", "k"))`:         false,
		`map(json, sum(json))`:                        false,
		`map(json, replace(#, "a", "b"))`:             true,
		`map(json, replace(#, "a", header["X"]))`:     false,
		`map(json, sha256(#))`:                        true,
		`map(json, toJSON(json))`:                     false,
		`map(json, # + d)`:                            true,
		`map(json, upper(#.name) + "-" + subject)`:    true,
		`map(json, lookup("t", #))`:                   true,
		`filter(json, # != header["X"])`:              true,
		`filter(json, # matches header["X"])`:         false,
		`filter(json, # matches "^a")`:                true,
		`map(json, any(json, # == 1))`:                false,
		`let p = payload; map(json, # + p)`:           false,
		`map(json, 1..len(payload))`:                  false,
		`map(json, split(payload, ","))`:              false,
		`map(json, hasPrefix(payload, #))`:            true,
		`reduce(json, # + #acc)`:                      false,
		`map(map(json, upper(#)), # + "x")`:           true,
		`map(json, uniq(json))`:                       false,
		`map(json, len(payload))`:                     false,
		`map(json, len(#))`:                           true,
		`map(json, int(payload))`:                     false,
		`let n = len(json); filter(json, # > n)`:      true,
		`filter(json, payload contains #)`:            false,
		`filter(json, # contains header["X"])`:        true,
		`map(json, urlEncode(cloudevent["subject"]))`: false,

		`map(1..9, {json})`:                                  false,
		`map(1..9, {payload})`:                               false,
		`map(1..9, {headers})`:                               false,
		`map(1..9, {# > 3 ? # : header})`:                    false,
		`map(1..9, {# ?? json})`:                             false,
		`map(1..9, {[#, [json]]})`:                           false,
		`map(1..9, {{"a": payload}})`:                        false,
		`map(1..9, {let x = #; json})`:                       false,
		`count(1..9, {json == json})`:                        false,
		`count(1..9, {json.a == "x" || payload == json.b})`:  false,
		`count(1..9, {json.a != header["X"]})`:               true,
		`count(1..9, {header["X"] < header["Y"]})`:           true,
		`count(1..9, {json in [json]})`:                      false,
		`count(1..9, {json.a not in [1, json.b]})`:           true,
		`count(1..9, {json.a in ["x", "y"]})`:                true,
		`count(1..9, {payload matches "a$"})`:                false,
		`map(json.items, {#.id})`:                            true,
		`map(json.items, {json.site})`:                       true,
		`map(json.items, {{"id": #.id, "by": header["X"]}})`: true,
		`filter(json.items, {#.site == header["Site"]})`:     true,
		`filter(json.items, {json.kind == "all" || # == d})`: true,
		`any(json.tags, {# == "x"})`:                         true,
		`any(json.tags, {subject == header["X"]})`:           true,
		`map(json.items, {lookup("t", #.id) ?? #.id})`:       true,
		`map(headers["X"], {upper(#)})`:                      true,
	} {
		_, err := Compile([]Route{{Subject: "c.{d}", Stream: "S", Device: "d", Properties: []PropertyRule{{Name: "p", Value: "{toJSON(" + expr + ")}"}}}}, TableOptions{LookupNames: []string{"t"}})
		if strings.HasPrefix(expr, "let") {
			_, err = Compile([]Route{{Subject: "c.{d}", Stream: "S", Device: "d", Properties: []PropertyRule{{Name: "p", Value: "{" + expr + "[0]}"}}}}, TableOptions{LookupNames: []string{"t"}})
		}
		if ok {
			require.NoError(t, err, expr)
			continue
		}
		require.ErrorContains(t, err, "is not available", expr)
		require.NotContains(t, err.Error(), "\n")
	}
}

// The largest payloads, made to be slow, stay well below what a lane would notice.
func TestEvaluationIsBoundedInTime(t *testing.T) {
	list := "[" + strings.Repeat("1,", (MaxMessageSize-3)/2) + "1]"
	object := `{"a":[` + list[9:] + `}`
	deep := strings.Repeat("[", MaxMessageSize/2) + strings.Repeat("]", MaxMessageSize/2)
	for _, c := range []struct{ expr, payload string }{
		{`{len(uniq(map(json, string(#) + "x")))}`, list},
		{`{len(sort(json))}`, list},
		{`{count(json, # in [1, 2, 3] && string(#) matches "^(a|aa)+$")}`, list},
		{`{len(replace(payload, "1", payload))}`, list},
		{`{len(toJSON(json))}`, deep},
		{`{len(1..100000000)}`, list},
		{`{len(flatten(json))}`, deep},
		{`{payload matches payload}`, list},
		{`{len(flatten(map(1..90000, {[json[0], json[1]]})))}`, list},
		{`{len(toJSON(map(1..49000, {json.a})))}`, object},
		{`{median(map(1..49000, {json.a}))}`, object},
		{`{sum(map(1..49000, {get(json, "a")}), {sum(#)})}`, object},
		{`{max(map(1..49000, {first([json])}))}`, object},
		{`{count(1..49000, {json.a == json["a"]})}`, object},
		{`{count(1..49000, {json.a in [1, json["a"]]})}`, object},
		{`{max(map(1..49000, {json[# * 0]}))}`, "[" + list + "]"},
		{`{median(map(1..49000, {json.a}))}`, `{"a":[` + strings.Repeat("1,", 59) + `1]}`},
		{`{sum(map(1..49000, {json.a}), {len(#)})}`, `{"a":"` + strings.Repeat("x", 1000) + `"}`},
	} {
		in := input("c")
		in.Payload = []byte(c.payload)
		table := newTable(t, Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "p", Value: c.expr}}})
		begin := spent(t)
		require.Len(t, table.Map(in), 1)
		require.Less(t, spent(t)-begin, 5*time.Second, c.expr)
	}
}

// What a map gives in each round from outside of its loop is small; what it gives of its entries need not be.
func TestMapGivesLittleFromOutside(t *testing.T) {
	large := strings.Repeat("x", 2000)
	for expr, want := range map[string]string{
		`{toJSON(map(json.items, {{"id": #.id, "site": json.site, "by": header["X"]}}))}`:     `[{"by":"ann","id":1,"site":{"a":[1,2]}}]`,
		`{map(json.items, {json.large})[0]}`:                                                  "",
		`{map(json.items, {[json.list]})[0][0]}`:                                              "",
		`{len(map(json.items, {#.large})[0])}`:                                                "2000",
		`{len(flatten(map(json.items, {group(#.group)})))}`:                                   "100",
		`{count(json.items, {json.list == json["list"]})}`:                                    "",
		`{count(json.items, {json.site == json["site"] && json.list[#.id] == json.list[0]})}`: "1",
		`{map(json.items, {#.id > 0 ? json.list : 1})[0]}`:                                    "",
	} {
		in := input("c")
		in.Header = map[string][]string{"X": {"ann"}}
		in.Payload = []byte(`{"items":[{"id":1,"group":"g","large":"` + large + `"}],"site":{"a":[1,2]},"large":"` + large + `","list":[` + strings.Repeat("1,", 99) + `1]}`)
		table, err := Compile([]Route{{Subject: "c", Stream: "S", Device: "d", Properties: []PropertyRule{{Name: "p", Value: expr}}}},
			TableOptions{LookupNames: []string{"groups"}, Lookups: StaticLookups{"groups": {"g": slices.Repeat([]any{"d"}, 100)}}})
		require.NoError(t, err)
		r := table.Map(in)
		require.Len(t, r, 1)
		if want == "" {
			require.NotNil(t, r[0].Err, expr)
			require.ErrorContains(t, r[0].Err, "takes more than 1024 bytes from outside of the loop in each round", expr)
			continue
		}
		require.Nil(t, r[0].Err, expr)
		require.Equal(t, []Property{{Name: "p", Value: want}}, r[0].Envelope.Properties)
	}
}
