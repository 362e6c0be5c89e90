package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"downlink/bridge/emulator/identity"
)

// hubReady is what `hub --json` prints once its listeners are bound.
type hubReady struct {
	Event                   string            `json:"event"`
	AMQPS                   string            `json:"amqps"`
	MQTTS                   string            `json:"mqtts"`
	HTTPS                   string            `json:"https"`
	HTTP                    string            `json:"http,omitempty"`
	Hostname                string            `json:"hostname"`
	CAFile                  string            `json:"ca_file"`
	CABundleFile            string            `json:"ca_bundle_file"`
	DataDir                 string            `json:"data_dir"`
	ServiceConnectionString string            `json:"service_connection_string"`
	OwnerConnectionString   string            `json:"iothubowner_connection_string"`
	Devices                 map[string]string `json:"devices"`
}

func newHubReady(h *embeddedHub, devices []string, hostname string) (*hubReady, error) {
	r := &hubReady{
		Event: "ready", AMQPS: h.AMQPAddr(), MQTTS: h.MQTTAddr(), HTTPS: h.HTTPAddr(), Hostname: hostname,
		CAFile: h.CAFile(), CABundleFile: h.BundleFile(), DataDir: filepath.Dir(h.CAFile()),
		ServiceConnectionString: h.service, Devices: make(map[string]string, len(devices)),
	}
	var err error
	if r.OwnerConnectionString, err = h.ConnectionString("iothubowner"); err != nil {
		return nil, err
	}
	for _, d := range devices {
		if r.Devices[d], err = h.DeviceConnectionString(d); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *hubReady) writeJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

func (r *hubReady) writeText(w io.Writer) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("The embedded hub is ready. It is for development and tests only.")
	p("")
	p("  AMQP   %s      MQTT   %s      HTTPS   %s", r.AMQPS, r.MQTTS, r.HTTPS)
	p("  data   %s", r.DataDir)
	p("  CA     %s", r.CAFile)
	p("  bundle %s (the system's CAs and this one)", r.CABundleFile)
	if r.HTTP != "" {
		p("  pages  %s/readyz, %s/inspect", r.HTTP, r.HTTP)
		p("  look   downlink hub ls --data-dir %s", shellQuote(r.DataDir))
	}
	p("")
	p("Connection strings")
	devices := slices.Sorted(maps.Keys(r.Devices))
	width := len("iothubowner")
	for _, d := range devices {
		width = max(width, len(d))
	}
	p("  %-*s  %s", width, "service", r.ServiceConnectionString)
	p("  %-*s  %s", width, "iothubowner", r.OwnerConnectionString)
	for _, d := range devices {
		p("  %-*s  %s", width, d, r.Devices[d])
	}
	p("")
	device, dir := "DEVICE", shellQuote(r.DataDir)
	if len(devices) > 0 {
		device = devices[0]
	}
	p("For downlink bridge and relay (what their file needs)")
	p("  downlink hub connection-string --data-dir %s service > hub-service", dir)
	p("  downlink hub connection-string --data-dir %s device %s > hub-device", dir, shellQuote(device))
	p("  bridge.hubs:    - {connection_string_file: hub-service, amqp_address: %q, ca_file: %q}", r.AMQPS, r.CAFile)
	p("  relay.devices:  - {connection_string_file: hub-device, mqtt_address: %q, ca_file: %q}", r.MQTTS, r.CAFile)
	p("  downlink send %s --data hello --data-dir %s", shellQuote(device), dir)
	p("  downlink listen %s --data-dir %s", shellQuote(device), dir)
	r.writeSDKs(p, device)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSDKs prints what makes each SDK trust and find this hub.
func (r *hubReady) writeSDKs(p func(string, ...any), device string) {
	bundle := shellQuote(r.CABundleFile)
	p("")
	p("For the Python SDKs (azure-iot-hub, azure-iot-device)")
	p("  export SSL_CERT_FILE=%s REQUESTS_CA_BUNDLE=%s", bundle, bundle)
	p("  # azure-iot-hub's AMQP may read certifi's file only; then:  cat %s >> \"$(python3 -m certifi)\"", shellQuote(r.CAFile))
	p("For the Node SDKs (azure-iothub, azure-iot-device-mqtt)")
	p("  export NODE_EXTRA_CA_CERTS=%s", shellQuote(r.CAFile))
	p("For each of them")
	p("  export IOTHUB_CONNECTION_STRING=%s", shellQuote(r.ServiceConnectionString))
	if s, ok := r.Devices[device]; ok {
		p("  export IOTHUB_DEVICE_CONNECTION_STRING=%s", shellQuote(s))
	}
	p("  # A device that keeps another HostName reaches this hub with \";GatewayHostName=%s\" added to its string.", r.Hostname)
	if other := r.otherPorts(); other != "" {
		p("  # The SDKs' ports are fixed (AMQP 5671, MQTT 8883, HTTPS 443), and here %s: downlink finds it,", other)
		p("  # the SDKs do not. Start it with those ports, or forward them.")
	}
}

// otherPorts names the listeners that are not where the SDKs look for them.
func (r *hubReady) otherPorts() string {
	var other []string
	for _, l := range []struct{ name, addr, port string }{{"AMQP", r.AMQPS, "5671"}, {"MQTT", r.MQTTS, "8883"}, {"HTTPS", r.HTTPS, "443"}} {
		if _, port, err := net.SplitHostPort(l.addr); err == nil && port != l.port {
			other = append(other, l.name+" is at "+port)
		}
	}
	return strings.Join(other, ", ")
}

// storedString derives a connection string from a data directory: of the named
// policy, or with a device ID of that device.
func storedString(dir, hostname, policy, device string) (string, error) {
	id, err := identity.Open(dir)
	if err != nil {
		return "", err
	}
	var text string
	if device != "" {
		text, err = id.DeviceConnectionString(hostname, device)
	} else {
		text, err = id.ServiceConnectionString(hostname, policy)
	}
	return text, asUsage(err)
}

// shellQuote quotes a word for a POSIX shell where it needs it.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%_-+=:,./", r))
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
