package app

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"downlink/bridge"
	"downlink/bridge/config"
	"downlink/bridge/hubservice"
	"downlink/bridge/natsio"
)

// receipts are the parts that tell publishers what became of their messages.
type receipts struct {
	store *natsio.Receipts
	// freed is told that a device's queue at a hub has room again; set before anything runs.
	freed func(hub, device string)
}

// buildReceipts adds the store of receipts, and the sweeper for what had no feedback in time.
func (a *App) buildReceipts(c *config.Bridge, nats *natsio.Conn) (*receipts, error) {
	create, replicas := storage(c)
	o := natsio.ReceiptsOptions{
		Conn: nats, Name: c.Name, Create: create, Replicas: replicas, Sources: streams(c.Routes),
		MaxAge: c.Storage.ReceiptsMaxAge, MaxBytes: c.Storage.ReceiptsMaxBytes, Logger: a.options.Logger,
	}
	for _, h := range c.Hubs {
		o.Wanted = o.Wanted || h.Feedback == "always" || c.AsksFeedback(h.Name)
	}
	for _, x := range c.Routes {
		o.Wanted = o.Wanted || x.Receipts
	}
	store, err := natsio.NewReceipts(o)
	if err != nil {
		return nil, err
	}
	a.checks = append(a.checks, store.Ready)
	a.parts.add(layerClients, "receipts", store.Run)
	sweeper, err := bridge.NewSweeper(bridge.SweeperOptions{Pending: store, Receipts: store, Logger: a.options.Logger})
	if err != nil {
		return nil, err
	}
	a.parts.add(layerFlows, "overdue feedback", sweeper.Run)
	return &receipts{store: store}, nil
}

// buildFeedback adds the reading of one hub's feedback, as the hub's configuration says.
func (a *App) buildFeedback(c *config.Bridge, h config.Hub, client *hubservice.Client, r *receipts) error {
	if h.Feedback == "never" {
		return nil
	}
	flow, err := bridge.NewFeedback(bridge.FeedbackOptions{
		Hub: h.Name, Pending: r.store, Receipts: r.store, Able: r.store.Able, Logger: a.options.Logger,
		Freed: func(hub, device string) {
			if r.freed != nil {
				r.freed(hub, device)
			}
		},
	})
	if err != nil {
		return err
	}
	a.statuses["feedback "+h.Name] = func() any { return flow.Stats() }
	a.countFeedback(h.Name, flow, client)

	now := h.Feedback == "always" || c.AsksFeedback(h.Name)
	a.parts.add(layerFlows, "feedback of "+h.Name, func(ctx context.Context) error {
		if !now && r.store.WaitAsked(ctx, h.Name) != nil {
			return nil // the end came first
		}
		return client.Feedback(ctx, flow)
	})
	return nil
}

// countFeedback registers what was read of a hub's feedback.
func (a *App) countFeedback(hub string, flow *bridge.Feedback, client *hubservice.Client) {
	counter := func(name, help string, value func() uint64) {
		a.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "downlink_feedback_" + name + "_total", Help: help, ConstLabels: prometheus.Labels{"hub": hub},
		}, func() float64 { return float64(value()) }))
	}
	counter("records", "Feedback records that have their receipt.", func() uint64 { return flow.Stats().Records })
	counter("foreign_records", "Of them, those of messages that others sent.", func() uint64 { return flow.Stats().Foreign })
	counter("repeated_records", "Feedback records that told what had been told before.", func() uint64 { return flow.Stats().Repeated })
	counter("unreadable", "Feedback batches, or records in them, that cannot be read.", func() uint64 {
		if s := client.Stats().Feedback; s != nil {
			return s.Unreadable
		}
		return 0
	})
}
