package mqttd

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
)

// errRefused ends a connection that got a CONNACK with a refusal.
var errRefused = errors.New("connection refused")

// CONNACK codes (MQTT 3.1.1 §3.2.2.3).
const (
	codeAccepted    = 0
	codeBadVersion  = 1
	codeBadClientID = 2
	codeUnavailable = 3
)

// codeThrottled is the hub's own, ThrottlingException.
const codeThrottled = 429001

// connect answers a CONNECT. It returns nil once the device is connected.
func (c *conn) connect(p *packets.ConnectPacket) error {
	if p.ProtocolName != "MQTT" || p.ProtocolVersion != 4 {
		return c.refuse(codeBadVersion, errors.New("protocol version is not MQTT 3.1.1"))
	}
	if p.ClientIdentifier == "" || strings.Contains(p.ClientIdentifier, "/") || !c2d.ValidID(p.ClientIdentifier) {
		return c.refuse(codeBadClientID, fmt.Errorf("client ID %.140q is no device ID", p.ClientIdentifier))
	}
	bad := c.server.behaviour.CodeBadCredentials
	login, err := ParseUsername(p.Username)
	if err != nil {
		return c.refuse(bad, err)
	}
	if login.Module != "" {
		return c.refuse(codeBadClientID, errors.New("modules are not served"))
	}
	if login.Device != p.ClientIdentifier {
		return c.refuse(codeBadClientID, fmt.Errorf("client ID %q differs from the device ID in the user name", p.ClientIdentifier))
	}
	if p.WillFlag && (p.WillQos > 1 || !isTelemetry(login.Device, p.WillTopic)) {
		return violation("will topic or QoS") // only the documented topics exist
	}
	c.device = login.Device
	injected, faulty := c.fault(fault.MQTTConnect, c.device)
	if faulty && !injected.After {
		if err := c.misconnect(injected); err != nil {
			return err
		}
	}
	if c.expires, err = c.server.authority.AuthorizeDevice(login, string(p.Password)); err != nil {
		if r := (*c2d.Refusal)(nil); errors.As(err, &r) && r.Code == codeThrottled {
			return err // MQTT 3.1.1 has no word for it: the connection is dropped
		}
		return c.refuse(bad, err)
	}
	if faulty && injected.Kind == fault.Expire {
		if soon := c.server.now().Add(injected.Delay); soon.Before(c.expires) {
			c.expires = soon
		}
	}
	session, err := c.server.store.Attach(c.device, c2d.SessionOptions{Resend: c.server.behaviour.Resend, Closed: c.evict})
	if errors.Is(err, c2d.ErrDisabled) {
		return c.refuse(codeUnavailable, err) // as Microsoft's gateway answers
	}
	if err != nil {
		return c.refuse(bad, err)
	}
	c.session, c.generation = session, session.Generation()
	c.log = c.server.log.With("device_id", c.device)
	c.persistent = !p.CleanSession
	if p.WillFlag {
		c.will = p
	}
	c.silence = maxSilence
	if p.Keepalive > 0 {
		c.silence = min(maxSilence, time.Duration(p.Keepalive)*time.Second*3/2) // MQTT 3.1.1 §3.1.2.10
	}
	resumed, present := c.server.resume(c)
	if faulty && injected.After {
		if err := c.misconnect(injected); err != nil {
			return err
		}
	}
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.SessionPresent = present && !c.server.behaviour.NoSessionPresent
	if err := c.grant(resumed, ack); err != nil {
		return err
	}
	c.log.Info("device connected", "persistent", c.persistent)
	c.server.announce()
	if c.subscribed(deviceBound) {
		// A persisted subscription: messages come right after CONNACK, before the
		// device subscribes again.
		c.receive()
	}
	return nil
}

// refuse answers with a CONNACK and ends the connection.
func (c *conn) refuse(code byte, why error) error {
	c.log.Info("refused a device", "device_id", c.device, "code", code, "err", why)
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = code
	if err := c.reply(ack); err != nil {
		return err
	}
	return errRefused
}

// misconnect carries out a fault at CONNECT; nil means to go on.
func (c *conn) misconnect(a fault.Action) error {
	switch a.Kind {
	case fault.Expire: // seen to where the token is taken
		return nil
	case fault.Drop:
		return errFault
	case fault.Delay:
		if err := c.net.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		if !c.pause(a.Delay) {
			return errFault
		}
		return nil
	case fault.Withhold:
		// The peer gives up, or the hub ends.
		if err := c.net.SetDeadline(time.Now().Add(maxSilence)); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, c.r)
		return errFault
	default:
		code := byte(codeUnavailable)
		if a.Condition == "amqp:unauthorized-access" {
			code = c.server.behaviour.CodeBadCredentials
		}
		return c.refuse(code, errFault)
	}
}
