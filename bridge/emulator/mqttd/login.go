package mqttd

import (
	"errors"
	"strings"
)

// Login is what a device's CONNECT user name says.
type Login struct {
	Host       string // the hub
	Device     string
	Module     string // "" for a device
	APIVersion string
}

// ParseUsername reads {host}/{deviceId}[/{moduleId}]/?api-version=…[&…], also
// without the "?". Host and IDs are not percent-encoded (developer guide,
// "Communicate using the MQTT protocol").
func ParseUsername(s string) (Login, error) {
	host, rest, ok := strings.Cut(s, "/")
	if !ok || host == "" {
		return Login{}, errors.New("user name has no host name")
	}
	l := Login{Host: host}
	if l.Device, rest, ok = strings.Cut(rest, "/"); !ok || l.Device == "" {
		return Login{}, errors.New("user name has no device ID or ends after it")
	}
	query, ok := asQuery(rest)
	if !ok {
		var found bool
		if l.Module, rest, found = strings.Cut(rest, "/"); !found || l.Module == "" {
			return Login{}, errors.New("user name has no api-version")
		}
		if query, ok = asQuery(rest); !ok {
			return Login{}, errors.New("user name has no api-version")
		}
	}
	for pair := range strings.SplitSeq(query, "&") {
		if name, value, _ := strings.Cut(pair, "="); name == "api-version" && l.APIVersion == "" {
			l.APIVersion = value
		}
	}
	if l.APIVersion == "" {
		return Login{}, errors.New("user name has no api-version")
	}
	return l, nil
}

// asQuery reports whether s is the user name's last part, and returns it without "?".
func asQuery(s string) (string, bool) {
	if q, ok := strings.CutPrefix(s, "?"); ok {
		return q, true
	}
	return s, strings.HasPrefix(s, "api-version=")
}
