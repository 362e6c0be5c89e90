package emulator

import (
	"context"
	"time"

	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/twin"
)

// Twin returns a device's twin; a *c2d.Refusal says that there is no such device.
func (h *Hub) Twin(id string) (twin.Twin, error) {
	d, err := h.store.Get(id)
	if err != nil {
		return twin.Twin{}, err
	}
	return h.twins.Get(id, d.GenerationID), nil
}

// UpdateTwin changes tags and desired properties as a service does, and tells
// the device if it is connected and subscribed. It returns the new twin. A
// *c2d.Refusal says that there is no such device, any other error what is wrong
// with the change.
func (h *Hub) UpdateTwin(id string, c twin.Change) (twin.Twin, error) {
	d, err := h.store.Get(id)
	if err != nil {
		return twin.Twin{}, err
	}
	return h.mqtt.UpdateTwin(id, d.GenerationID, c)
}

// InvokeMethod calls a direct method of a device that is connected over MQTT and
// waits for its answer. It fails with a *c2d.Refusal if there is no such device,
// with mqttd.ErrNotOnline or mqttd.ErrNoAnswer, or with ctx's error.
func (h *Hub) InvokeMethod(ctx context.Context, id string, m mqttd.Method) (mqttd.MethodResult, error) {
	if _, err := h.store.Get(id); err != nil {
		return mqttd.MethodResult{}, err
	}
	return h.mqtt.Invoke(ctx, id, m)
}

// tidyEvery is how long a deleted device may leave its twin and MQTT session behind.
const tidyEvery = time.Minute

// tidy drops what deleted devices left, so that a hub on which devices come and
// go does not grow.
func (h *Hub) tidy(ctx context.Context) {
	t := time.NewTicker(tidyEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			h.twins.Forget(h.gone)
			h.mqtt.Forget(h.gone)
		case <-ctx.Done():
			return
		}
	}
}

func (h *Hub) gone(id, generation string) bool {
	d, err := h.store.Get(id)
	return err != nil || d.GenerationID != generation
}
