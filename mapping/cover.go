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
	set := make([][]string, 0, len(subjects))
	for _, s := range subjects {
		set = insert(set, strings.Split(s, "."))
	}
	if max < 1 {
		max = 1
	}
	for depth := deepest(set) - 1; len(set) > max && depth >= 0; depth-- {
		set = widen(set, depth, max)
	}
	out := make([]string, len(set))
	for i, t := range set {
		out[i] = strings.Join(t, ".")
	}
	slices.Sort(out)
	return out
}

// insert adds a subject to a set without overlaps and keeps it so.
func insert(set [][]string, s []string) [][]string {
again:
	for i, t := range set {
		switch {
		case !overlap(s, t): // nearly always, and found at the first tokens
		case subset(s, t):
			return set
		case subset(t, s):
			set = slices.Delete(set, i, i+1)
			goto again
		default:
			s = join(s, t)
			set = slices.Delete(set, i, i+1)
			goto again // the joined subject may now take others
		}
	}
	return append(set, s)
}

// widen replaces groups of subjects that share their first depth tokens by
// their parent, the largest groups first, until max suffices.
func widen(set [][]string, depth, max int) [][]string {
	type group struct {
		parent string
		n      int
		flat   bool // every member is one token longer than the parent, and not ">"
	}
	groups := map[string]*group{}
	for _, t := range set {
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
		if len(set) <= max {
			break
		}
		wild := ">"
		if g.flat {
			wild = "*"
		}
		if g.parent != "" {
			wild = g.parent + "." + wild
		}
		set = insert(set, strings.Split(wild, "."))
	}
	return set
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
