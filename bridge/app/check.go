package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"downlink/bridge/config"
	"downlink/bridge/hubdevice"
	"downlink/bridge/hubservice"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// The states of a Check.
const (
	CheckOK      = "ok"
	CheckFailed  = "failed"
	CheckSkipped = "skipped"
)

// Check is one thing that was tried.
type Check struct {
	Side  config.Side `json:"side"`
	Name  string      `json:"check"`
	State string      `json:"state"`
	// Detail is what was found, or what is wrong; Remedy, of a failure, what to do.
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// CheckOptions configures CheckConnections. Config comes from config.Load, with its secrets.
type CheckOptions struct {
	Config *config.Config
	// Devices connects as each device, which ends the connection that the device has.
	Devices bool
	// Report gets each check as soon as it is done.
	Report func(Check)
}

// CheckConnections tries each connection and each right that the configuration needs, without sending, taking
// or making anything, and reports whether nothing failed. It blocks for as long as the servers
// take, some ten seconds for one that does not answer.
func CheckConnections(ctx context.Context, o CheckOptions) (well bool) {
	c := &checker{o: o, well: true}
	if b := o.Config.Bridge; b != nil {
		c.side = config.BridgeSide
		c.bridge(ctx, b)
	}
	if r := o.Config.Relay; r != nil {
		c.side = config.RelaySide
		c.relay(ctx, r)
	}
	return c.well
}

type checker struct {
	o    CheckOptions
	side config.Side
	well bool
}

func (c *checker) ok(name, detail string) {
	c.o.Report(Check{Side: c.side, Name: name, State: CheckOK, Detail: detail})
}

func (c *checker) skip(name, why string) {
	c.o.Report(Check{Side: c.side, Name: name, State: CheckSkipped, Detail: why})
}

func (c *checker) fail(name string, err error, remedy string) {
	c.well = false
	c.o.Report(Check{Side: c.side, Name: name, State: CheckFailed, Detail: strings.Join(strings.Fields(err.Error()), " "), Remedy: remedy})
}

// wanted is a stream that must be there, or may be made.
type wanted struct {
	stream  string
	filters []string // subjects that it should store
	create  bool
	remedy  string // if it is missing and must not be made
}

func (c *checker) bridge(ctx context.Context, b *config.Bridge) {
	rights, err := BridgeRights(b)
	if err != nil {
		c.fail("configuration", err, "correct it, or the NATS context that it names")
		return
	}
	table, err := mapping.Compile(b.MappingRoutes(), b.TableOptions())
	if err != nil {
		c.fail("configuration", err, "correct it, or the NATS context that it names")
		return
	}
	create, _ := storage(b)
	needs := bridgeNeeds(b, table, natsio.Prefixes{})
	var list []wanted
	for _, s := range needs.Sources {
		list = append(list, wanted{s.Stream, s.Filters, s.Create, ""})
	}
	for _, bucket := range needs.Buckets {
		list = append(list, wanted{stream: "KV_" + bucket, remedy: "nats kv add " + bucket})
	}
	own := []string{natsio.DeadStream(b.Name), natsio.ReceiptStream(b.Name), "KV_" + natsio.PendingBucket(b.Name)}
	if len(needs.Sources) > 0 {
		own = append(own, natsio.MailboxStream(b.Name), "KV_"+natsio.LeaseBucket(b.Name))
	}
	for _, stream := range own {
		list = append(list, wanted{stream: stream, create: create, remedy: "set storage.create: true, or make it; the bridge's log says how"})
	}
	c.nats(ctx, b.Name, b.NATS, rights.NATS, list, needs.Core)
	for _, h := range b.Hubs {
		c.hub(ctx, b, h)
	}
}

func (c *checker) relay(ctx context.Context, r *config.Relay) {
	rights, err := RelayRights(r)
	if err != nil {
		c.fail("configuration", err, "correct it, or the NATS context that it names")
		return
	}
	var list []wanted
	if r.Publish.Stream != "" {
		subjects, err := mapping.CompileRelay(r.MappingOptions())
		if err != nil {
			c.fail("configuration", err, "correct it, or the NATS context that it names")
			return
		}
		list = append(list, wanted{r.Publish.Stream, subjects.Subjects(), r.Publish.Create, ""}, wanted{stream: natsio.DeadStream(r.Name), create: true})
	}
	c.nats(ctx, r.Name, r.NATS, rights.NATS, list, nil)
	for i, d := range r.Devices {
		c.device(ctx, i, d)
	}
}

// nats checks one side's server: login, rights, streams, and that no stream stores what core NATS is to bring.
func (c *checker) nats(ctx context.Context, name string, n config.NATS, rights []natsio.Right, streams []wanted, core []string) {
	if n.Embedded != nil {
		c.skip("NATS", "the server runs in the process itself")
		return
	}
	o := natsOptions(name, n)
	o.Name = name + "-check"
	p, err := natsio.OpenProbe(o)
	if err != nil {
		remedy := "check that the server runs and can be reached from here"
		if strings.Contains(err.Error(), "authorization violation") {
			remedy = "check the credentials in " + string(c.side) + ".nats"
		}
		c.fail("NATS", err, remedy)
		return
	}
	defer p.Close()
	c.ok("NATS", p.Server())
	missing := c.rights(ctx, p, rights)
	for _, w := range streams {
		if slices.ContainsFunc(missing, func(r natsio.Right) bool { return strings.HasSuffix(r.Subject, "STREAM.INFO."+w.stream) }) ||
			slices.ContainsFunc(missing, func(r natsio.Right) bool { return r.Op == "subscribe" && strings.HasSuffix(r.Subject, ".>") }) {
			c.skip("stream "+w.stream, "without the right to ask for it")
			continue
		}
		c.stream(ctx, p, w)
	}
	for _, subject := range core {
		stream, err := p.StoredBy(ctx, subject)
		switch check := "core NATS " + subject; {
		case err != nil:
			c.fail(check, err, "see the rights above")
		case stream != "":
			c.fail(check, fmt.Errorf("stream %s stores it, so it must not be read by source: core", stream), "say stream: "+stream+" on the route, or take the subject out of the stream")
		default:
			c.ok(check, "no stream stores it")
		}
	}
}

// rights tries each, and reports those that are there by what needs them.
func (c *checker) rights(ctx context.Context, p *natsio.Probe, list []natsio.Right) (missing []natsio.Right) {
	var groups []string
	there := make(map[string]int)
	// What stands in for another subject is tried with that one.
	list = slices.DeleteFunc(slices.Clone(list), func(r natsio.Right) bool { return r.InsteadOf != "" })
	for _, r := range list {
		if !slices.Contains(groups, r.For) {
			groups = append(groups, r.For)
		}
	}
	for _, group := range groups {
		whole := true
		for _, r := range list {
			if r.For != group {
				continue
			}
			err := p.May(ctx, r)
			if err == nil {
				there[group]++
				continue
			}
			whole = false
			missing = append(missing, r)
			remedy := "add it to the login's permissions: downlink permissions prints all of them"
			if errors.Is(err, natsio.ErrCannotTell) {
				remedy = "try again; if it stays so, what is between here and the server is not a nats-server"
			}
			c.fail("right to "+r.Op+" "+r.Subject, fmt.Errorf("%w (%s)", err, group), remedy)
		}
		if whole {
			c.ok("rights: "+group, fmt.Sprintf("%d of %d", there[group], there[group]))
		}
	}
	return missing
}

func (c *checker) stream(ctx context.Context, p *natsio.Probe, w wanted) {
	check := "stream " + w.stream
	subjects, err := p.Subjects(ctx, w.stream)
	var missing *natsio.MissingError
	switch {
	case errors.As(err, &missing) && w.create:
		c.ok(check, "not there yet; it is made when it is needed")
		return
	case errors.As(err, &missing):
		remedy := w.remedy
		if remedy == "" {
			remedy = fmt.Sprintf("nats stream add %s --subjects '%s', or set create: true", w.stream, strings.Join(w.filters, ","))
		}
		c.fail(check, errors.New("does not exist"), remedy)
		return
	case err != nil:
		c.fail(check, err, "JetStream must be enabled for this account (the server's jetstream block), and up")
		return
	}
	// A stream without subjects takes its messages from other streams.
	if outside := natsio.Uncovered(w.filters, subjects); len(subjects) > 0 && len(outside) > 0 {
		c.fail(check, fmt.Errorf("stores %s, and nothing of %s", strings.Join(subjects, ", "), strings.Join(outside, ", ")),
			"add the subject to the stream, or correct the configuration's")
		return
	}
	c.ok(check, strings.Join(subjects, ", "))
}

func (c *checker) hub(ctx context.Context, b *config.Bridge, h config.Hub) {
	name := "hub " + h.Name
	if h.Embedded {
		c.skip(name, "it runs in the process itself")
		return
	}
	o, err := HubOptions(h)
	if err == nil {
		var client *hubservice.Client
		if client, err = hubservice.New(o); err == nil {
			feedback := h.Feedback == "always" || h.Feedback == "auto" && b.AsksFeedback(h.Name)
			client.Check(ctx, feedback, func(what, detail string, err error) { c.step(name+": "+what, detail, err, hubRemedy(h)) })
			if !feedback {
				c.skip(name+": attach to the feedback", "nothing in the configuration asks for it")
			}
			return
		}
	}
	c.fail(name, err, "correct bridge.hubs")
}

func hubRemedy(h config.Hub) string {
	if h.Entra != nil {
		return "check network, tenant, client and the role at the hub: downlink permissions names the actions"
	}
	return "check network, host name, the policy's key and its right ServiceConnect"
}

func (c *checker) step(name, detail string, err error, remedy string) {
	if err != nil {
		c.fail(name, err, remedy)
		return
	}
	c.ok(name, detail)
}

func (c *checker) device(ctx context.Context, i int, d config.Device) {
	name := "device " + deviceName(i, d)
	if d.Embedded != "" {
		c.skip(name, "its hub runs in the process itself")
		return
	}
	roots, err := RootCAs(d.CAFile)
	if err == nil {
		var client *hubdevice.Client
		client, err = hubdevice.New(hubdevice.Options{ConnectionString: d.ConnectionString.Reveal(), Address: d.MQTTAddress, RootCAs: roots})
		if err == nil {
			client.Check(ctx, c.o.Devices, func(what string, err error) {
				c.step(name+": "+what, "", err, "check network, host name, and the device's key and that it is enabled")
			})
			if !c.o.Devices {
				c.skip(name+": connect as the device", "that would end the connection which the device has now; --connect-devices does it")
			}
			return
		}
	}
	c.fail(name, err, "correct relay.devices")
}
