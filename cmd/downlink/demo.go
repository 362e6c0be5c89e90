package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/configs"
	"downlink/mapping"
)

type demoFlags struct {
	count               int
	timeout             time.Duration
	asJSON              bool
	hubFile, deviceFile string
	amqp, mqtt, caFile  string
}

func newDemoCmd(s streams, logs *logFlags) *cobra.Command {
	f := &demoFlags{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole way in one process, with nothing to install",
		Long: `Show messages travel from a NATS subject over the hub to a device and on to the
NATS beside it: two embedded NATS servers, the embedded hub, a bridge and a
relay in one process, on real sockets. One command goes to a device that does
not exist, to show its dead letter. Then it keeps running and prints commands
to try in a second shell.

With the two connection string files the same runs against a real IoT Hub; a
device that is connected there as this device is disconnected.`,
		Example: `  downlink demo
  downlink demo --count 5 --json
  downlink demo --hub-connection-string-file hub.txt --device-connection-string-file device.txt`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What a newcomer should look at is on stdout.
			log, err := logs.logger(s.err, "error", "")
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), s, log)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&f.count, "count", 0, "end once so many messages reached the edge (default: run until Ctrl-C)")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "with --count: fail if they did not by then; without: how long to wait for the start")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object a line: ready, published, delivered, dead, done")
	fs.StringVar(&f.hubFile, "hub-connection-string-file", "", "use the real hub of this service connection string")
	fs.StringVar(&f.deviceFile, "device-connection-string-file", "", "and the device of this connection string")
	fs.StringVar(&f.amqp, "amqp-address", "", "host:port of that hub's AMQP, if it is not the hub's name and 5671")
	fs.StringVar(&f.mqtt, "mqtt-address", "", "host:port of that hub's MQTT, if it is not the hub's name and 8883")
	fs.StringVar(&f.caFile, "ca-file", "", "CA certificate to trust for that hub")
	return cmd
}

func (f *demoFlags) run(ctx context.Context, s streams, log *slog.Logger) (err error) {
	switch {
	case f.count < 0:
		return usagef("--count: %d is less than 0", f.count)
	case f.timeout <= 0:
		return usagef("--timeout: %s is not a time to wait", f.timeout)
	case (f.hubFile == "") != (f.deviceFile == ""):
		return usagef("--hub-connection-string-file and --device-connection-string-file go together: the bridge's side and the device's")
	case f.hubFile == "" && (f.amqp != "" || f.mqtt != "" || f.caFile != ""):
		return usagef("--amqp-address, --mqtt-address and --ca-file belong to a hub given by --hub-connection-string-file")
	}
	deadline := time.Now().Add(f.timeout)
	dir, remove, err := temporary.make("downlink-demo-")
	if err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, remove()) }()
	c, plan, err := f.configure()
	if err != nil {
		return err
	}
	c.Bridge.NATS.Embedded.StoreDir = filepath.Join(dir, "nats-cloud") // all of it in one place, to be removed
	c.Relay.NATS.Embedded.StoreDir = filepath.Join(dir, "nats-edge")
	hub, err := f.startHub(c, filepath.Join(dir, "hub"), log)
	if err != nil {
		return err
	}
	defer hub.close(log)
	a, err := app.New(app.Options{Config: c, Logger: log, EmbeddedHub: hub.options(), Version: buildVersion().Version})
	if err != nil {
		return appError(err)
	}
	stop, done := background(context.WithoutCancel(ctx), a.Run)
	defer func() { err = errors.Join(err, stop()) }()

	starting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := a.WaitReady(starting); err != nil {
		switch {
		case ctx.Err() != nil:
			return f.interrupted()
		case starting.Err() != nil && a.Ready() != nil:
			return fmt.Errorf("not ready within %s: %w", f.timeout, a.Ready())
		}
		return err
	}
	d, err := openDemo(s, f, plan, a, hub)
	if err != nil {
		return err
	}
	defer d.close()
	return d.run(ctx, deadline, done)
}

func (f *demoFlags) interrupted() error {
	if f.count == 0 {
		return nil
	}
	return fmt.Errorf("stopped before %d messages reached the edge", f.count)
}

// startHub starts the embedded hub with the relay's devices; nil with a real hub.
func (f *demoFlags) startHub(c *config.Config, dir string, log *slog.Logger) (*embeddedHub, error) {
	var devices []string
	for _, d := range c.Relay.Devices {
		if d.Embedded != "" {
			devices = append(devices, d.Embedded)
		}
	}
	if len(devices) == 0 {
		return nil, nil
	}
	return openHub(emulator.Options{
		DataDir: dir, Hostnames: []string{"localhost"}, AMQPS: "127.0.0.1:0", MQTTS: "127.0.0.1:0", HTTPS: "127.0.0.1:0",
		Devices: devices, Logger: log,
	})
}

// demoPlan is what the demo publishes.
type demoPlan struct {
	commands []demoCommand // for devices that exist
	unknown  demoCommand
	dead     string // the dead letters' subjects
	edge     string // the relay's subjects
}

type demoCommand struct {
	subject string
	user    string
	data    string
}

const (
	demoTokens   = "cmd.{site}.{device}" // how the route's subject begins in configs/demo.yaml
	demoNoDevice = "downlink-demo-no-such-device"
)

// configure is the demo's configuration: the embedded file, and with connection
// strings the real hub and its device in the place of the embedded ones.
func (f *demoFlags) configure() (*config.Config, demoPlan, error) {
	c, err := config.Parse("configs/demo.yaml", []byte(configs.Demo))
	if err != nil {
		return nil, demoPlan{}, err
	}
	prefixes := []string{"cmd.berlin.pump7.", "cmd.berlin.pump8."}
	unknown := "cmd.berlin.pump9.reboot"
	if f.hubFile != "" {
		if prefixes, unknown, err = f.useRealHub(c); err != nil {
			return nil, demoPlan{}, err
		}
	}
	plan := demoPlan{
		unknown: demoCommand{subject: unknown, user: "ann", data: `{"delay":5}`},
		dead:    c.Bridge.Name + ".dead.>",
		edge:    "edge.>",
	}
	for i, verb := range []string{"reboot", "report", "set-speed"} {
		for j, prefix := range prefixes {
			plan.commands = append(plan.commands, demoCommand{
				subject: prefix + verb,
				user:    []string{"ann", "bob"}[(i+j)%2],
				data:    []string{`{"delay":5}`, `{"fields":["rpm","temp"]}`, `{"rpm":1450}`}[i],
			})
		}
	}
	return c, plan, nil
}

// useRealHub puts a real hub and one device into the configuration.
func (f *demoFlags) useRealHub(c *config.Config) (prefixes []string, unknown string, err error) {
	hub, err := readSecret(f.hubFile)
	if err != nil {
		return nil, "", usagef("--hub-connection-string-file: %w", err)
	}
	device, err := readSecret(f.deviceFile)
	if err != nil {
		return nil, "", usagef("--device-connection-string-file: %w", err)
	}
	id := deviceOf(device)
	if id == "" {
		return nil, "", usagef("--device-connection-string-file: %s holds no device connection string (DeviceId is missing)", f.deviceFile)
	}
	real := c.Bridge.Hubs[0] // its name and whatever else does not say where it is
	real.Embedded, real.ConnectionString, real.AMQPAddress, real.CAFile = false, config.NewSecret(hub), f.amqp, f.caFile
	c.Bridge.Hubs = []config.Hub{real}
	c.Relay.Devices = []config.Device{{ConnectionString: config.NewSecret(device), MQTTAddress: f.mqtt, CAFile: f.caFile}}
	// The real device's ID need not be made of two tokens: the routes name it outright.
	token := mapping.SubjectToken(id)
	var routes []config.Route
	for _, r := range c.Bridge.Routes {
		if r.Device == "" {
			continue
		}
		lost := r
		lost.Name += "-unknown"
		lost.Subject, lost.Device = strings.Replace(r.Subject, demoTokens, "cmd.demo.unknown", 1), demoNoDevice
		r.Subject, r.Device = strings.Replace(r.Subject, demoTokens, "cmd.demo."+token, 1), literal(id)
		routes = append(routes, lost, r)
	}
	c.Bridge.Routes = routes
	if err := c.Validate(); err != nil {
		return nil, "", asUsage(err)
	}
	return []string{"cmd.demo." + token + "."}, "cmd.demo.unknown.reboot", nil
}
