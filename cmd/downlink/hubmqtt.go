package main

import (
	"github.com/spf13/pflag"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/mqttd"
)

// hubDeviceFlags are about the hub's listeners and its MQTT endpoint. Where
// nobody outside knows what IoT Hub does, the default is what a careful client
// must expect, and a flag has the other reading.
type hubDeviceFlags struct {
	tlsCert, tlsKey  string
	window           int
	firstSubscribe   string
	badCredentials   int
	resend, dup      bool
	noSessionPresent bool
	reverse          bool
	telemetry        int
	maxConnections   int
}

func (f *hubDeviceFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.tlsCert, "tls-cert", "", "PEM file with a certificate (chain) of your own for all listeners; it must be for each --hostname")
	fs.StringVar(&f.tlsKey, "tls-key", "", "PEM file with the key of --tls-cert")
	fs.IntVar(&f.window, "mqtt-window", 10, "C2D messages that may wait for a device's PUBACK at once")
	fs.StringVar(&f.firstSubscribe, "mqtt-first-subscribe", "all", `what a device's first subscription gets of messages queued before it: "all", or "new" for none of them`)
	fs.IntVar(&f.badCredentials, "mqtt-bad-credentials", 5, "CONNACK code for bad credentials: 5 (not authorized) or 4 (bad user name or password)")
	fs.BoolVar(&f.resend, "mqtt-resend", false, "send a message whose lock lapsed again on the same connection (default: on the next one)")
	fs.BoolVar(&f.dup, "mqtt-dup", false, "set the DUP flag on a message that is sent again")
	fs.BoolVar(&f.noSessionPresent, "mqtt-no-session-present", false, "never set the session-present flag of a CONNACK")
	fs.BoolVar(&f.reverse, "mqtt-reverse-properties", false, "send the properties of a C2D topic in the opposite order")
	fs.IntVar(&f.telemetry, "telemetry-keep", 10_000, "how many device-to-cloud messages to remember (64 MiB at most)")
	fs.IntVar(&f.maxConnections, "max-connections", 65536, "connections that may be open at once at each listener; what comes beyond is closed")
}

func (f *hubDeviceFlags) apply(o *emulator.Options) error {
	if (f.tlsCert == "") != (f.tlsKey == "") {
		return usagef("--tls-cert and --tls-key go together: give both")
	}
	o.TLSCert, o.TLSKey = f.tlsCert, f.tlsKey
	if f.window < 1 || f.window > 1000 {
		return usagef("--mqtt-window: %d is not between 1 and 1000", f.window)
	}
	if f.badCredentials != 4 && f.badCredentials != 5 {
		return usagef("--mqtt-bad-credentials: %d is neither 4 nor 5", f.badCredentials)
	}
	if f.telemetry < 1 {
		return usagef("--telemetry-keep: %d is not above 0", f.telemetry)
	}
	if f.maxConnections < 1 {
		return usagef("--max-connections: %d is not above 0", f.maxConnections)
	}
	o.Telemetry.Messages, o.MaxConnections = f.telemetry, f.maxConnections
	o.MQTT = mqttd.Behaviour{
		Window: f.window, CodeBadCredentials: byte(f.badCredentials), Resend: f.resend, Dup: f.dup, NoSessionPresent: f.noSessionPresent,
		ReverseProperties: f.reverse,
	}
	switch f.firstSubscribe {
	case "all":
	case "new":
		o.MQTT.FirstSubscribe = mqttd.DeliverNew
	default:
		return usagef("--mqtt-first-subscribe: %q is neither all nor new", f.firstSubscribe)
	}
	return nil
}
