package natsio

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"downlink/mapping"
)

// Durable is the name of the consumers of a bridge of this name. Whoever looks at a stream sees whose they are.
func Durable(name string) string {
	if name == "downlink" {
		return name
	}
	return "downlink-" + name
}

// DeadStream is the stream that holds the dead letters of a bridge or relay of this name.
func DeadStream(name string) string { return streamName(name) + "_DEAD" }

// DeadSubjects is what that stream stores.
func DeadSubjects(name string) string { return deadPrefix(name) + ">" }

func deadPrefix(name string) string { return name + ".dead." }

// ReceiptStream is the stream that holds the receipts of a bridge of this name.
func ReceiptStream(name string) string { return streamName(name) + "_RECEIPTS" }

// ReceiptSubject is where receipts are published, and an empty hub, device or status stands for all.
func ReceiptSubject(name, hub, device, status string) string {
	any := func(s string) string {
		if s == "" {
			return "*"
		}
		return token(s)
	}
	return receiptPrefix(name) + any(hub) + "." + any(device) + "." + any(status)
}

func receiptPrefix(name string) string { return name + ".receipt." }

// PendingBucket is the KV bucket with what a bridge of this name waits for feedback of.
func PendingBucket(name string) string { return name + "-pending" }

// keyToken is a KV key's token of any text: every byte outside [A-Za-z0-9_-] as =XX.
func keyToken(s string) string {
	if s == "" {
		return "=" // no text gives it
	}
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// streamName is the name in upper case, every other byte than a letter or digit as "_".
func streamName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// checkToken refuses what cannot be part of a subject, a stream's or a consumer's name.
func checkToken(what, name string) error {
	if name == "" {
		return fmt.Errorf("nats: %s: empty", what)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`.*>/\`, r) }); i >= 0 {
		return fmt.Errorf("nats: %s %q: %q is not allowed in it", what, name, name[i:i+1])
	}
	return nil
}

// checkSubject refuses what cannot be published to: empty tokens, wildcards, white space.
func checkSubject(s string) error {
	if s == "" {
		return errors.New("the subject is empty")
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f {
			return fmt.Errorf("subject %q has white space or a control character", s)
		}
	}
	for token := range strings.SplitSeq(s, ".") {
		switch token {
		case "":
			return fmt.Errorf("subject %q has an empty token", s)
		case "*", ">":
			return fmt.Errorf("subject %q has a wildcard", s)
		}
	}
	return nil
}

// matches reports whether a subject is one of a pattern's.
func matches(pattern, subject string) bool {
	for {
		p, prest, pmore := strings.Cut(pattern, ".")
		if p == ">" {
			return subject != ""
		}
		s, srest, smore := strings.Cut(subject, ".")
		if p != "*" && p != s || s == "" {
			return false
		}
		if !pmore || !smore {
			return pmore == smore
		}
		pattern, subject = prest, srest
	}
}

// collide reports whether some subject is one of both patterns'.
func collide(a, b string) bool {
	for {
		x, xrest, xmore := strings.Cut(a, ".")
		y, yrest, ymore := strings.Cut(b, ".")
		if x == ">" || y == ">" {
			return true
		}
		if x != "*" && y != "*" && x != y {
			return false
		}
		if !xmore || !ymore {
			return xmore == ymore
		}
		a, b = xrest, yrest
	}
}

// hasToken reports whether a subject has a token.
func hasToken(subject, token string) bool {
	for t := range strings.SplitSeq(subject, ".") {
		if t == token {
			return true
		}
	}
	return false
}

// MailboxStream is the stream that holds what waits of a bridge of this name.
func MailboxStream(name string) string { return streamName(name) + "_MAILBOX" }

// MailboxSubjects is what that stream stores.
func MailboxSubjects(name string) string { return mailboxPrefix(name) + ">" }

func mailboxPrefix(name string) string { return name + ".mailbox." }

// untoken is the exact inverse of mapping.SubjectToken; false if s is none of its results.
func untoken(s string) (string, bool) {
	text, err := url.PathUnescape(s)
	if err != nil || mapping.SubjectToken(text) != s {
		return "", false
	}
	return text, true
}

// kvKey is one token of a KV key of any text: every byte outside [A-Za-z0-9_-] as =XX,
// since a key may have no "%".
func kvKey(s string) string { return strings.ReplaceAll(mapping.SubjectToken(s), "%", "=") }
