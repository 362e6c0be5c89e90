// Package dryrun tells what a configuration makes of a message, without sending
// it: the outcomes with their fates (Plan), and files of cases that state what is
// expected of them (File). It needs neither NATS nor a hub.
package dryrun

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"downlink/bridge"
	"downlink/bridge/config"
	"downlink/mapping"
)

// Plan is the mapping of a configuration. It is immutable and safe for concurrent use.
type Plan struct {
	table     *mapping.Table    // nil without a bridge section
	relay     *mapping.RelayMap // nil without a relay section
	sources   []string          // of the routes, in order; "" is core NATS
	routes    []string          // their names
	hub       string            // the default
	unmatched bool              // dead, not dropped
}

// New compiles the mapping of a configuration that Load or Parse has accepted.
// lookups may be nil: every key is absent then. With fixedIDs the message
// IDs of core NATS messages, which are random, are zeros instead.
func New(c *config.Config, lookups mapping.Lookups, fixedIDs bool) (*Plan, error) {
	p := &Plan{}
	if b := c.Bridge; b != nil {
		o := b.TableOptions()
		o.Lookups = lookups
		if fixedIDs {
			o.Rand = zeros{}
		}
		var err error
		if p.table, err = mapping.Compile(b.MappingRoutes(), o); err != nil {
			return nil, err
		}
		p.unmatched = b.Unmatched == "dead"
		if len(b.Hubs) > 0 {
			p.hub = b.Hubs[0].Name
		}
		for i, r := range b.Routes {
			name := r.Name
			if name == "" {
				name = fmt.Sprintf("route-%d", i+1)
			}
			p.routes = append(p.routes, name)
			if (r.Stream != "" || r.Source == "core") && !slices.Contains(p.sources, r.Stream) {
				p.sources = append(p.sources, r.Stream)
			}
		}
	}
	if c.Relay != nil {
		var err error
		if p.relay, err = mapping.CompileRelay(c.Relay.MappingOptions()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Source says where a message most likely comes from: a stream, or "" for core NATS. It is what
// the routes that take it say, else the first source of the routes. others are what else would do.
func (p *Plan) Source(in *mapping.Input) (stream string, others []string) {
	list := p.table.Sources(in)
	if len(list) == 0 {
		list = p.sources[:min(1, len(p.sources))]
	}
	if len(list) == 0 { // nothing but routes that drop
		return "", nil
	}
	return list[0], list[1:]
}

// The fates of an outcome, as far as the mapping decides it.
const (
	FateSent    = "sent" // to the hub, whose answer decides
	FateDropped = "dropped"
	FateDead    = "dead"
)

// Outcome is what becomes of a message for one target.
type Outcome struct {
	Route  string `json:"route,omitempty"` // "": no route took it
	Device string `json:"device,omitempty"`
	Fate   string `json:"fate"` // sent, dropped or dead
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"` // why it is dead, one line
	// Message is what is sent; nil unless Fate is sent.
	Message *Message `json:"message,omitempty"`

	envelope *mapping.Envelope
}

// Message is a C2D message, and how it is delivered. A field that is not set is left out.
type Message struct {
	Hub             string     `json:"hub"`
	MessageID       string     `json:"message_id"`
	CorrelationID   string     `json:"correlation_id,omitempty"`
	UserID          string     `json:"user_id,omitempty"`
	ContentType     string     `json:"content_type,omitempty"`
	ContentEncoding string     `json:"content_encoding,omitempty"`
	Ack             string     `json:"ack,omitempty"`
	Expires         *time.Time `json:"expires,omitempty"`
	Properties      []Property `json:"properties"`
	BodyBytes       int        `json:"body_bytes"` // the message's payload, as it is

	SendBy   *time.Time `json:"send_by,omitempty"` // max_age
	Priority int        `json:"priority,omitempty"`
	Order    string     `json:"order"` // device or none
	Coalesce string     `json:"coalesce,omitempty"`
	Receipts bool       `json:"receipts"`
	ReplyTo  string     `json:"reply_to,omitempty"`
	Wait     string     `json:"wait,omitempty"`

	Size           int `json:"size"`             // as the hub counts it
	BytesLeft      int `json:"bytes_left"`       // of the hub's 65,536
	TopicSize      int `json:"topic_size"`       // of the MQTT topic at the device
	TopicBytesLeft int `json:"topic_bytes_left"` // of MQTT's 65,535
}

// Property is one application property.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Map returns the outcomes of a message, in order; at least one. Like Source and
// Explain it needs a configuration with a bridge section.
func (p *Plan) Map(in *mapping.Input) []Outcome { return p.outcomes(p.table.Map(in)) }

// Explain is Map with the reasons.
func (p *Plan) Explain(in *mapping.Input) (*mapping.Explanation, []Outcome) {
	x := p.table.Explain(in)
	return x, p.outcomes(x.Results)
}

func (p *Plan) outcomes(results []mapping.Result) []Outcome {
	if len(results) == 0 {
		o := Outcome{Fate: FateDropped, Reason: string(bridge.ReasonNoRoute)}
		if p.unmatched {
			o.Fate = FateDead
		}
		return []Outcome{o}
	}
	list := make([]Outcome, 0, len(results))
	for _, r := range results {
		o := Outcome{Route: r.Route, Device: r.Device, envelope: r.Envelope}
		switch {
		case r.Err != nil:
			o.Fate, o.Reason, o.Error = FateDead, string(r.Err.Reason), r.Err.Field+": "+r.Err.Err.Error()
		case r.Envelope == nil:
			o.Fate, o.Reason = FateDropped, r.Drop
		default:
			o.Fate, o.Message = FateSent, message(r.Envelope)
		}
		list = append(list, o)
	}
	return list
}

func message(e *mapping.Envelope) *Message {
	m := &Message{
		Hub: e.Hub, MessageID: e.MessageID, CorrelationID: e.CorrelationID, UserID: e.UserID, ContentType: e.ContentType,
		ContentEncoding: e.ContentEncoding, Ack: string(e.Ack), BodyBytes: len(e.Body), Priority: e.Priority, Order: "device", Coalesce: e.Coalesce,
		Receipts: e.Receipts, ReplyTo: e.ReplyTo, Wait: e.Wait, Size: e.Size(), TopicSize: e.TopicSize(), Properties: []Property{},
	}
	m.BytesLeft, m.TopicBytesLeft = mapping.MaxMessageSize-m.Size, mapping.MaxTopic-m.TopicSize
	if e.Unordered {
		m.Order = "none"
	}
	if t := e.ExpiresAt; !t.IsZero() {
		m.Expires = &t
	}
	if t := e.SendBy; !t.IsZero() {
		m.SendBy = &t
	}
	for _, p := range e.Properties {
		m.Properties = append(m.Properties, Property{p.Name, p.Value})
	}
	return m
}

// Why a case cannot be run.
var (
	errNoBridge = errors.New("the configuration has no bridge section, which maps a subject")
	errNoRelay  = errors.New("the configuration has no relay section, which maps what a device receives")
)
