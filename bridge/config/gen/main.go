// Command gen writes REFERENCE.md from the structs of the configuration, their
// comments, and the tables of defaults and settings. Run it with go generate in
// bridge/config; a test fails when the page is stale.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"downlink/bridge/config"
)

func main() {
	if len(os.Args) != 1 {
		fmt.Fprintln(os.Stderr, "gen: takes no arguments; run it in bridge/config")
		os.Exit(2)
	}
	mapping := filepath.Join("..", "..", "mapping")
	page, err := render(".", mapping)
	if err == nil {
		err = os.WriteFile("REFERENCE.md", []byte(page), 0o644)
	}
	if err == nil {
		var b []byte
		if b, err = schema(".", mapping); err == nil {
			err = os.WriteFile("schema.json", b, 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// comments reads the comments of all struct fields in the packages' folders, by
// "package.Struct.Field".
func comments(folders ...string) (map[string]string, error) {
	found := make(map[string]string)
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.TypeSpec)
				if !ok {
					return true
				}
				s, ok := spec.Type.(*ast.StructType)
				if !ok {
					return true
				}
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						found[f.Name.Name+"."+spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
					}
				}
				return true
			})
		}
	}
	return found, nil
}

// render makes the page. Every field must have a comment.
func render(folders ...string) (string, error) {
	doc, err := comments(folders...)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(intro)
	fields := config.Fields()
	for _, section := range sections(fields) {
		fmt.Fprintf(&b, "\n## %s\n\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n", heading(section))
		for _, f := range fields {
			if parent(f.Path) != section {
				continue
			}
			comment := doc[f.Struct.String()+"."+f.Name]
			if comment == "" {
				return "", fmt.Errorf("%s.%s has no comment", f.Struct, f.Name)
			}
			meaning := escape(sentence(comment, f))
			if f.Env != "" {
				meaning += " Environment: `" + f.Env + "`."
			}
			if f.Section {
				to := heading(original(fields, f.Path+element(f)))
				meaning += fmt.Sprintf(" See [%s](#%s).", to, anchor(to))
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Path[strings.LastIndex(f.Path, ".")+1:], f.Type, escape(f.Default), meaning)
		}
	}
	b.WriteString("\n## Environment and flags\n\n" + environment)
	b.WriteString("\n| Variable | Flag | What it sets |\n|---|---|---|\n")
	for _, s := range config.Settings() {
		flag := ""
		if s.Flag != "" {
			flag = "`--" + s.Flag + "`"
		}
		what := s.Doc
		if s.Path != "" {
			what = "`" + s.Path + "`: " + what
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Env, flag, escape(what))
	}
	return b.String(), nil
}

// sections lists the sections in the order of the file; a block that occurs
// twice is there once.
func sections(fields []config.Field) []string {
	list := []string{""}
	for _, f := range fields {
		if at := f.Path + element(f); f.Section && original(fields, at) == at {
			list = append(list, at)
		}
	}
	return list
}

// original is the first section with the same content as a section, which is
// itself unless the same block occurs twice.
func original(fields []config.Field, section string) string {
	if section == "" {
		return ""
	}
	want := content(fields, section)
	for _, f := range fields {
		if at := f.Path + element(f); f.Section && slices.Equal(content(fields, at), want) {
			return at
		}
	}
	return section
}

// content is what a section holds, without its own path.
func content(fields []config.Field, section string) []string {
	var list []string
	for _, f := range fields {
		if rest, ok := strings.CutPrefix(f.Path, section+"."); ok {
			list = append(list, fmt.Sprint(rest, f.Type, f.Default, f.Env, f.Struct, f.Name))
		}
	}
	return list
}

// parent is the section that a field stands in.
func parent(path string) string { return path[:max(strings.LastIndex(path, "."), 0)] }

func element(f config.Field) string {
	if strings.HasPrefix(f.Type, "list of sections") {
		return "[]"
	}
	return ""
}

func heading(section string) string {
	if section == "" {
		return "The file"
	}
	return section
}

// anchor is the link target that Markdown renderers give a heading.
func anchor(heading string) string {
	return strings.NewReplacer(".", "", "[", "", "]", "", " ", "-").Replace(strings.ToLower(heading))
}

// sentence turns a Go comment on a field into one on a key: "Name is the …"
// into "the …", without the default, which has a column.
func sentence(comment string, f config.Field) string {
	if rest, ok := strings.CutPrefix(comment, f.Name+" "); ok {
		comment = strings.TrimPrefix(strings.TrimPrefix(rest, "is "), "are ")
	}
	for _, tail := range []string{".", ";"} {
		comment = strings.Replace(comment, " Default "+f.Default+tail, "", 1)
	}
	return comment
}

// escape keeps a text inside its cell of a table.
func escape(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`).Replace(text)
}

const intro = `<!-- Generated by go generate in bridge/config; do not edit. -->

# Configuration reference

One YAML file with ` + "`version: 1`" + ` and a ` + "`bridge:`" + ` section, a ` + "`relay:`" + ` section, or both. ` + "`downlink init`" + ` writes a short
one to start from; the folder ` + "`configs/`" + ` has more.

* A key that is not below is an error, with file, line and path; so is a key that is there twice.
* Quote what has braces, or begins with one of ` + "`{ [ > * & ! % @ |`" + `: YAML reads these as syntax otherwise.
* A duration is a number with its unit: ` + "`500ms`, `10s`, `1h30m`, `7d`, `1d12h`" + `. A size is in bytes, or has a unit:
  ` + "`1048576`, `64KiB`, `1GiB`, `2GB`" + `. A list of texts with one entry may be that text alone.
* Relative paths are relative to the folder of the file that names them (in variables and flags: to the working directory).
* A secret is given either as such or in a file of its own (` + "`…_file`" + `, without the trailing newline), never both. Secrets print as
  ` + "`<redacted>`" + ` everywhere.
* YAML anchors and aliases work; merge keys (` + "`<<`" + `), tags and several documents in one file do not.
`

const environment = `A flag precedes the environment, that precedes the file, and that precedes the default. A variable that is empty counts as
unset; an unknown one that begins with ` + "`DOWNLINK_`" + ` is warned about. A connection string from here replaces ` + "`connection_string`," + `
` + "`connection_string_file`, `entra`, `embedded`" + ` and the secondary one of the file, and adds the hub or the device if the file names none; the URL replaces
` + "`url`, `context` and `embedded`" + `. Commands take the flags that concern them; secrets themselves are never flags.
`
