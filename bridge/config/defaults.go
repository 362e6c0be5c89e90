package config

import "reflect"

// defaultValue is one row of the table of defaults. "[]" in path stands for
// every element of a list.
type defaultValue struct {
	path  string
	value string // as it would stand in the file; "" if only doc tells
	// doc is for the reference, where the value alone does not tell: it depends on
	// other fields, or mapping fills it in.
	doc string
}

// defaults is the one place of defaults. What is not here is off, empty or required.
var defaults = []defaultValue{
	{path: "http", value: "127.0.0.1:9464"},
	{path: "log.level", value: "info"},
	{path: "log.format", value: "text"},
	{path: "shutdown_grace", value: "10s"},

	{path: "bridge.name", value: "downlink"},
	{path: "bridge.nats.url", value: "nats://127.0.0.1:4222", doc: "nats://127.0.0.1:4222, without context and embedded"},
	{path: "bridge.nats.embedded.listen", value: "127.0.0.1:4222"},
	{path: "bridge.nats.embedded.store_dir", doc: "a temporary directory"},
	{path: "bridge.hubs[].name", value: "main"},
	{path: "bridge.hubs[].amqp_address", doc: "the hub's name, port 5671"},
	{path: "bridge.hubs[].transport", value: "amqp"},
	{path: "bridge.hubs[].https_address", doc: "the hub's name, port 443"},
	{path: "bridge.hubs[].entra.identity", value: "default"},
	{path: "bridge.hubs[].entra.authority", doc: "Azure's public cloud, or AZURE_AUTHORITY_HOST"},
	{path: "bridge.hubs[].window", value: "512"},
	{path: "bridge.hubs[].units", doc: "1, with a tier"},
	{path: "bridge.hubs[].rate", doc: "the tier's, or learned"},
	{path: "bridge.hubs[].share", value: "1"},
	{path: "bridge.hubs[].daily_messages", doc: "the tier's, or none"},
	{path: "bridge.hubs[].property_charset", value: "utf8"},
	{path: "bridge.hubs[].feedback", value: "auto"},
	{path: "bridge.routes[].name", doc: "route-N, N from 1"},
	{path: "bridge.routes[].hub", doc: "the first hub"},
	{path: "bridge.routes[].start", doc: "what another route of the stream says, or new"},
	{path: "bridge.routes[].device_not_found", value: "dead"},
	{path: "bridge.routes[].order", doc: "device"},
	{path: "bridge.routes[].message.message_id", doc: "stream:sequence:time; random from core NATS"},
	{path: "bridge.routes[].message.ttl", doc: "the hub's default"},
	{path: "bridge.routes[].message.ack", doc: "none"},
	{path: "bridge.routes[].illegal_values", doc: "dead"},
	{path: "bridge.routes[].envelope", doc: "plain"},
	{path: "bridge.unmatched", value: "drop"},
	{path: "bridge.storage.create", value: "true"},
	{path: "bridge.storage.replicas", value: "source"},
	{path: "bridge.storage.dead_max_age", value: "30d"},
	{path: "bridge.storage.dead_max_bytes", value: "1GiB"},
	{path: "bridge.storage.mailbox_max_bytes", doc: "no bound of its own"},
	{path: "bridge.storage.receipts_max_age", value: "7d"},
	{path: "bridge.storage.receipts_max_bytes", value: "1GiB"},

	{path: "relay.name", value: "downlink"},
	{path: "relay.nats.url", value: "nats://127.0.0.1:4222", doc: "nats://127.0.0.1:4222, without context and embedded"},
	{path: "relay.nats.embedded.listen", value: "127.0.0.1:4222"},
	{path: "relay.nats.embedded.store_dir", doc: "a temporary directory"},
	{path: "relay.devices[].mqtt_address", doc: "the hub's name, port 8883"},
	{path: "relay.publish.subject", doc: "edge.{device}, plus .{property verb} if there is one"},
}

// relayHTTP is http's default in a process that runs the relay only, so that both
// sides can run on one machine from one file.
const relayHTTP = "127.0.0.1:9465"

// SetDefaults fills in what is zero. Load and Parse have done so already; it
// is for a Config made in Go.
func (c *Config) SetDefaults() { c.setDefaults(func(string) bool { return false }) }

// setDefaults fills in what is zero and not given: a 0 in the file is a
// mistake for Validate to find, not a wish for the default.
func (c *Config) setDefaults(given func(path string) bool) {
	values := make(map[string]string)
	for _, d := range defaults {
		values[d.path] = d.value
	}
	var fill func(v reflect.Value, path, pattern string)
	fill = func(v reflect.Value, path, pattern string) {
		for _, f := range fieldsOf(v.Type()) {
			at, key := join(path, f.key), join(pattern, f.key)
			fv := v.FieldByIndex(f.index)
			if n, ok := v.Addr().Interface().(*NATS); ok && f.key == "url" && (n.Context != "" || n.Embedded != nil) {
				continue // these say where the server is
			}
			if section(f.typ) {
				if fv.Kind() == reflect.Pointer {
					if fv.IsNil() {
						continue
					}
					fv = fv.Elem()
				}
				fill(fv, at, key)
				continue
			}
			if value := values[key]; value != "" && fv.IsZero() && !given(at) {
				setDefault(fv, value)
			}
			if fv.Kind() == reflect.Slice && section(f.typ.Elem()) {
				for i := range fv.Len() {
					fill(fv.Index(i), at+"["+itoa(i)+"]", key+"[]")
				}
			}
		}
	}
	fill(reflect.ValueOf(c).Elem(), "", "")

	if c.Bridge != nil {
		c.Bridge.setRouteDefaults(given)
	}
}

// setDefault sets a value of the table of defaults; a test reads every row.
func setDefault(v reflect.Value, text string) {
	if v.Kind() == reflect.Slice {
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		v = v.Index(0)
	}
	if err := setScalar(v, text); err != nil {
		panic("config: table of defaults: " + err.Error())
	}
}

// setRouteDefaults fills in what depends on the routes' order and on each other.
func (b *Bridge) setRouteDefaults(given func(path string) bool) {
	start := make(map[string]string) // by stream: they share one durable
	for _, r := range b.Routes {
		if r.Stream != "" && r.Start != "" && start[r.Stream] == "" {
			start[r.Stream] = r.Start
		}
	}
	for i := range b.Routes {
		r := &b.Routes[i]
		at := "bridge.routes[" + itoa(i) + "]"
		if r.Name == "" && !given(at+".name") {
			r.Name = "route-" + itoa(i+1)
		}
		if r.Start == "" && r.Stream != "" && !given(at+".start") {
			r.Start = "new"
			if s := start[r.Stream]; s != "" {
				r.Start = s
			}
		}
	}
}
