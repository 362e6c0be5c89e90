package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"downlink/bridge/emulator/c2d"
)

// hubStatus is the embedded hub's /status.
type hubStatus struct {
	Version      string                     `json:"version"`
	AMQPS        string                     `json:"amqps"`
	MQTTS        string                     `json:"mqtts"`
	HTTPS        string                     `json:"https"`
	UnknownSends int                        `json:"unknown_sends"` // messages for no device or an unknown one
	Devices      map[string]hubDeviceStatus `json:"devices"`
}

type hubDeviceStatus struct {
	Connected bool       `json:"connected"`
	Pending   int        `json:"pending"`
	Counts    c2d.Counts `json:"counts"`
}

func (h *embeddedHub) status() hubStatus {
	s := hubStatus{
		Version: buildVersion().Version, AMQPS: h.AMQPAddr(), MQTTS: h.MQTTAddr(), HTTPS: h.HTTPAddr(),
		UnknownSends: h.UnknownSends(), Devices: make(map[string]hubDeviceStatus),
	}
	for _, id := range h.Devices() {
		if d, err := h.Device(id); err == nil { // else deleted meanwhile
			s.Devices[id] = hubDeviceStatus{Connected: d.Connected, Pending: d.Pending, Counts: h.Counts(id)}
		}
	}
	return s
}

// hubCollector gives the embedded hub's sums over all devices: a device ID is no label.
type hubCollector struct {
	hub       *embeddedHub
	messages  *prometheus.Desc
	devices   *prometheus.Desc
	connected *prometheus.Desc
	pending   *prometheus.Desc
}

func newHubCollector(h *embeddedHub) *hubCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("downlink_embedded_hub_"+name, help, labels, nil)
	}
	return &hubCollector{
		hub:       h,
		messages:  desc("messages_total", "Cloud-to-device messages by what happened to them.", "event"),
		devices:   desc("devices", "Registered devices."),
		connected: desc("connected_devices", "Devices connected, virtual ones included."),
		pending:   desc("pending_messages", "Messages in all device queues."),
	}
}

// Describe implements prometheus.Collector.
func (c *hubCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.messages, c.devices, c.connected, c.pending} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *hubCollector) Collect(ch chan<- prometheus.Metric) {
	var sum c2d.Counts
	pending := 0
	ids := c.hub.Devices()
	for _, id := range ids {
		n := c.hub.Counts(id)
		sum.Accepted += n.Accepted
		sum.Refused += n.Refused
		sum.Delivered += n.Delivered
		sum.Redelivered += n.Redelivered
		sum.Completed += n.Completed
		sum.Expired += n.Expired
		sum.Exceeded += n.Exceeded
		sum.Rejected += n.Rejected
		sum.Purged += n.Purged
		pending += len(c.hub.Queue(id))
	}
	for _, m := range []struct {
		event string
		n     uint64
	}{
		{"accepted", sum.Accepted}, {"refused", sum.Refused + uint64(c.hub.UnknownSends())}, {"delivered", sum.Delivered},
		{"redelivered", sum.Redelivered}, {"completed", sum.Completed}, {"expired", sum.Expired},
		{"delivery_count_exceeded", sum.Exceeded}, {"rejected", sum.Rejected}, {"purged", sum.Purged},
	} {
		ch <- prometheus.MustNewConstMetric(c.messages, prometheus.CounterValue, float64(m.n), m.event)
	}
	ch <- prometheus.MustNewConstMetric(c.devices, prometheus.GaugeValue, float64(len(ids)))
	_, _, connected := c.hub.Statistics()
	ch <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, float64(connected))
	ch <- prometheus.MustNewConstMetric(c.pending, prometheus.GaugeValue, float64(pending))
}
