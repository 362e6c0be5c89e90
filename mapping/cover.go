package mapping

import (
	"cmp"
	"slices"
	"strings"
)

// Cover returns at most max NATS subjects (at least one, if there are any) that
// together take everything that subjects take, and of which no two overlap:
// JetStream refuses a consumer whose filters are subsets of each other. Subsets
// are removed, overlaps are joined, and then, while there are more than max,
// subjects are widened to common parents, the deepest and largest groups first.
// The result is sorted. The subjects must be valid.
func Cover(subjects []string, max int) []string {
	set := &subjectSet{}
	for _, s := range subjects {
		set.insert(strings.Split(s, "."))
	}
	if max < 1 {
		max = 1
	}
	for depth := deepest(set.list()) - 1; set.n > max && depth >= 0; depth-- {
		set.widen(depth, max)
	}
	list := set.list()
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = strings.Join(t, ".")
	}
	slices.Sort(out)
	return out
}

// subjectSet is a set of subjects of which no two overlap, by their tokens.
type subjectSet struct {
	root setNode
	n    int
}

type setNode struct {
	next map[string]*setNode // by token, wildcards too
	end  bool                // a subject ends here
}

// insert adds a subject. What it takes, and what it overlaps, becomes one with it.
func (set *subjectSet) insert(s []string) {
	for {
		t := set.root.overlapping(s, nil)
		switch {
		case t == nil:
			set.add(s)
			return
		case subset(s, t):
			return
		case !subset(t, s):
			s = join(s, t) // which may now take others
		}
		set.remove(t)
	}
}

func (set *subjectSet) add(s []string) {
	n := &set.root
	for _, t := range s {
		next := n.next[t]
		if next == nil {
			next = &setNode{}
			if n.next == nil {
				n.next = map[string]*setNode{}
			}
			n.next[t] = next
		}
		n = next
	}
	n.end = true
	set.n++
}

func (set *subjectSet) remove(s []string) {
	set.root.remove(s)
	set.n--
}

// remove takes a subject away below a node, with the nodes that only it needed.
func (n *setNode) remove(s []string) {
	if len(s) == 0 {
		n.end = false
		return
	}
	next := n.next[s[0]]
	next.remove(s[1:])
	if !next.end && len(next.next) == 0 {
		delete(n.next, s[0])
	}
}

// overlapping returns a subject below a node that shares a subject with s; nil if
// there is none. path leads to the node.
func (n *setNode) overlapping(s, path []string) []string {
	if len(s) == 0 {
		if n.end {
			return path
		}
		return nil
	}
	via := func(token string, next *setNode) []string {
		at := append(path[:len(path):len(path)], token)
		switch {
		case next == nil:
			return nil
		case token == ">":
			return at
		case s[0] == ">":
			return next.any(at)
		}
		return next.overlapping(s[1:], at)
	}
	if s[0] == "*" || s[0] == ">" {
		for token, next := range n.next {
			if t := via(token, next); t != nil {
				return t
			}
		}
		return nil
	}
	for _, token := range [...]string{s[0], "*", ">"} {
		if t := via(token, n.next[token]); t != nil {
			return t
		}
	}
	return nil
}

// any returns a subject at or below a node.
func (n *setNode) any(path []string) []string {
	if n.end {
		return path
	}
	for token, next := range n.next {
		return next.any(append(path[:len(path):len(path)], token))
	}
	return nil
}

// list returns all subjects, sorted by their tokens.
func (set *subjectSet) list() [][]string {
	out := make([][]string, 0, set.n)
	var walk func(n *setNode, path []string)
	walk = func(n *setNode, path []string) {
		if n.end {
			out = append(out, slices.Clone(path))
		}
		for token, next := range n.next {
			walk(next, append(path, token))
		}
	}
	walk(&set.root, nil)
	slices.SortFunc(out, slices.Compare)
	return out
}

// widen replaces groups of subjects that share their first depth tokens by
// their parent, the largest groups first, until max suffices.
func (set *subjectSet) widen(depth, max int) {
	type group struct {
		parent string
		n      int
		flat   bool // every member is one token longer than the parent, and not ">"
	}
	groups := map[string]*group{}
	for _, t := range set.list() {
		if len(t) <= depth {
			continue
		}
		parent := strings.Join(t[:depth], ".")
		g := groups[parent]
		if g == nil {
			g = &group{parent: parent, flat: true}
			groups[parent] = g
		}
		g.n++
		g.flat = g.flat && len(t) == depth+1 && t[depth] != ">"
	}
	order := make([]*group, 0, len(groups))
	for _, g := range groups {
		if g.n > 1 {
			order = append(order, g)
		}
	}
	slices.SortFunc(order, func(a, b *group) int {
		if c := cmp.Compare(b.n, a.n); c != 0 {
			return c
		}
		return cmp.Compare(a.parent, b.parent)
	})
	for _, g := range order {
		if set.n <= max {
			return
		}
		wild := ">"
		if g.flat {
			wild = "*"
		}
		if g.parent != "" {
			wild = g.parent + "." + wild
		}
		set.insert(strings.Split(wild, "."))
	}
}

func deepest(set [][]string) int {
	n := 0
	for _, t := range set {
		n = max(n, len(t))
	}
	return n
}

// subset reports whether everything a takes, b takes too.
func subset(a, b []string) bool {
	for i, t := range b {
		if t == ">" {
			return len(a) > i
		}
		if i >= len(a) || a[i] == ">" {
			return false
		}
		if t != "*" && t != a[i] {
			return false
		}
	}
	return len(a) == len(b)
}

// overlap reports whether some subject is taken by both.
func overlap(a, b []string) bool {
	for i := 0; ; i++ {
		if i >= len(a) || i >= len(b) {
			return len(a) == len(b)
		}
		if a[i] == ">" || b[i] == ">" {
			return true
		}
		if a[i] != b[i] && a[i] != "*" && b[i] != "*" {
			return false
		}
	}
}

// join returns the narrowest subject that takes all of two overlapping ones.
func join(a, b []string) []string {
	var out []string
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == ">" || b[i] == ">":
			return append(out, ">")
		case a[i] == b[i]:
			out = append(out, a[i])
		default:
			out = append(out, "*")
		}
	}
	return out
}

// matchSubject reports whether a NATS subject pattern takes a subject.
func matchSubject(pattern []string, subject string) bool {
	for i, t := range pattern {
		if t == ">" {
			return true
		}
		tok, rest, more := strings.Cut(subject, ".")
		if t != "*" && t != tok {
			return false
		}
		if !more {
			return i == len(pattern)-1
		}
		subject = rest
	}
	return false
}
