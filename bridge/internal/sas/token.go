package sas

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const scheme = "SharedAccessSignature"

// maxExpiry is the end of year 9999: what time.Time can still be formatted as.
const maxExpiry = 253402300799

// Sign makes a token for resource, such as "hub.azure-devices.net" or
// "hub.azure-devices.net/devices/d1", which it percent-encodes. keyName is the
// policy, "" for a device's own key. The result is a secret.
//
// What is signed is the sr field as written in the token, a newline, and se in
// Unix seconds (IoT Hub developer guide, "SAS token structure").
func Sign(resource, keyName string, key []byte, expiry time.Time) string {
	sr := Escape(resource)
	se := strconv.FormatInt(expiry.Unix(), 10)
	sig := base64.StdEncoding.EncodeToString(signature(key, sr, se))
	t := scheme + " sr=" + sr + "&sig=" + Escape(sig) + "&se=" + se
	if keyName != "" {
		t += "&skn=" + Escape(keyName)
	}
	return t
}

func signature(key []byte, sr, se string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(sr + "\n" + se))
	return m.Sum(nil)
}

// Escape percent-encodes every byte outside RFC 3986's unreserved set.
func Escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// Token is a parsed shared access signature token, not yet verified. Printing it
// hides the signature.
type Token struct {
	Resource string // sr, decoded
	Expiry   time.Time
	KeyName  string // skn; "" for a device's own key

	sr, se string // as written: what was signed
	sig    []byte
}

// ParseToken reads "SharedAccessSignature sr=…&sig=…&se=…[&skn=…]". The order of
// the fields is free, sr and sig may be percent-encoded in full, in part or not
// at all (the Python SDK leaves "/" in sig as it is), and fields it does not
// know are ignored. Errors never contain a value.
func ParseToken(s string) (Token, error) {
	var t Token
	word, rest, ok := strings.Cut(strings.TrimSpace(s), " ")
	if !ok || !strings.EqualFold(word, scheme) {
		return t, errors.New("sas token: it must start with \"SharedAccessSignature \"")
	}
	fields := make(map[string]string, 4)
	for _, f := range strings.Split(strings.TrimSpace(rest), "&") {
		name, value, _ := strings.Cut(f, "=")
		if name != "sr" && name != "sig" && name != "se" && name != "skn" {
			continue
		}
		if _, twice := fields[name]; twice {
			return Token{}, fmt.Errorf("sas token: field %s is there twice", name)
		}
		fields[name] = value
	}
	for _, name := range []string{"sr", "sig", "se"} {
		if fields[name] == "" {
			return Token{}, fmt.Errorf("sas token: field %s is missing", name)
		}
	}

	var err error
	if t.Resource, err = url.PathUnescape(fields["sr"]); err != nil {
		return Token{}, errors.New("sas token: field sr is not percent-encoded correctly")
	}
	if t.KeyName, err = url.PathUnescape(fields["skn"]); err != nil {
		return Token{}, errors.New("sas token: field skn is not percent-encoded correctly")
	}
	// PathUnescape, not QueryUnescape: a raw "+" is base64, not a space.
	sig, err := url.PathUnescape(fields["sig"])
	if err != nil {
		return Token{}, errors.New("sas token: field sig is not percent-encoded correctly")
	}
	if t.sig, err = base64.StdEncoding.DecodeString(sig); err != nil {
		return Token{}, errors.New("sas token: field sig is not base64")
	}
	se, err := strconv.ParseUint(fields["se"], 10, 63)
	if err != nil || se > maxExpiry {
		return Token{}, errors.New("sas token: field se is not a time in Unix seconds")
	}
	t.Expiry = time.Unix(int64(se), 0).UTC()
	t.sr, t.se = fields["sr"], fields["se"]
	return t, nil
}

// Verify reports whether the token was signed with key. It compares bytes in
// constant time and looks neither at the expiry nor at the resource.
func (t Token) Verify(key []byte) bool {
	return hmac.Equal(t.sig, signature(key, t.sr, t.se))
}

// Covers reports whether the token's resource is resource or a parent of it, by
// whole path segments (developer guide: "matching is by URI path prefix"): a
// token for "hub/devices/d1" covers ".../d1/messages" and not ".../d10". Host
// names are compared without regard to case, port and scheme, segments exactly;
// a segment of the token may be percent-encoded once more, as the C# and Node
// SDKs write device IDs.
func (t Token) Covers(resource string) bool {
	tokenHost, tokenPath := split(t.Resource)
	host, path := split(resource)
	if tokenHost == "" || !strings.EqualFold(tokenHost, host) || len(tokenPath) > len(path) {
		return false
	}
	for i, segment := range tokenPath {
		if segment == path[i] {
			continue
		}
		if decoded, err := url.PathUnescape(segment); err != nil || decoded != path[i] {
			return false
		}
	}
	return true
}

func split(resource string) (host string, path []string) {
	if _, after, ok := strings.Cut(resource, "://"); ok {
		resource = after
	}
	host, rest, _ := strings.Cut(resource, "/")
	host, _, _ = strings.Cut(host, ":")
	rest = strings.TrimSuffix(rest, "/")
	if rest == "" {
		return host, nil
	}
	return host, strings.Split(rest, "/")
}

// String describes the token without its signature.
func (t Token) String() string {
	s := scheme + " sr=" + t.sr + "&sig=" + redacted + "&se=" + t.se
	if t.KeyName != "" {
		s += "&skn=" + Escape(t.KeyName)
	}
	return s
}

// GoString hides the signature from %#v.
func (t Token) GoString() string { return "sas.Token(" + t.String() + ")" }

// LogValue hides the signature from slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
