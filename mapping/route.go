package mapping

import (
	"io"
	"time"
)

// Route says which messages it takes and what becomes of them. Text between
// braces is an expression; see Compile. The zero value is not usable.
type Route struct {
	// Name identifies the route in receipts, dead letters, logs and metrics. Default: "route-N", N from 1.
	Name string `yaml:"name"`
	// Subject is a NATS subject; "{x}" captures one token and "{x...}" the rest, "*" and ">" match without a name.
	Subject string `yaml:"subject"`
	// When is an expression, without braces, that must be true for the route to take the message, such as 'header["X-Kind"] == "urgent"'. Nil is not true; one that fails makes a dead letter.
	When string `yaml:"when"`
	// Default makes the route one for the rest: it takes what no other route took, wherever it stands. Its subject may be left out if it has a stream: everything there.
	Default bool `yaml:"default"`
	// Stream takes only messages of this JetStream stream: at least once.
	Stream string `yaml:"stream"`
	// Source is "core" to take messages from core NATS: at most once, unless the publisher makes a request. A route that
	// delivers says Stream or Source; one that drops and says neither holds for every source.
	Source string `yaml:"source"`
	// Drop discards what the route matches, on purpose; the text is the reason. Such a route has no device, message or properties.
	Drop string `yaml:"drop"`
	// Also goes on to later routes after this one matched.
	Also bool `yaml:"also"`
	// Hub names the hub to send to, as text or as an expression such as '{lookup("hubs", target) ?? "main"}'. Default: the first.
	Hub string `yaml:"hub"`
	// Device is the device ID's template, such as "{site}-{device}".
	Device string `yaml:"device"`
	// Devices sends to several devices instead of one: an expression that gives a list, such as '{group("pumps")}' or '{json.targets}', or a text with commas between device IDs. At most 100,000; one named twice gets the message once.
	Devices string `yaml:"devices"`
	// Allow lists the devices the route may reach, as patterns with "*" for any run of characters. Required when device, or devices, depends on a header (a CloudEvent's included) or the payload.
	Allow []string `yaml:"allow"`
	// Priority orders what is ready to be sent: higher goes first, but every eighth turn is the lowest one's. It never changes the order of one device's messages.
	Priority int `yaml:"priority"`
	// Order is device (default: the messages of one device go one after the other) or none (they may overtake each other).
	Order string `yaml:"order"`
	// Coalesce is the template of a key: while a message waits, a newer one of the same route, device and key takes its place. A plain word such as latest is one key for all of the route's messages; an expression that is nil leaves this message alone.
	Coalesce string `yaml:"coalesce"`
	// Receipts publishes a receipt of each message's fate, also without ack.
	Receipts bool `yaml:"receipts"`
	// Deny lists devices that the route never reaches, as patterns like those of allow, which it goes before.
	Deny []string `yaml:"deny"`
	// Message sets the system properties.
	Message MessageRule `yaml:"message"`
	// Use names templates whose properties the route sets before its own; the route's own entry of a name goes before a template's.
	Use []string `yaml:"use"`
	// Properties sets the application properties, in order.
	Properties []PropertyRule `yaml:"properties"`
	// IllegalValues says what happens to an explicit property's value that the hub or NATS cannot carry as it is: encode, omit or dead (default). Copies by pattern always encode.
	IllegalValues string `yaml:"illegal_values"`
	// Envelope is plain (default: no property that the route did not name, but for the W3C trace context if the publisher set one) or relay (adds what the relay uses: original subject, number, via).
	Envelope string `yaml:"envelope"`
}

// MessageRule sets the system properties of a C2D message. Each text is a template.
type MessageRule struct {
	// MessageID defaults to <stream>:<seq>:<stored time, base 36> and to a random one from core NATS.
	MessageID string `yaml:"message_id"`
	// CorrelationID is the correlation ID's template.
	CorrelationID string `yaml:"correlation_id"`
	// UserID is the user ID's template: on whose behalf the message is sent.
	UserID string `yaml:"user_id"`
	// ContentType is the content type's template, such as application/json.
	ContentType string `yaml:"content_type"`
	// ContentEncoding is the content encoding's template, such as utf-8.
	ContentEncoding string `yaml:"content_encoding"`
	// TTL counts from the source message's timestamp; at most 48h. Zero: the hub's default. A publisher's Downlink-TTL header takes its place.
	TTL time.Duration `yaml:"ttl"`
	// MaxAge is how old a message may be when it is sent, by the source message's timestamp; an older one has expired. Zero: no bound but ttl.
	MaxAge time.Duration `yaml:"max_age"`
	// Ack is none (default), positive, negative or full.
	Ack string `yaml:"ack"`
}

// PropertyRule is one application property (name and value), or a copy of all headers that match a pattern.
type PropertyRule struct {
	// Name is the property's name; it goes with value.
	Name string `yaml:"name"`
	// Value is the value's template. A single expression that is nil omits the property.
	Value string `yaml:"value"`
	// Headers is a pattern with "*", such as "X-*"; matching headers are copied under their own names.
	Headers string `yaml:"headers"`
	// Strip is a prefix removed from the copied names.
	Strip string `yaml:"strip"`
}

// Template is a set of properties that routes share by use.
type Template struct {
	// Name is what use calls it.
	Name string `yaml:"name"`
	// Properties are compiled for each route that uses them, so they may name captures that these have.
	Properties []PropertyRule `yaml:"properties"`
}

// TableOptions is what a Table must know beyond its routes.
type TableOptions struct {
	// Name is the bridge's name, for Downlink-Via and the loop check. Default: downlink.
	Name string
	// Hubs lists the hubs in order; the first is the default.
	Hubs []HubOptions
	// Templates are what routes may use.
	Templates []Template
	// LookupNames are the tables that expressions may name.
	LookupNames []string
	// Lookups has their values. Nil: every key is absent.
	Lookups Lookups
	// Rand is where the message IDs of core NATS messages come from. Nil: crypto/rand.
	Rand io.Reader
}

// HubOptions is what mapping must know of one hub.
type HubOptions struct {
	Name string
	// DocumentedCharset limits property names and values to the hub's documented
	// set; otherwise any UTF-8 without control characters passes.
	DocumentedCharset bool
}

// RelayOptions configures the device side's mapping.
type RelayOptions struct {
	// Subject is the template. A value stays one token, percent-encoded by SubjectToken; {x...} splices it as it is,
	// dots and all, if each of its tokens is legal. Default: edge.{device}, plus .{property verb} if there is one.
	Subject string
	// AllowSubjects lists NATS subject patterns. A message whose original subject matches one is published
	// under it, instead of under Subject. A template that splices subject needs it, and is held to it.
	AllowSubjects []string
	// Name is the relay's name, for Downlink-Via and to refuse its own subjects. Default: downlink.
	Name string
}

// FieldError is one mistake in a configuration, found by Compile or CompileRelay.
// Several are joined with errors.Join.
type FieldError struct {
	// Path is the field's place below the thing compiled, such as "routes[2].device".
	Path string
	Err  error
}

func (e *FieldError) Error() string { return e.Path + ": " + e.Err.Error() }

func (e *FieldError) Unwrap() error { return e.Err }
