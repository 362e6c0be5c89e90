package config

import (
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"downlink/mapping"
)

// validate checks everything that the values alone tell, and has mapping
// compile the routes. It is pure; twins and readSecrets do what needs secrets.
func (p *problems) validate(c *Config) {
	switch {
	case c.Version == 0 && !p.src.given("version"):
		p.addf("version", "missing; add version: 1")
	case c.Version != 1:
		p.addf("version", "%d is a format that this downlink does not know; it reads version: 1", c.Version)
	}
	if c.Bridge == nil && c.Relay == nil && !p.has("bridge") && !p.has("relay") {
		p.addf("", "neither bridge: nor relay: is there; add one of the sections, or both")
	}
	if c.HTTP != "off" {
		p.address("http", c.HTTP, true)
	}
	p.oneOf("log.level", c.Log.Level)
	p.oneOf("log.format", c.Log.Format)
	if c.ShutdownGrace <= 0 {
		p.addf("shutdown_grace", "%s is too short; it must be more than 0s", formatDuration(c.ShutdownGrace))
	}
	if c.Bridge != nil {
		p.bridge(c.Bridge)
	}
	if c.Relay != nil {
		p.relay(c.Relay)
	}
	if c.Bridge != nil && c.Relay != nil && c.Bridge.NATS.Embedded != nil && c.Relay.NATS.Embedded != nil {
		if l := c.Relay.NATS.Embedded.Listen; l == c.Bridge.NATS.Embedded.Listen && !strings.HasSuffix(l, ":0") {
			p.addf("relay.nats.embedded.listen", "%s is bridge.nats.embedded.listen too; give one of them another port, or 127.0.0.1:0", show(l))
		}
	}
}

func (p *problems) bridge(b *Bridge) {
	p.token("bridge.name", b.Name)
	p.nats("bridge.nats", &b.NATS)
	p.oneOf("bridge.unmatched", b.Unmatched)

	if len(b.Hubs) == 0 {
		p.addf("bridge.hubs", "missing; name an IoT Hub: hubs: [{name: main, connection_string_file: PATH}]")
	}
	hubs := make(map[string]int)
	embedded := -1
	for i := range b.Hubs {
		h, at := &b.Hubs[i], "bridge.hubs["+itoa(i)+"]"
		p.token(at+".name", h.Name)
		if first, ok := hubs[h.Name]; ok {
			p.addf(at+".name", "%s is the name of hubs[%d] already; give each hub its own", show(h.Name), first)
		} else {
			hubs[h.Name] = i
		}
		p.hub(at, h)
		if h.Embedded && embedded >= 0 {
			p.addf(at+".embedded", "hubs[%d] is the embedded hub already; there is one in a process", embedded)
		} else if h.Embedded {
			embedded = i
		}
	}

	p.lookups(b)
	if len(b.Routes) == 0 {
		p.addf("bridge.routes", "missing; without a route nothing is forwarded")
	}
	names := make(map[string]int)
	for i := range b.Routes {
		r, at := &b.Routes[i], "bridge.routes["+itoa(i)+"]"
		p.token(at+".name", r.Name)
		if first, ok := names[r.Name]; ok {
			p.addf(at+".name", "%s is the name of routes[%d] already; give each route its own", show(r.Name), first)
		} else {
			names[r.Name] = i
		}
		if _, ok := hubs[r.Hub]; !ok && r.Hub != "" && !strings.Contains(r.Hub, "{") {
			p.addf(at+".hub", "%s is none of the hubs; known: %s", show(r.Hub), strings.Join(hubNames(b), ", "))
		}
		p.route(at, r)
	}
	p.starts(b)
	p.storage(&b.Storage)
	p.unread(b)

	for i := range b.Routes {
		p.values("bridge.routes["+itoa(i)+"]", b.Routes[i].Properties)
	}
	for i := range b.Templates {
		p.values("bridge.templates["+itoa(i)+"]", b.Templates[i].Properties)
	}
	table, err := mapping.Compile(b.MappingRoutes(), b.TableOptions())
	if err == nil {
		for _, w := range table.Warnings() {
			p.warn(join("bridge", w.Path), w.Err)
		}
		p.created(b, table)
	}
	p.addMapping(err, func(path string) string {
		path = join("bridge", path)
		if path == "bridge" {
			return "bridge.routes"
		}
		// Without its subject a route has no captures, and without its drop it would deliver.
		if route, field, ok := strings.Cut(path, "]."); ok && field != "subject" && (p.has(route+"].subject") || p.has(route+"].drop")) {
			return ""
		}
		return path
	})
}

// values finds properties without a value: an empty one is said, not left out.
func (p *problems) values(at string, rules []mapping.PropertyRule) {
	for i, rule := range rules {
		path := at + ".properties[" + itoa(i) + "]"
		if rule.Name != "" && rule.Headers == "" && p.src.given(path+".name") && !p.src.given(path+".value") {
			p.addf(path+".value", `missing; say where it comes from, such as value: "{verb}" or value: text (value: "" is an empty one)`)
		}
	}
}

func hubNames(b *Bridge) []string {
	var names []string
	for _, h := range b.Hubs {
		names = append(names, h.Name)
	}
	return names
}

// secret checks that exactly one of value, file and embedded says where the
// connection string comes from.
func (p *problems) secret(at string, value Secret, file string, embedded bool, word string, check func(Secret) error) {
	var set []string
	if !value.IsZero() && (value.file == "" || value.file != file) || p.has(at+".connection_string") {
		set = append(set, "connection_string")
	}
	if file != "" || p.has(at+".connection_string_file") {
		set = append(set, "connection_string_file")
	}
	if embedded || p.has(at+".embedded") {
		set = append(set, "embedded")
	}
	switch {
	case len(set) > 1:
		p.addf(at+"."+set[1], "set as well as %s; keep one of the two", set[0])
	case len(set) == 0:
		p.addf(at, "no connection string; add connection_string_file: PATH (or connection_string, or %s)", word)
	case !value.IsZero():
		if err := check(value); err != nil {
			p.add(at+".connection_string", err)
		}
	}
}

func (p *problems) route(at string, r *Route) {
	// What is there and empty would be taken for what is not there: for every message, or every device.
	if r.Drop == "" && p.src.given(at+".drop") {
		p.addf(at+".drop", "empty; give the reason, or remove the key")
	}
	if r.When == "" && p.src.given(at+".when") {
		p.addf(at+".when", "empty; say what must be true, or remove the key")
	}
	if len(r.Allow) == 0 && p.src.given(at+".allow") {
		p.addf(at+".allow", `empty; list the devices that the route may reach, such as ["berlin-*"], or ["*"] for all`)
	}
	core := r.Source == "core"
	if r.Source != "" && !core {
		p.addf(at+".source", "%s is not a source; write source: core, or stream: NAME", show(r.Source))
	}
	if r.Stream != "" {
		p.streamName(at+".stream", r.Stream)
	}
	switch {
	case p.has(at+".source") || p.has(at+".stream"):
	case r.Stream != "" && core:
		p.addf(at+".source", "core as well as stream: %s; keep one: a stream (at least once) or core (at most once)", r.Stream)
	case r.Stream == "" && !core && r.Drop == "" && !p.has(at+".drop"):
		p.addf(at, "neither stream nor source; add stream: NAME (at least once) or source: core (at most once)")
	}
	if r.Subject == "" && !(r.Default && r.Stream != "") {
		p.addf(at+".subject", "missing; say which messages the route takes, such as subject: \"cmd.{device}.>\"")
	}
	if r.Drop == "" && r.Device == "" && r.Devices == "" && !p.has(at+".drop") && !p.has(at+".devices") {
		p.addf(at+".device", "missing; say which device gets the message, such as device: \"{device}\" (or devices: for several, or drop: REASON)")
	}
	if r.Start != "" || p.src.given(at+".start") {
		p.start(at+".start", r.Start)
		p.needsStream(at+".start", r, r.Start != "")
	}
	p.needsStream(at+".create", r, r.Create)
	if r.Create && r.Subject == "" && r.Default {
		p.addf(at+".create", "needs a subject, which the stream is to hold")
	}
	p.oneOf(at+".device_not_found", r.DeviceNotFound)
	if r.Drop != "" && p.src.given(at+".device_not_found") {
		p.noneWith(at+".device_not_found", true, "drop")
	}
}

func (p *problems) storage(s *Storage) {
	const at = "bridge.storage."
	if n, err := strconv.Atoi(s.Replicas); s.Replicas != "source" && (err != nil || n < 1 || n > 5) {
		p.addf(at+"replicas", "%s is neither source nor a number from 1 to 5", show(s.Replicas))
	}
	if s.DeadMaxAge <= 0 {
		p.addf(at+"dead_max_age", "%s is too short; it must be more than 0s", formatDuration(s.DeadMaxAge))
	}
	if s.DeadMaxBytes <= 0 {
		p.addf(at+"dead_max_bytes", "%d is too small; it must be more than 0", s.DeadMaxBytes)
	}
	if s.MailboxMaxBytes < 0 || s.MailboxMaxBytes > 0 && s.MailboxMaxBytes < minMailbox {
		p.addf(at+"mailbox_max_bytes", "%d is too small; it must be 1MiB or more, or 0 for no bound", s.MailboxMaxBytes)
	}
	if s.ReceiptsMaxAge <= 0 {
		p.addf(at+"receipts_max_age", "%s is too short; it must be more than 0s", formatDuration(s.ReceiptsMaxAge))
	}
	if s.ReceiptsMaxBytes <= 0 {
		p.addf(at+"receipts_max_bytes", "%d is too small; it must be more than 0", s.ReceiptsMaxBytes)
	}
}

func (p *problems) relay(r *Relay) {
	p.token("relay.name", r.Name)
	p.nats("relay.nats", &r.NATS)
	if len(r.Devices) == 0 {
		p.addf("relay.devices", "missing; name the device: devices: [{connection_string_file: PATH}]")
	}
	for i := range r.Devices {
		d, at := &r.Devices[i], "relay.devices["+itoa(i)+"]"
		p.secret(at, d.ConnectionString, d.ConnectionStringFile, d.Embedded != "", "embedded: DEVICE", checkDeviceString)
		if d.Embedded != "" && !deviceID.MatchString(d.Embedded) {
			p.addf(at+".embedded", "%s is not a device ID; it has up to 128 letters, digits and - : . + %% _ # * ? ! ( ) , = @ ; $ '", show(d.Embedded))
		}
		if d.MQTTAddress != "" {
			p.address(at+".mqtt_address", d.MQTTAddress, false)
			p.noneWith(at+".mqtt_address", d.Embedded != "", "embedded")
		}
		if d.CAFile != "" {
			p.noneWith(at+".ca_file", d.Embedded != "", "embedded")
		}
	}
	if r.Publish.Stream != "" {
		p.streamName("relay.publish.stream", r.Publish.Stream)
	}
	if r.Publish.Create && r.Publish.Stream == "" {
		p.addf("relay.publish.create", "has no meaning without relay.publish.stream; name the stream")
	}

	subjects, err := mapping.CompileRelay(r.MappingOptions())
	if err == nil {
		for _, w := range subjects.Warnings() {
			p.warn(join("relay", w.Path), w.Err)
		}
	}
	p.addMapping(err, func(path string) string {
		switch {
		case path == "" || strings.HasPrefix(path, "subject"):
			return "relay.publish.subject"
		default:
			return "relay." + path
		}
	})
}

// deviceID is the hub's rule for device IDs (IoT Hub developer guide, "Device identity properties").
var deviceID = regexp.MustCompile(`^[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}$`)

// twins finds device identities that stand in the file twice: the hub keeps one
// connection a device, so that the two would throw each other out for ever.
func (p *problems) twins(c *Config) {
	if c.Relay == nil {
		return
	}
	type id struct{ hub, device string }
	first := make(map[id]int)
	for i, d := range c.Relay.Devices {
		key := id{device: d.Embedded}
		if d.Embedded == "" {
			key.hub, key.device = identity(d.ConnectionString)
		}
		if key.device == "" {
			continue
		}
		if f, ok := first[key]; ok {
			p.addf("relay.devices["+itoa(i)+"]", "%s is devices[%d] already; a device has one connection", show(key.device), f)
		} else {
			first[key] = i
		}
	}
}

// noneWith reports a field that has no meaning beside another.
func (p *problems) noneWith(path string, both bool, other string) {
	if both {
		p.addf(path, "has no meaning with %s; remove it", other)
	}
}

// words are the values of the fields that have only a few.
var words = map[string][]string{
	"log.level":                        {"debug", "info", "warn", "error"},
	"log.format":                       {"text", "json"},
	"bridge.unmatched":                 {"drop", "dead"},
	"bridge.routes[].device_not_found": {"dead", "retry"},
	"bridge.hubs[].transport":          {"amqp", "websocket"},
	"bridge.hubs[].property_charset":   {"utf8", "documented"},
	"bridge.hubs[].feedback":           {"auto", "always", "never"},
	"bridge.hubs[].tier":               {"F1", "S1", "S2", "S3"},
	"bridge.hubs[].entra.identity":     {"default", "managed", "workload"},
}

var index = regexp.MustCompile(`\[\d+\]`)

// oneOf checks a field that has only a few values.
func (p *problems) oneOf(path, value string) {
	known := words[index.ReplaceAllString(path, "[]")]
	if slices.Contains(known, value) {
		return
	}
	list := strings.Join(known[:len(known)-1], ", ") + " or " + known[len(known)-1]
	if near := nearest(value, known); near != "" && value != "" {
		p.addf(path, "%s is not %s; did you mean %s?", show(value), list, near)
		return
	}
	p.addf(path, "%s is not %s", show(value), list)
}

var (
	token      = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	streamName = regexp.MustCompile(`^[^\s.*>/\\\x00-\x1f]{1,255}$`)
)

// token checks a name that becomes part of subjects, streams and durables.
func (p *problems) token(path, name string) {
	if !token.MatchString(name) {
		p.addf(path, "%s is not a name; take up to 64 letters, digits, - and _", show(name))
	}
}

func (p *problems) streamName(path, name string) {
	if !streamName.MatchString(name) {
		p.addf(path, `%s is not a stream's name, which has no spaces and none of . * > / \`, show(name))
	}
}

// address checks host:port.
func (p *problems) address(path, address string, zero bool) {
	_, port, err := net.SplitHostPort(address)
	n, numErr := strconv.Atoi(port)
	if err != nil || numErr != nil || n < 0 || n > 65535 || strings.ContainsAny(address, " /") || n == 0 && !zero {
		p.addf(path, "%s is not host:port", show(address))
	}
}
