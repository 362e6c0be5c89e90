package app

import (
	"context"
	"fmt"
	"time"

	"downlink/bridge/config"
	"downlink/bridge/hubdevice"
	"downlink/bridge/natsio"
	"downlink/bridge/relay"
	"downlink/mapping"
)

// What an edge's stream of dead letters keeps at most, if we make it.
const (
	edgeDeadMaxAge   = 30 * 24 * time.Hour
	edgeDeadMaxBytes = 64 << 20 // beside a device the disk may be small
)

// publisher is what the relay's two kinds of publisher have in common.
type publisher interface {
	relay.Publisher
	Run(context.Context) error
	Ready() error
}

// buildRelay adds the device side: one MQTT client and one relay a device, all on the same publishers.
func (a *App) buildRelay(c *config.Relay) error {
	subjects, err := mapping.CompileRelay(c.MappingOptions())
	if err != nil {
		return err
	}
	if a.relayNATS, err = a.openNATS("relay", c.Name, c.NATS); err != nil {
		return err
	}
	live, dead, err := a.buildPublishers(c, subjects)
	if err != nil {
		return err
	}
	for _, d := range c.Devices {
		client, err := a.buildDevice(d)
		if err != nil {
			return err
		}
		r, err := relay.New(relay.Options{
			Device: client.Device(), Receiver: relay.From(client), Publisher: live, DeadLetters: dead, Map: subjects, Name: c.Name,
			Grace: a.options.Config.ShutdownGrace, Logger: a.options.Logger, Registerer: a.registry,
		})
		if err != nil {
			return err
		}
		a.checks = append(a.checks, client.Ready, r.Ready)
		a.statuses["relay "+client.Device()] = func() any {
			return map[string]any{"hub": client.Stats(), "messages": r.Stats()}
		}
		a.parts.add(layerClients, "device "+client.Device(), client.Run)
		a.parts.add(layerFlows, "relay "+client.Device(), r.Run)
	}
	return nil
}

// buildPublishers makes the publisher of messages and the one of dead letters.
// They are two, so that a full dead-letter stream holds up no live message.
func (a *App) buildPublishers(c *config.Relay, subjects *mapping.RelayMap) (live, dead publisher, err error) {
	o := natsio.PublisherOptions{Conn: *a.relayNATS, Logger: a.options.Logger}
	if c.Publish.Stream == "" {
		live, err = natsio.NewCorePublisher(o)
		if err != nil {
			return nil, nil, err
		}
		a.addPublisher("publisher", live)
		return live, live, nil
	}
	o.Stream, o.Create, o.Subjects = c.Publish.Stream, c.Publish.Create, subjects.Subjects()
	if live, err = natsio.NewOrderedPublisher(o); err != nil {
		return nil, nil, err
	}
	o.Stream, o.Create, o.Subjects = natsio.DeadStream(c.Name), true, []string{natsio.DeadSubjects(c.Name)}
	o.MaxAge, o.MaxBytes = edgeDeadMaxAge, edgeDeadMaxBytes
	if dead, err = natsio.NewOrderedPublisher(o); err != nil {
		return nil, nil, err
	}
	a.addPublisher("publisher", live)
	a.addPublisher("dead letters at the edge", dead)
	return live, dead, nil
}

func (a *App) addPublisher(name string, p publisher) {
	a.checks = append(a.checks, p.Ready)
	a.parts.add(layerClients, name, p.Run)
}

func (a *App) buildDevice(d config.Device) (*hubdevice.Client, error) {
	o := hubdevice.Options{
		ConnectionString: d.ConnectionString.Reveal(), Address: d.MQTTAddress, Version: a.options.Version, Logger: a.options.Logger,
	}
	var err error
	if d.Embedded != "" {
		e := a.options.EmbeddedHub
		if e == nil {
			return nil, fmt.Errorf("device %s: embedded, but this process has no embedded hub", d.Embedded)
		}
		if o.ConnectionString, err = e.DeviceConnectionString(d.Embedded); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Embedded, err)
		}
		o.Address, o.RootCAs = e.MQTTAddress, e.RootCAs
	} else if o.RootCAs, err = RootCAs(d.CAFile); err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	return hubdevice.New(o)
}
