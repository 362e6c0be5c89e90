package mapping

import (
	"math"
	"slices"
	"strings"
)

// trie finds the routes whose subjects take a subject, in a time that depends on
// the subject's depth and not on how many routes there are. Routes are numbers,
// and a lower one goes first.
//
// With very many routes nearly all of the time goes into memory that is not in the
// processor's caches. So what has one route only is no node but stands in its
// parent, and what routes have in common is kept once.
type trie struct {
	root  trieEdge
	tails map[string]*[]token
	texts strings.Builder
}

// trieEdge leads to a node, or to one route and what is left of its subject. The
// zero value leads nowhere.
type trieEdge struct {
	node  *trieNode
	tail  *[]token // shared
	route int32
}

type trieNode struct {
	min, max int32 // of the routes below
	tokens   map[string]trieEdge
	one      trieEdge // a capture or *: any token
	ends     []int32  // routes whose subject ends here, in order
	rest     []int32  // routes that take one token or more from here
}

const noRoute = math.MaxInt32

// insert adds a route; they come in order.
func (t *trie) insert(p *pattern, route int32) { t.add(&t.root, p.tokens, route) }

func (t *trie) add(e *trieEdge, tokens []token, route int32) {
	switch {
	case e.node != nil:
	case e.tail == nil:
		e.tail, e.route = t.tail(tokens), route
		return
	default:
		tail, first := *e.tail, e.route
		*e = trieEdge{node: &trieNode{min: first}}
		t.push(e.node, tail, first)
	}
	t.push(e.node, tokens, route)
}

// push adds a route below a node.
func (t *trie) push(n *trieNode, tokens []token, route int32) {
	n.max = route
	if len(tokens) == 0 {
		n.ends = append(n.ends, route)
		return
	}
	switch tok := &tokens[0]; tok.kind {
	case tokenRest:
		n.rest = append(n.rest, route)
	case tokenOne:
		t.add(&n.one, tokens[1:], route)
	default:
		child, known := n.tokens[tok.text]
		text := tok.text
		if !known {
			text = t.text(text)
		}
		t.add(&child, tokens[1:], route)
		if n.tokens == nil {
			n.tokens = map[string]trieEdge{}
		}
		n.tokens[text] = child
	}
}

// tail returns the one copy of a list of tokens.
func (t *trie) tail(tokens []token) *[]token {
	var key strings.Builder
	for _, tok := range tokens {
		key.WriteByte(byte(tok.kind))
		key.WriteString(tok.text)
		key.WriteByte('.')
	}
	if t.tails == nil {
		t.tails = map[string]*[]token{}
	}
	shared, ok := t.tails[key.String()]
	if !ok {
		shared = &tokens
		t.tails[key.String()] = shared
	}
	return shared
}

// text returns a copy that stands beside those of the other routes, not in the middle of a subject.
func (t *trie) text(s string) string {
	const chunk = 64 << 10
	if t.texts.Cap()-t.texts.Len() < len(s) {
		t.texts = strings.Builder{}
		t.texts.Grow(max(chunk, len(s)))
	}
	begin := t.texts.Len()
	t.texts.WriteString(s)
	return t.texts.String()[begin:]
}

// next returns the first route behind another one (-1: of all) that takes a subject; noRoute if there is none.
func (t *trie) next(subject string, offs []int, after int32) int32 {
	return t.root.next(subject, offs, after, noRoute)
}

// next looks behind an edge, where the subject's tokens from the first of offs on are left.
func (e *trieEdge) next(subject string, offs []int, after, best int32) int32 {
	n := e.node
	if n == nil {
		if e.tail != nil && e.route > after && e.route < best && takes(*e.tail, subject, offs) {
			return e.route
		}
		return best
	}
	if n.max <= after || n.min >= best {
		return best
	}
	if len(offs) == 1 {
		return min(best, above(n.ends, after))
	}
	best = min(best, above(n.rest, after))
	if n.tokens != nil {
		if child, ok := n.tokens[subject[offs[0]:offs[1]-1]]; ok {
			best = child.next(subject, offs[1:], after, best)
		}
	}
	return n.one.next(subject, offs[1:], after, best)
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

func (e *trieEdge) cover(tokens []token, before int32, ok func(int32) bool) int32 {
	n := e.node
	if n == nil {
		if e.tail != nil && e.route < before && covers(*e.tail, tokens) && ok(e.route) {
			return e.route
		}
		return noRoute
	}
	if n.min >= before {
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
	best = min(best, n.one.cover(tokens[1:], before, ok))
	if tokens[0].kind == tokenText {
		if child, known := n.tokens[tokens[0].text]; known {
			best = min(best, child.cover(tokens[1:], before, ok))
		}
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
