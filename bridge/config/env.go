package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Setting is one value that the environment or a flag may override. A flag
// precedes the environment, that precedes the file, that precedes the default.
type Setting struct {
	Env  string // such as DOWNLINK_HTTP; empty counts as unset
	Flag string // such as "http"; "" if there is none: secrets do not belong on a command line
	Path string // the field, where it is one and the same in every file
	Doc  string // one line

	apply func(*overlay, override)
}

// settings is the one list of them.
var settings = []Setting{
	{Env: "DOWNLINK_HUB_CONNECTION_STRING", Path: "bridge.hubs[0].connection_string",
		Doc: "the default hub's service connection string", apply: (*overlay).hub},
	{Env: "DOWNLINK_HUB_CONNECTION_STRING_FILE", Flag: "hub-connection-string-file", Path: "bridge.hubs[0].connection_string_file",
		Doc: "a file that holds it", apply: (*overlay).hub},
	{Env: "DOWNLINK_DEVICE_CONNECTION_STRING", Path: "relay.devices[0].connection_string",
		Doc: "the relay's device, when it has one", apply: (*overlay).device},
	{Env: "DOWNLINK_DEVICE_CONNECTION_STRING_FILE", Flag: "device-connection-string-file", Path: "relay.devices[0].connection_string_file",
		Doc: "a file that holds it", apply: (*overlay).device},
	{Env: "DOWNLINK_NATS_URL", Flag: "nats-url",
		Doc: "servers of bridge.nats or relay.nats, separated by commas: of the section that the process runs", apply: (*overlay).nats},
	{Env: "DOWNLINK_HTTP", Flag: "http", Path: "http",
		Doc: "address of health and metrics, or off", apply: (*overlay).scalar},
	{Env: "DOWNLINK_LOG_LEVEL", Flag: "log-level", Path: "log.level",
		Doc: "debug, info, warn or error", apply: (*overlay).scalar},
	{Env: "DOWNLINK_LOG_FORMAT", Flag: "log-format", Path: "log.format",
		Doc: "text or json", apply: (*overlay).scalar},
	{Env: "DOWNLINK_SHUTDOWN_GRACE", Flag: "shutdown-grace", Path: "shutdown_grace",
		Doc: "how long the first signal lets messages in flight finish", apply: (*overlay).scalar},
}

// Settings lists what the environment and flags may override, in the order of the documentation.
func Settings() []Setting { return slices.Clone(settings) }

// override is one setting with a value.
type override struct {
	Setting
	value  string
	origin string // "DOWNLINK_HTTP" or "--http"
	flag   bool
}

// overlay puts overrides over a decoded file.
type overlay struct {
	*problems
	cfg  *Config
	side Side
	// both secrets of a pair may be set in one place by mistake
	pair map[string]override
}

// overrides reads the settings that are set, and warns of DOWNLINK_ variables
// that nobody knows. A nil environ leaves the environment out.
func overrides(flags *pflag.FlagSet, environ []string) (set []override, warnings []*Error) {
	v := viper.New()
	for _, s := range settings {
		if environ != nil {
			_ = v.BindEnv(s.Env, s.Env) // fails only without a name
		}
		o := override{Setting: s, origin: s.Env}
		if s.Flag != "" && flags != nil {
			if f := flags.Lookup(s.Flag); f != nil {
				_ = v.BindPFlag(s.Env, f)
				if f.Changed {
					o.origin, o.flag = "--"+s.Flag, true
				}
			}
		}
		if v.IsSet(s.Env) {
			o.value = v.GetString(s.Env)
			set = append(set, o)
		}
	}
	var known []string
	for _, s := range settings {
		known = append(known, s.Env)
	}
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "DOWNLINK_") || strings.HasPrefix(name, "DOWNLINK_TEST_") || slices.Contains(known, name) {
			continue
		}
		warning := "unknown environment variable, which is ignored"
		if near := nearest(strings.ToLower(name), lower(known)); near != "" {
			warning += "; did you mean " + strings.ToUpper(near) + "?"
		}
		warnings = append(warnings, &Error{File: name, Err: errors.New(warning)})
	}
	slices.SortFunc(warnings, func(a, b *Error) int { return cmp.Compare(a.File, b.File) })
	return set, warnings
}

func lower(words []string) []string {
	var l []string
	for _, w := range words {
		l = append(l, strings.ToLower(w))
	}
	return l
}

// apply puts the overrides over c.
func (p *problems) apply(c *Config, set []override, side Side) {
	o := &overlay{problems: p, cfg: c, side: side, pair: make(map[string]override)}
	for _, s := range set {
		s.apply(o, s)
	}
}

func (o *overlay) fail(s override, format string, args ...any) {
	o.append(&Error{File: s.origin, Path: s.Path, Err: fmt.Errorf(format, args...)})
}

func (o *overlay) ignored(s override, section string) {
	o.cfg.Warnings = append(o.cfg.Warnings, &Error{File: s.origin, Err: fmt.Errorf("set, but the file has no %s section", section)})
}

func (o *overlay) scalar(s override) {
	v := reflect.ValueOf(o.cfg).Elem()
	for _, key := range strings.Split(s.Path, ".") {
		for _, f := range fieldsOf(v.Type()) {
			if f.key == key {
				v = v.FieldByIndex(f.index)
				break
			}
		}
	}
	if err := setScalar(v, s.value); err != nil {
		o.fail(s, "%w", err)
		return
	}
	o.replaced(s.Path, s.origin)
}

// replaced notes where a field's value comes from now; a mistake in the file's is void.
func (o *overlay) replaced(path, origin string) {
	o.src.override(path, origin)
	delete(o.failed, path)
	o.list = slices.DeleteFunc(o.list, func(e *Error) bool { return e.Path == path && e.File == o.src.name })
}

func (o *overlay) nats(s override) {
	var n *NATS
	b, r := o.cfg.Bridge, o.cfg.Relay
	if !o.side.has(BridgeSide) {
		b = nil
	}
	if !o.side.has(RelaySide) {
		r = nil
	}
	switch {
	case b != nil && r != nil:
		o.fail(s, "a bridge and a relay run here; set bridge.nats.url and relay.nats.url in the file")
		return
	case b != nil:
		n, s.Path = &b.NATS, "bridge.nats.url"
	case r != nil:
		n, s.Path = &r.NATS, "relay.nats.url"
	default:
		return
	}
	n.URL, n.Context, n.Embedded = nil, "", nil
	for _, u := range strings.Split(s.value, ",") {
		n.URL = append(n.URL, strings.TrimSpace(u))
	}
	o.replaced(s.Path, s.origin)
}

func (o *overlay) hub(s override) {
	b := o.cfg.Bridge
	if !o.side.has(BridgeSide) {
		return
	}
	if b == nil {
		o.ignored(s, "bridge")
		return
	}
	if len(b.Hubs) == 0 {
		b.Hubs = append(b.Hubs, Hub{})
		o.src.override("bridge.hubs", s.origin)
	}
	h := &b.Hubs[0]
	if o.secret(s, "bridge.hubs[0]", &h.ConnectionString, &h.ConnectionStringFile) {
		h.Embedded = false // the embedded hub is never in the path of a real connection string
		h.Entra, h.Host = nil, ""
		h.SecondaryConnectionString, h.SecondaryConnectionStringFile = Secret{}, "" // it belongs to what is replaced
	}
}

func (o *overlay) device(s override) {
	r := o.cfg.Relay
	switch {
	case !o.side.has(RelaySide):
		return
	case r == nil:
		o.ignored(s, "relay")
		return
	case len(r.Devices) > 1:
		o.fail(s, "the relay has %d devices; set their connection strings in the file", len(r.Devices))
		return
	case len(r.Devices) == 0:
		r.Devices = append(r.Devices, Device{})
		o.src.override("relay.devices", s.origin)
	}
	d := &r.Devices[0]
	if o.secret(s, "relay.devices[0]", &d.ConnectionString, &d.ConnectionStringFile) {
		d.Embedded = ""
	}
}

// secret sets a connection string or its file. The two are one setting: either
// replaces both of the file, and a flag replaces both of the environment.
func (o *overlay) secret(s override, at string, value *Secret, file *string) bool {
	if other, ok := o.pair[at]; ok && other.flag == s.flag {
		o.fail(s, "set as well as %s; unset one", other.origin)
		return false
	} else if ok && other.flag {
		return false
	}
	o.pair[at] = s
	*value, *file = Secret{}, ""
	if strings.HasSuffix(s.Path, "_file") {
		*file = s.value
	} else {
		*value = NewSecret(s.value)
	}
	for _, key := range []string{".connection_string", ".connection_string_file", ".embedded", ".entra", ".host", ".secondary_connection_string", ".secondary_connection_string_file"} {
		delete(o.src.pos, at+key)
	}
	o.replaced(s.Path, s.origin)
	return true
}
