package sas

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Kind says what a connection string is for.
type Kind int

// The kinds of connection string that the Azure portal hands out beside each other.
const (
	KindUnknown   Kind = iota
	KindService        // a hub's shared access policy: HostName and a policy's key
	KindDevice         // one device: HostName and DeviceId
	KindModule         // one module of a device
	KindEventHubs      // the Event Hubs-compatible endpoint (or a Service Bus namespace)
)

func (k Kind) String() string {
	switch k {
	case KindService:
		return "service"
	case KindDevice:
		return "device"
	case KindModule:
		return "module"
	case KindEventHubs:
		return "Event Hubs"
	default:
		return "unknown"
	}
}

// ConnectionString is a parsed connection string. It holds a secret: every way
// of printing it hides the key and the token; Reveal gives the text.
type ConnectionString struct {
	HostName        string // the hub, without port
	DeviceID        string
	ModuleID        string
	KeyName         string // SharedAccessKeyName: the policy
	GatewayHostName string // connect there, but keep HostName in user names and tokens
	Key             []byte // SharedAccessKey, decoded
	Token           string // SharedAccessSignature, as given
	X509            bool   // the device shows a client certificate instead
	Endpoint        string // Event Hubs only, such as sb://ns.servicebus.windows.net/
	EntityPath      string // Event Hubs only
}

// Parse reads "Name=value;…". Order, letter case of the names and spaces around
// the parts are free; unknown, repeated, empty and missing parts are errors.
// Errors name the part and never contain a value.
func Parse(s string) (ConnectionString, error) {
	var c ConnectionString
	if strings.TrimSpace(s) == "" {
		return c, errors.New("connection string: empty")
	}
	seen := make(map[string]bool)
	for i, part := range strings.Split(s, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue // a trailing ";" is common
		}
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return ConnectionString{}, fmt.Errorf("connection string: part %d has no \"=\"; write Name=value;Name=value", i+1)
		}
		if err := c.set(i+1, name, value, seen); err != nil {
			return ConnectionString{}, fmt.Errorf("connection string: %w", err)
		}
	}
	if err := c.check(); err != nil {
		return ConnectionString{}, fmt.Errorf("connection string: %w", err)
	}
	return c, nil
}

func (c *ConnectionString) set(position int, name, value string, seen map[string]bool) error {
	known := canonical(name)
	switch {
	case known == "" && value != "" && printable(name):
		return fmt.Errorf("unknown part %q", name)
	case known == "":
		// What stands here may be a piece of a key that was cut: do not repeat it.
		return fmt.Errorf("part %d is unknown", position)
	case seen[known]:
		return fmt.Errorf("%s is there twice", known)
	case value == "":
		return fmt.Errorf("%s is empty", known)
	}
	seen[known] = true

	switch known {
	case "HostName":
		c.HostName = value
		return checkHost(known, value)
	case "GatewayHostName":
		c.GatewayHostName = value
		return checkHost(known, value)
	case "DeviceId":
		c.DeviceID = value
	case "ModuleId":
		c.ModuleID = value
	case "SharedAccessKeyName":
		c.KeyName = value
	case "SharedAccessKey":
		key, err := base64.StdEncoding.DecodeString(value)
		if err != nil || len(key) == 0 {
			return errors.New("SharedAccessKey is not base64; copy the whole string again")
		}
		c.Key = key
	case "SharedAccessSignature":
		if _, err := ParseToken(value); err != nil {
			return fmt.Errorf("SharedAccessSignature: %w", err)
		}
		c.Token = value
	case "x509":
		if !strings.EqualFold(value, "true") {
			return errors.New("x509 must be true")
		}
		c.X509 = true
	case "Endpoint":
		c.Endpoint = value
	case "EntityPath":
		c.EntityPath = value
	}
	return nil
}

var names = []string{"HostName", "GatewayHostName", "DeviceId", "ModuleId", "SharedAccessKeyName", "SharedAccessKey",
	"SharedAccessSignature", "x509", "Endpoint", "EntityPath"}

func canonical(name string) string {
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return n
		}
	}
	return ""
}

// printable reports whether an unknown part's name is a word that somebody may
// have typed, rather than a piece of a key.
func printable(name string) bool {
	if name == "" || len(name) > 24 {
		return false
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return true
}

func checkHost(part, host string) error {
	if strings.Contains(host, "://") {
		return fmt.Errorf("%s must be a host name, without scheme", part)
	}
	if strings.Contains(host, ":") {
		return fmt.Errorf("%s must be a host name without port; other ports are set by an address of their own", part)
	}
	for i := 0; i < len(host); i++ {
		b := host[i]
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '.' && b != '-' && b != '_' {
			return fmt.Errorf("%s is not a host name", part)
		}
	}
	return nil
}

func (c *ConnectionString) check() error {
	credentials := 0
	for _, has := range []bool{c.Key != nil, c.Token != "", c.X509} {
		if has {
			credentials++
		}
	}
	switch {
	case c.Endpoint != "" && (c.HostName != "" || c.DeviceID != "" || c.ModuleID != "" || c.GatewayHostName != ""):
		return errors.New("it has both Endpoint (Event Hubs) and parts of an IoT Hub string")
	case c.Endpoint == "" && c.EntityPath != "":
		return errors.New("EntityPath without Endpoint")
	case c.Endpoint == "" && c.HostName == "":
		return errors.New("HostName is missing")
	case c.ModuleID != "" && c.DeviceID == "":
		return errors.New("ModuleId without DeviceId")
	case c.GatewayHostName != "" && c.DeviceID == "":
		return errors.New("GatewayHostName without DeviceId")
	case credentials > 1:
		return errors.New("take one of SharedAccessKey, SharedAccessSignature and x509=true")
	case c.X509 && c.DeviceID == "":
		return errors.New("x509=true without DeviceId")
	case credentials == 0:
		return errors.New("SharedAccessKey is missing")
	case c.Key != nil && c.KeyName == "" && c.Endpoint != "":
		return errors.New("SharedAccessKeyName is missing")
	case c.Key != nil && c.KeyName == "" && c.DeviceID == "":
		return errors.New("SharedAccessKeyName is missing (service) or DeviceId is (device)")
	}
	return nil
}

// Kind tells whose connection string it is; KindUnknown for the zero value.
func (c ConnectionString) Kind() Kind {
	switch {
	case c.Endpoint != "":
		return KindEventHubs
	case c.ModuleID != "":
		return KindModule
	case c.DeviceID != "":
		return KindDevice
	case c.HostName != "":
		return KindService
	default:
		return KindUnknown
	}
}

// Reveal returns the whole text, secrets included, in the portal's order of parts.
func (c ConnectionString) Reveal() string {
	return c.text(base64.StdEncoding.EncodeToString(c.Key), c.Token)
}

// String returns the text with the key or token replaced by <redacted>.
func (c ConnectionString) String() string { return c.text(redacted, redacted) }

// GoString hides the secret from %#v.
func (c ConnectionString) GoString() string { return "sas.ConnectionString(" + c.String() + ")" }

// LogValue hides the secret from slog.
func (c ConnectionString) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText hides the secret from every encoder.
func (c ConnectionString) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

const redacted = "<redacted>"

func (c ConnectionString) text(key, token string) string {
	var b strings.Builder
	add := func(name, value string) {
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		b.WriteString(name + "=" + value)
	}
	optional := func(name, value string) {
		if value != "" {
			add(name, value)
		}
	}
	optional("Endpoint", c.Endpoint)
	optional("HostName", c.HostName)
	optional("DeviceId", c.DeviceID)
	optional("ModuleId", c.ModuleID)
	optional("SharedAccessKeyName", c.KeyName)
	if c.Key != nil {
		add("SharedAccessKey", key)
	}
	if c.Token != "" {
		add("SharedAccessSignature", token)
	}
	if c.X509 {
		add("x509", "true")
	}
	optional("GatewayHostName", c.GatewayHostName)
	optional("EntityPath", c.EntityPath)
	return b.String()
}
