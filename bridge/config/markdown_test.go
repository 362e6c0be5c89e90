package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// block is one fenced block of a Markdown page.
type block struct {
	line int // of its first line, from 1
	info string
	text string
}

func blocks(page string) []block {
	var list []block
	var open *block
	fence := ""
	for i, line := range strings.Split(page, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open == nil && strings.HasPrefix(trimmed, "```"):
			fence = trimmed[:len(trimmed)-len(strings.TrimLeft(trimmed, "`"))]
			open = &block{line: i + 2, info: strings.TrimSpace(strings.TrimLeft(trimmed, "`"))}
		case open != nil && trimmed == fence:
			list = append(list, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	return list
}

// loadBlock checks a block of an info string that begins with "yaml":
//
//	yaml                  a whole configuration (more words, such as file=NAME, are free)
//	yaml fragment         a part of one: right keys and types from the root on, but not complete
//	yaml fragment PATH    the same for what stands below a key, such as bridge.routes
//
// YAML that is no configuration of ours is marked yml.
func loadBlock(name string, b block) error {
	words := strings.Fields(b.info)
	if len(words) < 2 || words[1] != "fragment" {
		_, err := Parse(name, []byte(b.text))
		return err
	}
	text := b.text
	if len(words) > 2 {
		keys := strings.Split(words[2], ".")
		var outer strings.Builder
		for depth, key := range keys {
			outer.WriteString(strings.Repeat("  ", depth) + key + ":\n")
		}
		indent := strings.Repeat("  ", len(keys))
		text = outer.String() + indent + strings.ReplaceAll(text, "\n", "\n"+indent)
	}
	_, p := decode(name, []byte(text))
	return p.err()
}

// TestDocumentation loads every configuration in the repository's Markdown pages.
func TestDocumentation(t *testing.T) {
	const root = "../.."
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules" || d.Name() == "testdata"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		page, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, b := range blocks(string(page)) {
			if word, _, _ := strings.Cut(b.info, " "); word != "yaml" {
				continue
			}
			name := strings.TrimPrefix(filepath.ToSlash(path), root+"/")
			t.Run(name+":"+itoa(b.line), func(t *testing.T) { require.NoError(t, loadBlock(name, b)) })
		}
		return nil
	}))
}

func TestBlocks(t *testing.T) {
	page := "a\n```yaml\nversion: 1\n```\n````md\n```yaml\n````\n  ```yaml fragment bridge\n  name: x\n  ```\n"
	list := blocks(page)
	require.Equal(t, []block{
		{3, "yaml", "version: 1\n"}, {6, "md", "```yaml\n"}, {9, "yaml fragment bridge", "  name: x\n"},
	}, list)
	require.ErrorContains(t, loadBlock("p.md", list[0]), "neither bridge: nor relay: is there")
	require.NoError(t, loadBlock("p.md", list[2]))
	require.NoError(t, loadBlock("p.md", block{info: "yaml fragment", text: "relay:\n  name: x\n"}))
	require.ErrorContains(t, loadBlock("p.md", block{info: "yaml fragment relay", text: "nmae: x\n"}), "relay.nmae: unknown key; did you mean name?")
	require.NoError(t, loadBlock("p.md", block{info: "yaml fragment bridge.routes", text: "- name: x\n- name: y\n"}))
}
