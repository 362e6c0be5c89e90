package mapping

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// value evaluates one property over a message with the given payload.
func value(t *testing.T, tmpl, payload string, header ...string) (Result, string, bool) {
	t.Helper()
	in := input("c.berlin.p7.motor.start", header...)
	in.Payload = []byte(payload)
	res := newTable(t, Route{Subject: "c.{site}.{device}.{verb...}", Device: "d", IllegalValues: "encode",
		Properties: []PropertyRule{{Name: "v", Value: tmpl}}}).Map(in)[0]
	if res.Envelope == nil || len(res.Envelope.Properties) == 0 {
		return res, "", false
	}
	return res, res.Envelope.Properties[0].Value, true
}

func TestExpressions(t *testing.T) {
	const payload = `{"n":9007199254740993,"big":18446744073709551616,"f":1.50,"e":1e3,"small":1e-7,"b":true,"s":"x","z":null,"l":["p","q"],"o":{"k":{"d":1}},"neg":-3}`
	for tmpl, want := range map[string]string{
		"{site}":                              "berlin",
		"{ verb }":                            "motor.start",
		"{site}-{device}":                     "berlin-p7",
		"{{{site}}}":                          "{berlin}",
		"{{site}}":                            "{site}",
		"{subject}":                           "c.berlin.p7.motor.start",
		"{stream}:{sequence}":                 "S:7",
		"{time}":                              "2025-03-04T05:06:07.891234567Z",
		`{time.Format("2006-01-02")}`:         "2025-03-04",
		"{time.Unix()}":                       "1741064767",
		`{header["X"]}`:                       "1",
		`{header.X}`:                          "1",
		`{header["X"] + "}"}`:                 "1}",
		`{header['X'] == "1" ? "one" : '{'}`:  "one",
		"{`}` + `a``b`}":                      "}a`b",
		`{site /* } */}`:                      "berlin",
		`{ {"a": {"b": "c"}}.a.b }`:           "c",
		`{upper(site)}`:                       "BERLIN",
		`{header["None"] ?? "d"}`:             "d",
		`{(header["None"] ?? site) + "!"}`:    "berlin!",
		"{json.n}":                            "9007199254740993",
		"{json.n + 1}":                        "9007199254740994",
		"{json.big}":                          "18446744073709551616",
		"{json.f}":                            "1.5",
		"{json.e}":                            "1000",
		"{json.small}":                        "1e-7",
		"{json.b}":                            "true",
		"{not json.b}":                        "false",
		"{json.neg}":                          "-3",
		`{json["o"].k.d}`:                     "1",
		`{json.none?.deep ?? "d"}`:            "d",
		`{join(json.l, "+")}`:                 "p+q",
		`{toJSON(json.o)}`:                    `{"k":{"d":1}}`,
		`{fromJSON("[1,22]")[1]}`:             "22",
		`{string(json.n) + string(time)}`:     "90071992547409932025-03-04T05:06:07.891234567Z",
		`{string(json.e) + string(1.5)}`:      "10001.5",
		`{string(header["None"]) ?? "d"}`:     "d",
		`{toJSON(flatten([json.l, [1]]))}`:    `["p","q",1]`,
		`{replace(site, "ber", "x")}`:         "xlin",
		`{split(verb, ".")[0]}`:               "motor",
		`{len(payload) > 3}`:                  "true",
		`{1/4}`:                               "0.25",
		`{site matches "^b"}`:                 "true",
		`{count(json.l, # == "p")}`:           "1",
		`{let a = site; a + a}`:               "berlinberlin",
		`{"lit"}`:                             "lit",
		`{42}`:                                "42",
		`{time.Month()}`:                      "3",
		`{sequence % 2 == 1 ? site : device}`: "berlin",
	} {
		res, got, _ := value(t, tmpl, payload, "X", "1")
		require.Nil(t, res.Err, "%s: %v", tmpl, res.Err)
		require.Equal(t, want, got, tmpl)
	}
	for _, tmpl := range []string{"{json.z}", "{json.none}", "{string(json.z)}", `{header["None"]}`, "{json?.o?.none}"} {
		res, _, ok := value(t, tmpl, payload)
		require.Nil(t, res.Err, tmpl)
		require.False(t, ok, tmpl)
	}
}

func TestExpressionErrorsAtRunTime(t *testing.T) {
	const secret = "hunter2"
	for tmpl, c := range map[string]struct{ payload, want string }{
		"{json.a}":                        {secret, "payload is not valid JSON near byte"},
		"{json.b}":                        {`{} {}`, "payload is not valid JSON"},
		"{json.c}":                        {"", "payload is not valid JSON"},
		"{json.d.e}":                      {`{}`, "looks into what is absent"},
		"{json.f + 1}":                    {`{"f":"hunter2"}`, "invalid operation: string + int"},
		"{int(json.g)}":                   {`{"g":"hunter2"}`, "failed on the values of this message"},
		"{upper(json.h)}":                 {`{"h":1}`, "is int, not string"},
		"{json.l[9]}":                     {`{"l":["hunter2"]}`, "index out of range"},
		"{json.o}":                        {`{"o":{"a":"hunter2"}}`, "gives an object"},
		"{json.p}":                        {`{"p":["hunter2"]}`, "gives a list"},
		"{string(json.p)}":                {`{"p":["hunter2"]}`, "a list or an object has no text of its own; use join or toJSON"},
		"{json.q / json.r}":               {`{"q":1,"r":0}`, "is not a finite number"},
		"{json.s % 0}":                    {`{"s":1}`, "division by zero"},
		"{len(1..json.t)}":                {`{"t":9000000}`, "makes too many values"},
		`{replace(payload, "", payload)}`: {strings.Repeat("x", 60000), "makes more than"},
		"{json[payload]}":                 {`["hunter2"]`, "invalid operation: int(string)"},
	} {
		res, _, _ := value(t, tmpl, c.payload)
		require.NotNil(t, res.Err, tmpl)
		require.Equal(t, ReasonExpression, res.Err.Reason, tmpl)
		require.Equal(t, "properties[0].value", res.Err.Field)
		require.ErrorContains(t, res.Err, c.want, tmpl)
		require.NotContains(t, res.Err.Error(), secret)
		require.NotContains(t, res.Err.Error(), "\n")
	}
}

func TestExpressionErrorsAtLoad(t *testing.T) {
	for tmpl, want := range map[string]string{
		"{site":                               "unclosed { at character 1; write {{ for a literal brace",
		"a}":                                  "} without { at character 2; write }} for a literal brace",
		`{"a}`:                                `unclosed " within`,
		"{}":                                  "nothing between the braces",
		"{ }":                                 "nothing between the braces",
		"{unknown}":                           "unknown name unknown; known here: cloudevent, device, header, headers, json, payload, sequence, site, stream, subject, target, time, verb",
		"{site +}":                            "unexpected token EOF; the expression ends too early",
		"{site = 'a'}":                        `unexpected token Operator("="); write == to compare`,
		"{site + 1}":                          "mismatched types string and int); make them the same with string(), int() or float()",
		`{header["A"] ?? "b" + "c"}`:          "parenthesise",
		"{nil}":                               "is always nil",
		"{[1]}":                               "gives a list",
		"{split(site, '.')}":                  "gives a list",
		`{ {"a":1} }`:                         "gives a map",
		"{upper}":                             "gives a function",
		"{header}":                            "gives a map",
		"{now()}":                             "unknown function now(); an expression has no clock",
		"{SHA256(site)}":                      "unknown function SHA256(); write sha256()",
		`{date("2024-01-01")}`:                "unknown function date()",
		`{repeat(site, 10)}`:                  "unknown function repeat(); known are abs, all, any, ",
		"{toJSON(now())}":                     "unknown function now()",
		`{keys(header)[0]}`:                   "unknown function keys()",
		`{reduce(1..3, # + #acc)}`:            "reduce() is not available",
		`{$env["site"]}`:                      "$env is not available",
		`{map(1..9, map(1..9, #))[0][0]}`:     "a loop within a loop",
		"{time.Local()}":                      "time.Local is not available",
		"{time.Sub(time)}":                    "time.Sub is not available",
		"{verb...}":                           "the dots belong to a capture in subject; write {verb} here",
		"{site.x}":                            "has no field",
		"{" + strings.Repeat("(", 5000) + "}": "at most 4096",
		"{site + \xff}":                       "is not valid UTF-8",
		"{b'x'}":                              "gives a list",
	} {
		_, err := Compile([]Route{{Subject: "c.{site}.{device}.{verb...}", Stream: "S", Device: "d",
			Properties: []PropertyRule{{Name: "v", Value: tmpl}}}}, TableOptions{})
		require.Error(t, err, tmpl)
		var fe *FieldError
		require.ErrorAs(t, err, &fe)
		require.Equal(t, "routes[0].properties[0].value", fe.Path)
		require.NotContains(t, err.Error(), "\n", tmpl)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\n\twant %q", tmpl, err, want)
		}
	}
}

func TestFastFormsStayOutOfTheMachine(t *testing.T) {
	p, err := parsePattern("c.{site}.{device}")
	require.NoError(t, err)
	for _, src := range []string{"site", `header["X"]`, `header.X`, "subject", "stream", "payload", `header["X"] ?? "d"`, `header["X"] ?? header["Y"] ?? site`} {
		c, err := compileExpr(src, cloudSide(p, TableOptions{}), resultType)
		require.NoError(t, err)
		require.Nil(t, c.prog.prog, src)
	}
}
