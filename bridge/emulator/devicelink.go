package emulator

import (
	"context"
	"errors"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/httpd"
	"downlink/bridge/emulator/mqttd"
)

// deviceLink is how the REST endpoint reaches devices: over MQTT.
type deviceLink struct{ *mqttd.Server }

// Invoke implements httpd.DeviceLink.
func (l deviceLink) Invoke(ctx context.Context, device string, m httpd.Method) (int, []byte, error) {
	r, err := l.Server.Invoke(ctx, device, mqttd.Method{
		Name: m.Name, Payload: m.Payload, ConnectTimeout: m.ConnectTimeout, ResponseTimeout: m.ResponseTimeout,
	})
	switch {
	case errors.Is(err, mqttd.ErrNotOnline):
		err = &c2d.Refusal{Condition: "amqp:not-found", Code: 404103, Text: err.Error()}
	case errors.Is(err, mqttd.ErrNoAnswer):
		err = &c2d.Refusal{Condition: "com.microsoft:timeout", Code: 504101, Text: err.Error()}
	case errors.Is(err, mqttd.ErrMethodTooLarge):
		err = &c2d.Refusal{Condition: "amqp:link:message-size-exceeded", Code: 413001, Text: err.Error()}
	}
	return r.Status, r.Payload, err
}
