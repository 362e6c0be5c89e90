package main

import (
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/virtual"
)

// hubPlayFlags are about devices that the hub plays itself, and faults.
type hubPlayFlags struct {
	virtual     []string
	faults      []string
	orderPuback string
}

func (f *hubPlayFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.virtual, "virtual", nil, `devices that the hub plays itself, repeatable, such as "pump-*=complete": complete, reject or abandon each message (at once, or later: complete:200ms), never answer, or stay offline; ",online=5s,offline=5s" connects and disconnects in turn. They must be registered`)
	fs.StringArrayVar(&f.faults, "fault", nil, `misbehave, repeatable: POINT=KIND and options, such as "transfer=reject:amqp:internal-error,times=3,device=pump-*" (points: `+pointNames()+`; kinds: release, modify, reject[:CONDITION], throttle, drop, withhold, delay:DURATION, expire[:DURATION]; options: times=N|always, device=PATTERN, for=DURATION, text=TEXT, after)`)
	fs.StringVar(&f.orderPuback, "fault-order-puback", "always", `PUBACK for telemetry with AzIoTHub_FaultOperationType: "always", or "never", as the tests of the C# SDK describe it`)
}

func pointNames() string {
	names := make([]string, len(fault.Points()))
	for i, p := range fault.Points() {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}

func (f *hubPlayFlags) apply(o *emulator.Options) error {
	for _, text := range f.virtual {
		r, err := virtual.Parse(text)
		if err != nil {
			return usagef("--virtual %w", err)
		}
		o.Virtual = append(o.Virtual, r)
	}
	o.Faults = &fault.Injector{}
	for _, text := range f.faults {
		r, err := fault.Parse(text)
		if err != nil {
			return usagef("--fault %w", err)
		}
		o.Faults.Script(r)
	}
	switch f.orderPuback {
	case "always":
	case "never":
		o.MQTT.OrderUnacknowledged = true
	default:
		return usagef("--fault-order-puback: %q is neither always nor never", f.orderPuback)
	}
	return nil
}

// isLoopback reports whether an address to listen on is reached from this machine alone.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
