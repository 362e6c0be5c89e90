package natsio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"downlink/bridge"
	"downlink/mapping"
)

// How an entry of the mailbox is stored. Headers say what people and commands look for; the body is one line of
// JSON with the rest of the envelope and the original headers, a line feed, and the payload as it is. The
// original headers are in the JSON, not live: JetStream would obey some of them. Decoding gives back exactly
// what was encoded, and the same parcel always encodes to the same bytes.
//
// A header cannot carry every text. What it cannot, such as a subject that is no UTF-8, is
// in the JSON as well, and that one counts.

// entryFormat is the format that we write, and the newest that we read.
const entryFormat = 1

// The headers of an entry.
const (
	hdrFormat    = "Downlink-Format"
	hdrMessageID = "Downlink-Message-Id"
	hdrDevice    = "Downlink-Device"
	hdrHub       = "Downlink-Hub"
	hdrRoute     = "Downlink-Route"
	hdrStream    = "Downlink-Stream"
	hdrSeq       = "Downlink-Seq"
	hdrTime      = "Downlink-Time"
	hdrSubject   = "Downlink-Subject"
	hdrAt        = "Downlink-At"
	hdrAttempts  = "Downlink-Attempts"
	hdrExpires   = "Downlink-Expires"
	hdrPriority  = "Downlink-Priority"
)

// entryRest is the line of JSON.
type entryRest struct {
	CorrelationID   text            `json:"correlation_id,omitempty"`
	UserID          text            `json:"user_id,omitempty"`
	ContentType     text            `json:"content_type,omitempty"`
	ContentEncoding text            `json:"content_encoding,omitempty"`
	Ack             text            `json:"ack,omitempty"`
	Properties      []entryProperty `json:"properties,omitempty"`
	SendBy          text            `json:"send_by,omitempty"`
	Unordered       bool            `json:"unordered,omitempty"`
	Coalesce        text            `json:"coalesce,omitempty"`
	Receipts        bool            `json:"receipts,omitempty"`
	ReplyTo         text            `json:"reply_to,omitempty"`
	Wait            text            `json:"wait,omitempty"`
	Header          []entryHeader   `json:"header,omitempty"`
	Reply           text            `json:"reply,omitempty"`
	Exact           []entryProperty `json:"exact,omitempty"` // headers of the entry that could not be carried as they are
}

type entryProperty struct {
	Name  text `json:"name"`
	Value text `json:"value,omitempty"`
	Null  bool `json:"null,omitempty"`
}

type entryHeader struct {
	Name   text   `json:"name"`
	Values []text `json:"values"`
}

// text is a string of any bytes: JSON's own if it is UTF-8, else {"b64": "…"}.
type text string

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return plainJSON(string(t))
	}
	return json.Marshal(struct {
		B64 []byte `json:"b64"`
	}{[]byte(t)})
}

func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(t))
	}
	var raw struct {
		B64 []byte `json:"b64"`
	}
	err := json.Unmarshal(b, &raw)
	*t = text(raw.B64)
	return err
}

// plainJSON is json.Marshal without \u003c for "<".
func plainJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// encodeEntry gives headers and body of a parcel. It shares nothing with it.
func encodeEntry(p *bridge.Parcel) (nats.Header, []byte, error) {
	e, in := p.Envelope, p.Message
	r := entryRest{
		CorrelationID: text(e.CorrelationID), UserID: text(e.UserID), ContentType: text(e.ContentType), ContentEncoding: text(e.ContentEncoding),
		Ack: text(e.Ack), SendBy: text(stamp(e.SendBy)), Unordered: e.Unordered, Coalesce: text(e.Coalesce),
		Receipts: e.Receipts, ReplyTo: text(e.ReplyTo), Wait: text(e.Wait), Reply: text(in.Reply),
	}
	for _, p := range e.Properties {
		r.Properties = append(r.Properties, entryProperty{text(p.Name), text(p.Value), p.Null})
	}
	for _, name := range slices.Sorted(maps.Keys(in.Header)) {
		h := entryHeader{Name: text(name), Values: []text{}}
		for _, v := range in.Header[name] {
			h.Values = append(h.Values, text(v))
		}
		r.Header = append(r.Header, h)
	}
	h := nats.Header{hdrFormat: {strconv.Itoa(entryFormat)}}
	set := func(name, value string) {
		shown := strings.ToValidUTF8(oneText(value), "\uFFFD")
		if shown != "" {
			h[name] = []string{shown}
		}
		if shown != value {
			r.Exact = append(r.Exact, entryProperty{Name: text(name), Value: text(value)})
		}
	}
	set(hdrMessageID, e.MessageID)
	set(hdrDevice, e.Device)
	set(hdrHub, e.Hub)
	set(hdrRoute, e.Route)
	set(hdrStream, in.Stream)
	set(hdrSeq, strconv.FormatUint(in.Sequence, 10))
	set(hdrTime, stamp(in.Time))
	set(hdrSubject, in.Subject)
	set(hdrAt, stamp(p.At))
	set(hdrAttempts, strconv.Itoa(p.Attempts))
	set(hdrExpires, stamp(e.ExpiresAt))
	set(hdrPriority, strconv.Itoa(e.Priority))
	line, err := plainJSON(r)
	if err != nil {
		return nil, nil, err
	}
	body := make([]byte, 0, len(line)+1+len(e.Body))
	return h, append(append(append(body, line...), '\n'), e.Body...), nil
}

// decodeEntry is the inverse of encodeEntry. The parcel's Body and Payload alias body. An entry
// of a newer format wraps bridge.ErrFormat.
func decodeEntry(h nats.Header, body []byte) (*bridge.Parcel, error) {
	format, err := strconv.Atoi(header1(h, hdrFormat))
	switch {
	case err != nil || format < 1:
		return nil, fmt.Errorf("not an entry of a mailbox: header %s is %q", hdrFormat, header1(h, hdrFormat))
	case format > entryFormat:
		return nil, fmt.Errorf("format %d, this is format %d: %w", format, entryFormat, bridge.ErrFormat)
	}
	line, payload, found := bytes.Cut(body, []byte("\n"))
	if !found {
		return nil, errors.New("its body has no line of JSON before the payload")
	}
	var r entryRest
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("the first line of its body: %w", err)
	}
	d := entryReader{header: h, exact: r.Exact}
	e := &mapping.Envelope{
		Route: d.text(hdrRoute), Hub: d.text(hdrHub), Device: d.text(hdrDevice), MessageID: d.text(hdrMessageID),
		CorrelationID: string(r.CorrelationID), UserID: string(r.UserID), ContentType: string(r.ContentType), ContentEncoding: string(r.ContentEncoding),
		ExpiresAt: d.time(hdrExpires, d.text(hdrExpires)), Ack: mapping.Ack(r.Ack), Body: payload,
		SendBy: d.time("send_by", string(r.SendBy)), Priority: d.int(hdrPriority), Unordered: r.Unordered, Coalesce: string(r.Coalesce),
		Receipts: r.Receipts, ReplyTo: string(r.ReplyTo), Wait: string(r.Wait),
	}
	for _, p := range r.Properties {
		e.Properties = append(e.Properties, mapping.Property{Name: string(p.Name), Value: string(p.Value), Null: p.Null})
	}
	in := &mapping.Input{
		Subject: d.text(hdrSubject), Payload: payload, Stream: d.text(hdrStream),
		Sequence: d.uint(hdrSeq), Time: d.time(hdrTime, d.text(hdrTime)), Reply: string(r.Reply),
	}
	if len(r.Header) > 0 {
		in.Header = make(map[string][]string, len(r.Header))
	}
	for _, h := range r.Header {
		values := make([]string, 0, len(h.Values))
		for _, v := range h.Values {
			values = append(values, string(v))
		}
		in.Header[string(h.Name)] = values
	}
	p := &bridge.Parcel{Envelope: e, Message: in, Attempts: d.int(hdrAttempts), At: d.time(hdrAt, d.text(hdrAt))}
	return p, d.err
}

// entryReader reads the headers of an entry and keeps the first error.
type entryReader struct {
	header nats.Header
	exact  []entryProperty
	err    error
}

func (d *entryReader) fail(name, value string) {
	if d.err == nil {
		d.err = fmt.Errorf("%s is %q", name, value)
	}
}

func (d *entryReader) text(name string) string {
	for _, p := range d.exact {
		if string(p.Name) == name {
			return string(p.Value)
		}
	}
	return header1(d.header, name)
}

func (d *entryReader) time(name, value string) time.Time {
	if value == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, value)
	t = t.UTC()
	if err != nil || t.Year() < 1 || t.Year() > 9999 { // an offset may lead out of what can be written
		d.fail(name, value)
	}
	return t
}

func (d *entryReader) int(name string) int {
	n, err := strconv.Atoi(d.text(name))
	if err != nil {
		d.fail(name, d.text(name))
	}
	return n
}

func (d *entryReader) uint(name string) uint64 {
	n, err := strconv.ParseUint(d.text(name), 10, 64)
	if err != nil {
		d.fail(name, d.text(name))
	}
	return n
}

// header1 is a header's first value.
func header1(h nats.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}
