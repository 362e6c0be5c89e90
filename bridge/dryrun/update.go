package dryrun

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
)

// Update returns the file's text with the expectations of every case made what is true
// now, and how many changed. Where the kind of an outcome is the same, its fields keep their
// place and comments, and only those that were there are written; otherwise the expectation is
// written anew, as is a missing one. All other lines stay byte for byte. It does not write the file.
func (f *File) Update() (text string, changed int, err error) {
	lines := strings.SplitAfter(f.text, "\n")
	ends := f.ends(len(lines))
	var wrong []error
	for i := len(f.Cases) - 1; i >= 0; i-- { // from below, so that lines keep their numbers
		c := &f.Cases[i]
		got := f.plan.facts(c)
		if len(c.compare(got)) == 0 {
			continue
		}
		changed++
		if c.node.Style&yaml.FlowStyle != 0 {
			wrong = append(wrong, &config.Error{File: f.Name, Line: c.Line, Path: fmt.Sprintf("cases[%d]", i),
				Err: errors.New("a case in { } cannot be updated; write it in block style, a key a line")})
			continue
		}
		if lines, err = c.splice(lines, ends[i], c.renewed(got, f.plan.hub)); err != nil {
			return "", 0, err
		}
	}
	if len(wrong) > 0 {
		slices.Reverse(wrong)
		return "", 0, errors.Join(wrong...)
	}
	text = strings.Join(lines, "")
	again, err := parse(f.Name, []byte(text))
	if err == nil {
		for _, r := range again.Run() {
			if len(r.Diffs) > 0 {
				err = fmt.Errorf("%s:%d: the expectation cannot be written here; write the case in block style, a key a line", f.Name, r.Line)
			}
		}
	}
	return text, changed, err
}

// ends has for each case the line where what follows it begins, counted from 0.
func (f *File) ends(last int) []int {
	var starts []int // of all that may follow, counted from 1
	for i := range f.Cases {
		starts = append(starts, f.Cases[i].Line)
	}
	for i, line := range strings.Split(f.text, "\n") { // keys of the file
		if key, _, ok := strings.Cut(line, ":"); ok && slices.Contains(fileKeys, key) {
			starts = append(starts, i+1)
		}
	}
	slices.Sort(starts)
	ends := make([]int, len(f.Cases))
	for i := range f.Cases {
		ends[i] = last
		if at, _ := slices.BinarySearch(starts, f.Cases[i].Line+1); at < len(starts) {
			ends[i] = starts[at] - 1
		}
	}
	return ends
}

// splice replaces the lines of the expectation, or adds them at the end of the case, which ends before line end.
func (c *Case) splice(lines []string, end int, expect *yaml.Node) ([]string, error) {
	first := c.node.Content[0]
	from, indent := end, first.Column-1
	lead := strings.Repeat(" ", indent)
	if c.key != nil {
		from = c.key.Line - 1
		lead = lines[from][:c.key.Column-1] // perhaps with the "- " of the list
		for i := 0; i+1 < len(c.node.Content); i += 2 {
			if key := c.node.Content[i]; key.Line > c.key.Line {
				end = min(end, key.Line-1)
			}
		}
	}
	// Empty lines and comments before what follows belong to that.
	for end > 0 {
		text := strings.TrimSpace(lines[end-1])
		if text != "" && !strings.HasPrefix(text, "#") {
			break
		}
		end--
	}
	if c.key == nil {
		from = end
	}
	key := &yaml.Node{Kind: yaml.ScalarNode, Value: "expect", LineComment: c.comment()}
	if expect.Style&yaml.FlowStyle != 0 {
		expect.LineComment, key.LineComment = key.LineComment, ""
	}
	noFoot(expect)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	err := enc.Encode(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{key, expect}})
	if err != nil {
		return nil, err
	}
	var fresh []string
	if from > 0 && !strings.HasSuffix(lines[from-1], "\n") {
		lines[from-1] += "\n"
	}
	for line := range strings.SplitAfterSeq(b.String(), "\n") {
		if line != "" {
			fresh = append(fresh, lead+line)
			lead = strings.Repeat(" ", indent)
		}
	}
	return slices.Replace(lines, from, end, fresh...), nil
}

// comment is the one beside the expectation's key, or its value in the same line.
func (c *Case) comment() string {
	switch {
	case c.key == nil:
		return ""
	case c.key.LineComment != "" || c.expect == nil || c.expect.Line != c.key.Line:
		return c.key.LineComment
	}
	return c.expect.LineComment
}

// noFoot removes the comments that follow a node: they stay where they are in the file.
func noFoot(n *yaml.Node) {
	n.FootComment = ""
	for i := max(len(n.Content)-2, 0); i < len(n.Content); i++ {
		noFoot(n.Content[i])
	}
}

// renewed is the expectation as it would have to be.
func (c *Case) renewed(got []facts, hub string) *yaml.Node {
	same := len(c.want) == len(got)
	for i := range c.want {
		same = same && c.want[i].fate() == got[i].fate
	}
	if same {
		for i := range c.want {
			c.want[i].renew(got[i])
		}
		return c.expect
	}
	list := make([]*yaml.Node, len(got))
	for i := range got {
		list[i] = got[i].node(hub)
	}
	fresh := &yaml.Node{Kind: yaml.SequenceNode, Content: list}
	if len(list) == 1 {
		fresh = list[0]
	}
	return fresh
}

// renew sets the fields that differ.
func (e *expectation) renew(got facts) {
	for i := range e.fields {
		w := &e.fields[i]
		if w.edge != nil {
			if w.edge.fate() == got.edge.fate {
				w.edge.renew(*got.edge)
			} else {
				w.node.Content = got.edge.node("").Content
			}
		} else if whole(w.name) {
			w.renewList(got.lists[w.name])
		} else if text := got.texts[w.name]; !w.same(text) {
			fresh := field(w.name, text)
			w.node.Kind, w.node.Tag, w.node.Value, w.node.Style = fresh.Kind, fresh.Tag, fresh.Value, fresh.Style
		}
	}
}

// renewList keeps the entries that are right, with their comments.
func (w *wanted) renewList(got map[string][]string) {
	if w.node.Kind != yaml.MappingNode {
		*w.node = *listNode(got)
		return
	}
	var content []*yaml.Node
	for i := 0; i+1 < len(w.node.Content); i += 2 {
		key, v := w.node.Content[i], w.node.Content[i+1]
		have, ok := got[key.Value]
		if !ok {
			continue
		}
		var want []string
		for _, v := range w.lists[key.Value] {
			want = append(want, v.text)
		}
		if !slices.Equal(want, have) {
			comment := v.LineComment
			v = textsNode(have)
			v.LineComment = comment
		}
		content = append(content, key, v)
	}
	fresh := listNode(got)
	for i := 0; i+1 < len(fresh.Content); i += 2 {
		if w.lists[fresh.Content[i].Value] == nil {
			content = append(content, fresh.Content[i], fresh.Content[i+1])
		}
	}
	if len(content) == 0 {
		w.node.Style = yaml.FlowStyle
	}
	w.node.Content = content
}

// scalar is a text as a YAML value; the encoder quotes what would be something else.
func scalar(text string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(text)
	return n
}

// field is the value of a field, which may be a number.
func field(name, text string) *yaml.Node {
	n := scalar(text)
	switch name {
	case "priority":
		n.Tag = "!!int"
	case "receipts":
		n.Tag = "!!bool"
	}
	return n
}

func textsNode(list []string) *yaml.Node {
	if len(list) == 1 {
		return scalar(list[0])
	}
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, text := range list {
		n.Content = append(n.Content, scalar(text))
	}
	return n
}

// listNode writes properties or headers, by name; a few in one line.
func listNode(values map[string][]string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	names := make([]string, 0, len(values))
	size := 0
	for name, list := range values {
		names = append(names, name)
		size += len(name) + len(strings.Join(list, ", ")) + 4
	}
	slices.Sort(names)
	for _, name := range names {
		n.Content = append(n.Content, scalar(name), textsNode(values[name]))
	}
	if size < 90 {
		n.Style = yaml.FlowStyle
	}
	return n
}

// node writes an outcome anew: what tells it apart, and nothing that is a default.
func (f *facts) node(hub string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	// The body is the payload, and an expiry is better said as ttl.
	plain := map[string]string{"hub": hub, "ack": "none", "priority": "0", "order": "device", "receipts": "false", "expires": f.texts["expires"], "body": f.texts["body"]}
	if f.texts["ack"] != "none" {
		plain["receipts"] = "true" // it follows
	}
	if f.ownID() {
		plain["message_id"] = f.texts["message_id"]
	}
	for _, name := range append([]string{"subject", "headers"}, outcomeKeys...) {
		text := f.texts[name]
		switch {
		case whole(name) && f.lists[name] != nil:
			n.Content = append(n.Content, scalar(name), listNode(f.lists[name]))
		case text != "" && text != plain[name]:
			n.Content = append(n.Content, scalar(name), field(name, text))
		}
	}
	return n
}

// ownID reports whether the message ID is the one that a message gets by itself.
func (f *facts) ownID() bool {
	begin := strings.Repeat("0", 32)
	if f.stream != "" {
		begin = f.stream + ":"
	}
	return strings.HasPrefix(f.texts["message_id"], begin)
}
