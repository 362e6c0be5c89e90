package mqttd

import (
	"strings"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"downlink/bridge/emulator/twin"
)

// The topics of device twins (developer guide, "Communicate using the MQTT protocol").
const (
	twinGet      = "$iothub/twin/GET/"
	twinReported = "$iothub/twin/PATCH/properties/reported/"
	twinResponse = "$iothub/twin/res/"
	twinChanged  = "$iothub/twin/PATCH/properties/desired/"
)

// getTwin answers with the device's twin.
func (c *conn) getTwin(p *packets.PublishPacket) error {
	rid, err := requestID(p.TopicName)
	if err != nil {
		return err
	}
	return c.answer(rid, "200", "", c.server.twins.Get(c.device, c.generation).DeviceJSON())
}

// report merges a patch into the reported properties.
func (c *conn) report(p *packets.PublishPacket) error {
	rid, err := requestID(p.TopicName)
	if err != nil {
		return err
	}
	version, err := c.server.twins.Report(c.device, c.generation, p.Payload)
	if err != nil {
		c.log.Info("refused reported properties", "err", err)
		return c.answer(rid, "400", "", nil)
	}
	return c.answer(rid, "204", "&$version="+itoa(version), nil)
}

// answer replies to a twin request, if the device subscribed to replies.
func (c *conn) answer(rid, status, more string, body []byte) error {
	if !c.subscribed(twinResponses) {
		return nil
	}
	return c.publish(twinResponse+status+"/?$rid="+rid+more, body)
}

// requestID returns a topic's $rid as it stands there.
func requestID(topic string) (string, error) {
	_, query, _ := strings.Cut(topic, "?")
	for pair := range strings.SplitSeq(query, "&") {
		if rid, ok := strings.CutPrefix(pair, "$rid="); ok {
			return rid, nil
		}
	}
	return "", violation("request without $rid")
}

// UpdateTwin changes a device's twin and tells the device of a change of its
// desired properties, if it is connected and subscribed; a device that is not
// reads them when it comes. It returns the twin as it is then, or why the
// change is refused.
func (s *Server) UpdateTwin(device, generation string, c twin.Change) (twin.Twin, error) {
	return s.twins.Update(device, generation, c, func(version int64, patch []byte) {
		to := s.connected(device, twinDesired)
		if to == nil {
			return
		}
		if err := to.publish(twinChanged+"?$version="+itoa(version), patch); err != nil {
			to.log.Debug("desired properties not sent", "err", err)
			to.abort()
		}
	})
}

// connected returns a device's connection if it has one and is subscribed to f.
func (s *Server) connected(device string, f filter) *conn {
	s.mu.Lock()
	c := s.online[device]
	s.mu.Unlock()
	if c == nil || !c.subscribed(f) {
		return nil
	}
	return c
}
