package config

import (
	_ "embed"
	"reflect"
	"strings"
)

// Field is one field of the file's format, for the reference and for commands
// that explain it.
type Field struct {
	Path    string // "[]" stands for the elements of a list
	Type    string // in words: text, duration, section …
	Default string // as in the file, or in words; empty if there is none
	Env     string // the variable that overrides it, if any
	// Words are its values, if it has only a few.
	Words []string
	// Struct and Name say where the field is declared, to find its comment.
	Struct reflect.Type
	Name   string
	// Section tells that the field holds fields of its own.
	Section bool
}

// Fields lists every field, sections before what they hold.
func Fields() []Field {
	def := make(map[string]string)
	for _, d := range defaults {
		def[d.path] = d.value
		if d.doc != "" {
			def[d.path] = d.doc
		}
	}
	env := make(map[string]string)
	for _, s := range settings {
		env[strings.ReplaceAll(s.Path, "[0]", "[]")] = s.Env
	}
	env["bridge.nats.url"], env["relay.nats.url"] = "DOWNLINK_NATS_URL", "DOWNLINK_NATS_URL"

	var fields []Field
	walkFields(func(path string, f field) {
		typ := typeName(f.typ)
		fields = append(fields, Field{
			Path: path, Type: typ, Default: def[path], Env: env[path], Words: words[path], Struct: f.owner, Name: f.name,
			Section: strings.Contains(typ, "section"),
		})
	})
	return fields
}

//go:embed schema.json
var schemaJSON []byte

// Schema is the JSON Schema (draft 2020-12) of the file, generated from the structs as the reference is. It takes every file
// that Load takes; of what Load refuses it finds unknown keys and wrong types.
func Schema() []byte { return schemaJSON }
