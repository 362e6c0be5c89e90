package app

import (
	"context"
	"fmt"
	"strconv"

	"downlink/bridge"
	"downlink/bridge/config"
	"downlink/bridge/hubservice"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// maxFilters is how many filter subjects a consumer gets; more are widened to common parents.
const maxFilters = 256

// buildBridge adds the cloud side: sources, engine, hubs, mailbox and dead letters.
func (a *App) buildBridge(c *config.Bridge) error {
	var err error
	if a.bridgeNATS, err = a.openNATS("bridge", c.Name, c.NATS); err != nil {
		return err
	}
	nats, err := natsio.Connect(*a.bridgeNATS)
	if err != nil {
		return err
	}
	a.closers = append(a.closers, nats.Close)
	a.checks = append(a.checks, nats.Ready)

	tableOptions := c.TableOptions()
	lookups, err := a.buildLookups(c, nats)
	if err != nil {
		return err
	}
	if lookups != nil {
		tableOptions.Lookups = lookups
	}
	table, err := mapping.Compile(c.MappingRoutes(), tableOptions)
	if err != nil {
		return err
	}

	o := bridge.Options{
		Mapper: table, DeadUnmatched: c.Unmatched == "dead", ShutdownGrace: a.options.Config.ShutdownGrace,
		Logger: a.options.Logger, Registerer: a.registry,
	}
	for _, r := range c.Routes {
		if r.DeviceNotFound == "retry" {
			o.RetryNoDevice = append(o.RetryNoDevice, r.Name)
		}
	}
	if o.Sources, err = a.buildSources(c, table, nats); err != nil {
		return err
	}
	if between := a.options.Source; between != nil {
		for i, s := range o.Sources {
			o.Sources[i] = between(s)
		}
	}
	r, err := a.buildReceipts(c, nats)
	if err != nil {
		return err
	}
	o.Receipts = r.store
	if o.Hubs, err = a.buildHubs(c, r); err != nil {
		return err
	}
	if between := a.options.Sender; between != nil {
		for i := range o.Hubs {
			o.Hubs[i].Sender = between(o.Hubs[i].Sender)
		}
	}
	dead, err := natsio.NewDeadLetters(a.deadOptions(c, nats))
	if err != nil {
		return err
	}
	a.checks = append(a.checks, dead.Ready)
	a.parts.add(layerClients, "dead letters", dead.Run)
	o.DeadLetters = dead
	if o.Mailbox, err = a.buildMailbox(c, nats); err != nil {
		return err
	}

	engine, err := bridge.New(o)
	if err != nil {
		return err
	}
	r.freed = engine.Freed
	a.checks = append(a.checks, engine.Ready)
	a.statuses["bridge"] = func() any { return engine.Status() }
	a.parts.add(layerFlows, "bridge", a.afterLookups(engine.Run))
	return nil
}

// buildSources makes one source a stream, and one for core NATS. All of them share the whole table.
func (a *App) buildSources(c *config.Bridge, table *mapping.Table, nats *natsio.Conn) ([]bridge.Source, error) {
	var sources []bridge.Source
	for _, stream := range streams(c.Routes) {
		o := sourceOptions(c, table, stream)
		o.Conn, o.Logger = nats, a.options.Logger
		var err error
		create, replicas := storage(c)
		o.Lease, err = natsio.NewLease(natsio.LeaseOptions{
			Conn: nats, Name: c.Name, Stream: stream, Create: create, Replicas: replicas, Logger: a.options.Logger,
		})
		if err != nil {
			return nil, err
		}
		s, err := natsio.NewJetStreamSource(o)
		if err != nil {
			return nil, err
		}
		a.checks = append(a.checks, s.Ready)
		a.statuses["stream "+stream] = func() any { return o.Lease.Status() }
		a.parts.add(layerClients, "source "+stream, a.afterLookups(s.Run))
		a.parts.add(layerFlows, "drain of "+stream, drained(s))
		sources = append(sources, s)
	}
	if subjects := table.Subjects(""); len(subjects) > 0 {
		subjects = mapping.Cover(subjects, maxFilters)
		s, err := natsio.NewCoreSource(natsio.CoreOptions{Conn: nats, Queue: c.Name, Subjects: subjects, Logger: a.options.Logger})
		if err != nil {
			return nil, err
		}
		core := &coreGuard{conn: nats, source: s, subjects: subjects, routes: routesOf(c.Routes, ""), log: a.options.Logger}
		a.checks = append(a.checks, core.Ready)
		a.parts.add(layerClients, "source core", a.afterLookups(core.Run))
		a.parts.add(layerFlows, "drain of core", drained(s))
		sources = append(sources, s)
	}
	return sources, nil
}

// buildMailbox makes the place for what waits.
func (a *App) buildMailbox(c *config.Bridge, nats *natsio.Conn) (bridge.Mailbox, error) {
	create, replicas := storage(c)
	hubs := make([]string, 0, len(c.Hubs))
	for _, h := range c.Hubs {
		hubs = append(hubs, h.Name)
	}
	m, err := natsio.NewMailbox(natsio.MailboxOptions{
		Conn: nats, Name: c.Name, Create: create, Replicas: replicas, Sources: streams(c.Routes), Hubs: hubs,
		MaxBytes: c.Storage.MailboxMaxBytes, Logger: a.options.Logger,
	})
	if err != nil {
		return nil, err
	}
	if len(streams(c.Routes)) > 0 { // what core NATS brings is never put there
		a.checks = append(a.checks, m.Ready)
		a.parts.add(layerClients, "mailbox", m.Run)
	}
	return m, nil
}

// drained stops a source from taking more as soon as the engine drains: what the
// engine does not have need not be held any longer.
func drained(s interface{ Drain() }) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		s.Drain()
		return nil
	}
}

// sourceOptions are those of a stream's source, without connection and log.
func sourceOptions(c *config.Bridge, table *mapping.Table, stream string) natsio.SourceOptions {
	o := natsio.SourceOptions{
		Stream: stream, Consumer: natsio.Durable(c.Name), Filters: mapping.Cover(table.Subjects(stream), maxFilters),
		Routes: routesOf(c.Routes, stream),
	}
	for _, r := range c.Routes {
		if r.Stream != stream {
			continue
		}
		if r.Start != "" {
			o.Start = r.Start
		}
		o.Create = o.Create || r.Create
	}
	return o
}

// streams lists the routes' streams once each, in order.
func streams(routes []config.Route) []string {
	var list []string
	seen := make(map[string]bool)
	for _, r := range routes {
		if r.Stream != "" && !seen[r.Stream] {
			seen[r.Stream] = true
			list = append(list, r.Stream)
		}
	}
	return list
}

// routesOf names the routes that take from a stream ("": core NATS).
func routesOf(routes []config.Route, stream string) []string {
	var names []string
	for _, r := range routes {
		if stream != "" && r.Stream == stream || stream == "" && r.Source == "core" {
			names = append(names, r.Name)
		}
	}
	return names
}

func (a *App) buildHubs(c *config.Bridge, r *receipts) ([]bridge.HubOptions, error) {
	var list []bridge.HubOptions
	for _, h := range c.Hubs {
		o, err := HubOptions(h)
		if err != nil {
			return nil, fmt.Errorf("hub %s: %w", h.Name, err)
		}
		o.Logger = a.options.Logger
		if h.Embedded {
			e := a.options.EmbeddedHub
			if e == nil {
				return nil, fmt.Errorf("hub %s: embedded, but this process has no embedded hub", h.Name)
			}
			o.ConnectionString, o.Address, o.RootCAs = e.ServiceConnectionString, e.AMQPAddress, e.RootCAs
			if o.WebSocket {
				o.Address = e.HTTPSAddress
			}
		}
		client, err := hubservice.New(o)
		if err != nil {
			return nil, err
		}
		a.checks = append(a.checks, client.Ready)
		a.statuses["hub "+h.Name] = func() any { return client.Stats() }
		a.parts.add(layerClients, "hub "+h.Name, client.Run)
		if err := a.buildFeedback(c, h, client, r); err != nil {
			return nil, err
		}
		list = append(list, bridge.HubOptions{Name: h.Name, Sender: client, Window: h.Window, Pace: pace(&h)})
	}
	return list, nil
}

func pace(h *config.Hub) bridge.PaceOptions {
	return bridge.PaceOptions{Tier: h.Tier, Units: h.Units, Rate: h.Rate, Share: h.Share, DailyMessages: int64(h.DailyMessages)}
}

// HubOptions says how to reach a hub that is not embedded, as the configuration
// has it. The error is about its CA file.
func HubOptions(h config.Hub) (hubservice.Options, error) {
	o := hubservice.Options{
		Hub: h.Name, ConnectionString: h.ConnectionString.Reveal(), SecondaryConnectionString: h.SecondaryConnectionString.Reveal(),
		Address: h.AMQPAddress, Window: h.Window,
	}
	if h.InFiles() {
		o.Reread = h.ReadAgain
	}
	if h.Transport == "websocket" {
		o.WebSocket, o.Address = true, h.HTTPSAddress
	}
	if e := h.Entra; e != nil {
		o.Host = h.Host
		o.Entra = &hubservice.Entra{
			TenantID: e.TenantID, ClientID: e.ClientID, ClientSecretFile: e.ClientSecretFile,
			ClientCertificateFile: e.ClientCertificateFile, Authority: e.Authority,
		}
		if e.Identity != "default" {
			o.Entra.Identity = e.Identity
		}
	}
	var err error
	if o.RootCAs, err = RootCAs(h.CAFile); err != nil {
		return o, fmt.Errorf("ca_file: %w", err)
	}
	return o, nil
}

func (a *App) deadOptions(c *config.Bridge, nats *natsio.Conn) natsio.DeadLettersOptions {
	create, replicas := storage(c)
	return natsio.DeadLettersOptions{
		Conn: nats, Name: c.Name, Create: create, Replicas: replicas, Sources: streams(c.Routes),
		MaxAge: c.Storage.DeadMaxAge, MaxBytes: c.Storage.DeadMaxBytes, Logger: a.options.Logger,
	}
}

// storage says how the bridge's own streams and buckets are made.
func storage(c *config.Bridge) (create bool, replicas int) {
	// Anything but a number is "source": as many as the source streams have.
	replicas, _ = strconv.Atoi(c.Storage.Replicas)
	return c.Storage.Create == nil || *c.Storage.Create, replicas
}
