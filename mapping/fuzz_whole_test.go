package mapping

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What generated configurations are put together from: forms that compile more often
// than not, beside what the fuzzer comes up with.
var (
	someSubjects = []string{"c.{d}", "c.{d}.{rest...}", "{a}.*.>", "c.x", ">", "*.{d}", "c.{d}.*"}
	someTexts    = []string{
		"{d}", "x-{d}", "{rest}", `{header["X"]}`, `{header["X"] ?? d}`, `{json.a}`, "{json?.a ?? 'n'}", "{payload}", "{subject}", "{stream}", "{sequence}", "{time}",
		`{time.Format("2006")}`, "{target}", `{lookup("t", d)}`, `{lookup("t", header["X"])?.a}`, `{group(d)}`, `{group("all")}`, `{split(payload, ",")}`, "{json}", "{json.list}",
		"{filter(json.list, # != nil)}", "{map(json, string(#))}", "{cloudevent.type}", "{len(cloudevent)}", "{sha256(payload)}", "{urlDecode(payload)}", `{bucket(d, 3)}`,
		"{toJSON(json)}", `{d in ["a", "b"] ? "y" : nil}`, "a,b,{d}", "{fromBase64(payload)}", `{join(split(payload, ""), "-")}`, "{1..9}", "{uniq(json)}", "", "%{d}%", "dev-1",
	}
	someConditions = []string{"", "", "", `d == "a"`, `header["X"] != "x"`, "json?.a", "json.a == 1", `payload contains "a"`, "sequence > 3", `lookup("t", d) != nil`, "len(payload) > 3 && true"}
)

// generated makes routes from a seed; extra stands among the texts.
func generated(r *rand.Rand, extra string) ([]Route, TableOptions) {
	pick := func(list []string) string {
		if r.IntN(12) == 0 {
			return extra
		}
		return list[r.IntN(len(list))]
	}
	often := func(list []string) string {
		if r.IntN(3) == 0 {
			return pick(list)
		}
		return ""
	}
	word := func(words ...string) string { return words[r.IntN(len(words))] }
	properties := func() (list []PropertyRule) {
		for i := range r.IntN(4) {
			if r.IntN(3) == 0 {
				list = append(list, PropertyRule{Headers: word("*", "X-*", "ce-*", "a*b"), Strip: word("", "X-", "X")})
				continue
			}
			list = append(list, PropertyRule{Name: word("p", "Q", "traceparent", extra) + fmt.Sprint(i), Value: pick(someTexts)})
		}
		return list
	}
	o := TableOptions{
		Name: "prod", Hubs: []HubOptions{{Name: "main"}, {Name: "old", DocumentedCharset: true}}, Rand: rand.NewChaCha8([32]byte{}),
		LookupNames: []string{"t", "groups"},
		Lookups: StaticLookups{
			"t":      {"a": "dev-1", "b": map[string]any{"a": 1}, "c": nil, extra: extra},
			"groups": {"a": []any{"a", "b", 7, nil, extra}, "all": "a, b,a", "b": []any{}, extra: extra},
		},
		Templates: []Template{{Name: "set", Properties: []PropertyRule{{Name: "set", Value: word("1", "{subject}", `{header["X"]}`)}, {Headers: "T-*"}}}},
	}
	one := func() Route {
		rule := Route{
			Subject: pick(someSubjects), When: pick(someConditions), Also: r.IntN(3) == 0, Default: r.IntN(5) == 0, Stream: word("S", "S", "S", "T"),
			Hub: word("", "main", "old", `{header["Hub"] ?? "old"}`, `{lookup("t", target) ?? "main"}`), Allow: []string{word("*", "*", "d*", extra)},
			Priority: r.IntN(3), Order: word("", "none"), Coalesce: often(someTexts), Receipts: r.IntN(2) == 0,
			Message: MessageRule{
				MessageID: often(someTexts), CorrelationID: often(someTexts), UserID: often(someTexts), ContentType: often(someTexts), ContentEncoding: often(someTexts),
				TTL: time.Duration(r.IntN(3)) * time.Hour, MaxAge: time.Duration(r.IntN(2)) * time.Minute, Ack: word("", "none", "full", "positive"),
			},
			Properties: properties(), IllegalValues: word("", "dead", "encode", "omit"), Envelope: word("", "plain", "relay"),
		}
		if r.IntN(4) == 0 {
			rule.Deny = []string{word("z*", "dev-9", extra)}
		}
		if r.IntN(4) == 0 {
			rule.Use = []string{"set"}
		}
		if r.IntN(4) == 0 {
			rule.Devices = pick(someTexts)
		} else {
			rule.Device = pick(someTexts)
		}
		if r.IntN(8) == 0 {
			rule = Route{Subject: rule.Subject, When: rule.When, Stream: rule.Stream, Drop: "because"}
		}
		return rule
	}
	var routes []Route
	for range 1 + r.IntN(4) {
		for range 12 { // until one is accepted, nearly always
			rule := one()
			if _, err := Compile([]Route{rule}, o); err == nil || r.IntN(20) == 0 {
				routes = append(routes, rule)
				break
			}
		}
	}
	return routes, o
}

// Whatever the configuration, if it is accepted, and whatever the message: no panic, and all that
// comes out is legal for the hub.
func FuzzWholeMapping(f *testing.F) {
	f.Add(uint64(1), "X", "c.a.b", "X", "a", []byte(`{"a":1,"list":["x",null]}`))
	f.Add(uint64(2), `{header["`, "c.x", "ce-specversion", "1.0", []byte("a,b"))
	f.Add(uint64(3), "{{}}%", "c..", "Downlink-TTL", "5s", []byte("[1,[2]]"))
	f.Add(uint64(4), "ü\x00", "c.\xff", "Downlink-Reply-To", "c.x", []byte("\xff"))
	f.Add(uint64(5), "d", "x", "Downlink-Via", "prod", []byte(nil))
	f.Fuzz(func(t *testing.T, seed uint64, extra, subject, name, value string, payload []byte) {
		r := rand.New(rand.NewPCG(seed, 1))
		table, err := Compile(generated(r, extra))
		if err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				require.NotContains(t, e.Error(), "\n")
			}
			return
		}
		table.Warnings()
		in := &Input{Subject: subject, Header: map[string][]string{name: {value}, "X": {"a"}, "T-X": {"1", "2"}}, Payload: payload, Stream: "S", Sequence: 7, Time: stored}
		if seed%3 == 0 {
			in.Reply = value
		}
		before := string(payload)
		results := table.Map(in)
		require.Equal(t, before, string(in.Payload))
		require.Equal(t, results, table.Map(in), "a resend is the same")
		require.Equal(t, results, table.Explain(in).Results)
		for _, res := range results {
			require.Equal(t, 1, count(res.Envelope != nil, res.Drop != "", res.Err != nil))
			if res.Err != nil {
				require.NotContains(t, res.Err.Error(), "\n")
				require.NotEmpty(t, res.Err.Reason)
				require.NotEmpty(t, res.Err.Field)
				continue
			}
			if e := res.Envelope; e != nil {
				overHub(t, e, e.Hub == "old")
				require.LessOrEqual(t, e.TopicSize(), MaxTopic)
				require.LessOrEqual(t, len(e.Coalesce), maxCoalesce)
				require.True(t, e.ReplyTo == "" || plainSubject(e.ReplyTo))
				require.True(t, e.ReplyTo == "" || e.Receipts)
				require.Equal(t, e.Device, res.Device)
				for i, v := range []string{e.CorrelationID, e.UserID, e.ContentType, e.ContentEncoding} {
					what, _ := illegalSystem(fieldCorrelationID+i, v)
					require.Empty(t, what, "%q", v)
				}
				require.False(t, e.ExpiresAt.After(in.Time.Add(maxTTL)))
			}
		}
	})
}

// Most generated configurations have routes that take the messages of the fuzz, or it would test nothing.
func TestGeneratedConfigurationsAreUsed(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	fates := map[string]int{}
	for range 1000 {
		routes, o := generated(r, "x")
		table, err := Compile(routes, o)
		if err != nil {
			fates["refused"]++
			continue
		}
		in := &Input{Subject: "c.a.b", Header: map[string][]string{"X": {"a"}}, Payload: []byte(`{"a":"dev-1","list":["a"]}`), Stream: "S", Sequence: 7, Time: stored}
		in.Subject = []string{"c.a.b", "c.x", "c.a"}[r.IntN(3)]
		results := table.Map(in)
		if len(results) == 0 {
			fates["none"]++
		}
		for _, res := range results {
			switch {
			case res.Envelope != nil:
				fates["envelope"]++
			case res.Drop != "":
				fates["drop"]++
			default:
				fates[string(res.Err.Reason)]++
			}
		}
	}
	t.Log(fates)
	for _, fate := range strings.Fields("refused none envelope drop absent bad-expression not-allowed unknown-hub") {
		require.GreaterOrEqual(t, fates[fate], 3, "%s: %v", fate, fates)
	}
}
