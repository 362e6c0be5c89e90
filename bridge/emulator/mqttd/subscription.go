package mqttd

import (
	"strings"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// The filters that a device may subscribe to, apart from devicebound (developer
// guide: only the documented topics, at most five).
const (
	twinResponses  = "$iothub/twin/res/#"
	twinDesired    = "$iothub/twin/PATCH/properties/desired/#"
	directMethods  = "$iothub/methods/POST/#"
	maxFilters     = 5
	refusedFilter  = 0x80 // MQTT 3.1.1 §3.9.3
	emptyTwin      = `{"desired":{"$version":1},"reported":{"$version":1}}`
	notImplemented = "501"
)

// devicebound is the filter for C2D messages. The device ID stands in it as it is.
func devicebound(device string) string { return "devices/" + device + "/messages/devicebound/#" }

func (c *conn) subscribe(p *packets.SubscribePacket) error {
	ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	ack.MessageID = p.MessageID
	fresh := false
	for i, filter := range p.Topics {
		code := c.grant(filter, p.Qoss[i])
		if code != refusedFilter && filter == devicebound(c.device) {
			if _, had := c.state.filters[filter]; !had && !fresh {
				fresh = true
				c.state.after = 0
				if c.server.behaviour.FirstSubscribe == DeliverNew {
					c.state.after = c.session.Last()
				}
			}
		}
		if code != refusedFilter {
			c.state.filters[filter] = code
		}
		ack.ReturnCodes = append(ack.ReturnCodes, code)
	}
	c.server.keep(c)
	if err := c.reply(ack); err != nil {
		return err
	}
	if qos, ok := c.state.filters[devicebound(c.device)]; ok {
		c.receive(qos)
	}
	return nil
}

// grant returns the SUBACK code for a filter: the QoS, at most 1.
func (c *conn) grant(filter string, qos byte) byte {
	switch filter {
	case devicebound(c.device), twinResponses, twinDesired, directMethods:
	default:
		return refusedFilter
	}
	if _, had := c.state.filters[filter]; !had && len(c.state.filters) >= maxFilters {
		return refusedFilter
	}
	return min(qos, 1)
}

func (c *conn) unsubscribe(p *packets.UnsubscribePacket) error {
	for _, filter := range p.Topics {
		delete(c.state.filters, filter)
		if filter == devicebound(c.device) {
			c.session.Stop()
		}
	}
	c.server.keep(c)
	ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
	ack.MessageID = p.MessageID
	return c.reply(ack)
}

// received handles a PUBLISH from the device.
func (c *conn) received(p *packets.PublishPacket) error {
	switch {
	case isTelemetry(c.device, p.TopicName):
		if err := c.telemetry(p.TopicName, p.Payload, p.Retain, ""); err != nil {
			return err
		}
	case strings.HasPrefix(p.TopicName, "$iothub/twin/GET/"):
		if err := c.answerTwin("200", p.TopicName, emptyTwin); err != nil {
			return err
		}
	case strings.HasPrefix(p.TopicName, "$iothub/twin/PATCH/properties/reported/"):
		// This hub keeps no twins, and says so.
		if err := c.answerTwin(notImplemented, p.TopicName, ""); err != nil {
			return err
		}
	case strings.HasPrefix(p.TopicName, "$iothub/methods/res/"):
		// No method is ever called, so this answers none.
	default:
		return violation("PUBLISH to a topic that the hub does not have")
	}
	if p.Qos == 0 {
		return nil
	}
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = p.MessageID
	return c.reply(ack)
}

func (c *conn) answerTwin(status, request, body string) error {
	if _, ok := c.state.filters[twinResponses]; !ok {
		return nil
	}
	_, query, _ := strings.Cut(request, "?")
	for pair := range strings.SplitSeq(query, "&") {
		if rid, ok := strings.CutPrefix(pair, "$rid="); ok {
			return c.publish("$iothub/twin/res/"+status+"/?$rid="+rid, []byte(body))
		}
	}
	return violation("twin request without $rid")
}
