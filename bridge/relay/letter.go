package relay

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"downlink/bridge"
	"downlink/mapping"
)

// cutBody is how much of the body a cut dead letter keeps.
const cutBody = 1024

// maxText bounds the reason's text: it may quote names that the sender chose.
const maxText = 512

// form is how much of the message a dead letter carries.
type form int

const (
	whole form = iota
	cut        // the body's beginning
	bare       // neither body nor topic nor properties
)

// letter is a dead letter of one message.
type letter struct {
	c2d     *mapping.C2D
	subject string
	reason  mapping.Reason
	text    string
}

func newLetter(name string, c *mapping.C2D, cause error) *letter {
	l := &letter{c2d: c, reason: bridge.ReasonRefused, text: cause.Error()}
	var route *mapping.RouteError
	var refused *bridge.Error
	switch {
	case errors.As(cause, &route) && route.Reason != "":
		l.reason = route.Reason
	case errors.As(cause, &refused) && refused.Reason != "":
		l.reason = refused.Reason
	}
	l.text = strings.ToValidUTF8(l.text, "�")
	if len(l.text) > maxText {
		l.text = strings.ToValidUTF8(l.text[:maxText], "") + "…"
	}
	l.subject = name + ".dead." + mapping.SubjectToken(string(l.reason)) + "." + mapping.SubjectToken(c.Device)
	return l
}

// publication writes the letter. Downlink-Topic is the message's topic as on the
// wire, which has every property exactly, null ones included; Downlink-Orig-<name>
// are the properties to read. What a header cannot carry is percent-encoded and
// listed in Downlink-Enc, in the format that package mapping documents.
func (l *letter) publication(f form) mapping.Publication {
	h := header{values: map[string][]string{}}
	c := l.c2d
	h.add("Downlink-Format", "1")
	h.add("Downlink-Reason", string(l.reason))
	h.add("Downlink-Text", l.text)
	h.add("Downlink-Device", c.Device)
	h.addSet("Downlink-Message-Id", c.MessageID)
	p := mapping.Publication{Subject: l.subject, ID: l.id(), Data: c.Body}
	if f != whole {
		h.add("Downlink-Truncated", "true")
		p.Data = c.Body[:min(len(c.Body), cutBody)]
	}
	if f == bare {
		p.Data = nil
	} else {
		h.addSet("Downlink-Correlation-Id", c.CorrelationID)
		h.addSet("Downlink-User-Id", c.UserID)
		h.addSet("Downlink-Content-Type", c.ContentType)
		h.addSet("Downlink-Content-Encoding", c.ContentEncoding)
		h.addSet("Downlink-Expires", c.Expires)
		h.addSet("Downlink-Topic", c.Topic)
		for _, property := range c.Properties {
			if !property.Null {
				h.add("Downlink-Orig-"+property.Name, property.Value)
			}
		}
	}
	p.Header = h.encoded()
	return p
}

// id identifies a repeat of the letter, as Publication.ID does: device, message ID,
// digest of topic and payload. "dead-" keeps it apart from the message's own.
func (l *letter) id() string {
	c := l.c2d
	if c.MessageID == "" {
		return ""
	}
	h := sha256.New()
	for _, field := range []string{c.Device, c.MessageID, c.Topic} {
		var n [8]byte // lengths, so that no two fields run into one
		binary.BigEndian.PutUint64(n[:], uint64(len(field)))
		h.Write(n[:])
		io.WriteString(h, field)
	}
	h.Write(c.Body)
	return "dead-" + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// header collects NATS headers of any text.
type header struct{ values map[string][]string }

func (h *header) add(name, value string) { h.values[name] = append(h.values[name], value) }

func (h *header) addSet(name, value string) {
	if value != "" {
		h.add(name, value)
	}
}

// encoded makes names and values legal and lists those that had to change: nats.go
// refuses other names, trims values, and turns CR and LF into spaces.
func (h *header) encoded() map[string][]string {
	out := make(map[string][]string, len(h.values)+1)
	var list []string
	names := make([]string, 0, len(h.values))
	for name := range h.values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := h.values[name]
		wire := encode(name, nameByte)
		item := ""
		if wire != name {
			item = "!"
		}
		if item != "" || slices.ContainsFunc(values, illegal) {
			for i, v := range values { // all of a name's values, or a reader could not tell which
				values[i] = encodeValue(v)
			}
			list = append(list, item+encode(wire, itemByte))
		}
		out[wire] = values
	}
	if len(list) > 0 {
		out["Downlink-Enc"] = []string{strings.Join(list, "|")}
	}
	return out
}

func illegal(v string) bool {
	if strings.Trim(v, " ") != v || !utf8.ValidString(v) {
		return true
	}
	return strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// encodeValue percent-encodes control characters, outer spaces, invalid UTF-8 and "%".
func encodeValue(v string) string {
	valid := utf8.ValidString(v)
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		c := v[i]
		outer := c == ' ' && (i == 0 || i == len(v)-1)
		if c < ' ' || c == 0x7f || c == '%' || outer || c >= utf8.RuneSelf && !valid {
			percent(&b, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// encode percent-encodes every byte that is not legal. A "%" is legal in no set,
// so that no two texts become one.
func encode(s string, legal func(byte) bool) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if legal(s[i]) {
			b.WriteByte(s[i])
		} else {
			percent(&b, s[i])
		}
	}
	return b.String()
}

func percent(b *strings.Builder, c byte) {
	const hex = "0123456789ABCDEF"
	b.WriteByte('%')
	b.WriteByte(hex[c>>4])
	b.WriteByte(hex[c&15])
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// nameByte: what RFC 9110 §5.6.2 calls tchar, which nats.go accepts in names, without "%".
func nameByte(c byte) bool { return alphanumeric(c) || strings.IndexByte("!#$&'*+-.^_`|~", c) >= 0 }

// itemByte: what stays as it is in an item of Downlink-Enc.
func itemByte(c byte) bool { return alphanumeric(c) || c == '_' || c == '.' || c == '-' }
