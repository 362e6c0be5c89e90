package config

import (
	"path/filepath"
	"strings"
)

// source is where a configuration came from. The zero value is a
// configuration made in Go: its mistakes have a path and no line.
type source struct {
	name  string
	lines []string // for messages that show a line's text
	pos   map[string]place
}

// place is where a field's value stands: a line of the file, or the variable or
// flag that overrides it (line 0).
type place struct {
	file string
	line int
}

func newSource(name string, b []byte) *source {
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	return &source{name: name, lines: strings.Split(text, "\n"), pos: make(map[string]place)}
}

func (s *source) text() string { return strings.Join(s.lines, "\n") }

// line returns the text of a line, counted from 1.
func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

func (s *source) set(path string, line int) {
	s.pos[path] = place{s.name, line}
}

// override notes that a variable or a flag gave path's value.
func (s *source) override(path, origin string) {
	s.pos[path] = place{file: origin}
}

// given reports whether path has a value in the file, the environment or a flag.
func (s *source) given(path string) bool {
	_, ok := s.pos[path]
	return ok
}

// at finds path's place; what is absent stands where its parent begins.
func (s *source) at(path string) place {
	for at := path; at != ""; at = parent(at) {
		if p, ok := s.pos[at]; ok {
			return p
		}
	}
	if s.lines == nil {
		return place{}
	}
	return place{s.name, 1}
}

// pathAt finds the field with a key that stands on a line, or the deepest field
// there without one; "" if there is none.
func (s *source) pathAt(line int, key string) string {
	best := ""
	for path, p := range s.pos {
		name := path[strings.LastIndexByte(path, '.')+1:]
		name, _, _ = strings.Cut(name, "[")
		if p.file != s.name || p.line != line || key != "" && name != key {
			continue
		}
		if len(path) > len(best) || len(path) == len(best) && path < best {
			best = path
		}
	}
	return best
}

// resolve makes a path in the file relative to the file's folder.
func (s *source) resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(s.name), path)
}
