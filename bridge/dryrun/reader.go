package dryrun

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
)

// reader takes a file's YAML apart and collects every mistake with its line. Texts
// stay as they are written, so that 007 or 1e3 is a device and yes a value.
type reader struct {
	file string
	errs []*config.Error
}

func (r *reader) fail(n *yaml.Node, path, format string, args ...any) {
	line := 1
	if n != nil {
		line = max(n.Line, 1)
	}
	r.errs = append(r.errs, &config.Error{File: r.file, Line: line, Path: path, Err: fmt.Errorf(format, args...)})
}

// err joins the mistakes in the order of their lines.
func (r *reader) err() error {
	slices.SortStableFunc(r.errs, func(a, b *config.Error) int { return cmp.Compare(a.Line, b.Line) })
	all := make([]error, len(r.errs))
	for i, e := range r.errs {
		all[i] = e
	}
	return errors.Join(all...)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// document parses one YAML document; nil if it cannot.
func (r *reader) document(b []byte) *yaml.Node {
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		r.fail(nil, "", "the file is empty; it has config: FILE and cases:")
		return nil
	}
	if err == nil {
		if next := dec.Decode(&more); next == nil {
			r.fail(&more, "", "a second document begins here; a file of cases is one")
			return nil
		} else if !errors.Is(next, io.EOF) {
			err = next
		}
	}
	if err != nil {
		n := &yaml.Node{}
		text := strings.Join(strings.Fields(err.Error()), " ")
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			n.Line, _ = strconv.Atoi(m[1])
			text = text[len(m[0]):]
		}
		r.fail(n, "", "not understood: %s; check the indentation, and quote texts with : # or braces", text)
		return nil
	}
	root := doc.Content[0]
	if r.aliases(root) {
		return nil
	}
	return root
}

// aliases refuses what --update could not write back.
func (r *reader) aliases(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		r.fail(n, "", "an anchor or alias; write the value out, or quote it if it is a text")
		return true
	}
	return slices.ContainsFunc(n.Content, r.aliases)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// section walks a mapping's keys, each of which must be known. It reports whether n is one.
func (r *reader) section(n *yaml.Node, path string, known []string, each func(key, value *yaml.Node, at string)) bool {
	if n.Kind != yaml.MappingNode {
		r.fail(n, path, "keys and values belong here: %s", strings.Join(known, ", "))
		return false
	}
	r.pairs(n, path, func(key, value *yaml.Node) {
		at := join(path, key.Value)
		if !slices.Contains(known, key.Value) {
			r.fail(key, at, "unknown key; known here: %s", strings.Join(known, ", "))
			return
		}
		each(key, value, at)
	})
	return true
}

// pairs walks a mapping with keys of any name.
func (r *reader) pairs(n *yaml.Node, path string, each func(key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			r.fail(key, path, "a key must be plain text")
			continue
		}
		if first := seen[key.Value]; first > 0 {
			r.fail(key, join(path, key.Value), "duplicate key, first in line %d; remove one", first)
			continue
		}
		seen[key.Value] = key.Line
		each(key, n.Content[i+1])
	}
}

// text is a single value; null is "", and what has the tag !!binary is decoded.
func (r *reader) text(n *yaml.Node, path string) string {
	if n.Kind != yaml.ScalarNode {
		what := "a list"
		if n.Kind == yaml.MappingNode {
			what = "a mapping"
		}
		r.fail(n, path, "%s where a text belongs; quote a text that begins with { or [", what)
		return ""
	}
	if isNull(n) {
		return ""
	}
	if n.ShortTag() != "!!binary" {
		return n.Value
	}
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), ""))
	if err != nil {
		r.fail(n, path, "!!binary where no base64 follows (%w)", err)
	}
	return string(b)
}

// value is one of several under a name: null counts.
type value struct {
	text string
	null bool
}

// values reads names with one value or a list of them, in the order of the file.
func (r *reader) values(n *yaml.Node, path string, nulls bool) (names []string, values map[string][]value) {
	values = map[string][]value{}
	if isNull(n) {
		return nil, values
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, path, "names and values belong here, such as {X-User: ann}; {} for none")
		return nil, values
	}
	r.pairs(n, path, func(key, v *yaml.Node) {
		at := join(path, key.Value)
		list := []*yaml.Node{v}
		if v.Kind == yaml.SequenceNode {
			list = v.Content
		}
		for _, v := range list {
			if isNull(v) && !nulls {
				r.fail(v, at, `has no value; write "" for an empty one, or leave the name out`)
				continue
			}
			values[key.Value] = append(values[key.Value], value{r.text(v, at), isNull(v)})
		}
		names = append(names, key.Value)
	})
	return names, values
}
