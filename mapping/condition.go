package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// condition is a route's when, compiled.
type condition struct {
	prog *program // nil: a comparison that never enters the machine
	part part
	want string
	not  bool

	header  bool // it looks at headers
	fixed   bool // it says the same of every message: fixedTo
	fixedTo bool
}

// compileCondition compiles a when for the names that choose a route.
func compileCondition(src string, s *side) (*condition, error) {
	if text := strings.TrimSpace(src); strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") {
		return nil, fmt.Errorf("%q: is an expression by itself; write it without the braces", src)
	}
	var root ast.Node
	p, err := compileExpr(src, s, func(n ast.Node) error {
		root = n
		if _, ok := n.(*ast.NilNode); ok {
			return errors.New("is always nil, which is not true")
		}
		return conditionType(n)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", oneLine(src), err)
	}
	c := simpleCondition(root, s)
	if c == nil {
		c = &condition{prog: p.prog, part: p}
	}
	if n, ok := root.(*ast.BoolNode); ok {
		c.fixed, c.fixedTo = true, n.Value
	}
	c.header = slices.ContainsFunc(headerNames, func(name string) bool { return slices.Contains(p.prog.reads, name) })
	return c, nil
}

// conditionType refuses at load what can never be true or false.
func conditionType(node ast.Node) error {
	t := node.Type()
	if t == nil || t.Kind() == reflect.Interface || t.Kind() == reflect.Bool {
		return nil
	}
	return fmt.Errorf("gives %s; a condition is true or false, such as verb == \"reboot\"", typeWord(t))
}

func typeWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map:
		return "a map"
	case reflect.String:
		return "a text"
	case reflect.Func:
		return "a function"
	}
	return "a value of type " + t.String()
}

// simpleCondition finds the comparison of a simple name with a text.
func simpleCondition(node ast.Node, s *side) *condition {
	n, ok := node.(*ast.BinaryNode)
	if !ok || n.Operator != "==" && n.Operator != "!=" {
		return nil
	}
	left, right := n.Left, n.Right
	if _, text := left.(*ast.StringNode); text {
		left, right = right, left
	}
	lit, ok := right.(*ast.StringNode)
	if !ok {
		return nil
	}
	p, ok := simplePart(left, s)
	if !ok {
		return nil
	}
	return &condition{part: p, want: lit.Value, not: n.Operator == "!="}
}

// holds reports whether a message meets the condition.
func (c *condition) holds(s *cloudScope) (bool, *valueError) {
	if c.prog == nil {
		v, ok, err := c.part.eval(s)
		return (ok && v == c.want) != c.not, err
	}
	s.asking = true
	defer func() { s.asking = false }()
	if c.prog.prog == nil { // a simple name alone
		_, ok, err := c.part.eval(s)
		if err == nil && ok {
			err = notBool(c.prog.src)
		}
		return false, err
	}
	v, err := c.prog.run(s)
	if err != nil {
		return false, err
	}
	switch v := v.(type) {
	case nil:
		return false, nil
	case bool:
		return v, nil
	}
	return false, notBool(c.prog.src)
}

func notBool(src string) *valueError {
	return &valueError{ReasonExpression, errors.New("{" + src + "}: gives neither true nor false")}
}
