package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The limits of a twin (developer guide, "Device twins": size and format).
const (
	sectionLimit = 32 * 1024 // desired, reported
	tagsLimit    = 8 * 1024
	keyLimit     = 1024
	stringLimit  = 4096
	maxDepth     = 10
	minInteger   = -4503599627370496
	maxInteger   = 4503599627370495
	// maxText bounds the text of a patch before it is parsed: white space and
	// escapes do not count against the limits above.
	maxText = 256 * 1024
)

// parse reads a patch. What the service reads but does not set, $version and
// $metadata, is passed over where readOnly says so: services send a whole
// section back.
func parse(text []byte, limit int, readOnly bool) (map[string]any, error) {
	if len(text) > maxText {
		return nil, errTooLarge(limit)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("the patch is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("the patch is no JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the patch has text after its JSON")
	}
	patch, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the patch is no JSON object")
	}
	if readOnly {
		delete(patch, "$version")
		delete(patch, "$metadata")
	}
	if err := check(patch, 1); err != nil {
		return nil, err
	}
	if size(patch) > limit {
		return nil, errTooLarge(limit)
	}
	return patch, nil
}

func errTooLarge(limit int) error { return fmt.Errorf("larger than %d KB", limit/1024) }

func wrap(section string, err error) error { return fmt.Errorf("%s: %w", section, err) }

func check(v any, depth int) error {
	if depth > maxDepth+1 {
		return fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if err := checkName(name); err != nil {
				return err
			}
			if err := check(value, depth+1); err != nil {
				return err
			}
		}
	case []any:
		for _, value := range v {
			if value == nil {
				return errors.New("an array holds null")
			}
			if err := check(value, depth+1); err != nil {
				return err
			}
		}
	case string:
		if len(v) > stringLimit {
			return fmt.Errorf("a text is longer than %d bytes", stringLimit)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil && (n < minInteger || n > maxInteger) || err != nil && !strings.ContainsAny(v.String(), ".eE") {
			return fmt.Errorf("the integer %.30s is out of range", v)
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || len(name) > keyLimit:
		return fmt.Errorf("a property's name is empty or longer than %d bytes", keyLimit)
	case strings.ContainsAny(name, ".$ ") || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("the name %.60q has a control character or one of: . $ space", name)
	}
	return nil
}

// size counts as the developer guide does: names and texts by their bytes,
// numbers 8, booleans 4.
func size(v any) int {
	switch v := v.(type) {
	case map[string]any:
		n := 0
		for name, value := range v {
			n += len(name) + size(value)
		}
		return n
	case []any:
		n := 0
		for _, value := range v {
			n += size(value)
		}
		return n
	case string:
		return len(v)
	case json.Number:
		return 8
	case bool:
		return 4
	}
	return 0
}

// merge returns a new object: have with patch merged into it (RFC 7396).
func merge(have, patch map[string]any) map[string]any {
	out := make(map[string]any, len(have)+len(patch))
	maps.Copy(out, have)
	for name, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(out, name)
		case map[string]any:
			below, _ := out[name].(map[string]any)
			out[name] = merge(below, value)
		default:
			out[name] = value
		}
	}
	return out
}

// merged returns the section with the patch in it. version, unless 0, stands in
// the metadata of what changed: the service tells it of desired properties.
func (s Section) merged(patch map[string]any, now time.Time, version int64) (Section, error) {
	next := Section{Version: s.Version + 1, Properties: merge(s.Properties, patch), updated: now}
	if size(next.Properties) > sectionLimit {
		return Section{}, errTooLarge(sectionLimit)
	}
	next.metadata = mark(s.metadata, patch, now, version)
	return next, nil
}

// mark notes in the metadata when, and in which version, each property of the patch changed.
func mark(have, patch map[string]any, now time.Time, version int64) map[string]any {
	out := make(map[string]any, len(have)+len(patch)+2)
	maps.Copy(out, have)
	out["$lastUpdated"] = stamp(now)
	if version > 0 {
		out["$lastUpdatedVersion"] = version
	}
	for name, value := range patch {
		if value == nil {
			delete(out, name)
			continue
		}
		below, _ := out[name].(map[string]any)
		object, _ := value.(map[string]any)
		if object == nil {
			below = nil // no object any more: what was below is gone
		}
		out[name] = mark(below, object, now, version)
	}
	return out
}
