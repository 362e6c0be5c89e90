package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/expr-lang/expr/ast"
)

// visitor looks at an expression's names and refuses what has no bound or no stable value.
type visitor struct {
	side   *side
	idents []string            // names of the message that it reads
	uses   map[string]int      // how often each
	keys   map[string][]string // for those of side.lookups: the constants that they are indexed by
	err    error
}

// keyed separates the names that are only indexed by constants from the others.
func (v *visitor) keyed() (idents []string, keyed []keyedName) {
	for _, id := range v.idents {
		if keys := v.keys[id]; len(keys) > 0 && len(keys) == v.uses[id] {
			slices.Sort(keys)
			k := keyedName{name: id}
			for _, key := range slices.Compact(keys) {
				k.refs = append(k.refs, ref{kind: v.side.lookups[id], name: key})
			}
			keyed = append(keyed, k)
			continue
		}
		idents = append(idents, id)
	}
	return idents, keyed
}

func (v *visitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "$env" {
			v.fail("$env is not available; use the names directly")
		}
		if _, known := v.side.env[n.Value]; known {
			if !slices.Contains(v.idents, n.Value) {
				v.idents = append(v.idents, n.Value)
			}
			v.uses[n.Value]++
		}
	case *ast.BuiltinNode: // those with predicates stay in the language, whatever is disabled
		if !slices.Contains(builtins, n.Name) {
			v.fail(n.Name + "() is not available; its time or its order has no bound")
		}
		if n.Name == "map" && len(n.Arguments) == 2 {
			if body, ok := n.Arguments[1].(*ast.PredicateNode); ok {
				v.given(&body.Node)
			}
		}
	case *ast.CallNode:
		v.call(n)
	case *ast.PredicateNode:
		v.loop(n)
	case *ast.MemberNode:
		if id, ok := n.Node.(*ast.IdentifierNode); ok {
			if key, ok := n.Property.(*ast.StringNode); ok && v.side.lookups[id.Value] != refNone {
				v.keys[id.Value] = append(v.keys[id.Value], key.Value)
			}
		}
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
	if !ok {
		return
	}
	if !slices.Contains(functionNames, fn.Value) || !v.side.hasTables && (fn.Value == "lookup" || fn.Value == "group") {
		// The library's own check lets an unknown function pass where any value will do.
		v.fail(fmt.Sprintf("unknown function %s()%s", fn.Value, v.side.instead(fn.Value)))
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

// loop checks what is done in each round of a loop. What an element costs is
// bounded by the payload or the list as a whole; what is outside of the loop is not.
func (v *visitor) loop(n *ast.PredicateNode) {
	inner := &rounds{visitor: v}
	ast.Walk(&n.Node, inner)
}

// given looks at what the body of map gives, and at what is compared in each round. A list that has the same large value in every entry takes no
// memory, but whatever goes through its entries later takes that value's time once for each.
func (v *visitor) given(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.ConditionalNode:
		v.given(&n.Exp1)
		v.given(&n.Exp2)
		return
	case *ast.BinaryNode:
		if n.Operator == "??" {
			v.given(&n.Left)
			v.given(&n.Right)
		} // the others make a value of their own, which rounds has looked at
		return
	case *ast.UnaryNode:
		return
	case *ast.ArrayNode:
		for i := range n.Nodes {
			v.given(&n.Nodes[i])
		}
		return
	case *ast.MapNode:
		for _, pair := range n.Pairs {
			if p, ok := pair.(*ast.PairNode); ok {
				v.given(&p.Value)
			}
		}
		return
	case *ast.VariableDeclaratorNode:
		v.given(&n.Expr)
		return
	case *ast.SequenceNode:
		v.given(&n.Nodes[len(n.Nodes)-1])
		return
	case *ast.ChainNode:
		v.given(&n.Node)
		return
	case *ast.CallNode:
		if fn, ok := n.Callee.(*ast.IdentifierNode); ok && fn.Value != "lookup" && fn.Value != "group" {
			return // its arguments are small
		}
		if ofEntry(n) {
			return // the table's, which no sender writes: map(json.groups, group(#))
		}
	case *ast.MemberNode:
		if call, ok := n.Node.(*ast.CallNode); ok && ofEntry(call) {
			return
		}
	}
	large := &outside{side: v.side}
	ast.Walk(node, large)
	if large.name == "" {
		return
	}
	if id, whole := (*node).(*ast.IdentifierNode); whole {
		if _, known := v.side.env[id.Value]; known {
			v.fail("a loop that takes " + id.Value + " as a whole in each round is not available; its time has no bound: take a part of it, or of the entry (#)")
			return
		}
	}
	// A part of it is mostly small, which only the message tells.
	ast.Patch(node, &ast.CallNode{Callee: &ast.IdentifierNode{Value: eachRound}, Arguments: []ast.Node{*node}})
}

// ofEntry reports whether a call has the loop's entry among its arguments.
func ofEntry(n *ast.CallNode) bool {
	e := &entry{}
	for i := range n.Arguments {
		ast.Walk(&n.Arguments[i], e)
	}
	return e.found
}

// entry finds a loop's #.
type entry struct{ found bool }

func (e *entry) Visit(node *ast.Node) {
	if _, ok := (*node).(*ast.PointerNode); ok {
		e.found = true
	}
}

// rounds looks at the nodes of a loop's body.
type rounds struct{ visitor *visitor }

func (r *rounds) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.PredicateNode:
		r.visitor.fail("a loop within a loop is not available; its time has no bound")
	case *ast.BinaryNode:
		switch n.Operator {
		case "+", "..":
			r.small(n.Operator, n.Left, n.Right)
		case "contains":
			r.small(n.Operator, n.Left)
		case "matches":
			r.small(n.Operator, n.Left, n.Right)
		case "in", "not in":
			if _, list := n.Right.(*ast.ArrayNode); !list {
				r.small(n.Operator, n.Right)
			} else { // a comparison with each
				r.compared(&n.Left, n.Right)
			}
		case "==", "!=", "<", "<=", ">", ">=", "startsWith", "endsWith": // take the time of the smaller one
			r.compared(&n.Left, n.Right)
		}
	case *ast.BuiltinNode:
		if !slices.Contains(cheap, n.Name) {
			r.small(n.Name+"()", n.Arguments...)
		}
	case *ast.CallNode:
		if fn, ok := n.Callee.(*ast.IdentifierNode); ok && fn.Value != "lookup" && fn.Value != "group" {
			r.small(fn.Value+"()", n.Arguments...)
		}
	}
}

// cheap are the builtins whose time and memory do not depend on their arguments' size. len is not one
// of them: it counts a text's characters; nor are int and float, which read all digits.
var cheap = []string{"type", "abs", "ceil", "floor", "round", "get", "first", "last",
	"hasPrefix", "hasSuffix", "bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr", "bitnot"}

// compared bounds one operand where both may be large.
func (r *rounds) compared(left *ast.Node, right ast.Node) {
	if r.large(*left) != "" && r.large(right) != "" {
		r.visitor.given(left)
	}
}

// small refuses operands that may be as large as the message.
func (r *rounds) small(what string, operands ...ast.Node) {
	for _, o := range operands {
		if name := r.large(o); name != "" {
			r.visitor.fail("a loop that uses " + what + " on " + name + " in each round is not available; its time and memory have no bound")
		}
	}
}

// large names what may be as large as the message in an operand; "" if nothing.
func (r *rounds) large(operand ast.Node) string {
	o := &outside{side: r.visitor.side}
	ast.Walk(&operand, o)
	return o.name
}

// outside finds a name whose value may be large: any but the subject's parts.
type outside struct {
	side *side
	name string
}

func (o *outside) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok || o.name != "" {
		return
	}
	if r, simple := o.side.simple[id.Value]; simple && r.kind != refPayload || id.Value == "sequence" || id.Value == "time" {
		return
	}
	o.name = id.Value
	if _, known := o.side.env[id.Value]; known || !slices.Contains(functionNames, id.Value) {
		return
	}
	o.name = "" // a call's own name
	if id.Value == "lookup" || id.Value == "group" {
		o.name = id.Value + "()"
	}
}
