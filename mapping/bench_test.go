package mapping

import (
	"fmt"
	"testing"
	"time"
)

func typical() Route {
	return Route{
		Name: "device-commands", Subject: "cmd.{site}.{device}.{verb...}", Device: "{site}-{device}",
		Message: MessageRule{CorrelationID: `{header["Correlation-Id"]}`, ContentType: "application/json", TTL: time.Hour, Ack: "full"},
		Properties: []PropertyRule{
			{Name: "verb", Value: "{verb}"}, {Name: "site", Value: "{site}"}, {Name: "user", Value: `{header["X-User"] ?? "nobody"}`},
		},
	}
}

func benchmarkMap(b *testing.B, in *Input, routes ...Route) {
	table := newTable(b, routes...)
	b.ReportAllocs()
	for b.Loop() {
		if res := table.Map(in); len(res) != 1 || res[0].Envelope == nil {
			b.Fatal("not mapped")
		}
	}
}

func BenchmarkMap(b *testing.B) {
	benchmarkMap(b, input("cmd.berlin.pump7.reboot", "Correlation-Id", "c-1"), typical())
}

func BenchmarkMapCopyHeaders(b *testing.B) {
	r := typical()
	r.Properties = append(r.Properties, PropertyRule{Headers: "X-*"})
	benchmarkMap(b, input("cmd.berlin.pump7.reboot", "X-User", "ann", "X-Tenant", "acme"), r)
}

func BenchmarkMapExpression(b *testing.B) {
	r := typical()
	r.Properties[0].Value = "{upper(verb)}"
	benchmarkMap(b, input("cmd.berlin.pump7.reboot"), r)
}

func BenchmarkMapJSON(b *testing.B) {
	r := typical()
	r.Properties[0].Value = "{json.verb}"
	in := input("cmd.berlin.pump7.reboot")
	in.Payload = []byte(`{"verb":"reboot","delay":3,"who":{"id":17}}`)
	benchmarkMap(b, in, r)
}

func BenchmarkMapLastOf200Routes(b *testing.B) {
	var routes []Route
	for i := range 199 {
		r := typical()
		r.Name, r.Subject = fmt.Sprint("r", i), fmt.Sprintf("cmd.{site}.{device}.verb%d", i)
		r.Properties = nil
		routes = append(routes, r)
	}
	benchmarkMap(b, input("cmd.berlin.pump7.reboot", "Correlation-Id", "c-1"), append(routes, typical())...)
}

func BenchmarkRelayMap(b *testing.B) {
	m := relayMap(b, RelayOptions{Subject: `edge.{device}.{property["verb"] ?? "command"}`})
	c := c2d("verb", "reboot", "site", "berlin", "user", "ann")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Map(c); err != nil {
			b.Fatal(err)
		}
	}
}
