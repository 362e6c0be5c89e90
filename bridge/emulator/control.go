package emulator

import (
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
)

// CreateDevice registers a device. A *c2d.Refusal says that its ID is illegal or taken.
func (h *Hub) CreateDevice(id string) error {
	_, err := h.store.Create(c2d.Device{ID: id})
	return err
}

// DeleteDevice removes a device with its queue and cuts its connection.
func (h *Hub) DeleteDevice(id string) error { return h.store.Delete(id, "*") }

// DisableDevice cuts a device's connection and refuses new ones; its queue goes on accepting.
func (h *Hub) DisableDevice(id string) error { return h.setDisabled(id, true) }

// EnableDevice undoes DisableDevice.
func (h *Hub) EnableDevice(id string) error { return h.setDisabled(id, false) }

func (h *Hub) setDisabled(id string, disabled bool) error {
	d, err := h.store.Get(id)
	if err != nil {
		return err
	}
	d.Disabled = disabled
	_, err = h.store.Update(d, "*")
	return err
}

// PurgeDevice empties a device's queue and returns how many messages there were.
func (h *Hub) PurgeDevice(id string) (int, error) { return h.store.Purge(id) }

// DisconnectDevice cuts a device's connection without a word and reports whether there was one.
func (h *Hub) DisconnectDevice(id string) bool { return h.mqtt.Disconnect(id) }

// ExpireTokens ends the connections of the devices whose ID matches pattern ("" is
// all), as if their tokens expired now, and returns how many there were.
func (h *Hub) ExpireTokens(pattern string) int {
	return h.mqtt.Expire(func(device string) bool { return c2d.MatchID(pattern, device) })
}

// ExpireServiceTokens has the tokens on all AMQP connections expire now and returns how many there were.
func (h *Hub) ExpireServiceTokens() int { return h.amqp.ExpireTokens() }

// Device returns a device's entry in the registry.
func (h *Hub) Device(id string) (c2d.Device, error) { return h.store.Get(id) }

// Devices returns the IDs of all devices, sorted.
func (h *Hub) Devices() []string { return h.store.IDs() }

// DevicePage returns at most n of the IDs that begin with prefix and sort after after, sorted.
func (h *Hub) DevicePage(prefix, after string, n int) []string { return h.store.Page(prefix, after, n) }

// Statistics counts the registered, the disabled and the connected devices.
func (h *Hub) Statistics() (total, disabled, connected int) { return h.store.Statistics() }

// ServiceConnections is how many AMQP connections there are.
func (h *Hub) ServiceConnections() int { return h.amqp.Connections() }

// Queue returns a device's pending messages, oldest first. Messages are shared: read only.
func (h *Hub) Queue(id string) []c2d.Pending { return h.store.Queue(id) }

// Counts returns what happened to a device's messages so far.
func (h *Hub) Counts(id string) c2d.Counts { return h.store.Counts(id) }

// Sends is how many messages were sent to a device, refused ones included.
func (h *Hub) Sends(id string) int { return int(h.store.Counts(id).Sends) }

// UnknownSends is how many messages were refused because they named no device, or an unknown one.
func (h *Hub) UnknownSends() int { return int(h.store.UnknownSends()) }

// Log returns the records of a device's accepted messages in order, all devices' for "".
func (h *Hub) Log(id string) []c2d.Record { return h.store.Log(id) }

// Tally counts per message ID how often a device's messages were accepted, delivered and completed.
func (h *Hub) Tally(id string) map[string]c2d.Tally { return h.store.Tally(id) }

// Connections returns the connected devices, sorted by ID.
func (h *Hub) Connections() []mqttd.Connection { return h.mqtt.Connections() }

// Telemetry is what devices have sent: the newest device-to-cloud messages, to
// read or to wait for.
func (h *Hub) Telemetry() *telemetry.Log { return h.telemetry }

// Enqueue queues a message as the service endpoint does, without a connection;
// a refusal is a *c2d.Refusal. The hub keeps m's slices.
func (h *Hub) Enqueue(m c2d.Message) error {
	err := h.store.Enqueue(m)
	if err == nil {
		h.fleet.Help()
	}
	return err
}

// VirtualConnections returns the virtual devices that are connected, sorted by ID.
func (h *Hub) VirtualConnections() []virtual.Connection { return h.fleet.Connections() }

// Feedback is the hub's feedback queue.
func (h *Hub) Feedback() *feedback.Queue { return h.feedback }

// Throttle tells what is used of the hub's tier; zero if the hub has none.
func (h *Hub) Throttle() throttle.Status { return h.throttle.Status() }

// Sweep expires messages, lapses locks and closes feedback batches now, for tests that move the clock.
func (h *Hub) Sweep() {
	h.store.Sweep()
	h.feedback.Sweep()
}
