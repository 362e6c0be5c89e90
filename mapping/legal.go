package mapping

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// class is a set of bytes that stay as they are in an encoding or a check.
type class uint8

const (
	classToken  class = 1 << iota // [A-Za-z0-9_-]: a token of a NATS subject, everywhere
	classItem                     // [A-Za-z0-9_.-]: an item of downlink-enc
	classID                       // device and message IDs (IoT Hub developer guide, "Identity registry", "Create and read IoT Hub messages")
	classProp                     // the hub's documented set for names and values of properties (same place)
	classHeader                   // names of NATS headers as nats.go accepts them
	classURL                      // RFC 3986's unreserved
	classText                     // ASCII without control characters
)

var classes = func() (t [256]class) {
	alnum := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	mark := func(c class, chars string) {
		for i := 0; i < len(chars); i++ {
			t[chars[i]] |= c
		}
	}
	mark(classToken, alnum+"_-")
	mark(classItem, alnum+"_.-")
	mark(classURL, alnum+"-._~")
	mark(classID, alnum+"-:.+%_#*?!(),=@;$'")
	mark(classProp, alnum+"!#$%&'*+-.^_`|~")
	for b := ' '; b <= '~'; b++ {
		t[b] |= classText
		if b != ' ' && !strings.ContainsRune("\"()/,:;<=>?@[\\]{}", b) {
			t[b] |= classHeader
		}
	}
	return t
}()

func inClass(s string, c class) bool {
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&c == 0 {
			return false
		}
	}
	return true
}

const hexDigits = "0123456789ABCDEF"

func appendPercent(b []byte, c byte) []byte {
	return append(b, '%', hexDigits[c>>4], hexDigits[c&15])
}

// percentEncode writes every byte outside the class as %XX.
func percentEncode(s string, c class) string {
	if inClass(s, c) {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&c != 0 {
			b = append(b, s[i])
		} else {
			b = appendPercent(b, s[i])
		}
	}
	return string(b)
}

// percentDecode undoes percent-encoding; false if s has a "%" without two hex digits.
func percentDecode(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return s, false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi > 15 || lo > 15 {
			return s, false
		}
		b = append(b, hi<<4|lo)
		i += 2
	}
	return string(b), true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// escapedLen is the length of s percent-encoded as in a path or in a topic's property bag.
func escapedLen(s string) int {
	n := len(s)
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&classURL == 0 {
			n += 2
		}
	}
	return n
}

// illegalText returns what in a text the hub's properties or NATS headers cannot
// carry, and where; "" if nothing. documented limits it to the hub's documented set.
func illegalText(s string, documented bool) (what string, at int) {
	if s == "" {
		return "", 0
	}
	if documented {
		for i := 0; i < len(s); i++ {
			if classes[s[i]]&classProp == 0 {
				return "a character outside the hub's documented set", i
			}
		}
		return "", 0
	}
	if s[0] == ' ' {
		return "a leading space", 0
	}
	if s[len(s)-1] == ' ' {
		return "a trailing space", len(s) - 1
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if classes[c]&classText == 0 {
				return "a control character", i
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return "invalid UTF-8", i
		}
		if r < 0xA0 { // C1
			return "a control character", i
		}
		i += n
	}
	return "", 0
}

// encodeText percent-encodes what illegalText finds, and every "%". Decoding gives s again.
func encodeText(s string, documented bool) string {
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf || documented {
			legal := c != '%' && (documented && classes[c]&classProp != 0 || !documented && classes[c]&classText != 0)
			if c == ' ' && (i == 0 || i == len(s)-1) {
				legal = false
			}
			if legal {
				b = append(b, c)
			} else {
				b = appendPercent(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r < 0xA0 {
			for j := range n {
				b = appendPercent(b, s[i+j])
			}
		} else {
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return string(b)
}

// hasPrefixFold is strings.HasPrefix for an ASCII prefix in any letter case.
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// inert reports whether a name must not travel as it is: JetStream obeys Nats-*,
// and we obey Downlink-*.
func inert(name string) bool {
	return hasPrefixFold(name, "Nats-") || hasPrefixFold(name, "Downlink-")
}

// hubsOwn reports whether the hub, or an SDK at the device, reads a property of this name itself.
func hubsOwn(name string) bool {
	return strings.HasPrefix(name, "$.") || hasPrefixFold(name, "iothub-")
}

// encodeName encodes the name of a copied header where the hub cannot carry it,
// or would read it itself. A "%" counts too, so that no two names become one.
func encodeName(name string, documented bool) (wire string, encoded bool) {
	what, _ := illegalText(name, documented)
	own := hubsOwn(name)
	if what == "" && !own && strings.IndexByte(name, '%') < 0 {
		return name, false
	}
	if own {
		return string(appendPercent(nil, name[0])) + encodeTail(name[1:], documented), true
	}
	return encodeText(name, documented), true
}

// encodeTail encodes the rest of a name, whose first byte is not an outer one.
func encodeTail(s string, documented bool) string {
	return encodeText("x"+s, documented)[1:]
}

// encList is the value of downlink-enc and Downlink-Enc: see the package's documentation.
type encList struct{ b []byte }

func (l *encList) add(wire string, name bool) {
	if len(l.b) > 0 {
		l.b = append(l.b, '|')
	}
	if name {
		l.b = append(l.b, '!')
	}
	l.b = append(l.b, percentEncode(wire, classItem)...)
}

func (l *encList) String() string { return string(l.b) }

// parseEncList returns the wire names listed, and for each whether the name is
// encoded too. What is no item is ignored: it comes from anyone who may send to the device.
func parseEncList(s string) map[string]bool {
	if s == "" {
		return nil
	}
	list := map[string]bool{}
	for item := range strings.SplitSeq(s, "|") {
		item, name := strings.CutPrefix(item, "!")
		if wire, ok := percentDecode(item); ok && wire != "" {
			list[wire] = name
		}
	}
	return list
}

const maxDeviceID = 128

// checkDeviceID says why s is no device ID; the text is no part of it, since it may come from the payload.
func checkDeviceID(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	if len(s) > maxDeviceID {
		return fmt.Errorf("has %d characters; a device ID has at most %d", len(s), maxDeviceID)
	}
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&classID == 0 {
			return fmt.Errorf("character %d is not legal in a device ID; legal are ASCII letters, digits and - : . + %% _ # * ? ! ( ) , = @ ; $ '", i+1)
		}
	}
	return nil
}

// ownName checks the name of a bridge or relay, which becomes part of subjects, durables and Downlink-Via.
func ownName(s string) error {
	if s == "" || len(s) > 64 || !inClass(s, classToken) {
		return fmt.Errorf("%q: must be 1 to 64 of A-Z a-z 0-9 _ -", s)
	}
	return nil
}

// glob matches s against a pattern in which "*" is any run of characters, in linear memory and no recursion.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
