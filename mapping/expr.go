package mapping

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

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
	maxRound      = 1024       // bytes that map may give or a comparison take from outside of a loop in each round; an entry counts 16 more
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
	refEvent
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

func (s *side) known() string { return namesOf(s.env) }

func namesOf(m types.Map) string { return strings.Join(slices.Sorted(maps.Keys(m)), ", ") }

// instead is the remedy for a function that is not there.
func (s *side) instead(name string) string {
	switch name {
	case "now", "date", "timezone", "duration":
		return "; an expression has no clock and no time zones" // so that what is sent again is byte-identical
	}
	var known []string
	for _, f := range slices.Concat(builtins, functionNames) {
		if !s.hasTables && (f == "lookup" || f == "group") {
			continue
		}
		if strings.EqualFold(f, name) {
			return "; write " + f + "()"
		}
		known = append(known, f)
	}
	slices.Sort(known)
	return "; known are " + strings.Join(known, ", ")
}

// program is a compiled expression; prog is nil when its part never enters the machine.
type program struct {
	src    string
	prog   *vm.Program
	idents []string    // names that it reads whole
	keyed  []keyedName // and those of which it reads some entries
	reads  []string    // both
}

// keyedName is a name such as header of which an expression reads certain entries.
type keyedName struct {
	name string
	refs []ref
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
	seen := &visitor{side: s, uses: map[string]int{}, keys: map[string][]string{}}
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
	p, ok := simplePart(node, s)
	if !ok {
		p.kind = partExpr
	}
	p.text = oneLine(src)
	p.prog = &program{src: p.text, reads: seen.idents}
	if !ok {
		p.prog.prog = prog
		p.prog.idents, p.prog.keyed = seen.keyed()
	}
	return p, nil
}

// compileError makes one line of the library's several, and names the remedy.
func compileError(err error, s *side) error {
	var fe *file.Error
	if !errors.As(err, &fe) {
		return errors.New(firstLine(err.Error()))
	}
	msg := strings.TrimSpace(firstLine(fe.Message))
	switch {
	case strings.HasPrefix(msg, "unexpected token EOF"):
		msg += "; the expression ends too early"
	case strings.HasPrefix(msg, "literal not terminated"):
		msg += "; close the quotes"
	case strings.HasPrefix(msg, `unexpected token Operator("=")`):
		msg += "; write == to compare"
	case strings.Contains(msg, "mismatched types"):
		msg += "; make them the same with string(), int() or float()"
	case strings.HasPrefix(msg, "unknown field"):
		if fields, ok := s.env["message"].(types.Map); ok { // the one that has a set of its own
			msg += "; the fields of message are " + namesOf(fields)
		}
	case strings.HasPrefix(msg, "unknown name"):
		msg += "; known here: " + s.known()
	case strings.HasSuffix(msg, "is not callable") && s.hasTables:
		msg += "; a capture of a function's name hides the function: rename the capture"
	case strings.Contains(msg, "Operator (??) and") || strings.Contains(msg, "cannot be mixed"):
		msg += `; parenthesise it, as in (a ?? "b") + c`
	}
	return fmt.Errorf("at character %d: %s", fe.Column+1, msg)
}

// oneLine is an expression's source as messages show it.
func oneLine(src string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, src)
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
	return fmt.Errorf("gives %s; a field takes text, a number, true or false (pick one entry, or use join or toJSON)", typeWord(t))
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

// machine runs expressions, one at a time. It is kept with a scope, since making one
// costs as much as running a small expression.
type machine struct {
	vm      vm.VM
	env     map[string]any
	entries []map[string]any // of the keyed names
}

// forget lets go of a message.
func (m *machine) forget() {
	clear(m.env)
	for _, e := range m.entries {
		clear(e)
	}
}

// run gives the expression's value.
func (p *program) run(s scope) (any, *valueError) {
	m := s.machine()
	if m.env == nil {
		m.env, m.vm.MemoryBudget = make(map[string]any, 8), memoryBudget
	}
	clear(m.env)
	for _, id := range p.idents {
		v, err := s.name(id)
		if err != nil {
			return nil, &valueError{ReasonExpression, fmt.Errorf("{%s}: %w", p.src, err)}
		}
		m.env[id] = v
	}
	for i := range p.keyed {
		if i == len(m.entries) {
			m.entries = append(m.entries, make(map[string]any, 4))
		}
		k, entries := &p.keyed[i], m.entries[i]
		clear(entries)
		for j := range k.refs {
			if v, ok := s.ref(&k.refs[j]); ok {
				entries[k.refs[j].name] = v
			}
		}
		m.env[k.name] = entries
	}
	v, err := m.vm.Run(p.prog, m.env)
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
	case errors.Is(err, errRound):
		return fmt.Sprintf("at character %d: %s", fe.Column+1, errRound)
	case errors.Is(err, errNoText):
		return fmt.Sprintf("at character %d: %s", fe.Column+1, errNoText)
	case errors.Is(err, errValues):
		return "makes too many values"
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
