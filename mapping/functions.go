package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"strings"

	"github.com/expr-lang/expr"
)

// builtins is what expressions may call of the library: pure, without clock,
// zone or random order, and bounded by the size of the message.
var builtins = []string{
	"all", "none", "any", "one", "filter", "map", "find", "findIndex", "findLast", "findLastIndex", "count", "sum",
	"len", "type", "abs", "ceil", "floor", "round", "int", "float",
	"trim", "trimPrefix", "trimSuffix", "upper", "lower", "split", "splitAfter", "indexOf", "lastIndexOf", "hasPrefix", "hasSuffix",
	"max", "min", "mean", "median", "toBase64", "fromBase64", "first", "last", "get", "take", "reverse", "concat", "sort",
	"bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr", "bitnot",
}

// functionNames are the functions that are ours.
var functionNames = []string{
	"sha256", "hex", "fromHex", "urlEncode", "urlDecode", "bucket", "uniq", "lookup", "group", "replace", "join", "fromJSON", "toJSON", "string", "flatten",
}

// eachRound is the function around what map gives in each round from outside of the loop. No expression can call it.
const eachRound = "each round"

var (
	errText   = errors.New("text too long")
	errValues = errors.New("too many values")
	errRound  = fmt.Errorf("takes more than %d bytes from outside of the loop in each round", maxRound)
	errNoText = errors.New("a list or an object has no text of its own; use join or toJSON")
)

// exprOptions are the same for every expression of a side.
func exprOptions(s *side, seen *visitor) []expr.Option {
	o := []expr.Option{expr.Env(s.env), expr.MaxNodes(maxExprNodes), expr.DisableAllBuiltins(), expr.Patch(seen)}
	for _, b := range builtins {
		o = append(o, expr.EnableBuiltin(b))
	}
	text := func(name string, f func(string) string) expr.Option {
		return expr.Function(name, func(a ...any) (any, error) { return f(a[0].(string)), nil }, new(func(string) string))
	}
	back := func(name string, f func(string) (string, error)) expr.Option {
		return expr.Function(name, func(a ...any) (any, error) { return f(a[0].(string)) }, new(func(string) string))
	}
	o = append(o,
		text("sha256", func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }),
		text("hex", func(s string) string { return hex.EncodeToString([]byte(s)) }),
		back("fromHex", func(s string) (string, error) { b, err := hex.DecodeString(s); return string(b), err }),
		text("urlEncode", func(s string) string { return percentEncode(s, classURL) }),
		back("urlDecode", func(s string) (string, error) {
			v, ok := percentDecode(s)
			if !ok {
				return "", errors.New("not percent-encoded")
			}
			return v, nil
		}),
		expr.Function("bucket", func(a ...any) (any, error) { return bucket(a[0].(string), a[1].(int)) }, new(func(string, int) int)),
		expr.Function("uniq", func(a ...any) (any, error) { return uniq(a[0]) }, new(func([]string) []any), new(func([]any) []any)),
	)
	if s.hasTables {
		o = append(o,
			expr.Function("lookup", func(a ...any) (any, error) { return s.lookup(a[0].(string), a[1]) }, new(func(string, any) any)),
			expr.Function("group", func(a ...any) (any, error) { return s.lookup(GroupTable, a[0]) }, new(func(any) any)),
		)
	}
	return append(o,
		expr.Function("replace", func(a ...any) (any, error) {
			s, old, new := a[0].(string), a[1].(string), a[2].(string)
			if n := strings.Count(s, old); len(s)+n*len(new) > maxText {
				return nil, errText
			}
			return strings.ReplaceAll(s, old, new), nil
		}, new(func(string, string, string) string)),
		expr.Function("join", func(a ...any) (any, error) {
			glue := ""
			if len(a) == 2 {
				glue = a[1].(string)
			}
			return joinText(a[0], glue)
		}, new(func([]string, string) string), new(func([]string) string), new(func([]any, string) string), new(func([]any) string)),
		expr.Function("fromJSON", func(a ...any) (any, error) { return decodeJSON([]byte(a[0].(string))) }, new(func(string) any)),
		expr.Function("string", func(a ...any) (any, error) { return stringOf(a[0]) },
			new(func(string) string), new(func(int) string), new(func(float64) string), new(func(bool) string), new(func(any) any)),
		expr.Function("flatten", func(a ...any) (any, error) { return flatten(make([]any, 0, 16), a[0]) }, new(func([]any) []any), new(func([]string) []any)),
		expr.Function("toJSON", func(a ...any) (any, error) {
			if left := maxText; !fits(a[0], 1, &left) {
				return nil, errText
			}
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(a[0]); err != nil {
				return nil, err
			}
			return strings.TrimSuffix(b.String(), "\n"), nil
		}, new(func(any) string)),
		expr.Function(eachRound, func(a ...any) (any, error) {
			if left := maxRound; !fits(a[0], 16, &left) {
				return nil, errRound
			}
			return a[0], nil
		}, new(func(any) any)),
	)
}

// stringOf is the text of a value as a field has it: nil stays nil.
func stringOf(v any) (any, error) {
	text, ok, err := valueText(v)
	switch {
	case err != nil:
		return nil, errNoText
	case !ok:
		return nil, nil
	}
	return text, nil
}

// fits reports whether a value is written in about left bytes, each entry taken for some more. A list may hold the same large value many
// times: as it is, it costs nothing, but written down it has no bound.
func fits(v any, entry int, left *int) bool {
	*left -= entry
	switch v := v.(type) {
	case string:
		*left -= len(v)
	case []string:
		for i := 0; i < len(v) && *left >= 0; i++ {
			*left -= len(v[i]) + entry
		}
	case []any:
		for i := 0; i < len(v) && *left >= 0; i++ {
			fits(v[i], entry, left)
		}
	case map[string]any:
		for name, e := range v {
			if *left -= len(name); *left < 0 || !fits(e, entry, left) {
				break
			}
		}
	case map[string][]string:
		for name, e := range v {
			if *left -= len(name); *left < 0 || !fits(e, entry, left) {
				break
			}
		}
	}
	return *left >= 0
}

// flatten is the library's with a bound, and without a copy for each level.
func flatten(to []any, list any) ([]any, error) {
	entries, _ := asList(list)
	for _, e := range entries {
		var err error
		if _, inner := asList(e); inner {
			to, err = flatten(to, e)
		} else if to = append(to, e); len(to) > memoryBudget {
			err = errValues
		}
		if err != nil {
			return nil, err
		}
	}
	return to, nil
}

func joinText(list any, glue string) (any, error) {
	var parts []string
	switch list := list.(type) {
	case []string:
		parts = list
	case []any:
		for _, v := range list {
			s, ok := v.(string)
			if !ok {
				return nil, fmt.Errorf("cannot join %T", v)
			}
			parts = append(parts, s)
		}
	}
	n := len(parts) * len(glue)
	for _, p := range parts {
		n += len(p)
	}
	if n > maxText {
		return nil, errText
	}
	return strings.Join(parts, glue), nil
}

// bucket spreads texts over n numbers from 0, always the same way (FNV-1a, 64 bits).
func bucket(s string, n int) (int, error) {
	if n < 1 {
		return 0, errors.New("the number of buckets must be at least 1")
	}
	h := fnv.New64a()
	io.WriteString(h, s)
	return int(h.Sum64() % uint64(n)), nil
}

// uniq is the library's in linear time, for what a list of a message holds.
func uniq(list any) ([]any, error) {
	entries, _ := asList(list)
	seen := make(map[any]struct{}, len(entries))
	out := make([]any, 0, len(entries))
	for _, v := range entries {
		switch v.(type) {
		case nil, string, bool, int, float64:
		default:
			return nil, fmt.Errorf("cannot compare %T", v)
		}
		if _, twice := seen[v]; !twice {
			seen[v] = struct{}{}
			out = append(out, v)
		}
	}
	return out, nil
}
