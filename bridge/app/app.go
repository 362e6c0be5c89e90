// Package app builds the parts of a process from its configuration and owns
// their lifecycle: what runs, what outlives what, when it is ready, and the
// pages that tell operators.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
)

// The layers of the stack, from what stops last to what stops first.
const (
	layerPages   = iota // HTTP
	layerClients        // what holds connections and settles
	layerFlows          // the engine and the relays
)

// App is one process: a bridge, a relay, or both. Make it with New, run it once.
type App struct {
	options    Options
	parts      stack
	closers    []func() // in reverse, after the parts
	checks     []func() error
	statuses   map[string]func() any
	registry   *prometheus.Registry
	ops        *Ops
	bridgeNATS *natsio.Options
	relayNATS  *natsio.Options
	lookups    <-chan struct{} // closed once the lookups are read; nil: there are none
}

// New builds everything, binds the listeners and starts the embedded NATS
// servers that the configuration asks for. A server that cannot be reached is no
// error: Ready says so. On failure everything is undone.
func New(o Options) (_ *App, err error) {
	a := &App{options: o, statuses: make(map[string]func() any), registry: prometheus.NewRegistry(), parts: stack{log: o.Logger}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.Config.Bridge != nil {
		if err := a.buildBridge(o.Config.Bridge); err != nil {
			return nil, inSide("bridge", err)
		}
	}
	if o.Config.Relay != nil {
		if err := a.buildRelay(o.Config.Relay); err != nil {
			return nil, inSide("relay", err)
		}
	}
	if addr := o.Config.HTTP; addr != "" && addr != "off" {
		a.ops, err = NewOps(OpsOptions{Addr: addr, Ready: a.Ready, Status: a.status, Gatherer: a.registry, Logger: o.Logger})
		if err != nil {
			return nil, err
		}
		a.closers = append(a.closers, func() { _ = a.ops.Close() })
		a.parts.add(layerPages, "http", a.ops.Run)
	}
	return a, nil
}

// Run blocks until ctx is done and everything has stopped in order, or until a
// part fails. It returns nil after an ordered stop.
func (a *App) Run(ctx context.Context) error {
	defer a.close()
	if a.ops != nil {
		a.options.Logger.Info("started", "http", a.ops.Addr(), "version", a.options.Version)
	} else {
		a.options.Logger.Info("started", "version", a.options.Version)
	}
	watched, stopWatch := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { a.watch(watched) })
	defer watching.Wait() // it asks the parts, which close ends, and logs
	defer stopWatch()
	return a.parts.run(ctx)
}

func (a *App) close() {
	for _, c := range slices.Backward(a.closers) {
		c()
	}
	a.closers = nil
}

// Ready is nil when every part can do its work; otherwise it names what is missing, one line each.
func (a *App) Ready() error {
	var errs []error
	seen := make(map[string]bool) // several parts may suffer from one cause
	for _, check := range a.checks {
		if err := check(); err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

const readyPoll = 50 * time.Millisecond

// WaitReady blocks until Ready is nil. When ctx ends first, the error says what was missing.
func (a *App) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := a.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}

// startTime is how long a process that starts may take to become ready before
// that is worth a warning: every connection takes a moment.
const startTime = 3 * time.Second

// watch logs when the process becomes ready, and when it stops being so.
func (a *App) watch(ctx context.Context) {
	watch(ctx, a.options.Logger, a.Ready)
}

func watch(ctx context.Context, log *slog.Logger, ready func() error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin := time.Now()
	last, starting := "", true // nothing said yet
	for first := true; ; first = false {
		text := ""
		if err := ready(); err != nil {
			text = err.Error()
		}
		switch {
		case ctx.Err() != nil:
		case text == "":
			if starting || last != "" {
				log.Info("ready")
			}
			last, starting = "", false
		case starting && time.Since(begin) < startTime:
			if first {
				log.Info("starting", "missing", text)
			}
		case text != last:
			log.Warn("not ready", "err", text)
			last, starting = text, false
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// HTTPAddr is the address of the pages; empty if there are none.
func (a *App) HTTPAddr() string {
	if a.ops == nil {
		return ""
	}
	return a.ops.Addr()
}

// BridgeNATSURL is where clients reach the bridge's NATS; empty without a bridge.
func (a *App) BridgeNATSURL() string { return clientURL(a.bridgeNATS) }

// RelayNATSURL is where clients reach the relay's NATS; empty without a relay.
func (a *App) RelayNATSURL() string { return clientURL(a.relayNATS) }

func clientURL(o *natsio.Options) string {
	if o == nil || len(o.URLs) == 0 {
		return "" // not on this side, or a context of the nats CLI
	}
	return o.URLs[0]
}

// status is the body of /status.
func (a *App) status() any {
	s := map[string]any{"version": a.options.Version, "ready": true}
	if err := a.Ready(); err != nil {
		s["ready"] = false
		s["missing"] = err.Error()
	}
	for name, part := range a.statuses {
		s[name] = part()
	}
	return s
}

// openNATS says how to reach one side's NATS, after starting its embedded server if it has one.
func (a *App) openNATS(side, name string, c config.NATS) (*natsio.Options, error) {
	o := natsOptions(name, c)
	o.Logger = a.options.Logger
	e := c.Embedded
	if e == nil {
		return &o, nil
	}
	streams := make([]natsio.Stream, len(e.Streams))
	for i, s := range e.Streams {
		streams[i] = natsio.Stream{Name: s.Name, Subjects: s.Subjects}
	}
	log, started := quietStart(a.options.Logger)
	srv, err := natsio.StartServer(natsio.ServerOptions{Name: name, Listen: e.Listen, StoreDir: e.StoreDir, Streams: streams, Logger: log})
	if err != nil {
		return nil, embeddedError(side, e.Listen, err)
	}
	started()
	a.closers = append(a.closers, func() {
		if err := srv.Close(); err != nil {
			a.options.Logger.Warn("embedded NATS server", "err", err)
		}
	})
	o.URLs = []string{srv.URL()}
	return &o, nil
}

// natsOptions say how to reach a server that is not embedded, as the configuration has it.
func natsOptions(name string, c config.NATS) natsio.Options {
	return natsio.Options{
		Name: name, URLs: c.URL, Context: c.Context, CredsFile: c.CredsFile, NKeyFile: c.NKeyFile, TokenFile: c.TokenFile,
		User: c.User, PasswordFile: c.PasswordFile, CAFile: c.TLS.CAFile, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile,
	}
}
