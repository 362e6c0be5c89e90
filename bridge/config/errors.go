package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"downlink/mapping"
)

// Error is one mistake or warning, with its place. Its text is one line,
// "FILE:LINE: path: what is wrong; remedy", and never contains a secret.
type Error struct {
	// File is the file's name as given to Load or Parse, or the environment
	// variable or flag that the value came from.
	File string
	// Line counts from 1; 0 for what has no line (a variable, a flag, a file that cannot be read).
	Line int
	// Path is the field, such as bridge.routes[2].device; empty for the file as a whole.
	Path string
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	for _, part := range []string{e.Path, e.Err.Error()} {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(part)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// problems collects the mistakes of one configuration, at most one a field: a
// mistake that only follows from another is noise.
type problems struct {
	src    *source
	list   []*Error
	failed map[string]bool // paths that have a mistake already

	warnings []*Error // what is odd but not wrong

	anchors map[string]bool // the file's, once somebody asked
}

func newProblems(src *source) *problems {
	return &problems{src: src, failed: make(map[string]bool)}
}

// maxProblems bounds the list; nobody reads a hundred, and looking through it is quadratic.
const maxProblems = 100

// add records a mistake at path, unless path or what contains it has one.
func (p *problems) add(path string, err error) {
	for at := path; at != ""; at = parent(at) {
		if p.failed[at] {
			return
		}
	}
	place := p.src.at(path)
	if p.append(&Error{File: place.file, Line: place.line, Path: path, Err: err}) {
		p.failed[path] = true
	}
}

func (p *problems) append(e *Error) bool {
	if len(p.list) == maxProblems {
		e.Path, e.Err = "", errors.New("too many mistakes; what follows is not shown")
	}
	if len(p.list) > maxProblems {
		return false
	}
	p.list = append(p.list, e)
	return true
}

func (p *problems) addf(path, format string, args ...any) {
	p.add(path, fmt.Errorf(format, args...))
}

// addLine records a mistake that belongs to a line rather than to a field.
func (p *problems) addLine(line int, path, format string, args ...any) {
	p.append(&Error{File: p.src.name, Line: max(line, 1), Path: path, Err: fmt.Errorf(format, args...)})
}

// has reports whether path or something inside it has a mistake.
func (p *problems) has(path string) bool {
	for at := range p.failed {
		if at == path || strings.HasPrefix(at, path+".") || strings.HasPrefix(at, path+"[") {
			return true
		}
	}
	return false
}

func (p *problems) warn(path string, err error) {
	place := p.src.at(path)
	p.warnings = append(p.warnings, &Error{File: place.file, Line: place.line, Path: path, Err: err})
}

// warned lists the warnings in the order of their lines.
func (p *problems) warned() []*Error {
	slices.SortStableFunc(p.warnings, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	return p.warnings
}

// addMapping records what mapping.Compile or CompileRelay found; place turns
// its paths into ours, "" for a mistake that only follows from another.
func (p *problems) addMapping(err error, place func(path string) string) {
	var field *mapping.FieldError
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the joined list itself, not something below it
		for _, e := range joined.Unwrap() {
			p.addMapping(e, place)
		}
	} else if errors.As(err, &field) {
		// A mistake inside (a wrong type) may well be why mapping is unhappy with the whole.
		if path := place(field.Path); path != "" && !p.has(path) {
			p.add(path, field.Err)
		}
	} else if err != nil {
		p.add(place(""), err)
	}
}

// err joins the mistakes in the order of their lines; nil without any.
func (p *problems) err() error {
	slices.SortStableFunc(p.list, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	all := make([]error, len(p.list))
	for i, e := range p.list {
		all[i] = e
	}
	return errors.Join(all...)
}

// parent is the path that contains path: "a.b[2]" is in "a.b", that in "a".
func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// secretText matches what must not be repeated in a message, wherever somebody
// has pasted it: keys and tokens of Azure, seeds and JWTs of NATS, URLs with a password.
var secretText = regexp.MustCompile(`(?i)sharedaccess|sig=|key=|password|-----BEGIN|\bS[ANOUXC][A-Z2-7]{30,}|eyJ[A-Za-z0-9_-]{10,}|://[^/\s]*@`)

// show quotes a value for a message, cut to a readable length.
func show(value string) string {
	if secretText.MatchString(value) {
		return redacted
	}
	if r := []rune(value); len(r) > 60 {
		value = string(r[:60]) + "…"
	}
	return strconv.Quote(value)
}
