package c2d

import (
	"strings"
	"time"
	"unicode/utf8"
)

// The hub's fixed numbers (IoT Hub developer guide, "Quotas and throttling").
const (
	// QueueDepth is how many messages of one device may be pending, enqueued and invisible together.
	QueueDepth = 50
	// MaxMessageSize is the largest C2D message in bytes, as Message.Size counts.
	MaxMessageSize = 64 * 1024
)

// Counting says what increments a message's delivery count. The sources differ.
type Counting int

const (
	// CountAbandons is the newest text of the developer guide: only an explicit
	// abandon counts, so that over MQTT, which has none, the count never runs out.
	CountAbandons Counting = iota
	// CountDeliveries is the older text: every transition from enqueued to invisible counts.
	CountDeliveries
)

// Charset says which characters application properties may have.
type Charset int

const (
	// UTF8 takes any valid UTF-8; the bytes travel percent-encoded.
	UTF8 Charset = iota
	// Documented takes only what the developer guide lists: ASCII alphanumerics
	// and ! # $ % & ' * + - . ^ _ ` | ~
	Documented
)

// Rules are what a hub's owner may set, and the points where the sources
// differ. The zero value is the hub's defaults.
type Rules struct {
	DefaultTTL    time.Duration // for messages without an expiry; 0: 1 h
	MaxTTL        time.Duration // an expiry further away is a bad argument; 0: 48 h
	Lock          time.Duration // how long a delivered message stays invisible; 0: 60 s
	MaxDeliveries int           // 0: 10
	Counting      Counting
	Charset       Charset
	// RefuseDisabled refuses messages to a disabled device. The documentation
	// does not say; by default its queue goes on accepting.
	RefuseDisabled bool
	// Deduplicate accepts a message whose message ID is that of a pending one of the
	// same device, and does not queue it. There is no evidence that IoT Hub does.
	Deduplicate bool
}

func (r Rules) withDefaults() Rules {
	if r.DefaultTTL <= 0 {
		r.DefaultTTL = time.Hour
	}
	if r.MaxTTL <= 0 {
		r.MaxTTL = 48 * time.Hour
	}
	if r.Lock <= 0 {
		r.Lock = time.Minute
	}
	if r.MaxDeliveries <= 0 {
		r.MaxDeliveries = 10
	}
	return r
}

// Size is what counts against MaxMessageSize: the body, the values of system
// properties, and the names and values of application properties (IoT Hub
// developer guide, "Create and read messages").
func (m *Message) Size() int {
	n := len(m.Body) + len(m.To) + len(m.MessageID) + len(m.CorrelationID) + len(m.UserID) +
		len(m.ContentType) + len(m.ContentEncoding) + len(m.Ack)
	if !m.ExpiresAt.IsZero() {
		n += 8 // an AMQP timestamp
	}
	for _, p := range m.Properties {
		n += len(p.Name) + len(p.Value)
	}
	return n
}

// check refuses a message that can never be queued.
func (r *Rules) check(m *Message, now time.Time) error {
	if n := m.Size(); n > MaxMessageSize {
		return &Refusal{Condition: "amqp:link:message-size-exceeded", Code: 413001, Text: "the message is larger than 64 KB"}
	}
	if m.MessageID != "" && !ValidID(m.MessageID) {
		return badArgument("the message ID has illegal characters or is longer than 128")
	}
	for _, s := range [...]string{m.CorrelationID, m.UserID, m.ContentType, m.ContentEncoding} {
		if !utf8.ValidString(s) {
			return badArgument("a system property is not valid UTF-8")
		}
	}
	switch strings.ToLower(m.Ack) {
	case "", "none", "positive", "negative", "full":
	default:
		return badArgument("iothub-ack is none of none, positive, negative, full")
	}
	if !m.ExpiresAt.IsZero() {
		if !m.ExpiresAt.After(now) {
			return badArgument("the message has already expired")
		}
		if m.ExpiresAt.Sub(now) > r.MaxTTL {
			return badArgument("the message's expiry is too far away")
		}
	}
	for _, p := range m.Properties {
		if p.Name == "" {
			return badArgument("a property has no name")
		}
		if !r.carries(p.Name) || !r.carries(p.Value) {
			return badArgument("a property has illegal characters")
		}
	}
	return nil
}

// carries reports whether s may be a property's name or value.
func (r *Rules) carries(s string) bool {
	if r.Charset == UTF8 {
		return utf8.ValidString(s)
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

func badArgument(text string) *Refusal {
	return &Refusal{Condition: "com.microsoft:argument-error", Code: 400004, Text: text}
}

func notFound(id string) *Refusal {
	return &Refusal{Condition: "amqp:not-found", Code: 404001, Text: "no device " + id}
}
