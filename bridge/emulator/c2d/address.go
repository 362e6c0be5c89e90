package c2d

import (
	"net/url"
	"strings"
)

// MaxIDLength is the longest device ID and message ID, in characters.
const MaxIDLength = 128

// ValidID reports whether s is a legal device ID or message ID: 1 to 128
// characters, ASCII alphanumerics and - : . + % _ # * ? ! ( ) , = @ ; $ '
// (IoT Hub developer guide, "Create and read messages" and "Identity registry").
func ValidID(s string) bool {
	if s == "" || len(s) > MaxIDLength {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && strings.IndexByte("-:.+%_#*?!(),=@;$'", c) < 0 {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// ParseTo gives the device ID that a C2D message's `to` names:
// /devices/{id}/messages/devicebound, the last segment in any case. The ID is
// percent-decoded once; an ID that is no valid encoding is taken as it is,
// since the Python SDK does not encode. Any failure is a *Refusal.
func ParseTo(to string) (string, error) {
	rest, ok := strings.CutPrefix(to, "/devices/")
	raw, tail, found := strings.Cut(rest, "/")
	if !ok || !found {
		return "", badArgument("to is not /devices/{id}/messages/devicebound")
	}
	if strings.HasPrefix(tail, "modules/") {
		return "", badArgument("to names a module: cloud-to-device messages go to devices")
	}
	end, ok := strings.CutPrefix(tail, "messages/")
	if !ok || !strings.EqualFold(end, "devicebound") {
		return "", badArgument("to is not /devices/{id}/messages/devicebound")
	}
	id, err := url.PathUnescape(raw)
	if err != nil {
		id = raw
	}
	if !ValidID(id) {
		return "", badArgument("to names a device ID with illegal characters or of illegal length")
	}
	return id, nil
}
