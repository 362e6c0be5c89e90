package hubdevice

import (
	"context"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Check tries to reach the hub over TLS and, if login is set, to connect as the device, and calls step after
// each with what was tried and how it ended. A hub has one connection for a device: a login ends the one that is there (IoT Hub
// developer guide, MQTT support), and messages that it has not completed yet count one more delivery. It does not
// subscribe, and completes nothing. It needs no Run.
func (c *Client) Check(ctx context.Context, login bool, step func(what string, err error)) {
	socket, err := c.dial(ctx)
	if err == nil {
		_ = socket.Close()
	} else {
		err = c.refusal(&connection{dialErr: err}, packets.ErrNetworkError, err)
	}
	step("TLS to "+c.address, err)
	if err != nil || !login {
		return
	}
	conn, err := c.login(ctx)
	if err == nil {
		conn.close()
	}
	step("connect as the device", err)
}
