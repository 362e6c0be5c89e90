package mapping

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tables compiles one route beside lookups.
func withLookups(t testing.TB, r Route, l StaticLookups) *Table {
	t.Helper()
	if r.Stream == "" && r.Source == "" {
		r.Stream = "S"
	}
	o := TableOptions{Name: "prod", Hubs: []HubOptions{{Name: "main"}, {Name: "old", DocumentedCharset: true}}, Lookups: l}
	for name := range l {
		o.LookupNames = append(o.LookupNames, name)
	}
	table, err := Compile([]Route{r}, o)
	require.NoError(t, err)
	return table
}

// devicesOf lists the results' devices, with the reason of what has no envelope.
func devicesOf(results []Result) []string {
	var list []string
	for _, r := range results {
		switch {
		case r.Err != nil:
			list = append(list, r.Device+"!"+string(r.Err.Reason))
		case r.Drop != "":
			list = append(list, "-"+r.Drop)
		default:
			list = append(list, r.Envelope.Device)
		}
	}
	return list
}

func TestGroups(t *testing.T) {
	groups := StaticLookups{"groups": {
		"pumps": []any{"p1", "p2", "p1", "p3"}, "text": "p1, p2,,p1", "empty": []any{}, "blank": " ", "mixed": []any{"p1", nil, 7, "a/b", []any{"x"}, "p2"},
		"odd": map[string]any{"a": "b"},
	}}
	for _, c := range []struct {
		devices string
		header  []string
		want    []string
	}{
		{`{group(kind)}`, nil, []string{"p1", "p2", "p3"}},
		{`{group("text")}`, nil, []string{"p1", "p2"}},
		{`{group("empty")}`, nil, []string{"-no-devices"}},
		{`{group("blank")}`, nil, []string{"-no-devices"}},
		{`{group("unknown")}`, nil, []string{"!absent"}},
		{`{group("mixed")}`, nil, []string{"p1", "!absent", "7", "!bad-device", "!bad-device", "p2"}},
		{`{group("odd")}`, nil, []string{"!bad-expression"}},
		{`{lookup("groups", header["G"])}`, nil, []string{"!absent"}},
		{`{lookup("groups", header["G"])}`, []string{"G", "text"}, []string{"p1", "p2"}},
		{`{header["To"]}`, []string{"To", "a, b", "To", "c"}, []string{"a", "b", "c"}},
		{`{header["To"]}`, []string{"To", "a,zz,b"}, []string{"a", "zz!not-allowed", "b"}},
		{`{header["To"]}`, []string{"To", ""}, []string{"-no-devices"}},
		{`{header["To"]}`, nil, []string{"!absent"}},
		{`{json.to}`, nil, []string{"a", "b,c"}},
		{`{filter(json.to, # != "a")}`, nil, []string{"b,c"}},
		{`{["a", kind]}`, nil, []string{"a", "pumps"}},
		{`a, b,a`, nil, []string{"a", "b"}},
		{`{kind}-1,b`, nil, []string{"pumps-1", "b"}},
	} {
		in := input("all.pumps", c.header...)
		in.Payload = []byte(`{"to":["a","b,c"]}`)
		table := withLookups(t, Route{Name: "g", Subject: "all.{kind}", Devices: c.devices, Allow: []string{"a*", "b*", "c*", "p*", "7"}}, groups)
		require.Equal(t, c.want, devicesOf(table.Map(in)), c.devices)
	}
}

func TestGroupEnvelopes(t *testing.T) {
	r := Route{
		Name: "g", Subject: "all.{verb}", Devices: "p1,p2", Message: MessageRule{Ack: "full"},
		Properties: []PropertyRule{{Name: "verb", Value: "{verb}"}},
	}
	res := newTable(t, r).Map(input("all.stop"))
	require.Len(t, res, 2)
	require.Equal(t, "S:7:d877y8j69q87:g", res[0].Envelope.MessageID)
	require.Equal(t, "p1", res[0].Device)
	second := *res[1].Envelope
	require.Equal(t, "p2", second.Device)
	second.Device = "p1"
	require.Equal(t, *res[0].Envelope, second)

	r.Properties = append(r.Properties, PropertyRule{Name: "to", Value: "{target}"})
	res = newTable(t, r).Map(input("all.stop"))
	require.Equal(t, Property{Name: "to", Value: "p1"}, res[0].Envelope.Properties[1])
	require.Equal(t, Property{Name: "to", Value: "p2"}, res[1].Envelope.Properties[1])

	// What fails for every device is a result of each, so that each has its dead letter.
	r.Properties[1].Value = `{header["X"]}-{target}`
	require.Equal(t, []string{"p1!absent", "p2!absent"}, devicesOf(newTable(t, r).Map(input("all.stop"))))

	require.Equal(t, []string{"-loop"}, devicesOf(newTable(t, r).Map(input("all.stop", "Downlink-Via", "prod"))))
}

func TestGroupSizeIsEachDevices(t *testing.T) {
	r := Route{Subject: "all", Devices: "a," + strings.Repeat("b", 128)}
	table := newTable(t, r)
	in := input("all")
	e := table.Map(in)[0].Envelope
	in.Payload = make([]byte, MaxMessageSize-e.Size()+len(in.Payload))
	require.Equal(t, []string{"a", strings.Repeat("b", 128) + "!too-large"}, devicesOf(table.Map(in)))
}

func TestGroupBound(t *testing.T) {
	list := make([]any, maxDevices+1)
	for i := range list {
		list[i] = fmt.Sprint("d", i)
	}
	groups := StaticLookups{"groups": {"all": list}}
	table := withLookups(t, Route{Subject: "all", Devices: `{group("all")}`}, groups)
	require.Equal(t, []string{"!too-many-devices"}, devicesOf(table.Map(input("all"))))
	groups["groups"]["all"] = list[1:]
	require.Len(t, table.Map(input("all")), maxDevices)
}

func TestHubByExpression(t *testing.T) {
	hubs := StaticLookups{"hubs": {"p2": "old", "p3": "nowhere"}}
	r := Route{Subject: "c.*", Devices: "p1,p2,p3", Hub: `{lookup("hubs", target) ?? "main"}`, IllegalValues: "encode",
		Properties: []PropertyRule{{Name: "v", Value: `{header["V"]}`}}}
	res := withLookups(t, r, hubs).Map(input("c.x", "V", "a b"))
	require.Equal(t, []string{"p1", "p2", "p3!unknown-hub"}, devicesOf(res))
	require.Equal(t, "main", res[0].Envelope.Hub)
	require.Equal(t, Property{Name: "v", Value: "a b"}, res[0].Envelope.Properties[0])
	require.Equal(t, "old", res[1].Envelope.Hub)
	require.Equal(t, Property{Name: "v", Value: "a%20b"}, res[1].Envelope.Properties[0], "each hub has its own set of characters")

	r.Devices, r.Device, r.Hub = "", "p9", `{lookup("hubs", target)}`
	require.Equal(t, []string{"p9!absent"}, devicesOf(withLookups(t, r, hubs).Map(input("c.x"))))
}
