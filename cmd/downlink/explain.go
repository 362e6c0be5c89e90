package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/config"
	"downlink/bridge/dryrun"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

func newExplainCmd(s streams, logs *logFlags) *cobra.Command {
	x := &explainer{}
	cmd := &cobra.Command{
		Use:   "explain FILE (SUBJECT | --stream STREAM --seq N)",
		Short: "Show what a configuration makes of a message, and why",
		Long: `Show how the routes of a configuration's bridge section meet one message: each
route that was tried and why it does not take it, the one that won, what its
captures and expressions gave, and the message to the device with its size and
the room that is left. Nothing is sent.

The message is SUBJECT with -H and --data, or a real one from a stream of the
configuration's NATS. Where it comes from (a route takes one stream's messages,
or those of core NATS) is what the routes that match say, or --source.

Lookups: files are read; buckets too, if the configuration's NATS can be
reached (or the one of --server), else it says which one was not read. --lookup
gives a table's values from a file instead. The relay's mapping is not
explained; downlink test has cases for it.`,
		Example: `  downlink explain bridge.yaml cmd.berlin.pump7.reboot -H X-User=ann --data '{"delay":5}'
  downlink explain bridge.yaml cmd.berlin.pump7.reboot --data @body.json --json
  downlink explain bridge.yaml --stream COMMANDS --seq 4711`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return exactArgs("FILE", "SUBJECT")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := logs.ifAsked(s.err)
			if err != nil {
				return err
			}
			r, err := x.run(cmd, s, args, func(ctx context.Context, c *config.Config) (*stores, error) {
				return x.store.connect(ctx, c, "downlink explain", log)
			})
			if err != nil {
				return err
			}
			if x.asJSON {
				return json.NewEncoder(s.out).Encode(r)
			}
			return r.print(s.out, x.all)
		},
	}
	x.store.nats.register(cmd)
	fs := cmd.Flags()
	fs.StringArrayVarP(&x.headers, "header", "H", nil, "header NAME=VALUE, repeatable")
	fs.StringVar(&x.data, "data", "", "the payload; @FILE reads a file, @- standard input")
	fs.StringVar(&x.source, "source", "", `where SUBJECT's message comes from: "core" or a stream (default: as the routes that match say)`)
	fs.StringVar(&x.reply, "reply", "", "where its publisher waits for the answer, of a request on core NATS")
	fs.StringVar(&x.stream, "stream", "", "explain a stored message of this stream, with --seq")
	fs.Uint64Var(&x.seq, "seq", 0, "its sequence number")
	fs.StringArrayVar(&x.lookups, "lookup", nil, "NAME=FILE: a lookup's values from a .yaml, .json or .csv file, repeatable")
	fs.BoolVar(&x.all, "all", false, "list every route, however many do not match")
	fs.BoolVar(&x.asJSON, "json", false, "print one JSON object")
	return cmd
}

// explainer is the command line.
type explainer struct {
	store       storeFlags
	headers     []string
	data        string
	source      string
	reply       string
	stream      string
	seq         uint64
	lookups     []string
	all, asJSON bool

	conn *stores // once something needed it
	dead error   // or why it is not there
}

// explained is what `explain --json` prints. A field that is not set is left out.
type explained struct {
	File    string           `json:"file"`
	Message explainedMessage `json:"message"`
	Lookups []lookupState    `json:"lookups,omitempty"`
	// Notes are sentences on how far this can be relied on.
	Notes    []string         `json:"notes,omitempty"`
	Routes   []mapping.Tried  `json:"routes"`
	Outcomes []dryrun.Outcome `json:"outcomes"`
}

// explainedMessage is the NATS message.
type explainedMessage struct {
	Subject  string              `json:"subject"`
	Source   string              `json:"source"` // "core" or the stream
	Sequence uint64              `json:"seq,omitempty"`
	Time     time.Time           `json:"time"`
	Stored   bool                `json:"stored"` // a real message
	Headers  map[string][]string `json:"headers,omitempty"`
	Size     int                 `json:"payload_bytes"`
}

// lookupState says where a lookup's values came from.
type lookupState struct {
	Name string `json:"name"`
	From string `json:"from"` // such as "bucket aliases" or "file aliases.csv"
	Keys int    `json:"keys"`
	// Problem is why it was not read; every key was absent then.
	Problem string `json:"problem,omitempty"`
}

const sourceCore = "core"

func (x *explainer) run(cmd *cobra.Command, s streams, args []string, connect func(context.Context, *config.Config) (*stores, error)) (*explained, error) {
	given := cmd.Flags().Changed
	stored := given("stream") || given("seq")
	switch {
	case args[0] == "":
		return nil, usagef("FILE is empty")
	case stored && len(args) == 2:
		return nil, usagef("explain: SUBJECT and --stream exclude each other; a stored message has its subject")
	case !stored && len(args) == 1:
		return nil, usagef("explain: which message? give its SUBJECT, or --stream and --seq of a stored one")
	case stored && (x.stream == "" || x.seq == 0):
		return nil, usagef("explain: --stream and --seq go together; sequence numbers begin at 1")
	}
	if stored {
		for _, flag := range []string{"header", "data", "source", "reply"} {
			if given(flag) {
				return nil, usagef("--%s: a stored message has its own; leave it out", flag)
			}
		}
	}
	if given("source") && x.source == "" {
		return nil, usagef("--source is empty")
	}
	x.store.configFile = args[0]
	c, err := x.store.load()
	if err != nil {
		return nil, err
	}
	defer x.close()
	x.connected(cmd.Context(), c, connect, stored)
	if stored && x.dead != nil {
		return nil, x.dead
	}
	r := &explained{File: args[0]}
	var in *mapping.Input
	if stored {
		in, err = x.find(cmd.Context())
	} else {
		in, err = x.message(s, args[1])
	}
	if err != nil {
		return nil, err
	}
	tables, err := x.tables(cmd.Context(), c, r)
	if err != nil {
		return nil, err
	}
	plan, err := dryrun.New(c, tables, false)
	if err != nil {
		return nil, asUsage(err)
	}
	if !stored {
		x.choose(plan, in, r)
		if in.Reply = x.reply; x.reply != "" && in.Stream != "" {
			return nil, usagef("--reply: a message from stream %s has none; a publisher to a stream sets the header Downlink-Reply-To", in.Stream)
		}
	}
	r.explain(plan, in, stored)
	return r, nil
}

// connected connects if a stored message or a bucket needs it. What goes wrong is told where it matters.
func (x *explainer) connected(ctx context.Context, c *config.Config, connect func(context.Context, *config.Config) (*stores, error), stored bool) {
	need := stored
	for _, l := range c.Bridge.Lookups {
		need = need || l.Bucket != "" && x.lookupFile(l.Name) == ""
	}
	if !need {
		return
	}
	conn, err := connect(ctx, c)
	if err != nil {
		x.dead = err
		return
	}
	x.conn = conn
}

func (x *explainer) close() {
	if x.conn != nil {
		x.conn.conn.Close()
	}
}

func (x *explainer) find(ctx context.Context) (*mapping.Input, error) {
	in, err := natsio.Find(ctx, x.conn.conn, x.stream, x.seq)
	var missing *natsio.MissingError
	switch {
	case errors.As(err, &missing):
		return nil, fmt.Errorf("there is no stream %s on this NATS", x.stream)
	case err != nil:
		return nil, err
	case in == nil:
		return nil, fmt.Errorf("%s is not in its stream (any more)", messagePlace(x.stream, x.seq))
	}
	return in, nil
}

func (x *explainer) message(s streams, subject string) (*mapping.Input, error) {
	if err := checkPublishSubject(subject); err != nil {
		return nil, err
	}
	h, err := parseHeaders(x.headers)
	if err != nil {
		return nil, err
	}
	for _, values := range h {
		for i := range values {
			values[i] = dryrun.HeaderValue(values[i])
		}
	}
	in := &mapping.Input{Subject: subject, Header: h, Payload: []byte(x.data), Time: time.Now().UTC()}
	if name, isFile := strings.CutPrefix(x.data, "@"); isFile {
		if name == "-" {
			in.Payload, err = payload(s, "-")
		} else if in.Payload, err = os.ReadFile(name); err != nil {
			err = usagef("--data: %w", err)
		}
	}
	return in, err
}

// choose says where the message comes from.
func (x *explainer) choose(plan *dryrun.Plan, in *mapping.Input, r *explained) {
	switch x.source {
	case "":
		var others []string
		in.Stream, others = plan.Source(in)
		for _, other := range others {
			r.Notes = append(r.Notes, fmt.Sprintf("taken to come from %s; a route takes this subject from %s, too: --source %s", sourceName(in.Stream), sourceName(other), sourceFlag(other)))
		}
	case sourceCore:
	default:
		in.Stream = x.source
	}
	if in.Stream != "" {
		in.Sequence = 1
	}
}

func sourceFlag(stream string) string {
	if stream == "" {
		return sourceCore
	}
	return stream
}

func sourceName(stream string) string {
	if stream == "" {
		return "core NATS"
	}
	return "stream " + stream
}

// explain fills in routes and outcomes.
func (r *explained) explain(plan *dryrun.Plan, in *mapping.Input, stored bool) {
	r.Message = explainedMessage{Subject: in.Subject, Source: sourceFlag(in.Stream), Sequence: in.Sequence, Time: in.Time.UTC(), Stored: stored, Headers: in.Header, Size: len(in.Payload)}
	how, outcomes := plan.Explain(in)
	r.Routes, r.Outcomes = how.Routes, outcomes
	if how.Note != "" {
		r.Notes = append(r.Notes, how.Note)
	}
	if in.Stream == "" {
		for _, o := range outcomes {
			if o.Message != nil {
				r.Notes = append(r.Notes, "from core NATS: a message ID that no expression gives is another random one each time")
				break
			}
		}
	}
	if !stored {
		return
	}
	r.expired(outcomes, time.Now())
}

// expired notes what of a stored message is over by now.
func (r *explained) expired(outcomes []dryrun.Outcome, now time.Time) {
	first, over, others := "", time.Time{}, 0
	for _, o := range outcomes {
		if o.Message == nil {
			continue
		}
		for _, t := range []*time.Time{o.Message.Expires, o.Message.SendBy} {
			if t == nil || !t.Before(now) {
				continue
			}
			if first == "" {
				first, over = o.Device, *t
			} else {
				others++
			}
			break
		}
	}
	if first == "" {
		return
	}
	who := first
	if others > 0 {
		who += fmt.Sprintf(" and %s more", several(others, "device"))
	}
	r.Notes = append(r.Notes, fmt.Sprintf("for %s: sent now it would be a dead letter expired, since %s is over", who, at(over)))
}

// lookupFile is what --lookup says of a table; "" is nothing.
func (x *explainer) lookupFile(name string) string {
	for _, l := range x.lookups {
		if table, file, _ := strings.Cut(l, "="); table == name {
			return file
		}
	}
	return ""
}

// tables reads the lookups.
func (x *explainer) tables(ctx context.Context, c *config.Config, r *explained) (mapping.Lookups, error) {
	known := map[string]bool{}
	for _, l := range c.Bridge.Lookups {
		known[l.Name] = true
	}
	for _, l := range x.lookups {
		name, file, ok := strings.Cut(l, "=")
		switch {
		case !ok || name == "" || file == "":
			return nil, usagef("--lookup %q: write NAME=FILE", l)
		case !known[name]:
			return nil, usagef("--lookup %q: the configuration has no lookup of this name", name)
		}
	}
	static := mapping.StaticLookups{}
	both := &lookupTables{static: static}
	var buckets []natsio.LookupTable
	for _, l := range c.Bridge.Lookups {
		state := lookupState{Name: l.Name, From: "bucket " + l.Bucket}
		file := l.File
		if given := x.lookupFile(l.Name); given != "" {
			file = given
		}
		if file == "" {
			if x.conn == nil {
				state.Problem = x.dead.Error()
			} else {
				buckets = append(buckets, natsio.LookupTable{Name: l.Name, Bucket: l.Bucket})
			}
			r.Lookups = append(r.Lookups, state)
			continue
		}
		state.From = "file " + file
		values, err := readTable(file)
		if err != nil {
			return nil, usagef("lookup %s: %w", l.Name, err)
		}
		static[l.Name], state.Keys = values, len(values)
		r.Lookups = append(r.Lookups, state)
	}
	if len(buckets) > 0 {
		live, err := x.live(ctx, buckets, r)
		if err != nil {
			return nil, err
		}
		both.live = live
	}
	for _, l := range r.Lookups {
		if l.Problem != "" {
			r.Notes = append(r.Notes, fmt.Sprintf("lookup %s was not read, so every key of it is absent here: %s; give its values with --lookup %s=FILE", l.Name, l.Problem, l.Name))
		}
	}
	return both, nil
}

func readTable(file string) (map[string]any, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	values, err := mapping.ParseLookup(file, b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return values, nil
}

// live reads buckets once, as the bridge does.
func (x *explainer) live(ctx context.Context, buckets []natsio.LookupTable, r *explained) (*natsio.Lookups, error) {
	live, err := natsio.NewLookups(natsio.LookupsOptions{Conn: x.conn.conn, Tables: buckets})
	if err != nil {
		return nil, asUsage(err)
	}
	stop, _ := background(ctx, live.Run)
	enough := time.NewTimer(x.store.nats.connectTimeout)
	defer enough.Stop()
	select {
	case <-live.Loaded():
	case <-enough.C:
	case <-ctx.Done():
	}
	states := live.Status()
	if err := stop(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, s := range states {
		for i := range r.Lookups {
			if l := &r.Lookups[i]; l.Name == s.Name {
				l.Keys, l.Problem = s.Keys, strings.TrimSuffix(strings.TrimPrefix(s.Error, "lookup "+s.Name+": "), "; no message is mapped before it is read")
			}
		}
	}
	return live, nil
}

// lookupTables are files and buckets side by side.
type lookupTables struct {
	static mapping.StaticLookups
	live   *natsio.Lookups
}

// Lookup implements mapping.Lookups.
func (l *lookupTables) Lookup(table, key string) (any, bool) {
	if _, ok := l.static[table]; ok || l.live == nil {
		return l.static.Lookup(table, key)
	}
	return l.live.Lookup(table, key)
}
