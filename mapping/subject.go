package mapping

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokenText tokenKind = iota
	tokenOne            // matches one token
	tokenRest           // matches one token or more, last only
)

type token struct {
	kind tokenKind
	text string
}

// capture is a named token of a pattern.
type capture struct {
	name  string
	token int
	rest  bool
}

// pattern is a route's subject, compiled.
type pattern struct {
	tokens   []token
	captures []capture
	filter   string // the NATS subject it subscribes to
	source   string // as written
}

// Subject returns the NATS subject of a route's subject: its captures as
// wildcards, so "cmd.{site}.{verb...}" gives "cmd.*.>".
func Subject(template string) (string, error) {
	p, err := parsePattern(template)
	if err != nil {
		return "", err
	}
	return p.filter, nil
}

// subjectNames are the names that expressions have on the cloud side beside the captures.
var subjectNames = map[string]bool{
	"subject": true, "header": true, "payload": true, "json": true,
	"stream": true, "sequence": true, "time": true, "target": true, "cloudevent": true,
}

// keywords of the expression language.
var keywords = map[string]bool{
	"true": true, "false": true, "nil": true, "not": true, "in": true, "or": true, "and": true, "matches": true,
	"contains": true, "startsWith": true, "endsWith": true, "let": true, "if": true, "else": true,
}

func parsePattern(s string) (*pattern, error) {
	if s == "" {
		return nil, errors.New(`is empty; a NATS subject such as "cmd.{site}.{device}.>" is needed`)
	}
	p := &pattern{source: s}
	parts, err := splitPattern(s)
	if err != nil {
		return nil, err
	}
	filter := make([]string, 0, len(parts))
	for i, t := range parts {
		last := i == len(parts)-1
		switch {
		case t == "":
			return nil, fmt.Errorf("%q: token %d is empty; remove the extra dot", s, i+1)
		case t == "*":
			p.tokens = append(p.tokens, token{kind: tokenOne})
			filter = append(filter, "*")
		case t == ">":
			if !last {
				return nil, fmt.Errorf(`%q: ">" is only allowed as the last token; use "*" for one token`, s)
			}
			p.tokens = append(p.tokens, token{kind: tokenRest})
			filter = append(filter, ">")
		case t[0] == '{' && strings.IndexByte(t, '}') == len(t)-1:
			name, rest := strings.CutSuffix(t[1:len(t)-1], "...")
			if rest && !last {
				return nil, fmt.Errorf("%q: {%s...} takes the rest and must be the last token; use {%s} for one token", s, name, name)
			}
			if err := p.addCapture(name, rest); err != nil {
				return nil, fmt.Errorf("%q: %w", s, err)
			}
			if rest {
				filter = append(filter, ">")
			} else {
				filter = append(filter, "*")
			}
		default:
			if err := literalToken(t); err != nil {
				return nil, fmt.Errorf("%q: token %q %w", s, t, err)
			}
			p.tokens = append(p.tokens, token{text: t})
			filter = append(filter, t)
		}
	}
	p.filter = strings.Join(filter, ".")
	return p, nil
}

// splitPattern splits at the dots outside braces.
func splitPattern(s string) ([]string, error) {
	var parts []string
	start, open := 0, -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '{':
			if open >= 0 {
				return nil, fmt.Errorf("%q: a brace within a brace at character %d; a capture is {name}", s, i+1)
			}
			open = i
		case '}':
			if open < 0 {
				return nil, fmt.Errorf("%q: } without { at character %d; a capture is {name}", s, i+1)
			}
			open = -1
		case '.':
			if open < 0 {
				parts = append(parts, s[start:i])
				start = i + 1
			}
		}
	}
	if open >= 0 {
		return nil, fmt.Errorf("%q: unclosed { at character %d; a capture is {name}", s, open+1)
	}
	return append(parts, s[start:]), nil
}

func (p *pattern) addCapture(name string, rest bool) error {
	if !captureName(name) {
		return fmt.Errorf("{%s} is not a capture; its name must be a-z, then a-z, 0-9 or _, such as {site}", name)
	}
	if keywords[name] {
		return fmt.Errorf("{%s} is a keyword of expressions; choose another name, such as {%s_name}", name, name)
	}
	if subjectNames[name] {
		return fmt.Errorf("{%s} already has a meaning in expressions; choose another name, such as {%s_name}", name, name)
	}
	for _, c := range p.captures {
		if c.name == name {
			return fmt.Errorf("{%s} is captured twice; give each capture its own name", name)
		}
	}
	p.captures = append(p.captures, capture{name: name, token: len(p.tokens), rest: rest})
	kind := tokenOne
	if rest {
		kind = tokenRest
	}
	p.tokens = append(p.tokens, token{kind: kind})
	return nil
}

func captureName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '_') {
			continue
		}
		return false
	}
	return s != ""
}

// literalToken checks a token that is neither wildcard nor capture.
func literalToken(t string) error {
	if strings.ContainsAny(t, "{}") {
		return errors.New("has a capture in part of it; a capture is a whole token: capture all of it and take it apart in an expression")
	}
	if strings.ContainsAny(t, "*>") {
		return errors.New("has a wildcard in part of it; a wildcard is a whole token")
	}
	return tokenChars(t)
}

// tokenChars refuses what NATS cannot have in a subject, and what no one could type.
func tokenChars(t string) error {
	if !utf8.ValidString(t) {
		return errors.New("is not valid UTF-8")
	}
	for _, r := range t {
		if unicode.IsSpace(r) {
			return errors.New("has a space; NATS subjects have none")
		}
		if unicode.IsControl(r) {
			return errors.New("has a control character")
		}
	}
	return nil
}

// splitSubject appends to offs where each token of s begins, and the end as if
// one more token began there: token i is s[offs[i]:offs[i+1]-1].
func splitSubject(s string, offs []int) []int {
	offs = append(offs, 0)
	for i := 0; i < len(s); i++ {
		if s[i] == '.' {
			offs = append(offs, i+1)
		}
	}
	return append(offs, len(s)+1)
}

// of returns what a capture took of a subject that its pattern takes.
func (c *capture) of(subject string, offs []int) string {
	if c.rest {
		return subject[offs[c.token]:]
	}
	return subject[offs[c.token] : offs[c.token+1]-1]
}

// SubjectToken makes one token of a NATS subject of any text: every byte outside
// [A-Za-z0-9_-] becomes %XX. The empty text stays empty, which is no token.
func SubjectToken(s string) string {
	return percentEncode(s, classToken)
}

const inboxPrefix = "_INBOX."

// ownSubjects are the first two tokens of what a bridge publishes itself.
var ownSubjects = []string{"receipt", "dead", "mailbox"}

// reserved reports whether a received subject belongs to NATS or to the bridge
// itself: $SYS, $JS and the like, inboxes, and our receipts, dead letters and
// mailbox. A wildcard that took them would feed a core route with our own traffic.
func reserved(subject, name string) bool {
	if strings.HasPrefix(subject, "$") || strings.HasPrefix(subject, inboxPrefix) {
		return true
	}
	rest, ok := strings.CutPrefix(subject, name)
	if !ok || rest == "" || rest[0] != '.' {
		return false
	}
	for _, own := range ownSubjects {
		if r, ok := strings.CutPrefix(rest[1:], own); ok && (r == "" || r[0] == '.') {
			return true
		}
	}
	return false
}

// checkRouteSubject refuses what reserved would never let through.
func checkRouteSubject(filter, name string) error {
	first, _, _ := strings.Cut(filter, ".")
	if strings.HasPrefix(first, "$") || first == "_INBOX" {
		return fmt.Errorf("%q: subjects under $… and _INBOX belong to NATS itself; choose another", filter)
	}
	if first != name {
		return nil
	}
	f := strings.Split(filter, ".")
	for _, own := range ownSubjects {
		if overlap(f, []string{name, own, ">"}) {
			return fmt.Errorf("%q: overlaps the bridge's own %s.%s.>; narrow it, or give the bridge another name", filter, name, own)
		}
	}
	return nil
}
