package c2d

import (
	"container/heap"
	"slices"
	"strings"
)

// Page returns at most n of the IDs that begin with prefix and sort after
// after, sorted. A page costs one look at each device, not a sort of all.
func (s *Store) Page(prefix, after string, n int) []string {
	if n <= 0 {
		return nil
	}
	var page idHeap // the smallest n so far, the largest of them first
	s.mu.RLock()
	for id := range s.devices {
		switch {
		case id <= after && after != "" || !strings.HasPrefix(id, prefix):
		case len(page) < n:
			heap.Push(&page, id)
		case id < page[0]:
			page[0] = id
			heap.Fix(&page, 0)
		}
	}
	s.mu.RUnlock()
	slices.Sort(page)
	return page
}

type idHeap []string

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h idHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idHeap) Push(x any)        { *h = append(*h, x.(string)) }

func (h *idHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
