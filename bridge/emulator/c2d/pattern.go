package c2d

import "strings"

// MatchID reports whether a device ID matches a pattern: "*" stands for any
// number of characters, all else for itself. An empty pattern matches every ID.
// (The ID "a*b", which is legal, is matched by the pattern "a*b", as others are.)
func MatchID(pattern, id string) bool {
	if pattern == "" {
		return true
	}
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == id
	}
	id, ok := strings.CutPrefix(id, first)
	if !ok {
		return false
	}
	for {
		part, tail, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(id, part)
		}
		i := strings.Index(id, part) // the leftmost place leaves the most for the rest
		if i < 0 {
			return false
		}
		id, rest = id[i+len(part):], tail
	}
}
