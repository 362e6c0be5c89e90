package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"downlink/bridge/config"
)

// FuzzParse holds Parse to its contract on any input: no panic, and every
// mistake on one line with file and line.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.yaml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := config.Parse("f.yaml", b)
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Fatalf("Parse lets pass what Validate does not: %v", err)
			}
			return
		}
		if c != nil {
			t.Fatal("a configuration as well as an error")
		}
		for _, one := range list(err) {
			var e *config.Error
			if !errors.As(one, &e) {
				t.Fatalf("not an *Error: %v", one)
			}
			if e.File != "f.yaml" || e.Line < 1 || e.Line > strings.Count(string(b), "\n")+1 {
				t.Fatalf("no place, or one outside: %v", one)
			}
			if strings.Contains(one.Error(), "\n") {
				t.Fatalf("more than one line: %q", one)
			}
		}
	})
}
