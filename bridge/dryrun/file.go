package dryrun

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"downlink/bridge/config"
	"downlink/mapping"
)

// File is a file of cases. Its format:
//
//	config: bridge.yaml             # relative to this file
//	lookups:                        # values for the lookups, instead of their buckets and files
//	  aliases: {pump: berlin-7}
//	cases:
//	  - name: a command             # for messages; default: the subject, or the device of c2d
//	    subject: cmd.berlin.pump7.reboot
//	    headers: {X-User: ann, X-Tag: [a, b]}   # a list for several values
//	    payload: now                # or payload_file: FILE, or json: any value
//	    stream: COMMANDS            # or source: core; default: as the routes that take it say
//	    sequence: 1
//	    time: 2026-01-01T00:00:00Z  # when the stream stored it
//	    reply: _INBOX.x             # of a core NATS request
//	    expect: {route: commands, device: berlin-pump7, properties: {verb: reboot}}
//
// Texts are taken as they are written (payload: !!binary /wA= is two bytes). expect is one outcome or a list of them, which must be all, in
// their order. An outcome has drop: REASON, or dead: REASON and perhaps error: with a part of
// its text, or else is one that is sent. What it does not name is not compared;
// properties is compared as a whole. The fields are route, device, hub, message_id,
// correlation_id, user_id, content_type, content_encoding, ack, ttl or expires,
// max_age, priority, order, coalesce, receipts, reply_to, wait, properties and body; and
// edge, what the relay of the same configuration makes of the message when it arrives: subject, headers,
// body, or dead and error.
//
// A case of the other direction has c2d: instead of subject, headers and what
// follows the payload: device, message_id, correlation_id, user_id, content_type,
// content_encoding, to, expires, ack and properties as the device gets them (null: a name without a value). It expects
// subject, headers (as a whole), body, or dead and error.
type File struct {
	Name    string // as given to Read
	Cases   []Case
	text    string
	plan    *Plan
	lookups *yaml.Node
}

// Case is one message with what is expected of it.
type Case struct {
	Name string
	Line int

	in     mapping.Input
	source string      // "core", or "" where in.Stream or the routes say
	c2d    mapping.C2D // of a case of the device side
	edge   bool
	want   []expectation
	node   *yaml.Node
	key    *yaml.Node // of expect; nil: there is none
	expect *yaml.Node
}

// defaultTime is the stored time of a message that says none.
var defaultTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var (
	fileKeys = []string{"config", "lookups", "cases"}
	caseKeys = []string{"name", "subject", "headers", "payload", "payload_file", "json", "stream", "source", "sequence", "time", "reply", "c2d", "expect"}
	c2dKeys  = []string{"device", "message_id", "correlation_id", "user_id", "content_type", "content_encoding", "to", "expires", "ack", "properties"}
)

// maxFile bounds a file of cases, and each payload_file.
const maxFile = 16 << 20

// Read reads a file of cases, and the configuration that it names without its secrets
// and without the environment. The error joins *config.Error, one for each mistake in either.
func Read(name string) (*File, error) {
	b, err := readFile(name)
	if err != nil {
		return nil, &config.Error{File: name, Err: fmt.Errorf("cannot read the cases: %w", err)}
	}
	return parse(name, b)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		var b []byte
		b, err = io.ReadAll(io.LimitReader(f, maxFile+1))
		if err == nil && len(b) > maxFile {
			err = fmt.Errorf("more than %d bytes", maxFile)
		}
		if err == nil {
			return b, nil
		}
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return nil, err
}

func parse(name string, b []byte) (*File, error) {
	f := &File{Name: name, text: string(b)}
	r := &reader{file: name}
	root := r.document(b)
	if root == nil {
		return nil, r.err()
	}
	var conf *yaml.Node
	ok := r.section(root, "", fileKeys, func(key, v *yaml.Node, at string) {
		switch key.Value {
		case "config":
			if conf = v; r.text(v, at) == "" {
				conf = nil
			}
		case "lookups":
			f.lookups = v
		case "cases":
			if v.Kind != yaml.SequenceNode {
				r.fail(v, at, `a list belongs here; begin each case with "- name: …"`)
				return
			}
			for i, n := range v.Content {
				f.Cases = append(f.Cases, r.readCase(n, fmt.Sprintf("cases[%d]", i)))
			}
		}
	})
	if ok && conf == nil {
		r.fail(root, "config", "missing; name the configuration that the cases are for, relative to this file")
	}
	if ok && len(r.errs) == 0 && len(f.Cases) == 0 {
		r.fail(root, "cases", "missing; a case has subject: and expect:")
	}
	if len(r.errs) > 0 {
		return nil, r.err()
	}
	c, err := config.Load(beside(name, conf.Value), config.LoadOptions{SkipSecrets: true, NoEnvironment: true})
	if err != nil {
		return nil, err
	}
	tables := r.tables(f, c)
	if len(r.errs) > 0 {
		return nil, r.err()
	}
	if f.plan, err = New(c, tables, true); err != nil {
		return nil, err
	}
	for i := range f.Cases {
		switch c := &f.Cases[i]; {
		case c.edge && f.plan.relay == nil:
			r.fail(c.node, fmt.Sprintf("cases[%d].c2d", i), "%w", errNoRelay)
		case !c.edge && f.plan.table == nil:
			r.fail(c.node, fmt.Sprintf("cases[%d].subject", i), "%w", errNoBridge)
		case f.plan.relay == nil:
			for _, e := range c.want {
				for _, w := range e.fields {
					if w.edge != nil {
						r.fail(w.node, fmt.Sprintf("cases[%d].expect.edge", i), "%w", errNoRelay)
					}
				}
			}
		}
	}
	return f, r.err()
}

func beside(name, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(name), path)
}

// tables has the values of the configuration's lookups: the file's own, or those of the files that the configuration names.
func (r *reader) tables(f *File, c *config.Config) mapping.StaticLookups {
	tables := mapping.StaticLookups{}
	if f.lookups != nil && !isNull(f.lookups) {
		var known []string
		if c.Bridge != nil {
			for _, l := range c.Bridge.Lookups {
				known = append(known, l.Name)
			}
		}
		if len(known) == 0 {
			r.fail(f.lookups, "lookups", "the configuration has no lookups")
			return nil
		}
		r.section(f.lookups, "lookups", known, func(key, v *yaml.Node, at string) {
			b, err := yaml.Marshal(v)
			if err == nil {
				tables[key.Value], err = mapping.ParseLookup("lookup.yaml", b)
			}
			if err != nil {
				r.fail(v, at, "keys and values belong here, such as pump: berlin-7 (%w)", err)
			}
		})
	}
	if c.Bridge == nil {
		return tables
	}
	for i, l := range c.Bridge.Lookups {
		if tables[l.Name] != nil {
			continue
		}
		if l.File == "" {
			r.fail(f.lookups, "lookups."+l.Name, "missing; %s is the bucket %s, which cases do not read: give the values that they need", l.Name, l.Bucket)
			continue
		}
		b, err := readFile(l.File)
		if err == nil {
			tables[l.Name], err = mapping.ParseLookup(l.File, b)
		}
		if err != nil {
			r.errs = append(r.errs, &config.Error{File: l.File, Err: fmt.Errorf("cannot read bridge.lookups[%d]: %w", i, err)})
		}
	}
	return tables
}

func (r *reader) readCase(n *yaml.Node, path string) Case {
	c := Case{Line: n.Line, node: n, in: mapping.Input{Sequence: 1, Time: defaultTime}}
	given := map[string]*yaml.Node{}
	var payloads []string
	r.section(n, path, caseKeys, func(key, v *yaml.Node, at string) {
		given[key.Value] = key
		switch key.Value {
		case "name":
			c.Name = r.text(v, at)
		case "subject":
			if c.in.Subject = r.text(v, at); !plainSubject(c.in.Subject) {
				r.fail(v, at, "%q is no subject of a message: empty tokens, spaces and wildcards are not allowed", c.in.Subject)
			}
		case "headers":
			c.in.Header = r.headers(v, at)
		case "payload", "payload_file", "json":
			payloads = append(payloads, key.Value)
			c.in.Payload = r.payload(key.Value, v, at)
		case "stream":
			c.in.Stream = r.text(v, at)
		case "source":
			if c.source = r.text(v, at); c.source != "core" {
				r.fail(v, at, `%q: the only source is core; a stream is named by stream`, c.source)
			}
		case "sequence":
			var err error
			if c.in.Sequence, err = strconv.ParseUint(r.text(v, at), 10, 64); err != nil {
				r.fail(v, at, "%q is not a whole number", v.Value)
			}
		case "time":
			t, err := time.Parse(time.RFC3339Nano, r.text(v, at))
			if err != nil {
				r.fail(v, at, "%q is not a time such as 2026-01-02T15:04:05Z", v.Value)
			}
			c.in.Time = t.UTC()
		case "reply":
			c.in.Reply = r.text(v, at)
		case "c2d":
			c.edge = true
			r.readC2D(&c.c2d, v, at)
		case "expect":
			c.key, c.expect = key, v
		}
	})
	if n.Kind != yaml.MappingNode {
		return c
	}
	switch {
	case given["subject"] == nil && !c.edge:
		r.fail(n, path, "neither subject nor c2d; give the NATS subject of the message, or c2d: with what a device receives")
	case c.edge:
		for _, key := range []string{"subject", "headers", "stream", "source", "sequence", "time", "reply"} {
			if given[key] != nil {
				r.fail(given[key], join(path, key), "has no use beside c2d, which is what a device receives; make it a case of its own")
			}
		}
		c.c2d.Body = c.in.Payload
	case c.source != "" && c.in.Stream != "":
		r.fail(given["source"], path+".source", "set as well as stream; keep one of the two")
	}
	if len(payloads) > 1 {
		r.fail(given[payloads[1]], join(path, payloads[1]), "set as well as %s; keep one of them", payloads[0])
	}
	if c.Name == "" {
		c.Name = cmp.Or(c.in.Subject, c.c2d.Device)
	}
	if c.expect != nil && !isNull(c.expect) {
		c.want = r.expectations(c.expect, path+".expect", c.edge)
	} else {
		c.expect = nil
	}
	return c
}

func plainSubject(s string) bool {
	return !slices.ContainsFunc(strings.Split(s, "."), func(tok string) bool {
		return tok == "" || tok == "*" || tok == ">" || strings.ContainsAny(tok, " \t\r\n\x00")
	})
}

func (r *reader) headers(n *yaml.Node, path string) map[string][]string {
	names, values := r.values(n, path, false)
	h := map[string][]string{}
	for _, name := range names {
		if name == "" || strings.ContainsAny(name, ": \t\r\n") {
			r.fail(n, path, "%q is no name of a header: it has neither spaces nor a colon", name)
		}
		for _, v := range values[name] {
			if strings.ContainsAny(v.text, "\r\n") {
				r.fail(n, join(path, name), "a header's value is one line")
			}
			h[name] = append(h[name], HeaderValue(v.text))
		}
	}
	return h
}

// HeaderValue is a header's value as the bridge receives it: nats.go takes the blanks before it for the colon's.
func HeaderValue(v string) string { return strings.TrimLeft(v, " \t") }

func (r *reader) payload(kind string, n *yaml.Node, path string) []byte {
	switch kind {
	case "payload":
		return []byte(r.text(n, path))
	case "payload_file":
		b, err := readFile(beside(r.file, r.text(n, path)))
		if err != nil {
			r.fail(n, path, "cannot read %s: %w", n.Value, err)
		}
		return b
	}
	var v any
	err := n.Decode(&v)
	var b []byte
	if err == nil {
		b, err = json.Marshal(v)
	}
	if err != nil {
		r.fail(n, path, "cannot be written as JSON: %w", err)
	}
	return b
}

func (r *reader) readC2D(c *mapping.C2D, n *yaml.Node, path string) {
	r.section(n, path, c2dKeys, func(key, v *yaml.Node, at string) {
		to := map[string]*string{
			"device": &c.Device, "message_id": &c.MessageID, "correlation_id": &c.CorrelationID, "user_id": &c.UserID, "content_type": &c.ContentType,
			"content_encoding": &c.ContentEncoding, "to": &c.To, "expires": &c.Expires, "ack": &c.Ack,
		}[key.Value]
		if to != nil {
			*to = r.text(v, at)
			return
		}
		names, values := r.values(v, at, true)
		for _, name := range names {
			for _, v := range values[name] {
				c.Properties = append(c.Properties, mapping.Property{Name: name, Value: v.text, Null: v.null})
			}
		}
	})
	if c.Device == "" && n.Kind == yaml.MappingNode {
		r.fail(n, path+".device", "missing; a C2D message is for a device")
	}
}
