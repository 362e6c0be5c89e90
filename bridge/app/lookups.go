package app

import (
	"context"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
)

// buildLookups adds the tables that expressions read; nil if there are none.
func (a *App) buildLookups(c *config.Bridge, nats *natsio.Conn) (*natsio.Lookups, error) {
	if len(c.Lookups) == 0 {
		return nil, nil
	}
	o := natsio.LookupsOptions{Conn: nats, Logger: a.options.Logger}
	for _, l := range c.Lookups {
		o.Tables = append(o.Tables, natsio.LookupTable{Name: l.Name, Bucket: l.Bucket, File: l.File})
	}
	lookups, err := natsio.NewLookups(o)
	if err != nil {
		return nil, err
	}
	a.checks = append(a.checks, lookups.Ready)
	a.statuses["lookups"] = func() any { return lookups.Status() }
	a.parts.add(layerClients, "lookups", lookups.Run)
	a.lookups = lookups.Loaded()
	return lookups, nil
}

// afterLookups holds a part of the bridge back until every lookup's first values are
// in: a message mapped before would meet absent keys that are there.
func (a *App) afterLookups(run func(context.Context) error) func(context.Context) error {
	loaded := a.lookups
	if loaded == nil {
		return run
	}
	return func(ctx context.Context) error {
		select {
		case <-loaded:
			return run(ctx)
		case <-ctx.Done():
			return nil // it has taken nothing yet
		}
	}
}
