package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"
)

// Bounds of one expression. The library's own are for programs; ours fill in a field.
const (
	maxExprLength = 4096
	maxExprNodes  = 500
	memoryBudget  = 100_000    // elements that one evaluation may make
	maxText       = 256 * 1024 // bytes that replace and join may make
)

type refKind uint8

const (
	refNone refKind = iota
	refCapture
	refHeader
	refSubject
	refStream
	refPayload
	refTarget
	refDevice
	refProperty
	refMessage
)

// ref is a value that needs no virtual machine.
type ref struct {
	kind  refKind
	index int    // of a capture
	name  string // of a header, property or field of message
}

// side is what expressions can name on one side.
type side struct {
	env     types.Map
	simple  map[string]ref     // names that are refs as they are
	lookups map[string]refKind // names that are refs when indexed by a constant: header["X"]
	splice  bool               // "{x...}" is allowed

	hasTables  bool     // lookup and group are there
	tableNames []string // what they may name
	tables     Lookups  // their values; nil: no key is there
}

func (s *side) known() string {
	names := make([]string, 0, len(s.env))
	for n := range s.env {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// program is a compiled expression; prog is nil when its part never enters the machine.
type program struct {
	src    string
	prog   *vm.Program
	idents []string
}

// builtins is what expressions may call of the library: pure, without clock,
// zone or random order, and bounded by the size of the message.
var builtins = []string{
	"all", "none", "any", "one", "filter", "map", "find", "findIndex", "findLast", "findLastIndex", "count", "sum",
	"len", "type", "abs", "ceil", "floor", "round", "int", "float", "string",
	"trim", "trimPrefix", "trimSuffix", "upper", "lower", "split", "splitAfter", "indexOf", "lastIndexOf", "hasPrefix", "hasSuffix",
	"max", "min", "mean", "median", "toBase64", "fromBase64", "first", "last", "get", "take", "reverse", "uniq", "concat", "flatten", "sort",
	"bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr", "bitnot",
}

var errText = errors.New("text too long")

// exprOptions are the same for every expression of a side.
func exprOptions(s *side, seen *visitor) []expr.Option {
	o := []expr.Option{expr.Env(s.env), expr.MaxNodes(maxExprNodes), expr.DisableAllBuiltins(), expr.Patch(seen)}
	for _, b := range builtins {
		o = append(o, expr.EnableBuiltin(b))
	}
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
		expr.Function("toJSON", func(a ...any) (any, error) {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(a[0]); err != nil {
				return nil, err
			}
			return strings.TrimSuffix(b.String(), "\n"), nil
		}, new(func(any) string)),
	)
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

// visitor looks at an expression's names and refuses what has no bound or no stable value.
type visitor struct {
	side   *side
	idents []string // names of the message that it reads
	err    error
}

func (v *visitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "$env" {
			v.fail("$env is not available; use the names directly")
		}
		if _, known := v.side.env[n.Value]; known && !slices.Contains(v.idents, n.Value) {
			v.idents = append(v.idents, n.Value)
		}
	case *ast.BuiltinNode: // those with predicates stay in the language, whatever is disabled
		if !slices.Contains(builtins, n.Name) {
			v.fail(n.Name + "() is not available; its time or its order has no bound")
		}
	case *ast.CallNode:
		v.call(n)
	case *ast.PredicateNode:
		var inner loops
		ast.Walk(&n.Node, &inner)
		if inner {
			v.fail("a loop within a loop is not available; its time has no bound")
		}
	case *ast.MemberNode:
		if p, ok := n.Property.(*ast.StringNode); ok && n.Node.Type() == reflect.TypeFor[time.Time]() {
			switch p.Value {
			case "Format", "Unix", "UnixMilli", "UnixMicro", "UnixNano", "Year", "Month", "Day", "Hour", "Minute", "Second", "YearDay", "String":
			default:
				v.fail("time." + p.Value + ` is not available; use time.Format("2006-01-02"), time.Unix() or time.UnixMilli()`)
			}
		}
	}
}

// call checks the table that lookup or group reads.
func (v *visitor) call(n *ast.CallNode) {
	fn, ok := n.Callee.(*ast.IdentifierNode)
	if !ok || !v.side.hasTables {
		return
	}
	table := GroupTable
	switch fn.Value {
	case "lookup":
		name, ok := n.Arguments[0].(*ast.StringNode)
		if !ok {
			v.fail(`lookup() needs the lookup's name as a text in quotes, such as lookup("aliases", device)`)
			return
		}
		table = name.Value
	case "group":
	default:
		return
	}
	if err := v.side.checkTable(fn.Value, table); err != nil {
		v.fail(err.Error())
	}
}

func (v *visitor) fail(text string) {
	if v.err == nil {
		v.err = errors.New(text)
	}
}

// loops finds predicates.
type loops bool

func (l *loops) Visit(node *ast.Node) {
	if _, ok := (*node).(*ast.PredicateNode); ok {
		*l = true
	}
}

// compileExpr compiles an expression whose result want accepts.
func compileExpr(src string, s *side, want func(ast.Node) error) (p part, err error) {
	// The library panics on nothing we know of; a configuration must never end the process.
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("is no expression that can be compiled")
		}
	}()
	if len(src) > maxExprLength {
		return p, fmt.Errorf("has %d bytes; at most %d are allowed", len(src), maxExprLength)
	}
	seen := &visitor{side: s}
	prog, err := expr.Compile(src, exprOptions(s, seen)...)
	if seen.err != nil {
		return p, seen.err
	}
	if err != nil {
		return p, compileError(err, s)
	}
	node := prog.Node()
	if err := want(node); err != nil {
		return p, err
	}
	if p, ok := simplePart(node, s); ok {
		p.text = src
		p.prog = &program{src: src, idents: seen.idents}
		return p, nil
	}
	return part{kind: partExpr, text: src, prog: &program{src: src, prog: prog, idents: seen.idents}}, nil
}

// compileError makes one line of the library's several, and names the remedy.
func compileError(err error, s *side) error {
	var fe *file.Error
	if !errors.As(err, &fe) {
		return errors.New(firstLine(err.Error()))
	}
	msg := firstLine(fe.Message)
	switch {
	case strings.HasPrefix(msg, "unknown name"):
		msg += "; known here: " + s.known()
	case strings.HasSuffix(msg, "is not callable") && s.hasTables:
		msg += "; a capture of a function's name hides the function: rename the capture"
	case strings.Contains(msg, "Operator (??) and") || strings.Contains(msg, "cannot be mixed"):
		msg += `; parenthesise it, as in (a ?? "b") + c`
	}
	return fmt.Errorf("at character %d: %s", fe.Column+1, msg)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// resultType refuses at load what can never be a text.
func resultType(node ast.Node) error {
	if _, ok := node.(*ast.NilNode); ok {
		return errors.New("is always nil; remove the field instead")
	}
	t := node.Type()
	if t == nil || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Interface,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return nil
	case reflect.Int64:
		if t == reflect.TypeFor[int64]() {
			return nil
		}
	}
	what := "a value of type " + t.String()
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		what = "a list"
	case reflect.Map:
		what = "a map"
	case reflect.Func:
		what = "a function"
	}
	return fmt.Errorf("gives %s; a field takes text, a number, true or false (pick one entry, or use join or toJSON)", what)
}

// listType is resultType for a field that takes several texts.
func listType(node ast.Node) error {
	if t := node.Type(); t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		return nil
	}
	return resultType(node)
}

// simplePart finds the forms that never enter the machine.
func simplePart(node ast.Node, s *side) (part, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return part{kind: partText, text: n.Value}, false // quoted text is rare, and its source serves messages
	case *ast.IdentifierNode:
		if r, ok := s.simple[n.Value]; ok {
			return part{kind: partRef, ref: r}, true
		}
	case *ast.MemberNode:
		id, ok1 := n.Node.(*ast.IdentifierNode)
		key, ok2 := n.Property.(*ast.StringNode)
		if !ok1 || !ok2 {
			break
		}
		if kind, ok := s.lookups[id.Value]; ok {
			return part{kind: partRef, ref: ref{kind: kind, name: key.Value}}, true
		}
	case *ast.BinaryNode:
		if n.Operator != "??" {
			break
		}
		var alt []part
		for _, side := range []ast.Node{n.Left, n.Right} {
			if lit, ok := side.(*ast.StringNode); ok {
				alt = append(alt, part{kind: partText, text: lit.Value})
				continue
			}
			p, ok := simplePart(side, s)
			if !ok {
				return part{}, false
			}
			alt = append(alt, p)
		}
		return part{kind: partFirst, alt: alt}, true
	}
	return part{}, false
}

// run gives the expression's value.
func (p *program) run(s scope) (any, *valueError) {
	env := make(map[string]any, len(p.idents))
	for _, id := range p.idents {
		v, err := s.name(id)
		if err != nil {
			return nil, &valueError{ReasonExpression, fmt.Errorf("{%s}: %w", p.src, err)}
		}
		env[id] = v
	}
	machine := vm.VM{MemoryBudget: memoryBudget}
	v, err := machine.Run(p.prog, env)
	if err != nil {
		return nil, &valueError{ReasonExpression, fmt.Errorf("{%s}: %s", p.src, runError(err))}
	}
	return v, nil
}

func (p *program) eval(s scope) (string, bool, *valueError) {
	v, verr := p.run(s)
	if verr != nil {
		return "", false, verr
	}
	text, ok, err := valueText(v)
	if err != nil {
		return "", false, &valueError{ReasonExpression, fmt.Errorf("{%s}: %w", p.src, err)}
	}
	return text, ok, nil
}

// The library's messages quote values, which may be payload; these do not.
const goType = `(?:<nil>|string|bool|u?int(?:8|16|32|64)?|float(?:32|64)|\[\](?:string|interface \{\})|map\[string\]interface \{\}|time\.Time)`

var (
	typesOnly = regexp.MustCompile(`^invalid operation: (?:` + goType + ` [-+*/%<>=!^&|]+ ` + goType + `|- ?` + goType + `|(?:int|int64|float|bool)\(` + goType + `\))$`)
	wrongType = regexp.MustCompile(`^interface conversion: interface \{\} is (` + goType + `|nil), not (` + goType + `)$`)
	fromNil   = regexp.MustCompile(`from (<nil>|nil)$`)
)

func runError(err error) string {
	var fe *file.Error
	if !errors.As(err, &fe) {
		return "failed on the values of this message"
	}
	msg := firstLine(fe.Message)
	switch {
	case errors.Is(err, errText):
		return fmt.Sprintf("makes more than %d bytes", maxText)
	case fromNil.MatchString(msg):
		return fmt.Sprintf("at character %d: looks into what is absent; use ?. and ??", fe.Column+1)
	case strings.HasPrefix(msg, "index out of range"):
		return fmt.Sprintf("at character %d: index out of range", fe.Column+1)
	case strings.Contains(msg, "divide by zero"):
		return fmt.Sprintf("at character %d: division by zero", fe.Column+1)
	case strings.Contains(msg, "memory budget"):
		return "makes too many values"
	case typesOnly.MatchString(msg):
		return fmt.Sprintf("at character %d: %s", fe.Column+1, msg)
	}
	if m := wrongType.FindStringSubmatch(msg); m != nil {
		return fmt.Sprintf("at character %d: is %s, not %s", fe.Column+1, m[1], m[2])
	}
	return fmt.Sprintf("at character %d: failed on the values of this message", fe.Column+1)
}

// valueText writes a result as a text; false for nil.
func valueText(v any) (string, bool, error) {
	switch v := v.(type) {
	case nil:
		return "", false, nil
	case string:
		return v, true, nil
	case bool:
		return strconv.FormatBool(v), true, nil
	case int:
		return strconv.Itoa(v), true, nil
	case int64:
		return strconv.FormatInt(v, 10), true, nil
	case uint64:
		return strconv.FormatUint(v, 10), true, nil
	case float64:
		return floatText(v)
	case time.Time:
		return v.Format(time.RFC3339Nano), true, nil
	case []byte:
		return "", false, errors.New("gives bytes; a field takes text, a number, true or false")
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int: // such as time.Month
		return strconv.FormatInt(r.Int(), 10), true, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return strconv.FormatUint(r.Uint(), 10), true, nil
	case reflect.Float32:
		return floatText(r.Float())
	case reflect.Slice, reflect.Array:
		return "", false, errors.New("gives a list; a field takes text, a number, true or false (pick one entry, or use join or toJSON)")
	case reflect.Map:
		return "", false, errors.New("gives an object; a field takes text, a number, true or false (pick one entry, or use toJSON)")
	}
	return "", false, fmt.Errorf("gives a value of type %T; a field takes text, a number, true or false", v)
}

// floatText writes the shortest text that reads back the same, in JSON's style.
func floatText(f float64) (string, bool, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "", false, errors.New("is not a finite number")
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	text := strconv.FormatFloat(f, format, -1, 64)
	if format == 'e' { // e-07 becomes e-7, as in JSON
		text = strings.Replace(text, "e-0", "e-", 1)
	}
	return text, true, nil
}

// decodeJSON decodes one JSON value with integers kept as integers.
func decodeJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("more after the value")
		}
	}
	if err != nil {
		// The decoder's text quotes the payload.
		at := d.InputOffset()
		if bad := (*json.SyntaxError)(nil); errors.As(err, &bad) {
			at = bad.Offset
		}
		return nil, fmt.Errorf("not valid JSON near byte %d", at)
	}
	return plainNumbers(v), nil
}

func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return plainNumber(v)
	case map[string]any:
		for k, e := range v {
			v[k] = plainNumbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plainNumbers(e)
		}
	}
	return v
}

func plainNumber(n json.Number) any {
	s := string(n)
	if !strings.ContainsAny(s, ".eE") {
		if i, err := strconv.Atoi(s); err == nil {
			return i
		}
		return s // beyond 64 bits a float would change the digits
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return s
	}
	return f
}
