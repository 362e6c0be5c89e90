package mapping

import (
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
		{`{len(flatten(map(1..90000, {json})))}`, list},
		{`{len(toJSON(map(1..90000, {json})))}`, list},
		{`{len(toJSON(map(1..90000, {{"a": payload}})))}`, list},
	} {
		in := input("c")
		in.Payload = []byte(c.payload)
		table := newTable(t, Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "p", Value: c.expr}}})
		begin := time.Now()
		require.Len(t, table.Map(in), 1)
		require.Less(t, time.Since(begin), 5*time.Second, c.expr)
	}
}
