package mapping

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCompileErrors(t *testing.T) {
	ok := func(change func(*Route)) Route {
		r := Route{Subject: "c.{d}", Stream: "S", Device: "{d}"}
		change(&r)
		return r
	}
	for _, c := range []struct {
		route Route
		path  string
		want  string
	}{
		{ok(func(r *Route) { r.Stream = "" }), "stream", "is missing; name the JetStream stream"},
		{ok(func(r *Route) { r.Source = "core" }), "source", "exclude each other"},
		{ok(func(r *Route) { r.Stream, r.Source = "", "kafka" }), "source", `"kafka": the only source is "core"`},
		{ok(func(r *Route) { r.Stream = "A.B" }), "stream", "is no name of a stream"},
		{ok(func(r *Route) { r.Device = "" }), "device", "is missing"},
		{ok(func(r *Route) { r.Device = "a b" }), "device", "not legal in a device ID"},
		{ok(func(r *Route) { r.Device = "a/{d}" }), "device", "not legal in a device ID"},
		{ok(func(r *Route) { r.Device = strings.Repeat("x", 129) }), "device", "at most 128"},
		{ok(func(r *Route) { r.Device = "x"; r.Allow = []string{"y*"} }), "device", "not among the devices that the route allows"},
		{ok(func(r *Route) { r.Device = `{header["D"]}` }), "allow", "depends on header"},
		{ok(func(r *Route) { r.Device = `{d}{upper(json.x)}` }), "allow", "depends on json"},
		{ok(func(r *Route) { r.Device = "{cloudevent.subject}" }), "allow", "depends on cloudevent"},
		{ok(func(r *Route) { r.Device = `{lookup("t", header["X"])}` }), "allow", "depends on header"},
		{ok(func(r *Route) { r.Device = `{d ?? payload}` }), "allow", "depends on payload"},
		{ok(func(r *Route) { r.Allow = []string{"*", ""} }), "allow[1]", "can match no device ID"},
		{ok(func(r *Route) { r.Hub = "nope" }), "hub", `"nope" is not among the hubs: "main"`},
		{ok(func(r *Route) { r.Message.TTL = 48*time.Hour + 1 }), "message.ttl", "at most 48h"},
		{ok(func(r *Route) { r.Message.TTL = -1 }), "message.ttl", "negative"},
		{ok(func(r *Route) { r.Message.TTL = 49 * time.Hour }), "message.ttl", "49h is more than the hub keeps a message; at most 48h"},
		{ok(func(r *Route) { r.Message.TTL = -90 * time.Minute }), "message.ttl", "-1h30m is negative"},
		{ok(func(r *Route) { r.Message.MaxAge = -time.Hour }), "message.max_age", "-1h is negative"},
		{ok(func(r *Route) { r.Message.Ack = "Full" }), "message.ack", `"Full": must be none, positive, negative or full`},
		{ok(func(r *Route) { r.Message.ContentType = "tëxt" }), "message.content_type", "outside ASCII"},
		{ok(func(r *Route) { r.Message.CorrelationID = "{" }), "message.correlation_id", "unclosed"},
		{ok(func(r *Route) { r.When = "{d == 'x'}" }), "when", "write it without the braces"},
		{ok(func(r *Route) { r.When = "d" }), "when", "d: gives a text; a condition is true or false"},
		{ok(func(r *Route) { r.When = "x == 1" }), "when", "unknown name x"},
		{ok(func(r *Route) { r.When = "d == 1" }), "when", "invalid operation: == (mismatched types string and int)"},
		{ok(func(r *Route) { r.When = "nil" }), "when", "is always nil"},
		{ok(func(r *Route) { r.When = `target == "x"` }), "when", "unknown name target"},
		{ok(func(r *Route) { r.Deny = []string{"a/b"} }), "deny[0]", "can match no device ID"},
		{ok(func(r *Route) { r.Device, r.Deny = "x1", []string{"x*"} }), "device", "not among the devices"},
		{ok(func(r *Route) { r.Use = []string{"nope"} }), "use[0]", `"nope" is not among the templates: "good"`},
		{ok(func(r *Route) { r.Use = []string{"good", "good"} }), "use[1]", "used twice"},
		{ok(func(r *Route) { r.Default, r.Subject, r.Source, r.Stream, r.Device = true, "", "core", "", "x" }), "subject", "is empty"},
		{Route{Subject: "c", Drop: "x", Use: []string{"good"}}, "use", "has no use in a route that drops"},
		{Route{Subject: "c", Drop: "x", Deny: []string{"a"}}, "deny", "has no use in a route that drops"},
		{ok(func(r *Route) { r.Message.MaxAge = -1 }), "message.max_age", "negative"},
		{ok(func(r *Route) { r.Order = "fifo" }), "order", `"fifo": must be device or none`},
		{ok(func(r *Route) { r.Coalesce = "{x}" }), "coalesce", "unknown name x"},
		{ok(func(r *Route) { r.Devices = "a" }), "devices", "keep one of the two"},
		{ok(func(r *Route) { r.Device, r.Devices = "", "," }), "devices", "names no device"},
		{ok(func(r *Route) { r.Device, r.Devices = "", "a,b/c" }), "devices", `"b/c": character 2 is not legal`},
		{ok(func(r *Route) { r.Device, r.Devices, r.Allow = "", "a,b", []string{"a"} }), "devices", `"b" is not among the devices that the route allows`},
		{ok(func(r *Route) { r.Device, r.Devices = "", "{json.to}" }), "allow", "devices depends on json"},
		{ok(func(r *Route) { r.Device, r.Devices = "", `x{["a"]}` }), "devices", "gives a list"},
		{ok(func(r *Route) { r.Device = `{["a"]}` }), "device", "gives a list"},
		{ok(func(r *Route) { r.Device = "{target}" }), "device", "unknown name target"},
		{ok(func(r *Route) { r.Subject, r.Device = "c.{target}", "d" }), "subject", "already has a meaning"},
		{ok(func(r *Route) { r.Hub = "{nope}" }), "hub", "unknown name nope"},
		{ok(func(r *Route) { r.IllegalValues = "drop" }), "illegal_values", "must be encode, omit or dead"},
		{ok(func(r *Route) { r.Envelope = "fancy" }), "envelope", "must be plain or relay"},
		{ok(func(r *Route) { r.Subject = "$SYS.>" }), "subject", "belong to NATS itself"},
		{ok(func(r *Route) { r.Subject = "_INBOX.{d}" }), "subject", "belong to NATS itself"},
		{ok(func(r *Route) { r.Subject = "downlink.dead.{d}" }), "subject", "overlaps the bridge's own"},
		{ok(func(r *Route) { r.Subject = "downlink.>"; r.Device = "d" }), "subject", "overlaps the bridge's own"},
		{ok(func(r *Route) { r.Subject = "" }), "subject", "is empty"},
		{ok(func(r *Route) { r.Name = "a\nb" }), "name", "one line"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{}} }), "properties[0].name", "is missing"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "{x}"}} }), "properties[0].name", "plain text without braces"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "a\x01"}} }), "properties[0].name", "control character"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "IoTHub-Ack"}} }), "properties[0].name", "use message:"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "downlink-enc"}} }), "properties[0].name", "Downlink's own"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "a"}, {Name: "A"}} }), "properties[1].name", "set twice"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "a", Value: "x\n"}} }), "properties[0].value", "control character"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "a", Headers: "*"}} }), "properties[0]", "make them two entries"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Name: "a", Strip: "x"}} }), "properties[0].strip", "belongs to headers"},
		{ok(func(r *Route) { r.Properties = []PropertyRule{{Headers: "nats-*"}} }), "properties[0].headers", "never copied"},
		{Route{Subject: "c", Drop: "x", Device: "d"}, "device", "has no use in a route that drops"},
		{Route{Subject: "c", Drop: "x", Also: true}, "also", "has no use in a route that drops"},
		{Route{Subject: "c", Drop: "x", Receipts: true}, "receipts", "has no use in a route that drops"},
		{Route{Subject: "c", Drop: " "}, "drop", "one line of text"},
	} {
		_, err := Compile([]Route{{Subject: "ok", Drop: "fine"}, c.route}, TableOptions{Hubs: []HubOptions{{Name: "main"}}, Templates: []Template{{Name: "good"}}, LookupNames: []string{"t"}})
		require.Error(t, err, c.want)
		var fe *FieldError
		require.ErrorAs(t, err, &fe)
		require.Equal(t, "routes[1]."+c.path, fe.Path, err)
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestCompileReportsAllAtOnce(t *testing.T) {
	_, err := Compile([]Route{
		{Name: "a", Subject: "c..d", Device: "{d", Message: MessageRule{Ack: "x"}},
		{Name: "a", Subject: "c.d", Stream: "S", Device: "d"},
	}, TableOptions{Name: "a.b", Hubs: []HubOptions{{Name: "h"}, {Name: "h"}}})
	var paths []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		paths = append(paths, e.(*FieldError).Path)
	}
	require.Equal(t, []string{"name", "hubs[1].name", "routes[0].subject", "routes[0].stream", "routes[0].device", "routes[0].message.ack", "routes[1].name"}, paths)
}

func TestCompileOfNothing(t *testing.T) {
	table, err := Compile(nil, TableOptions{})
	require.NoError(t, err)
	require.Empty(t, table.Map(input("a")))
	require.Empty(t, table.Subjects("S"))
}
