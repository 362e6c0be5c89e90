package config

import (
	"reflect"
	"strings"
)

// field is one key of a struct of the file.
type field struct {
	key   string
	index []int        // for FieldByIndex, through inlined structs
	typ   reflect.Type // without pointer to a struct
	owner reflect.Type // the struct that declares it
	name  string       // its Go name there
}

// fieldsOf lists a struct's keys in order, inlined structs opened.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case key == "-" || !f.IsExported():
		case options == "inline":
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				list = append(list, in)
			}
		default:
			typ := f.Type
			if typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			list = append(list, field{key: key, index: []int{i}, typ: typ, owner: t, name: f.Name})
		}
	}
	return list
}

// section reports whether t is a struct of the file (a Secret is a text).
func section(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Secret]()
}

// join is the path of a key in a section.
func join(path, key string) string {
	if path == "" || key == "" {
		return path + key
	}
	return path + "." + key
}

// walkFields calls visit for every field of the file's format, sections before
// what is in them; "[]" stands for the elements of a list.
func walkFields(visit func(path string, f field)) {
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for _, f := range fieldsOf(t) {
			at := join(path, f.key)
			visit(at, f)
			switch {
			case section(f.typ):
				walk(f.typ, at)
			case f.typ.Kind() == reflect.Slice && section(f.typ.Elem()):
				walk(f.typ.Elem(), at+"[]")
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
}

// pathsWithKey lists where a key is known in the whole format.
func pathsWithKey(key string) []string {
	var paths []string
	walkFields(func(path string, f field) {
		if f.key == key {
			paths = append(paths, path)
		}
	})
	return paths
}

// nearest is the known word that a mistyped one most likely means, or "".
func nearest(word string, known []string) string {
	// At most two slips of the finger, and one in a word as short as foo, which log is not near.
	best, bestCost := "", 1+min(2, max(1, (len(word)-1)/2))
	for _, k := range known {
		cost := distance(strings.ToLower(word), k)
		if norm := strings.NewReplacer("-", "", "_", "", " ", ""); norm.Replace(strings.ToLower(word)) == norm.Replace(k) {
			cost = 0 // connectionString, connection-string
		}
		if len(word) > 2 && len(k) > 2 && (strings.HasPrefix(word, k) || strings.HasPrefix(k, word)) {
			cost = min(cost, 1) // warning, conn
		}
		if cost < bestCost {
			best, bestCost = k, cost
		}
	}
	return best
}

// distance is the Levenshtein distance, with a swap of neighbours as one step.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	before, prev := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
