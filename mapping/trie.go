package mapping

import (
	"math"
	"slices"
	"strings"
)

// trie finds the routes whose subjects take a subject, in a time that depends on
// the subject's depth and not on how many routes there are. Routes are numbers,
// and a lower one goes first.
type trie struct{ root trieNode }

type trieNode struct {
	tokens   map[string]*trieNode
	one      *trieNode // a capture or *: any token
	ends     []int32   // routes whose subject ends here, in order
	rest     []int32   // routes that take one token or more from here
	min, max int32     // of the routes at and below the node
}

const noRoute = math.MaxInt32

// insert adds a route; they come in order.
func (t *trie) insert(p *pattern, route int32) {
	n := &t.root
	n.reach(route)
	for i := range p.tokens {
		tok := &p.tokens[i]
		if tok.kind == tokenRest {
			n.rest = append(n.rest, route)
			return
		}
		next := n.one
		if tok.kind == tokenText {
			next = n.tokens[tok.text]
		}
		if next == nil {
			next = &trieNode{min: route}
			switch {
			case tok.kind == tokenOne:
				n.one = next
			case n.tokens == nil:
				n.tokens = map[string]*trieNode{tok.text: next}
			default:
				n.tokens[tok.text] = next
			}
		}
		n = next
		n.reach(route)
	}
	n.ends = append(n.ends, route)
}

func (n *trieNode) reach(route int32) {
	n.max = route + 1 // so that the zero value is an empty node
}

// next returns the first route behind another one (-1: of all) that takes a subject; noRoute if there is none.
func (t *trie) next(subject string, offs []int, after int32) int32 {
	return t.root.next(subject, offs, 0, after, noRoute)
}

func (n *trieNode) next(subject string, offs []int, level int, after, best int32) int32 {
	if n.max <= after+1 || n.min >= best {
		return best
	}
	if level == len(offs)-1 {
		return min(best, above(n.ends, after))
	}
	best = min(best, above(n.rest, after))
	if n.tokens != nil {
		if child := n.tokens[subject[offs[level]:offs[level+1]-1]]; child != nil {
			best = child.next(subject, offs, level+1, after, best)
		}
	}
	if n.one != nil {
		best = n.one.next(subject, offs, level+1, after, best)
	}
	return best
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
	if n.one != nil {
		best = min(best, n.one.cover(tokens[1:], before, ok))
	}
	if child := n.tokens[tokens[0].text]; tokens[0].kind == tokenText && child != nil {
		best = min(best, child.cover(tokens[1:], before, ok))
	}
	return best
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
