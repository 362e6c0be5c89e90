package inspect

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"downlink/bridge/emulator/fault"
)

// Fault is a scripted fault, as /admin/faults shows and takes it. A client sets no id, left and hits.
type Fault struct {
	ID        int        `json:"id,omitempty"`
	Point     string     `json:"point"`
	Kind      string     `json:"kind"` // one of fault.Kinds, or throttle
	Condition string     `json:"condition,omitempty"`
	Text      string     `json:"text,omitempty"`
	Delay     string     `json:"delay,omitempty"`  // such as 2s: of delay and expire
	After     bool       `json:"after,omitempty"`  // the hub does its part first
	Device    string     `json:"device,omitempty"` // pattern
	Times     *int       `json:"times,omitempty"`  // 0: until it is deleted; absent in a request: 1
	Left      int        `json:"left,omitempty"`
	For       string     `json:"for,omitempty"` // in a request: such as 10s, from now on
	Until     *time.Time `json:"until,omitempty"`
	Hits      int        `json:"hits,omitempty"`
}

func document(s fault.Scripted) Fault {
	out := Fault{
		ID: s.ID, Point: string(s.Point), Kind: s.Action.Kind.String(), Condition: s.Action.Condition, Text: s.Action.Text,
		After: s.Action.After, Device: s.Device, Times: &s.Times, Left: s.Left, Until: when(s.Until), Hits: s.Hits,
	}
	if s.Action.Delay > 0 {
		out.Delay = s.Action.Delay.String()
	}
	return out
}

func (p *pages) faults(context.Context, *http.Request) (any, error) {
	out := struct {
		Faults []Fault `json:"faults"`
	}{[]Fault{}}
	for _, r := range p.hub.Faults().Rules() {
		out.Faults = append(out.Faults, document(r))
	}
	return out, nil
}

// script takes a Fault in JSON, or a line of text as fault.Parse reads it.
func (p *pages) script(_ context.Context, r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, bad("the body cannot be read: " + err.Error())
	}
	var rule fault.Rule
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		rule, err = decode(body)
	} else {
		rule, err = fault.Parse(strings.TrimSpace(string(body)))
	}
	if err != nil {
		return nil, bad(err.Error())
	}
	id := p.hub.Faults().Script(rule)
	p.log.Info("fault scripted", "point", rule.Point, "kind", rule.Action.Kind.String(), "id", id)
	rules := p.hub.Faults().Rules()
	if i := slices.IndexFunc(rules, func(s fault.Scripted) bool { return s.ID == id }); i >= 0 {
		return document(rules[i]), nil
	}
	return document(fault.Scripted{ID: id, Rule: rule, Hits: rule.Times}), nil // used up already
}

func decode(body []byte) (fault.Rule, error) {
	var f Fault
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return fault.Rule{}, err
	}
	r := fault.Rule{Point: fault.Point(f.Point), Device: f.Device, Times: 1, Action: fault.Action{Condition: f.Condition, Text: f.Text, After: f.After}}
	if f.Kind == "throttle" {
		r.Action.Kind, r.Action.Condition = fault.Reject, fault.Throttled
	}
	for _, k := range fault.Kinds() {
		if k.String() == f.Kind {
			r.Action.Kind = k
		}
	}
	var err error
	if r.Action.Delay, err = duration("delay", f.Delay); err != nil {
		return r, err
	}
	lasts, err := duration("for", f.For)
	if err != nil {
		return r, err
	}
	if lasts > 0 {
		r.Until, r.Times = time.Now().Add(lasts), 0
	}
	if f.Times != nil {
		r.Times = *f.Times
	}
	return r, r.Check()
}

func duration(name, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, bad(name + ": " + strconv.Quote(text) + " is no duration, such as 200ms or 5s")
	}
	return d, nil
}

func (p *pages) clear(context.Context, *http.Request) (any, error) {
	return map[string]int{"removed": p.hub.Faults().Clear()}, nil
}

func (p *pages) remove(text string) (any, error) {
	id, err := strconv.Atoi(text)
	if err != nil || !p.hub.Faults().Remove(id) {
		return nil, &failure{http.StatusNotFound, "no fault " + strconv.Quote(text) + ": it is used up, or never was"}
	}
	return map[string]int{"removed": 1}, nil
}

func (p *pages) purge(id string) (any, error) {
	n, err := p.hub.PurgeDevice(id)
	if err != nil {
		return nil, err
	}
	return map[string]int{"purged": n}, nil
}

func (p *pages) disconnect(id string) (any, error) {
	if _, err := p.hub.Device(id); err != nil {
		return nil, err
	}
	return map[string]bool{"disconnected": p.hub.DisconnectDevice(id)}, nil
}

// expire has tokens expire now: those of the devices that match, and those of services.
func (p *pages) expire(_ context.Context, r *http.Request) (any, error) {
	var b struct {
		Devices  *string `json:"devices"` // pattern; absent: none
		Services bool    `json:"services"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return nil, bad(`write {"devices":"pump-*"}, {"services":true}, or both: ` + err.Error())
	}
	out := struct {
		Devices  int `json:"devices"`
		Services int `json:"services"`
	}{}
	if b.Devices != nil {
		out.Devices = p.hub.ExpireTokens(*b.Devices)
	}
	if b.Services {
		out.Services = p.hub.ExpireServiceTokens()
	}
	return out, nil
}
