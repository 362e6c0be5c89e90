package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/expr-lang/expr/ast"
)

// piece is a stretch of a template as scanned: text, or the source of an expression.
type piece struct {
	text   string
	expr   bool
	splice bool // "{…...}"
}

// scanTemplate takes a template apart. Braces within an expression's strings,
// comments, maps and predicates belong to the expression.
func scanTemplate(s string) ([]piece, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("is not valid UTF-8")
	}
	var pieces []piece
	var text []byte
	flush := func() {
		if len(text) > 0 {
			pieces = append(pieces, piece{text: string(text)})
			text = nil
		}
	}
	for i := 0; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], "{{"), strings.HasPrefix(s[i:], "}}"):
			text = append(text, s[i])
			i += 2
		case s[i] == '}':
			return nil, fmt.Errorf("%q: } without { at character %d; write }} for a literal brace", s, i+1)
		case s[i] == '{':
			n, err := scanExpr(s[i+1:])
			if err != nil {
				return nil, fmt.Errorf("%q: %w { at character %d; write {{ for a literal brace", s, err, i+1)
			}
			src, splice := strings.CutSuffix(strings.TrimSpace(s[i+1:i+1+n]), "...")
			src = strings.TrimSpace(src)
			if src == "" {
				return nil, fmt.Errorf("%q: nothing between the braces at character %d; put an expression there, or {{ and }} for literal braces", s, i+1)
			}
			flush()
			pieces = append(pieces, piece{text: src, expr: true, splice: splice})
			i += 1 + n + 1
		default:
			text = append(text, s[i])
			i++
		}
	}
	flush()
	return pieces, nil
}

// scanExpr returns where in s, which follows an opening brace, the closing one is.
func scanExpr(s string) (int, error) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return i, nil
			}
			depth--
		case '"', '\'', '`':
			j := i + 1
			for ; j < len(s) && s[j] != c; j++ {
				if s[j] == '\\' && c != '`' {
					j++
				}
			}
			if j >= len(s) {
				return 0, fmt.Errorf("unclosed %c within", c)
			}
			i = j // a doubled backquote is two strings in a row here, which ends in the same place
		case '/':
			if strings.HasPrefix(s[i:], "/*") {
				end := strings.Index(s[i+2:], "*/")
				if end < 0 {
					return 0, errors.New("unclosed /* within")
				}
				i += 2 + end + 1
			} else if strings.HasPrefix(s[i:], "//") {
				end := strings.IndexByte(s[i:], '\n')
				if end < 0 {
					return 0, errors.New("unclosed (the comment // runs to the end of the line)")
				}
				i += end
			}
		}
	}
	return 0, errors.New("unclosed")
}

type partKind uint8

const (
	partText partKind = iota
	partRef
	partFirst // the first of refs and texts that is not nil: a ?? b
	partExpr
)

// part is a piece, compiled.
type part struct {
	kind   partKind
	splice bool
	text   string // literal text, or the expression's source for messages
	ref    ref
	alt    []part
	prog   *program
}

// template is a compiled text. The zero value is the empty text.
type template struct {
	parts  []part
	idents map[string]bool // names that its expressions read
}

// scope gives a template's parts their values for one message.
type scope interface {
	// ref returns the value behind a simple name; false: nil.
	ref(r *ref) (string, bool)
	// name returns the value of a name for an expression.
	name(ident string) (any, error)
	// machine runs the expressions.
	machine() *machine
}

// compileTemplate compiles a text for the names of one side.
func compileTemplate(s string, side *side) (*template, error) {
	return compileAs(s, side, resultType)
}

// compileList is compileTemplate for a field that is one text, or one expression that may give a list.
func compileList(s string, side *side) (*template, error) {
	return compileAs(s, side, listType)
}

func compileAs(s string, side *side, single func(ast.Node) error) (*template, error) {
	pieces, err := scanTemplate(s)
	if err != nil {
		return nil, err
	}
	want := resultType
	if len(pieces) == 1 {
		want = single
	}
	t := &template{idents: map[string]bool{}}
	for _, p := range pieces {
		if !p.expr {
			t.parts = append(t.parts, part{kind: partText, text: p.text})
			continue
		}
		if p.splice && !side.splice {
			return nil, fmt.Errorf("{%s...}: the dots belong to a capture in subject; write {%s} here", oneLine(p.text), oneLine(p.text))
		}
		c, err := compileExpr(p.text, side, want)
		if err != nil {
			return nil, fmt.Errorf("{%s}: %w", oneLine(p.text), err)
		}
		c.splice = p.splice
		for _, id := range c.prog.reads {
			t.idents[id] = true
		}
		t.parts = append(t.parts, c)
	}
	return t, nil
}

// reads reports whether an expression of the template reads one of the names.
func (t *template) reads(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return t.idents[name] })
}

// literal returns the template's text if it has no expression.
func (t *template) literal() (string, bool) {
	switch {
	case len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].kind == partText:
		return t.parts[0].text, true
	}
	return "", false
}

// valueError is why a template has no value for one message.
type valueError struct {
	reason Reason
	err    error
}

func (e *valueError) Error() string { return e.err.Error() }

// eval returns the text; false if the template is one single expression and nil.
func (t *template) eval(s scope) (string, bool, *valueError) {
	switch len(t.parts) {
	case 0:
		return "", true, nil
	case 1:
		return t.parts[0].eval(s)
	}
	var buf [128]byte
	b := buf[:0]
	for i := range t.parts {
		v, ok, err := t.parts[i].eval(s)
		if err != nil {
			return "", false, err
		}
		if !ok {
			return "", false, t.parts[i].absent()
		}
		b = append(b, v...)
	}
	return string(b), true, nil
}

func (p *part) absent() *valueError {
	return &valueError{ReasonAbsent, fmt.Errorf(`{%s} is absent; give it a default, such as {%s ?? "none"}`, p.text, p.text)}
}

func (p *part) eval(s scope) (string, bool, *valueError) {
	switch p.kind {
	case partText:
		return p.text, true, nil
	case partRef:
		v, ok := s.ref(&p.ref)
		return v, ok, nil
	case partFirst:
		for i := range p.alt {
			if v, ok, err := p.alt[i].eval(s); ok || err != nil {
				return v, ok, err
			}
		}
		return "", false, nil
	}
	return p.prog.eval(s)
}

// value is eval for a field that may be a list: what a single expression gives
// stays as it is.
func (t *template) value(s scope) (any, bool, *valueError) {
	if len(t.parts) == 1 && t.parts[0].kind == partExpr {
		v, err := t.parts[0].prog.run(s)
		return v, v != nil, err
	}
	return t.eval(s)
}
