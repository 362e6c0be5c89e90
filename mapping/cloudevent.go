package mapping

import (
	"slices"
	"strings"
)

// The binary content mode of a CloudEvent on NATS (CloudEvents NATS protocol
// binding, section 3.1): each attribute is a header ce-<name> whose value is
// percent-encoded as over HTTP.
const (
	eventPrefix = "ce-"
	eventSpec   = "ce-specversion" // required, so what has it is one
)

// isEvent reports whether the headers are those of a CloudEvent in binary mode.
func isEvent(h map[string][]string) bool {
	if len(h[eventSpec]) > 0 {
		return true
	}
	for name, v := range h {
		if len(v) > 0 && strings.EqualFold(name, eventSpec) { // Ce-Specversion, as Go's http.Header has it
			return true
		}
	}
	return false
}

// eventAttribute is one attribute of a CloudEvent; false if there is none, or no CloudEvent.
func eventAttribute(h map[string][]string, name string) (string, bool) {
	if !isEvent(h) || strings.ToLower(name) != name { // attributes have lower case names
		return "", false
	}
	wire, ok := "", false
	if v, exact := headerValue(h, eventPrefix+name); exact {
		wire, ok = v, true
	} else {
		found := ""
		for key := range h {
			if len(key) == len(eventPrefix)+len(name) && hasPrefixFold(key, eventPrefix) && strings.EqualFold(key[len(eventPrefix):], name) && (found == "" || key < found) {
				if v, has := headerValue(h, key); has {
					found, wire, ok = key, v, true
				}
			}
		}
	}
	if ok {
		v, _ := percentDecode(wire)
		return v, true
	}
	if name == "datacontenttype" {
		return contentType(h)
	}
	return "", false
}

// contentType is where some SDKs put datacontenttype.
func contentType(h map[string][]string) (string, bool) {
	for _, name := range []string{"content-type", "Content-Type"} {
		if v, ok := headerValue(h, name); ok {
			return v, true
		}
	}
	return "", false
}

// event has all attributes of a CloudEvent in binary mode by their names in lower
// case; it is empty for anything else.
func event(h map[string][]string) map[string]any {
	m := map[string]any{}
	if !isEvent(h) {
		return m
	}
	var names []string
	for key := range h {
		if hasPrefixFold(key, eventPrefix) && len(key) > len(eventPrefix) {
			names = append(names, strings.ToLower(key[len(eventPrefix):]))
		}
	}
	slices.Sort(names)
	for _, name := range append(slices.Compact(names), "datacontenttype") {
		if v, ok := eventAttribute(h, name); ok {
			m[name] = v
		}
	}
	return m
}
