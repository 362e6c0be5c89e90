package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// moreValues is how many values aliases can make of a file beyond the bytes that it has.
const moreValues = 100_000

// decoder fills the structs from YAML nodes, strictly: unknown and duplicate
// keys and wrong types are mistakes, and it goes on after each.
type decoder struct {
	*problems
	values int
	most   int // of them
}

// value decodes n into v. path has its place already.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.values++; d.values > d.most {
		if d.values == d.most+1 {
			d.addf(path, "more than %d values; do without aliases", d.most)
		}
		return
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.quoteIt(path, d.rest(n))
		return
	}
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer && section(t.Elem()):
		p := reflect.New(t.Elem())
		d.section(n, p.Elem(), path)
		v.Set(p)
	case section(t):
		d.section(n, v, path)
	case t.Kind() == reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) section(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return // "relay:" with everything in it commented out: the defaults
	}
	if n.Kind != yaml.MappingNode {
		d.addf(path, "%s where keys and values belong, such as %s: …", d.what(n, path), fieldsOf(v.Type())[0].key)
		return
	}
	fields := fieldsOf(v.Type())
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.addLine(key.Line, path, "a key must be plain text, not %s", d.what(key, path))
			continue
		}
		at := join(path, key.Value)
		if first, ok := seen[key.Value]; ok {
			d.addLine(key.Line, at, "duplicate key, first in line %d; remove one", first)
			continue
		}
		seen[key.Value] = key.Line
		found := false
		for _, f := range fields {
			if f.key == key.Value {
				d.src.set(at, key.Line)
				d.value(val, v.FieldByIndex(f.index), at)
				found = true
			}
		}
		if !found {
			d.unknown(key, path, fields)
		}
	}
}

// unknown reports a key that the section at path does not have.
func (d *decoder) unknown(key *yaml.Node, path string, fields []field) {
	if len(d.problems.list) > maxProblems {
		return // looking for what was meant takes its time
	}
	var known []string
	for _, f := range fields {
		known = append(known, f.key)
	}
	name := key.Value
	if secretText.MatchString(name) || len(name) > 60 || oneLine(name) != nil {
		d.addLine(key.Line, path, "unknown key; known here: %s", strings.Join(known, ", "))
		return
	}
	at := join(path, name)
	if near := nearest(name, known); near != "" {
		d.failed[join(path, near)] = true // do not ask for it as well
		d.addLine(key.Line, at, "unknown key; did you mean %s?", near)
		return
	}
	if elsewhere := pathsWithKey(name); len(elsewhere) > 0 {
		d.addLine(key.Line, at, "unknown key here; it belongs into %s", strings.Join(elsewhere, " or "))
		return
	}
	d.addLine(key.Line, at, "unknown key; known here: %s", strings.Join(known, ", "))
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	elem := v.Type().Elem()
	switch {
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			at := path + "[" + itoa(i) + "]"
			d.src.set(at, item.Line)
			v.Set(reflect.Append(v, reflect.Zero(elem)))
			d.value(item, v.Index(i), at)
		}
	case isNull(n):
		d.addf(path, "has no value; remove the key, or give a list")
	case section(elem):
		d.addf(path, `%s where a list belongs; begin each entry with "- "`, d.what(n, path))
	case n.Kind == yaml.ScalarNode: // one text for a list of texts
		v.Set(reflect.Append(v, reflect.Zero(elem)))
		d.value(n, v.Index(0), path)
	default:
		d.addf(path, "%s where a list of texts belongs", d.what(n, path))
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	text := v.Kind() == reflect.String || v.Type() == reflect.TypeFor[Secret]()
	block := n.Style&(yaml.FoldedStyle|yaml.LiteralStyle) != 0
	switch {
	case n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 && text:
		d.quoteIt(path, d.rest(n))
		return
	case n.Kind != yaml.ScalarNode:
		d.addf(path, "%s where %s belongs", d.what(n, path), typeName(v.Type()))
		return
	case n.Anchor != "" && n.Value == "":
		d.quoteIt(path, "&"+n.Anchor)
		return
	case isNull(n):
		d.addf(path, "has no value; remove the key for the default, or give %s", typeName(v.Type()))
		return
	case block && strings.TrimSpace(n.Value) == "":
		d.quoteIt(path, d.rest(n))
		return
	}
	value := n.Value
	if block {
		value = strings.TrimRight(value, "\n")
	}
	if v.Type() != reflect.TypeFor[Secret]() {
		if err := oneLine(value); err != nil {
			d.add(path, err)
			return
		}
	}
	if err := setScalar(v, value); err != nil {
		d.add(path, err)
	}
}

// quoteIt reports a value that YAML takes for syntax.
func (d *decoder) quoteIt(path, value string) {
	if secretPath(path) || secretText.MatchString(value) || value == "" {
		d.addf(path, "YAML reads the first character as syntax; quote the value")
		return
	}
	d.addf(path, "YAML reads %s as syntax, not as text; quote it: %s", value, quote(value))
}

// what names a node for a message. Only a place where nobody would put a secret shows its text.
func (d *decoder) what(n *yaml.Node, path string) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case strings.Contains(path, "hubs") || strings.Contains(path, "devices") || strings.Contains(path, "nats"):
		return "a text"
	default:
		return "the text " + show(n.Value)
	}
}

// rest is the text of n as it stands in its line: a flow mapping up to its
// closing brace, anything else up to a comment.
func (d *decoder) rest(n *yaml.Node) string {
	line := []rune(d.src.line(n.Line))
	if n.Column < 1 || n.Column > len(line) {
		return ""
	}
	text := string(line[n.Column-1:])
	if n.Kind == yaml.MappingNode {
		if end := closing(text); end > 0 {
			return text[:end]
		}
	}
	return uncomment(text)
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// secretPath reports whether a path holds a secret's text.
func secretPath(path string) bool {
	return strings.HasSuffix(path, "connection_string")
}

// typeName names a type for an operator; the reference uses it too.
func typeName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[Secret]():
		return "secret text"
	case section(t):
		return "section"
	case t.String() == "time.Duration":
		return "duration"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Int64:
		return "size"
	case reflect.Slice:
		if section(t.Elem()) {
			return "list of sections"
		}
		return "list of texts"
	default:
		return "text"
	}
}
