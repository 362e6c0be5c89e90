// Package emulator is the embedded hub: an IoT Hub for development and tests,
// with real AMQP, MQTT and HTTPS endpoints and the real semantics of
// cloud-to-device messages. Queues and their rules are in the middle (c2d), and
// one small package a protocol is around it (amqpd, mqttd, httpd). It shares no
// encoder with our clients, so that a wrong topic or frame cannot agree with itself.
package emulator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/entra"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/httpd"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/journal"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/twin"
	"downlink/bridge/emulator/virtual"
)

// sweepEvery is how late a message may expire, a lock lapse or a feedback batch
// be closed when nobody touches it.
const sweepEvery = 100 * time.Millisecond

// Options make a Hub. The zero value is a hub without devices on free ports of 127.0.0.1.
type Options struct {
	// DataDir is where the hub's keys and CA live; "" is a temporary directory, removed by Close.
	DataDir string
	// Hostnames are the names under which clients reach the hub; the first is the
	// one in connection strings. None: localhost.
	Hostnames []string
	// TLSCert and TLSKey are PEM files with the listeners' certificate and its key;
	// none: one of the hub's own CA. It must be for each of Hostnames.
	TLSCert, TLSKey string
	// AMQPS, MQTTS and HTTPS are the addresses to listen on; "" is 127.0.0.1:0.
	AMQPS, MQTTS, HTTPS string
	MaxConnections      int      // open at once at each of them; what comes beyond is closed. 0: 65536
	Devices             []string // registered from the start
	AnyDevice           bool     // unknown devices are registered when they are first used
	Rules               c2d.Rules
	Feedback            feedback.Rules
	Throttle            throttle.Options // by tier and units; its clock is Now. The zero value limits nothing
	AMQP                amqpd.Behaviour
	MQTT                mqttd.Behaviour
	Telemetry           telemetry.Limits // of what Telemetry remembers
	Entra               *entra.Options   // whose Entra tokens services may use; its clock is Now. nil: none
	Virtual             []virtual.Rule   // which devices are the hub's own; they must be registered
	History             int              // how many messages Log remembers; 0: 65536
	// Journal is a file that keeps what the hub accepts, so that the next hub with it goes on with the same
	// queues and the feedback that was not read; "": queues end with the hub. One hub at a time may use it.
	Journal string
	Faults  *fault.Injector  // nil: one of its own
	Now     func() time.Time // the clock of queues and tokens; nil: time.Now
	Logger  *slog.Logger     // nil: discard
}

// Hub is a running hub. Safe for concurrent use.
type Hub struct {
	store    *c2d.Store
	feedback *feedback.Queue
	throttle *throttle.Throttle // nil: off
	entra    *entra.Verifier    // nil: no Entra tokens
	identity *identity.Identity
	faults   *fault.Injector
	log      *slog.Logger
	host     string
	temp     string // data directory to remove

	telemetry *telemetry.Log
	twins     *twin.Store
	fleet     *virtual.Fleet
	listeners map[string]net.Listener
	amqp      *amqpd.Server
	mqtt      *mqttd.Server
	orders    *orders
	journal   *journal.Journal // nil: none
	endpoints []endpoint

	wg     sync.WaitGroup
	cancel context.CancelFunc
	close  sync.Once
	err    error
}

type endpoint struct {
	name  string
	serve func(net.Listener) error
	close func() error
}

// Start starts a hub; when it returns, the hub accepts connections. The caller must Close it.
func Start(o Options) (*Hub, error) {
	if len(o.Hostnames) == 0 {
		o.Hostnames = []string{"localhost"}
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 65536
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Faults == nil {
		o.Faults = &fault.Injector{}
	}
	h := &Hub{
		faults: o.Faults, log: o.Logger.With("component", "hub"), host: o.Hostnames[0],
		telemetry: telemetry.NewLog(o.Telemetry), twins: twin.New(o.Now), listeners: map[string]net.Listener{},
	}
	before, err := h.openJournal(o)
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	h.store = c2d.New(c2d.Options{
		Rules: o.Rules, Journal: h.kept(), AnyDevice: o.AnyDevice, History: o.History, Now: o.Now, Outcome: h.ended,
		Changed: func(id string) { h.fleet.Consider(id) },
	})
	if h.fleet, err = virtual.New(virtual.Options{Store: h.store, Rules: o.Virtual, Logger: o.Logger}); err != nil {
		return nil, errors.Join(fmt.Errorf("hub: %w", err), h.closeJournal())
	}
	o.Throttle.Now = o.Now
	if h.throttle, err = throttle.New(o.Throttle); err != nil {
		return nil, errors.Join(fmt.Errorf("hub: %w", err), h.closeJournal())
	}
	if o.Entra != nil {
		with := *o.Entra
		with.Now = o.Now
		if h.entra, err = entra.New(with); err != nil {
			return nil, fmt.Errorf("hub: %w", err)
		}
	}
	name, _, _ := strings.Cut(h.host, ".")
	h.feedback = feedback.New(feedback.Options{Rules: o.Feedback, HubName: name, Alive: h.store.Alive, Done: h.told, Now: o.Now})
	if err := h.start(o, before); err != nil {
		for _, l := range h.listeners {
			l.Close()
		}
		return nil, errors.Join(fmt.Errorf("hub: %w", err), h.closeJournal(), h.removeTemp())
	}
	return h, nil
}

func (h *Hub) start(o Options, before *journal.State) error {
	for _, id := range o.Devices {
		if _, err := h.store.Create(c2d.Device{ID: id}); err != nil {
			return fmt.Errorf("device %q: %w", id, err)
		}
	}
	if err := h.restore(before); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	dir := o.DataDir
	if dir == "" {
		temp, err := os.MkdirTemp("", "downlink-hub-")
		if err != nil {
			return err
		}
		dir, h.temp = temp, temp
	}
	var err error
	if h.identity, err = identity.Open(dir); err != nil {
		return err
	}
	certificate, err := h.certificate(o)
	if err != nil {
		return err
	}
	for _, e := range []struct{ name, address string }{{"amqps", o.AMQPS}, {"mqtts", o.MQTTS}, {"https", o.HTTPS}} {
		l, err := listen(e.name, e.address)
		if err != nil {
			return err
		}
		h.listeners[e.name] = l
	}
	h.assemble(o)
	secured := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	for _, e := range h.endpoints {
		l := tls.NewListener(&bounded{Listener: h.listeners[e.name], max: int64(o.MaxConnections), log: h.log}, secured)
		h.wg.Go(func() {
			if err := e.serve(l); err != nil {
				h.log.Error("endpoint stopped", "endpoint", e.name, "err", err)
			}
		})
	}
	h.wg.Go(func() { h.sweep(ctx) })
	h.wg.Go(func() { h.fleet.Run(ctx) })
	h.wg.Go(func() { h.tidy(ctx) })
	h.log.Info("hub listens", "amqps", h.AMQPAddr(), "mqtts", h.MQTTAddr(), "https", h.HTTPAddr(), "devices", len(o.Devices))
	return nil
}

// certificate is the owner's or one of our CA.
func (h *Hub) certificate(o Options) (tls.Certificate, error) {
	if o.TLSCert == "" && o.TLSKey == "" {
		return h.identity.Certificate(o.Hostnames)
	}
	c, err := h.identity.UseCertificate(o.TLSCert, o.TLSKey, o.Hostnames)
	if now := time.Now(); err == nil && (now.Before(c.Leaf.NotBefore) || now.After(c.Leaf.NotAfter)) {
		h.log.Warn("the TLS certificate is not valid now; clients will refuse it", "from", c.Leaf.NotBefore, "until", c.Leaf.NotAfter)
	}
	return c, err
}

// assemble makes the endpoints.
func (h *Hub) assemble(o Options) {
	names := append([]string{}, o.Hostnames...)
	names = append(names, "127.0.0.1", "::1")
	a := &authority{Store: h.store, fleet: h.fleet, identity: h.identity, throttle: h.throttle, entra: h.entra, hosts: names, any: o.AnyDevice, now: o.Now, log: h.log}
	h.orders = &orders{faults: h.faults, log: h.log}
	h.mqtt = mqttd.New(mqttd.Options{
		Order: h.orders.take,
		Store: h.store, Authority: a, Behaviour: o.MQTT, Throttle: h.throttle, Telemetry: h.telemetry, Twins: h.twins, Faults: h.faults, Now: o.Now, Logger: o.Logger,
	})
	h.orders.mqtt = h.mqtt
	h.amqp = amqpd.New(amqpd.Options{
		Backend: a, Hostnames: names, Feedback: h.feedback, Throttle: h.throttle, Behaviour: o.AMQP, Faults: h.faults, Logger: o.Logger,
		MaxConnections: o.MaxConnections,
	})
	https := httpd.New(httpd.Options{
		Store: h.store, Identity: h.identity, Authority: a, Feedback: h.feedback, Twins: h.twins, Devices: deviceLink{h.mqtt},
		Registry: h.throttle.Registry, RetryAfter: o.Throttle.RetryAfter, Faults: h.faults, Logger: o.Logger,
		Tunnels: map[string]func(net.Conn){"AMQPWSB10": h.amqp.ServeConn, "mqtt": h.mqtt.ServeConn},
	})
	h.endpoints = []endpoint{
		{"amqps", h.amqp.Serve, func() error { h.amqp.Close(); return nil }},
		{"mqtts", h.mqtt.Serve, h.mqtt.Close},
		{"https", https.Serve, https.Close},
	}
}

// listen binds an address; the error names the remedy.
func listen(name, address string) (net.Listener, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: %s is in use: stop what listens there, or take another address with --%s (port 0 takes a free one)%s", name, address, name, fixedPort(name, address))
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: not allowed to listen on %s: take a port above 1023 with --%s, or let this program have it (on Linux: "+
			"sudo sysctl net.ipv4.ip_unprivileged_port_start=%s, or sudo setcap cap_net_bind_service=+ep on the binary)%s", name, address, name, portOf(address), fixedPort(name, address))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, &AddressError{fmt.Sprintf("%s: %s is no address of this machine: take 127.0.0.1 or one of its own with --%s", name, address, name)}
	default:
		return nil, &AddressError{fmt.Sprintf("%s: cannot listen on %q: %v: write HOST:PORT, such as 127.0.0.1:0, with --%s", name, address, strings.TrimPrefix(err.Error(), "listen tcp: "), name)}
	}
}

// AddressError is an address in Options that no process could listen on here,
// unlike one that is merely in use.
type AddressError struct{ text string }

func (e *AddressError) Error() string { return e.text }

// ended passes the end of a message on to feedback.
func (h *Hub) ended(o c2d.Outcome) {
	h.feedback.Add(feedback.Record{MessageID: o.MessageID, Device: o.Device, Sequence: o.Sequence, Generation: o.Generation, Status: o.Status, At: o.At})
}

// fixedPort says what a port that could not be bound is needed for: those of the SDKs cannot be changed.
func fixedPort(name, address string) string {
	switch name + " " + portOf(address) {
	case "https 443":
		return "; the SDKs find REST and WebSocket at 443 alone"
	case "amqps 5671":
		return "; the SDKs find AMQP at 5671 alone"
	case "mqtts 8883":
		return "; the SDKs find MQTT at 8883 alone"
	}
	return ""
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}

func (h *Hub) sweep(ctx context.Context) {
	// Tests that speed feedback up want it swept as fast.
	t := time.NewTicker(min(sweepEvery, max(h.feedback.Every()/4, time.Millisecond)))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			h.Sweep()
		case <-ctx.Done():
			return
		}
	}
}

// Close ends all connections and returns when every goroutine has ended.
// Queued messages are lost, unless there is a journal. Calling it again returns the same.
func (h *Hub) Close() error {
	h.close.Do(func() {
		errs := make([]error, len(h.endpoints)+2)
		var closing sync.WaitGroup
		for i, e := range h.endpoints {
			closing.Go(func() { errs[i] = e.close() }) // at once: each may wait for its peers
		}
		closing.Wait()
		h.orders.close()
		h.cancel()
		h.wg.Wait()
		errs[len(h.endpoints)] = h.closeJournal()
		errs[len(h.endpoints)+1] = h.removeTemp()
		h.err = errors.Join(errs...)
		h.log.Info("hub closed")
	})
	return h.err
}

func (h *Hub) removeTemp() error {
	if h.temp == "" {
		return nil
	}
	return os.RemoveAll(h.temp)
}

// AMQPAddr is the service endpoint's address, with the port that was bound.
func (h *Hub) AMQPAddr() string { return h.listeners["amqps"].Addr().String() }

// MQTTAddr is the device endpoint's address.
func (h *Hub) MQTTAddr() string { return h.listeners["mqtts"].Addr().String() }

// HTTPAddr is the REST endpoint's address.
func (h *Hub) HTTPAddr() string { return h.listeners["https"].Addr().String() }

// Hostname is the name in the hub's connection strings.
func (h *Hub) Hostname() string { return h.host }

// ConnectionString is the connection string of a policy, such as service or iothubowner.
func (h *Hub) ConnectionString(policy string) (string, error) {
	return h.identity.ServiceConnectionString(h.host, policy)
}

// DeviceConnectionString is the connection string of a device, registered or
// not: with the primary key that was set for it, else with the one that the hub derives.
func (h *Hub) DeviceConnectionString(id string) (string, error) {
	if d, err := h.store.Get(id); err == nil && d.Primary != nil {
		return identity.KeyConnectionString(h.host, id, d.Primary)
	}
	return h.identity.DeviceConnectionString(h.host, id)
}

// CAFile is the path of the CA's certificate; with Options.TLSCert, of a copy of that.
func (h *Hub) CAFile() string { return h.identity.CAFile() }

// BundleFile is the path of a bundle of the system's CAs and the hub's.
func (h *Hub) BundleFile() string { return h.identity.BundleFile() }

// RootCAs is a new pool with the hub's CA and what is in Options.TLSCert.
func (h *Hub) RootCAs() *x509.CertPool { return h.identity.RootCAs() }

// Faults scripts misbehaviour of the hub.
func (h *Hub) Faults() *fault.Injector { return h.faults }
