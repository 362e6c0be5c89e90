package mapping

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Lookups are the named tables that expressions read with lookup and group. Safe
// for concurrent use; it must not block, and what it returns is read only.
type Lookups interface {
	// Lookup returns the value of a key: a text, a number, a bool, a list ([]any) or
	// an object (map[string]any) of these. False: the table has no such key.
	Lookup(table, key string) (any, bool)
}

// StaticLookups are tables that never change: the values by table and key.
type StaticLookups map[string]map[string]any

// Lookup implements Lookups.
func (l StaticLookups) Lookup(table, key string) (any, bool) {
	v, ok := l[table][key]
	return v, ok
}

// GroupTable is the table that group reads.
const GroupTable = "groups"

// LookupValue reads one value as a KV bucket holds it: a JSON list or object is
// decoded, anything else is a text without the line end that tools add.
func LookupValue(b []byte) (any, error) {
	if text := bytes.TrimSpace(b); len(text) > 0 && (text[0] == '[' || text[0] == '{') {
		v, err := decodeJSON(text)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
	if !utf8.Valid(b) {
		return nil, errors.New("not valid UTF-8")
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// LookupFile reports whether ParseLookup can read a file of this name.
func LookupFile(name string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json", ".csv"}, extension(name))
}

func extension(name string) string { return strings.ToLower(path.Ext(name)) }

// ParseLookup reads a table from a file's content, by the extension of its name:
// .yaml, .yml or .json (keys and values, a value being a text or a list of texts
// or whatever else lookup may give), or .csv without a header line (key, value;
// with more columns the rest is a list). The error is one line and names the place.
func ParseLookup(name string, b []byte) (map[string]any, error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	switch ext := extension(name); ext {
	case ".json":
		return parseLookupJSON(b)
	case ".yaml", ".yml":
		return parseLookupYAML(b)
	case ".csv":
		return parseLookupCSV(b)
	default:
		return nil, fmt.Errorf("has the extension %q; a lookup is read from .yaml, .yml, .json or .csv", ext)
	}
}

func parseLookupJSON(b []byte) (map[string]any, error) {
	v, err := decodeJSON(b)
	if err != nil {
		return nil, fmt.Errorf("is %w", err)
	}
	table, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New(`holds no object; write {"key": "value", …}`)
	}
	if twice := repeatedKey(b); twice != "" {
		return nil, fmt.Errorf("%q is a key already; remove one", twice)
	}
	return table, nil
}

// repeatedKey is a key that an object, which is valid JSON, has twice; "" if none.
func repeatedKey(b []byte) string {
	d := json.NewDecoder(bytes.NewReader(b))
	_, _ = d.Token()
	seen := map[string]bool{}
	for d.More() {
		token, _ := d.Token()
		key, _ := token.(string)
		if seen[key] {
			return key
		}
		seen[key] = true
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return ""
		}
	}
	return ""
}

func parseLookupCSV(b []byte) (map[string]any, error) {
	r := csv.NewReader(bytes.NewReader(b))
	r.FieldsPerRecord = -1
	r.Comment = '#'
	r.TrimLeadingSpace = true
	table := map[string]any{}
	for {
		row, err := r.Read()
		if err == io.EOF {
			return table, nil
		}
		if err != nil {
			return nil, errors.New(firstLine(err.Error()))
		}
		line, _ := r.FieldPos(0)
		for i := range row {
			if !utf8.ValidString(row[i]) {
				return nil, fmt.Errorf("line %d: not valid UTF-8", line)
			}
			row[i] = strings.TrimSpace(row[i])
		}
		if _, twice := table[row[0]]; twice {
			return nil, fmt.Errorf("line %d: %q is a key already; keep one line, with its values in further columns", line, row[0])
		}
		switch len(row) {
		case 1:
			return nil, fmt.Errorf("line %d: has no value; write key,value", line)
		case 2:
			table[row[0]] = row[1]
		default:
			list := make([]any, 0, len(row)-1)
			for _, v := range row[1:] {
				if v != "" { // the empty columns that spreadsheets add
					list = append(list, v)
				}
			}
			table[row[0]] = list
		}
	}
}

// maxLookupValues bounds what aliases can blow a small file up to.
const maxLookupValues = 10_000_000

func parseLookupYAML(b []byte) (map[string]any, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, errors.New(strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return map[string]any{}, nil
	}
	left := maxLookupValues
	v, err := yamlValue(doc.Content[0], 0, &left)
	if err != nil {
		return nil, err
	}
	table, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("line 1: keys and values belong here, such as pump: berlin-7")
	}
	return table, nil
}

// yamlValue keeps keys and plain texts as they are written, so that a device
// ID such as 007 or 1e3 stays one.
func yamlValue(n *yaml.Node, depth int, left *int) (any, error) {
	if *left--; *left < 0 || depth > 64 {
		return nil, fmt.Errorf("line %d: too many or too deep values; do without aliases", n.Line)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return yamlValue(n.Alias, depth+1, left)
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return nil, nil
		}
		return n.Value, nil
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			v, err := yamlValue(item, depth+1, left)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		table := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: a key must be plain text", key.Line)
			}
			if _, twice := table[key.Value]; twice {
				return nil, fmt.Errorf("line %d: %q is a key already; remove one", key.Line, key.Value)
			}
			v, err := yamlValue(n.Content[i+1], depth+1, left)
			if err != nil {
				return nil, err
			}
			table[key.Value] = v
		}
		return table, nil
	}
	return nil, fmt.Errorf("line %d: no value that can be read", n.Line)
}

// lookup is what the expression functions lookup and group call.
func (s *side) lookup(table string, key any) (any, error) {
	switch key.(type) {
	case nil: // an absent header has no alias
		return nil, nil
	case string, int, bool, float64:
	default:
		return nil, errors.New("a key is a text or a number")
	}
	text, _, err := valueText(key)
	if err != nil || s.tables == nil {
		return nil, err
	}
	v, ok := s.tables.Lookup(table, text)
	if !ok {
		return nil, nil
	}
	return v, nil
}

// checkTable refuses at load a table that the configuration does not have.
func (s *side) checkTable(fn, table string) error {
	if slices.Contains(s.tableNames, table) {
		return nil
	}
	known := "none"
	if len(s.tableNames) > 0 {
		known = fmt.Sprintf("%q", s.tableNames[0])
		for _, n := range s.tableNames[1:] {
			known += fmt.Sprintf(", %q", n)
		}
	}
	if fn == "group" {
		return fmt.Errorf("group() reads the lookup %q, which is not there; lookups: %s", table, known)
	}
	return fmt.Errorf("%q is not among the lookups: %s", table, known)
}
