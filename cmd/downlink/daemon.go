package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/config"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/mapping"
)

// daemonFlags are those of bridge and relay. Those without a field here override
// the configuration's settings of the same name, and config.Load reads them.
type daemonFlags struct {
	configFile string
	hubDataDir string
	between    func(*app.Options) // a soak's sabotage; nil: none
}

func (f *daemonFlags) register(cmd *cobra.Command, side string) {
	fs := cmd.Flags()
	fs.StringVarP(&f.configFile, "config", "c", "", "configuration file (required)")
	fs.String("http", "", `address of /livez, /readyz, /metrics and /status, or "off" (default: the file's, else 127.0.0.1:9464, of a relay 9465)`)
	fs.Duration("shutdown-grace", 0, "how long the first signal lets messages in flight finish (default: the file's, else 10s)")
	fs.String(side+"-connection-string-file", "", "file with the "+side+"'s connection string, instead of the configuration's")
	fs.String("nats-url", "", "NATS servers, separated by commas, instead of the configuration's")
	fs.StringVar(&f.hubDataDir, "hub-data-dir", "", "data directory of the embedded hub, if the file uses one (default: a temporary one)")
}

// environment lists the variables that override the file, for the help text.
func environment(side config.Side) string {
	other := map[config.Side]string{config.BridgeSide: "DOWNLINK_DEVICE_", config.RelaySide: "DOWNLINK_HUB_"}[side]
	var b strings.Builder
	b.WriteString("\n\nVariables that override the file, after the flags:\n")
	for _, s := range config.Settings() {
		if !strings.HasPrefix(s.Env, other) {
			fmt.Fprintf(&b, "  %-40s %s\n", s.Env, s.Doc)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

func newBridgeCmd(s streams, logs *logFlags) *cobra.Command {
	f := &daemonFlags{}
	cmd := &cobra.Command{
		Use:   "bridge",
		Short: "Run the cloud side: NATS to IoT Hub",
		Long: `Run the bridge section of a configuration file: take messages from NATS, map them
to device messages, and hand them to the hub.

The first SIGINT or SIGTERM drains, the second ends at once. A server that
cannot be reached does not end the process: /readyz says what is missing.` + environment(config.BridgeSide),
		Example: `  downlink bridge -c downlink.yaml
  downlink bridge -c downlink.yaml --http 0.0.0.0:9464 --log-format json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, s, logs, config.BridgeSide, func(c *config.Config) error {
				if c.Bridge == nil {
					return usagef("%s: it has no bridge section, so there is nothing to run here (downlink relay runs its relay section)", f.configFile)
				}
				c.Relay = nil
				return nil
			})
		},
	}
	f.register(cmd, "hub")
	return cmd
}

func newRelayCmd(s streams, logs *logFlags) *cobra.Command {
	f := &daemonFlags{}
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run the device side: IoT Hub to the local NATS",
		Long: `Run the relay section of a configuration file: receive messages as the device and
publish each on the local NATS. A message is completed at the hub only after
NATS has it.

The first SIGINT or SIGTERM drains, the second ends at once. A server that
cannot be reached does not end the process: /readyz says what is missing.` + environment(config.RelaySide),
		Example: `  downlink relay -c downlink.yaml
  DOWNLINK_DEVICE_CONNECTION_STRING_FILE=/run/secrets/device downlink relay -c downlink.yaml`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, s, logs, config.RelaySide, func(c *config.Config) error {
				if c.Relay == nil {
					return usagef("%s: it has no relay section, so there is nothing to run here (downlink bridge runs its bridge section)", f.configFile)
				}
				c.Bridge = nil
				return nil
			})
		},
	}
	f.register(cmd, "device")
	return cmd
}

func (f *daemonFlags) run(cmd *cobra.Command, s streams, logs *logFlags, side config.Side, choose func(*config.Config) error) error {
	if f.configFile == "" {
		return usagef("-c FILE is required; downlink init writes a first one")
	}
	c, err := config.Load(f.configFile, config.LoadOptions{Flags: cmd.Flags(), Side: side})
	if err != nil {
		return asUsage(err)
	}
	if err := choose(c); err != nil {
		return err
	}
	log, err := logs.logger(s.err, c.Log.Level, c.Log.Format)
	if err != nil {
		return err
	}
	for _, w := range c.Warnings {
		log.Warn(w.Error(), "component", "config")
	}
	hub, err := startEmbedded(c, f.hubDataDir, log)
	if err != nil {
		return err
	}
	return runApp(cmd.Context(), c, hub, log, f.between)
}

// runApp runs the app until ctx ends, then stops the embedded hub, if there is one.
func runApp(ctx context.Context, c *config.Config, hub *embeddedHub, log *slog.Logger, between func(*app.Options)) error {
	defer hub.close(log)
	o := app.Options{Config: c, Logger: log, EmbeddedHub: hub.options(), Version: buildVersion().Version}
	if between != nil {
		between(&o)
	}
	a, err := app.New(o)
	if err != nil {
		return appError(err)
	}
	return a.Run(ctx)
}

// embeddedHub is the embedded hub of this process; nil if there is none.
type embeddedHub struct {
	*emulator.Hub
	service string
	dir     string
	places  endpoints    // as they stand in the data directory
	remove  func() error // of a data directory that is temporary; nil: it stays
}

// startEmbedded starts the embedded hub if the configuration refers to one. It
// knows the relay's devices; without a relay section it takes every device.
func startEmbedded(c *config.Config, dir string, log *slog.Logger) (*embeddedHub, error) {
	wanted := false
	var devices []string
	if c.Bridge != nil {
		for _, h := range c.Bridge.Hubs {
			wanted = wanted || h.Embedded
		}
	}
	if c.Relay != nil {
		for _, d := range c.Relay.Devices {
			if d.Embedded != "" {
				wanted = true
				devices = append(devices, d.Embedded)
			}
		}
	}
	if !wanted {
		return nil, nil
	}
	remove := func() error { return nil }
	if dir == "" {
		var err error
		if dir, remove, err = temporary.make("downlink-hub-"); err != nil {
			return nil, fmt.Errorf("temporary directory: %w", err)
		}
	}
	hub, err := openHub(emulator.Options{
		DataDir: dir, Hostnames: []string{"localhost"}, AMQPS: "127.0.0.1:0", MQTTS: "127.0.0.1:0", HTTPS: "127.0.0.1:0",
		Devices: devices, AnyDevice: c.Relay == nil, Logger: log,
	})
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	hub.remove = remove
	return hub, nil
}

// openHub starts a hub and leaves its endpoints in its data directory.
func openHub(o emulator.Options) (*embeddedHub, error) {
	other, taken := running(o.DataDir) // asked before this one listens, where a killed one may have listened
	hub, err := emulator.Start(o)
	var refusal *c2d.Refusal
	if errors.As(err, &refusal) {
		return nil, usagef("embedded %w", err) // a device ID that no hub takes
	}
	var address *emulator.AddressError
	if errors.As(err, &address) {
		return nil, usagef("embedded %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("embedded %w", err)
	}
	if taken {
		_ = hub.Close()
		return nil, fmt.Errorf("embedded hub: one runs with the data directory %s already (process %d, AMQP %s): stop it, or give this one another --data-dir",
			o.DataDir, other.PID, other.AMQPS)
	}
	h := &embeddedHub{Hub: hub, dir: o.DataDir}
	h.service, err = hub.ConnectionString("service")
	if err != nil {
		_ = hub.Close()
		return nil, fmt.Errorf("embedded hub: %w", err)
	}
	if h.dir != "" {
		h.places = h.endpoints(o)
		if err := writeEndpoints(h.dir, h.places); err != nil {
			_ = hub.Close()
			return nil, fmt.Errorf("embedded hub: %w", err)
		}
	}
	return h, nil
}

func (h *embeddedHub) endpoints(o emulator.Options) endpoints {
	hostname := "localhost"
	if len(o.Hostnames) > 0 {
		hostname = o.Hostnames[0]
	}
	return endpoints{
		AMQPS: h.AMQPAddr(), MQTTS: h.MQTTAddr(), HTTPS: h.HTTPAddr(), CAFile: h.CAFile(),
		Hostname: hostname, PID: os.Getpid(),
	}
}

// publish adds the base URL of the hub's pages to what is left in the data directory.
func (h *embeddedHub) publish(url string) error {
	if h.dir == "" {
		return nil
	}
	h.places.HTTP = url
	return writeEndpoints(h.dir, h.places)
}

func (h *embeddedHub) options() *app.EmbeddedHub {
	if h == nil {
		return nil
	}
	return &app.EmbeddedHub{
		ServiceConnectionString: h.service,
		DeviceConnectionString:  h.DeviceConnectionString,
		AMQPAddress:             h.AMQPAddr(),
		HTTPSAddress:            h.HTTPAddr(),
		MQTTAddress:             h.MQTTAddr(),
		RootCAs:                 h.RootCAs(),
	}
}

func (h *embeddedHub) close(log *slog.Logger) {
	if h == nil {
		return
	}
	if h.dir != "" {
		removeEndpoints(h.dir)
	}
	if err := h.Close(); err != nil {
		log.Warn("embedded hub did not stop cleanly", "component", "hub", "err", err)
	}
	if h.remove != nil {
		if err := h.remove(); err != nil {
			log.Warn("embedded hub's temporary directory stays", "component", "hub", "err", err)
		}
	}
}

// appError tells wrong configuration, which another start does not mend, from failure.
func appError(err error) error {
	var field *mapping.FieldError
	var place *config.Error
	if errors.As(err, &field) || errors.As(err, &place) {
		return asUsage(err)
	}
	return err
}
