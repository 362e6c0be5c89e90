package mapping

import (
	"math"
	"slices"
	"strings"
)

// trie finds the routes whose subjects take a subject, in a time that depends on
// the subject's depth and not on how many routes there are. Routes are numbers,
// and a lower one goes first.
type trie struct {
	root  trieNode
	tails map[string][]token
}

// trieNode is where the subjects of some routes have come to. Most have one route
// only, which then waits here with what is left of its subject.
type trieNode struct {
	kind   nodeKind
	min    int32 // of the routes at and below the node; a leaf's is its route
	max    int32
	tail   []token // of a leaf
	tokens map[string]*trieNode
	one    *trieNode // a capture or *: any token
	ends   []int32   // routes whose subject ends here, in order
	rest   []int32   // routes that take one token or more from here
}

type nodeKind uint8

const (
	nodeEmpty nodeKind = iota
	nodeLeaf
	nodeInner
)

const noRoute = math.MaxInt32

// insert adds a route; they come in order.
func (t *trie) insert(p *pattern, route int32) { t.root.insert(p.tokens, route, t.tail) }

// tail returns the one copy of a list of tokens: thousands of routes end alike, and
// what they share is near when it is needed.
func (t *trie) tail(tokens []token) []token {
	var key strings.Builder
	for _, tok := range tokens {
		key.WriteByte(byte(tok.kind))
		key.WriteString(tok.text)
		key.WriteByte('.')
	}
	if t.tails == nil {
		t.tails = map[string][]token{}
	}
	if shared, ok := t.tails[key.String()]; ok {
		return shared
	}
	t.tails[key.String()] = tokens
	return tokens
}

func (n *trieNode) insert(tokens []token, route int32, tail func([]token) []token) {
	switch n.kind {
	case nodeEmpty:
		n.kind, n.min, n.max, n.tail = nodeLeaf, route, route, tail(tokens)
		return
	case nodeLeaf:
		first := n.tail
		n.kind, n.tail = nodeInner, nil
		n.push(first, n.min, tail)
	}
	n.max = route
	n.push(tokens, route, tail)
}

// push adds a route below an inner node.
func (n *trieNode) push(tokens []token, route int32, tail func([]token) []token) {
	if len(tokens) == 0 {
		n.ends = append(n.ends, route)
		return
	}
	var child *trieNode
	switch tok := &tokens[0]; tok.kind {
	case tokenRest:
		n.rest = append(n.rest, route)
		return
	case tokenOne:
		if n.one == nil {
			n.one = &trieNode{}
		}
		child = n.one
	default:
		if child = n.tokens[tok.text]; child == nil {
			child = &trieNode{}
			if n.tokens == nil {
				n.tokens = map[string]*trieNode{}
			}
			n.tokens[tok.text] = child
		}
	}
	child.insert(tokens[1:], route, tail)
}

// next returns the first route behind another one (-1: of all) that takes a subject; noRoute if there is none.
func (t *trie) next(subject string, offs []int, after int32) int32 {
	return t.root.next(subject, offs, after, noRoute)
}

// next looks below a node, where subject tokens from the first of offs on are left.
func (n *trieNode) next(subject string, offs []int, after, best int32) int32 {
	if n.max <= after || n.min >= best || n.kind == nodeEmpty {
		return best
	}
	if n.kind == nodeLeaf {
		if n.min > after && takes(n.tail, subject, offs) {
			return n.min
		}
		return best
	}
	if len(offs) == 1 {
		return min(best, above(n.ends, after))
	}
	best = min(best, above(n.rest, after))
	if n.tokens != nil {
		if child := n.tokens[subject[offs[0]:offs[1]-1]]; child != nil {
			best = child.next(subject, offs[1:], after, best)
		}
	}
	if n.one != nil {
		best = n.one.next(subject, offs[1:], after, best)
	}
	return best
}

// takes reports whether a pattern's tokens take the tokens that are left.
func takes(tokens []token, subject string, offs []int) bool {
	for i := range tokens {
		if i+1 >= len(offs) {
			return false
		}
		switch t := &tokens[i]; t.kind {
		case tokenRest:
			return true
		case tokenText:
			if subject[offs[i]:offs[i+1]-1] != t.text {
				return false
			}
		}
	}
	return len(tokens) == len(offs)-1
}

// above is the first number of a sorted list that is greater than another; noRoute if none is.
func above(list []int32, after int32) int32 {
	if len(list) == 0 || list[len(list)-1] <= after {
		return noRoute
	}
	if list[0] > after {
		return list[0]
	}
	i, _ := slices.BinarySearch(list, after+1)
	return list[i]
}

// cover returns the first route before another whose subject takes everything that
// the other's does, and which ok accepts; noRoute if there is none.
func (t *trie) cover(p *pattern, before int32, ok func(int32) bool) int32 {
	return t.root.cover(p.tokens, before, ok)
}

func (n *trieNode) cover(tokens []token, before int32, ok func(int32) bool) int32 {
	if n.kind == nodeEmpty || n.min >= before {
		return noRoute
	}
	if n.kind == nodeLeaf {
		if covers(n.tail, tokens) && ok(n.min) {
			return n.min
		}
		return noRoute
	}
	first := func(list []int32) int32 {
		for _, r := range list {
			if r >= before {
				break
			}
			if ok(r) {
				return r
			}
		}
		return noRoute
	}
	if len(tokens) == 0 {
		return first(n.ends)
	}
	best := first(n.rest)
	if tokens[0].kind == tokenRest {
		return best
	}
	if n.one != nil {
		best = min(best, n.one.cover(tokens[1:], before, ok))
	}
	if child := n.tokens[tokens[0].text]; tokens[0].kind == tokenText && child != nil {
		best = min(best, child.cover(tokens[1:], before, ok))
	}
	return best
}

// covers reports whether everything that b takes, a takes too.
func covers(a, b []token) bool {
	for i, t := range a {
		switch {
		case t.kind == tokenRest:
			return i < len(b)
		case i >= len(b) || b[i].kind == tokenRest:
			return false
		case t.kind == tokenText && (b[i].kind != tokenText || b[i].text != t.text):
			return false
		}
	}
	return len(a) == len(b)
}

// matcher has the routes that messages of one source may match.
type matcher struct {
	main trie
	rest trie // default: routes
	// named are the routes that name the source, and free the drops that name none.
	named, free []*route
}

func (m *matcher) add(r *route, i int32) {
	if r.rest {
		m.rest.insert(r.pattern, i)
	} else {
		m.main.insert(r.pattern, i)
	}
	if r.core || r.stream != "" {
		m.named = append(m.named, r)
	} else {
		m.free = append(m.free, r)
	}
}

// subjects lists the filters once each: of the routes that name the source, and of
// the others that overlap one of these.
func (m *matcher) subjects() []string {
	var out []string
	seen := map[string]bool{}
	var named [][]string
	for _, r := range m.named {
		if f := r.pattern.filter; !seen[f] {
			seen[f] = true
			named = append(named, strings.Split(f, "."))
			out = append(out, f)
		}
	}
	for _, r := range m.free {
		f := strings.Split(r.pattern.filter, ".")
		if !seen[r.pattern.filter] && slices.ContainsFunc(named, func(n []string) bool { return overlap(f, n) }) {
			seen[r.pattern.filter] = true
			out = append(out, r.pattern.filter)
		}
	}
	return out
}
