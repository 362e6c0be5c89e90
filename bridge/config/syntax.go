package config

import (
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration file; a real one has some kilobytes, one with 100,000 routes some megabytes.
const maxFile = 64 << 20

func itoa(n int) string { return strconv.Itoa(n) }

// repaired is a line that YAML cannot read and that quoting its value would fix.
type repaired struct {
	line       int
	key, value string
	why        string // instead of the usual sentence
}

// document parses b into the root mapping, nil if that is not possible. Values
// that miss their quotes are reported and quoted, so that the mistakes
// behind the first one are found too; named puts in their paths later.
func (p *problems) document(b []byte) (*yaml.Node, []repaired) {
	if len(b) > maxFile {
		p.addLine(1, "", "the file has %d bytes; a configuration has at most %d", len(b), maxFile)
		return nil, nil
	}
	if line, what := illegal(b); what != "" {
		p.addLine(line, "", "%s; save the file as UTF-8 text", what)
		return nil, nil
	}
	root, err := parse(p.src.text())
	var fixes []repaired
	if err != nil {
		fixes = p.repair()
		if len(fixes) > 0 {
			root, err = parse(p.src.text())
		}
	}
	for _, f := range fixes {
		p.addLine(f.line, f.key, "%s", f.message())
	}
	if err != nil {
		line, text := p.syntax(err)
		for _, f := range fixes {
			if f.line == line {
				return nil, nil // the same line cannot be understood either way
			}
		}
		p.addLine(line, "", "%s", text)
		return nil, nil
	}
	return root, fixes
}

var errTwoDocuments = errors.New("a second document begins here; a configuration is one YAML document")

type documentError struct{ line int }

func (e *documentError) Error() string { return errTwoDocuments.Error() }

// parse reads one YAML document and returns its root, nil if it is empty.
func parse(text string) (*yaml.Node, error) {
	dec := yaml.NewDecoder(strings.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	switch err := dec.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, err
	default:
		return nil, &documentError{more.Line}
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil, nil
	}
	return doc.Content[0], nil
}

// illegal finds what no YAML text may contain.
func illegal(b []byte) (line int, what string) {
	line = 1
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			return line, "byte " + strconv.Quote(string(b[i:i+1])) + " is not UTF-8"
		case r == '\n':
			line++
		case r == '\r' && (i+1 >= len(b) || b[i+1] != '\n'):
			return line, "a carriage return without a line feed"
		case unicode.IsControl(r) && r != '\t' && r != '\r', r == '\u2028', r == '\u2029', r == '\ufffe', r == '\uffff':
			return line, "control character " + strconv.QuoteRuneToASCII(r)
		}
		i += n
	}
	return 0, ""
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax turns the library's error into a line and a sentence. Its own line is
// that of the surrounding block, so look for the first line that breaks the file.
func (p *problems) syntax(err error) (int, string) {
	var doc *documentError
	if errors.As(err, &doc) {
		return doc.line, doc.Error()
	}
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	line = min(line, len(p.src.lines))
	if n := p.breaking(); n > 0 {
		line = n
	}
	for _, n := range []int{line, line + 1, line - 1} {
		indent := p.src.line(n)
		indent = indent[:len(indent)-len(strings.TrimLeft(indent, " \t"))]
		if strings.Contains(indent, "\t") {
			return n, "tab in the indentation; YAML wants spaces"
		}
	}
	for _, r := range remedies {
		if strings.Contains(text, r.says) {
			return line, "not understood: " + r.remedy
		}
	}
	// The library repeats pieces of the text only for anchors.
	if secretText.MatchString(text) {
		text = "syntax error"
	}
	return line, "not understood: " + text + "; check the quotes, the brackets and the indentation here"
}

// remedies are what helps against what the library says.
var remedies = []struct{ says, remedy string }{
	{"did not find expected key", "a key of this block was expected; check the indentation and the line before"},
	{"mapping values are not allowed", "check the indentation, and that there is a key, a colon and a space"},
	{"could not find expected ':'", "check the indentation, and that there is a key, a colon and a space"},
	{"expected ',' or ']'", "a list in brackets goes on or ends here; close it with ], and quote a value that has a bracket or a comma in it"},
	{"expected ',' or '}'", "a mapping in braces goes on or ends here; close it with }, and quote a value that has a brace or a comma in it"},
	{"unexpected end of stream", "the file ends within a quoted value; close its quote"},
	{"unknown escape character", "in double quotes a backslash begins an escape; double it, or take single quotes"},
	{"cannot start any token", "no value can begin like this; quote it"},
}

// breaking finds the line that breaks the file: the one after the longest
// beginning of the file that can be parsed. 0 if that costs too much.
func (p *problems) breaking() int {
	lines := p.src.lines
	size := len(p.src.text())
	for n, tries := len(lines)-1, 0; n >= 0 && tries*size < 8<<20; n, tries = n-1, tries+1 {
		if _, err := parse(strings.Join(lines[:n], "\n")); err == nil {
			return n + 1
		}
	}
	return 0
}

var (
	keyed      = regexp.MustCompile(`^(\s*(?:- +)*(?:([A-Za-z0-9_-]+):(?:[ \t]+|$))?)(.*)$`)
	opensBlock = regexp.MustCompile(`(?:^|[:-][ \t]+)[|>][+-]?[1-9]?[+-]?[ \t]*(?:#.*)?$`)
	alias      = regexp.MustCompile(`^\*([A-Za-z0-9_-]+)$`)
	anchor     = regexp.MustCompile(`^&[A-Za-z0-9_-]+(?:\s|$)`)
	anchors    = regexp.MustCompile(`&[A-Za-z0-9_-]+`)
	// In a flow mapping or list: a text with a brace in it that goes on after
	// the brace or before it, or one that begins with an indicator.
	inFlow = regexp.MustCompile(`((?:[{,]\s*([A-Za-z0-9_-]+):\s+)|[\[,]\s*)((?:[^\s,{}\[\]"'#&*!|>%@-][^\s,{}\[\]"']*)?(?:\{[^{},"']*\}[^\s,{}\[\]"']*)+|[>*%@` + "`" + `][^,{}\[\]"']*)(\s*[,}\]])`)
)

// repair quotes in place the values that YAML cannot read without quotes, and
// lists them. It is used only on a text that does not parse; each thing it
// looks for is wrong in YAML wherever it stands outside quotes.
func (p *problems) repair() []repaired {
	var found []repaired
	block := -1 // indentation of the key whose block text is being skipped
	for i, line := range p.src.lines {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if len(found) > maxProblems {
			break
		}
		if strings.TrimSpace(line) == "" || block >= 0 && indent > block {
			continue
		}
		block = -1
		if opensBlock.MatchString(line) {
			block = indent
		}
		m := keyed.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(m[3], "#") {
			continue
		}
		value := uncomment(m[3])
		if why, bad := p.broken(value, m[2] != ""); bad {
			fixed := quote(value)
			p.src.lines[i] = m[1] + fixed
			found = append(found, repaired{i + 1, m[2], value, why})
			continue
		}
		if strings.HasPrefix(value, "{") || strings.HasPrefix(value, "[") {
			outer := m[2]
			found = append(found, p.repairInner(i)...)
			line = p.src.lines[i]
			p.src.lines[i] = inFlow.ReplaceAllStringFunc(line, func(s string) string {
				m := inFlow.FindStringSubmatch(s)
				text := strings.TrimSpace(m[3])
				if strings.HasPrefix(text, "{") && closing(text) == len(text) || alias.MatchString(text) && p.anchored(text) {
					return s // a mapping inside the mapping, an alias: YAML can read it
				}
				key := m[2]
				if key == "" {
					key = outer
				}
				found = append(found, repaired{i + 1, key, text, ""})
				return m[1] + quote(text) + m[4]
			})
		}
	}
	return found
}

var valueInFlow = regexp.MustCompile(`[{,]\s*([A-Za-z0-9_-]+):\s+\{`)

// repairInner quotes in line i the expressions in braces that are the values of a
// flow mapping and that YAML cannot read, such as {name: a, value: {header["X"]}}.
func (p *problems) repairInner(i int) []repaired {
	var found []repaired
	line := p.src.lines[i]
	for at := 0; ; {
		m := valueInFlow.FindStringSubmatchIndex(line[at:])
		if m == nil {
			return found
		}
		key := line[at+m[2] : at+m[3]]
		begin := at + m[1] - 1
		end := begin + closing(line[begin:])
		at = begin
		if text := line[begin:end]; expression(text) {
			found = append(found, repaired{i + 1, key, text, ""})
			line = line[:begin] + quote(text) + line[end:]
			p.src.lines[i] = line
			at = begin + len(quote(text))
		}
	}
}

var opensMapping = regexp.MustCompile(`^\{\s*(?:[A-Za-z0-9_-]+\s*:(?:\s|$)|["'][^"']*["']\s*:|$)`)

// expression reports whether a text in braces is one of our expressions that YAML
// cannot read, not a flow mapping with something wrong in it.
func expression(text string) bool {
	if text == "" || text[0] != '{' || opensMapping.MatchString(text) {
		return false
	}
	_, err := parse(text)
	return err != nil
}

// broken reports whether a value after "key:" (keyed) or "-" cannot be read without quotes.
func (p *problems) broken(value string, keyed bool) (why string, bad bool) {
	if value == "" {
		return "", false
	}
	switch value[0] {
	case '{', '[':
		end := closing(value)
		return "", end > 0 && (end < len(value) || expression(value))
	case '*':
		return "", !alias.MatchString(value) || !p.anchored(value)
	case '&':
		return "", !anchor.MatchString(value)
	case '>', '|':
		return "", !opensBlock.MatchString(value)
	case '%', '@', '`':
		return "", true
	case '"', '\'':
		if end := closingQuote(value); end > 0 && end < len(value) {
			return "text after the closing quote; put the whole value into one pair of quotes", value[end] != ':'
		}
		return "", false
	}
	return "", keyed && (strings.Contains(value, ": ") || strings.HasSuffix(value, ":"))
}

// anchored reports whether the file defines the anchor that an alias names.
func (p *problems) anchored(alias string) bool {
	if p.anchors == nil {
		p.anchors = make(map[string]bool)
		for _, m := range anchors.FindAllString(p.src.text(), -1) {
			p.anchors[m[1:]] = true
		}
	}
	return p.anchors[alias[1:]]
}

func (r repaired) message() string {
	switch {
	case r.why != "":
		return r.why
	case secretPath(r.key) || secretText.MatchString(r.value):
		return "YAML cannot read this value as text; quote it"
	default:
		return "YAML cannot read " + r.value + " as text; quote it: " + quote(r.value)
	}
}

// named puts the full paths into the mistakes that were found before the text
// could be parsed and have only a key.
func (p *problems) named(fixes []repaired) {
	for _, f := range fixes {
		at := p.src.pathAt(f.line, f.key)
		if at == "" {
			continue
		}
		p.failed[at] = true
		for _, e := range p.list {
			if e.Line == f.line && e.Path == f.key {
				e.Path = at
				break
			}
		}
	}
}

// quote writes a text as a YAML scalar with quotes.
func quote(text string) string {
	if strings.ContainsAny(text, `"\`) {
		return "'" + strings.ReplaceAll(text, "'", "''") + "'"
	}
	return `"` + text + `"`
}

// uncomment cuts a comment and outer spaces off a value. A "#" in quotes does not begin one.
func uncomment(text string) string {
	var in byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case in != 0:
			if c == in {
				in = 0
			}
		case (c == '"' || c == '\'') && (i == 0 || strings.IndexByte(" \t[({,:", text[i-1]) >= 0):
			in = c // an apostrophe inside a word is none
		case c == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t'):
			return strings.TrimSpace(text[:i])
		}
	}
	return strings.TrimSpace(text)
}

// closing is the end of the bracketed text that text begins with, 0 if it does
// not end in this line.
func closing(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"', '\'':
			end := closingQuote(text[i:])
			if end == 0 {
				return 0
			}
			i += end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// closingQuote is the end of the quoted text that text begins with, 0 if it does
// not end in this line.
func closingQuote(text string) int {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && text[0] == '"':
			i++
		case text[i] != text[0]:
		case text[0] == '\'' && strings.HasPrefix(text[i+1:], "'"):
			i++
		default:
			return i + 1
		}
	}
	return 0
}
