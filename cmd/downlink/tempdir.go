package main

import (
	"os"
	"sync"
)

// tempDirs are the temporary directories of this process, which hold keys: they
// go when the command that made them ends, and also when the process ends at once.
type tempDirs struct {
	mu    sync.Mutex
	paths map[string]bool
	ended bool
}

var temporary tempDirs

// make makes a directory; remove removes it.
func (t *tempDirs) make(pattern string) (dir string, remove func() error, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return "", nil, os.ErrProcessDone
	}
	if dir, err = os.MkdirTemp("", pattern); err != nil {
		return "", nil, err
	}
	if t.paths == nil {
		t.paths = make(map[string]bool)
	}
	t.paths[dir] = true
	return dir, func() error {
		t.mu.Lock()
		delete(t.paths, dir)
		t.mu.Unlock()
		return os.RemoveAll(dir)
	}, nil
}

// removeAll removes what there is while the rest of the process still runs, and
// makes sure that no more comes. It is the last thing before the process's end.
func (t *tempDirs) removeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for dir := range t.paths {
		// A server that writes into it meanwhile can make a removal fail half-way, though not for long.
		for range 20 {
			if os.RemoveAll(dir) == nil {
				break
			}
		}
	}
}
