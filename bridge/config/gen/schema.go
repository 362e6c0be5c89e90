package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"downlink/bridge/config"
)

// node is a JSON Schema (draft 2020-12) of one value. The order of its fields is that of the page.
type node struct {
	Schema      string   `json:"$schema,omitempty"`
	Title       string   `json:"title,omitempty"`
	Description string   `json:"description,omitempty"`
	Type        any      `json:"type,omitempty"`
	Pattern     string   `json:"pattern,omitempty"`
	Minimum     *int     `json:"minimum,omitempty"`
	Enum        []any    `json:"enum,omitempty"`
	AnyOf       []*node  `json:"anyOf,omitempty"`
	Items       *node    `json:"items,omitempty"`
	Properties  *members `json:"properties,omitempty"`
	Additional  *bool    `json:"additionalProperties,omitempty"`
	Required    []string `json:"required,omitempty"`
}

// members are an object's properties, in the order in which they were added.
type members struct {
	keys  []string
	nodes map[string]*node
}

func (m *members) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range m.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(m.nodes[key])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", key, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func object() *node {
	no := false
	// A section with everything in it commented out is null to YAML, and has its defaults.
	return &node{Type: []string{"object", "null"}, Properties: &members{nodes: map[string]*node{}}, Additional: &no}
}

// schema makes the JSON Schema of the file. It takes whatever YAML values the decoder takes, a quoted number included, and
// no key that it does not know.
func schema(folders ...string) ([]byte, error) {
	doc, err := comments(folders...)
	if err != nil {
		return nil, err
	}
	root := object()
	root.Schema, root.Title = "https://json-schema.org/draft/2020-12/schema", "Downlink configuration"
	root.Type, root.Required = "object", []string{"version"}
	sections := map[string]*node{"": root} // by path
	for _, f := range config.Fields() {
		comment := doc[f.Struct.String()+"."+f.Name]
		if comment == "" {
			return nil, fmt.Errorf("%s.%s has no comment", f.Struct, f.Name)
		}
		n, in := value(f)
		n.Description = sentence(comment, f)
		if f.Default != "" {
			n.Description += " Default: " + f.Default + "."
		}
		if in != nil {
			sections[f.Path+element(f)] = in
		}
		m := sections[parent(f.Path)].Properties
		key := f.Path[strings.LastIndex(f.Path, ".")+1:]
		m.keys, m.nodes[key] = append(m.keys, key), n
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(root)
	return b.Bytes(), err
}

// value is the schema of a field; in is what holds its own fields, if it has some.
func value(f config.Field) (n, in *node) {
	zero := 0
	if f.Path == "version" {
		return &node{Enum: []any{1, "1"}}, nil
	}
	switch f.Type {
	case "section":
		n = object()
		return n, n
	case "list of sections":
		in = object()
		return &node{Type: "array", Items: in}, in
	case "list of texts":
		return &node{AnyOf: []*node{text(), {Type: "array", Items: text()}}}, nil
	case "true or false":
		return &node{Enum: []any{true, false, "true", "false"}}, nil
	case "duration":
		return &node{AnyOf: []*node{{Type: "string", Pattern: `^[-+]?(0|([0-9]+d)?([0-9]*\.?[0-9]+(ns|us|µs|μs|ms|s|m|h))*)$`}, {Enum: []any{0}}}}, nil
	case "size":
		return &node{AnyOf: []*node{{Type: "integer", Minimum: &zero}, {Type: "string", Pattern: `^[0-9]+ ?([kKmMgGtT][iI]?)?[bB]?$`}}}, nil
	case "whole number":
		return &node{AnyOf: []*node{{Type: "integer"}, {Type: "string", Pattern: `^[-+]?[0-9]+$`}}}, nil
	case "number":
		return &node{AnyOf: []*node{{Type: "number"}, {Type: "string", Pattern: `^-?[0-9]+(\.[0-9]+)?$`}}}, nil
	}
	if len(f.Words) > 0 {
		n := &node{}
		for _, w := range f.Words {
			n.Enum = append(n.Enum, w)
		}
		return n, nil
	}
	return text(), nil
}

// text is any plain value: YAML reads user: 007 as a number, and the decoder takes it as it is written.
func text() *node { return &node{Type: []string{"string", "number", "boolean"}} }
