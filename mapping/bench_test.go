package mapping

import (
	"fmt"
	"math/rand/v2"
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
	defer cpuTime(b)()
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

// Uniformly random subjects over more and more routes: the whole mapping, not the matching alone.
func BenchmarkMapRoutes(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			routes := make([]Route, n)
			for i := range routes {
				routes[i] = typical()
				routes[i].Name, routes[i].Subject = fmt.Sprint("r", i), fmt.Sprintf("cmd.{site}.fleet%d.{device}.{verb...}", i)
			}
			table := newTable(b, routes...)
			r := rand.New(rand.NewPCG(1, 2))
			subjects := make([]string, 200_000)
			for i := range subjects {
				subjects[i] = fmt.Sprintf("cmd.berlin.fleet%d.pump7.reboot", r.IntN(n))
			}
			in := input("", "Correlation-Id", "c-1", "X-User", "ann")
			b.ReportAllocs()
			defer cpuTime(b)()
			for i := 0; b.Loop(); i++ {
				in.Subject = subjects[i%len(subjects)]
				if res := table.Map(in); len(res) != 1 || res[0].Envelope == nil {
					b.Fatal("not mapped")
				}
			}
		})
	}
}

func BenchmarkMapWhen(b *testing.B) {
	for name, when := range map[string]string{"none": "", "equal": `header["X-Kind"] != "test"`, "expression": `header["X-Kind"] in ["a", "b"] && len(payload) < 1000`} {
		b.Run(name, func(b *testing.B) {
			r := typical()
			r.When = when
			benchmarkMap(b, input("cmd.berlin.pump7.reboot", "Correlation-Id", "c-1", "X-Kind", "a"), r)
		})
	}
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
