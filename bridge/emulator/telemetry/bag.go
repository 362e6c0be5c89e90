package telemetry

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// systemNames are the property bag's short names of system properties, and what
// a backend reads them as (developer guide, "Create and read messages"; the
// device SDKs' topic encoders).
var systemNames = map[string]string{
	"$.mid":     "message-id",
	"$.cid":     "correlation-id",
	"$.uid":     "user-id",
	"$.to":      "to",
	"$.ct":      "content-type",
	"$.ce":      "content-encoding",
	"$.exp":     "absolute-expiry-time",
	"$.ctime":   "iothub-creation-time-utc",
	"$.schema":  "iothub-message-schema",
	"$.cdid":    "iothub-connection-device-id",
	"$.cmid":    "iothub-connection-module-id",
	"$.on":      "iothub-outputname",
	"$.ifid":    "iothub-interface-id",
	"$.sub":     "dt-subject",
	"$.diagid":  "iothub-diag-id",
	"$.diagctx": "iothub-diag-context",
}

// ParseBag reads a topic's property bag: name=value pairs joined by "&", both
// percent-encoded. A name alone is a property whose value is null, "name=" one
// whose value is empty. A leading "?" and a trailing "/" are no part of it. The
// bag is cut before it is decoded, so an encoded "&" or "=" is text; "+" is itself.
func ParseBag(s string) (system, application []Property, err error) {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "?"), "/")
	for pair := range strings.SplitSeq(s, "&") {
		if pair == "" {
			continue
		}
		name, value, has := strings.Cut(pair, "=")
		p := Property{Null: !has}
		if p.Name, err = decode(name); err != nil {
			return nil, nil, err
		}
		if p.Value, err = decode(value); err != nil {
			return nil, nil, err
		}
		if p.Name == "" {
			return nil, nil, fmt.Errorf("property bag: a property has no name")
		}
		if known, ok := systemNames[p.Name]; ok {
			p.Name = known
			system = append(system, p)
		} else {
			application = append(application, p)
		}
	}
	return system, application, nil
}

func decode(s string) (string, error) {
	out, err := url.PathUnescape(s)
	if err != nil {
		return "", fmt.Errorf("property bag: %w", err)
	}
	if !utf8.ValidString(out) {
		return "", fmt.Errorf("property bag: %.40q is not UTF-8", s)
	}
	return out, nil
}
