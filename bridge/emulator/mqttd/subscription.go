package mqttd

import (
	"errors"
	"strings"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// filter is one of the topic filters to which a device may subscribe (developer
// guide: only the documented topics, at most five).
type filter uint

const (
	deviceBound   filter = iota // devices/{id}/messages/devicebound/#: C2D messages
	twinResponses               // answers to twin requests
	twinDesired                 // changes of desired properties
	directMethods               // calls of direct methods
)

// refusedFilter is the SUBACK code of a failure (MQTT 3.1.1 §3.9.3).
const refusedFilter = 0x80

// match finds what a device's topic filter stands for. The device ID stands in
// it as it is.
func match(device, topicFilter string) (filter, bool) {
	switch topicFilter {
	case "devices/" + device + "/messages/devicebound/#":
		return deviceBound, true
	case "$iothub/twin/res/#":
		return twinResponses, true
	case "$iothub/twin/PATCH/properties/desired/#":
		return twinDesired, true
	case "$iothub/methods/POST/#":
		return directMethods, true
	}
	return 0, false
}

// grants are a session's subscriptions: a byte for each filter, its QoS plus one.
type grants uint32

func (g grants) qos(f filter) (qos byte, ok bool) {
	b := byte(g >> (8 * f))
	return max(b, 1) - 1, b > 0
}

func (g grants) with(f filter, qos byte) grants { return g.without(f) | grants(qos+1)<<(8*f) }

func (g grants) without(f filter) grants { return g &^ (0xff << (8 * f)) }

func (c *conn) granted() grants { return grants(c.grants.Load()) }

func (c *conn) subscribed(f filter) bool {
	_, ok := c.granted().qos(f)
	return ok
}

func (c *conn) subscribe(p *packets.SubscribePacket) error {
	ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	ack.MessageID = p.MessageID
	before, now := c.granted(), c.granted()
	for i, text := range p.Topics {
		f, ok := match(c.device, text)
		if !ok {
			ack.ReturnCodes = append(ack.ReturnCodes, refusedFilter)
			continue
		}
		qos := min(p.Qoss[i], 1) // QoS 2 is granted as 1
		now = now.with(f, qos)
		ack.ReturnCodes = append(ack.ReturnCodes, qos)
	}
	_, had := before.qos(deviceBound)
	_, has := now.qos(deviceBound)
	if has && !had {
		c.after = 0
		if c.server.behaviour.FirstSubscribe == DeliverNew {
			c.after = c.session.Last()
		}
	}
	c.server.keep(c, now)
	if err := c.grant(now, ack); err != nil {
		return err
	}
	c.server.announce()
	if has {
		c.receive()
	}
	return nil
}

func (c *conn) unsubscribe(p *packets.UnsubscribePacket) error {
	now := c.granted()
	for _, text := range p.Topics {
		f, ok := match(c.device, text)
		if !ok {
			continue
		}
		now = now.without(f)
		if f == deviceBound {
			c.session.Stop()
		}
	}
	c.server.keep(c, now)
	ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
	ack.MessageID = p.MessageID
	return c.grant(now, ack)
}

// received handles a PUBLISH from the device.
func (c *conn) received(p *packets.PublishPacket) error {
	var err error
	switch topic := p.TopicName; {
	case isTelemetry(c.device, topic):
		err = c.telemetry(topic, p.Payload, p.Retain, "")
	case strings.HasPrefix(topic, twinGet):
		err = c.getTwin(p)
	case strings.HasPrefix(topic, twinReported):
		err = c.report(p)
	case strings.HasPrefix(topic, methodAnswer):
		err = c.answered(topic, p.Payload)
	default:
		err = violation("PUBLISH to a topic that the hub does not have")
	}
	if errors.Is(err, errUnacknowledged) {
		return nil
	}
	if err != nil || p.Qos == 0 {
		return err
	}
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = p.MessageID
	return c.reply(ack)
}
