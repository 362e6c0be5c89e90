package emulator

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
)

// orders carries out the faults that devices order for themselves, as Azure's
// own SDK tests do. Of one device the newest counts: it takes the place of one
// that goes on or is still to come.
type orders struct {
	mqtt   *mqttd.Server
	faults *fault.Injector
	log    *slog.Logger

	mu      sync.Mutex
	closed  bool
	current map[string]*ordered // by device
	running sync.WaitGroup
}

type ordered struct {
	begin, end *time.Timer
	rule       int // in the injector; 0: none
}

// take notes an order; it does not block.
func (o *orders) take(device string, order fault.Order) {
	log := o.log.With("device_id", device, "fault", order.Type)
	switch order.Type {
	case fault.KillTCP, fault.ShutDownMQTT, fault.Throttling, fault.QuotaExceeded, fault.AuthError:
	default:
		why := "unknown"
		if slices.Contains(fault.ForAMQP(), order.Type) {
			why = "for a device on AMQP, which this hub has none of"
		}
		log.Warn("a device orders a fault that cannot be", "err", why)
		return
	}
	log.Info("a device orders a fault", "delay", order.Delay, "duration", order.Duration)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.cancel(device)
	if o.current == nil {
		o.current = map[string]*ordered{}
	}
	x := &ordered{}
	o.current[device] = x
	o.running.Add(1)
	x.begin = time.AfterFunc(order.Delay, func() {
		defer o.running.Done()
		o.begin(device, x, order)
	})
}

// cancel ends what a device ordered before. Called with the lock held.
func (o *orders) cancel(device string) {
	x := o.current[device]
	if x == nil {
		return
	}
	delete(o.current, device)
	if x.begin.Stop() {
		o.running.Done()
	}
	if x.end != nil && x.end.Stop() {
		o.running.Done()
	}
	o.faults.Remove(x.rule)
}

// begin puts the device in fault mode. Without a duration, what would last for it
// happens once.
func (o *orders) begin(device string, x *ordered, order fault.Order) {
	o.mu.Lock()
	if o.current[device] != x {
		o.mu.Unlock()
		return
	}
	r := fault.Rule{Device: device, Exact: true, Times: 1}
	switch order.Type {
	case fault.KillTCP, fault.ShutDownMQTT:
		// The connection ends, and no other lasts until the fault is over.
		r.Point, r.Action = fault.MQTTConnect, fault.Action{Kind: fault.Drop}
	case fault.AuthError:
		r.Point, r.Action = fault.MQTTConnect, fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"}
	default:
		// MQTT 3.1.1 has no word for it: the connection is dropped without a PUBACK.
		r.Point, r.Action = fault.Telemetry, fault.Action{Kind: fault.Reject, Condition: fault.Throttled}
	}
	once := order.Duration == 0
	if !once {
		r.Times, r.Until = 0, time.Now().Add(order.Duration)
	}
	if !once || r.Action.Kind == fault.Reject {
		x.rule = o.faults.Script(r)
	}
	if once {
		delete(o.current, device)
	} else {
		o.running.Add(1)
		x.end = time.AfterFunc(order.Duration, func() {
			defer o.running.Done()
			o.mu.Lock()
			defer o.mu.Unlock()
			o.faults.Remove(x.rule)
			if o.current[device] == x {
				delete(o.current, device)
			}
		})
	}
	o.mu.Unlock()
	switch order.Type {
	case fault.KillTCP, fault.AuthError:
		o.mqtt.Disconnect(device)
	case fault.ShutDownMQTT:
		o.mqtt.Shutdown(device)
	}
}

// close cancels what is to come and waits for what goes on.
func (o *orders) close() {
	o.mu.Lock()
	o.closed = true
	for device := range o.current {
		o.cancel(device)
	}
	o.mu.Unlock()
	o.running.Wait()
}
