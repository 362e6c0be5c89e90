package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/inspect"
)

type hubFlags struct {
	dataDir             string
	amqps, mqtts, https string
	devices, hostnames  []string
	anyDevice           bool
	journal             string
	http                string
	asJSON              bool
	stringsDir          string
	rules               hubRuleFlags
	deviceSide          hubDeviceFlags
	play                hubPlayFlags
	entra               hubEntraFlags
}

func newHubCmd(s streams, logs *logFlags) *cobra.Command {
	f := &hubFlags{}
	cmd := &cobra.Command{
		Use:     "hub",
		Aliases: []string{"emulator"},
		Short:   "Run the embedded IoT Hub, for development and tests",
		Long: `Run an IoT Hub on this machine: real AMQP, MQTT and HTTPS endpoints with TLS, for
downlink and for the Azure SDKs as they are. For development and tests only.

Its CA and its keys live in --data-dir and are made on first use; every
connection string stays valid across restarts. Without --data-dir that is
$XDG_STATE_HOME/downlink/hub, or ~/.local/state/downlink/hub.`,
		Example: `  downlink hub --device berlin-pump7 --device berlin-pump8
  downlink hub --any-device --data-dir ./hub --json
  downlink hub connection-string service`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(s.err, "", "")
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), s, log)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.dataDir, "data-dir", "", "directory of its CA and keys (default: a directory of this user, see above)")
	fs.StringVar(&f.amqps, "amqps", "127.0.0.1:5671", "AMQP address; port 0 picks a free one")
	fs.StringVar(&f.mqtts, "mqtts", "127.0.0.1:8883", "MQTT address")
	fs.StringVar(&f.https, "https", "127.0.0.1:8443", "HTTPS address")
	fs.StringArrayVar(&f.devices, "device", nil, "device to create, repeatable")
	fs.BoolVar(&f.anyDevice, "any-device", false, "create every device on its first use")
	fs.StringVar(&f.journal, "journal", "", "file that keeps queues and unread feedback across restarts and kills, and tells what became of each message (default: queues end with the process)")
	fs.StringArrayVar(&f.hostnames, "hostname", nil, "host name in the certificate, repeatable; the first stands in the connection strings (default localhost)")
	fs.StringVar(&f.http, "http", "", `address of /livez, /readyz, /metrics, /status, /inspect and /admin, or "off" (default 127.0.0.1:9466, or a free port if that is taken); who reaches it controls the hub`)
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object when it is ready")
	fs.StringVar(&f.stringsDir, "connection-strings", "", "directory for a file with the connection string of each policy (service, iothubowner, …) and of each --device (device-ID)")
	f.deviceSide.register(fs)
	f.rules.register(fs)
	f.play.register(fs)
	f.entra.register(fs)
	cmd.AddCommand(newConnectionStringCmd(s), newHubListCmd(s), newHubShowCmd(s), newHubPurgeCmd(s))
	return cmd
}

func (f *hubFlags) run(ctx context.Context, s streams, log *slog.Logger) error {
	if len(f.hostnames) == 0 {
		f.hostnames = []string{"localhost"}
	}
	if err := checkHostnames(f.hostnames); err != nil {
		return err
	}
	for _, a := range []struct{ flag, addr string }{{"amqps", f.amqps}, {"mqtts", f.mqtts}, {"https", f.https}, {"http", f.http}} {
		if a.flag == "http" && (a.addr == "off" || a.addr == "") {
			continue
		}
		if err := checkListen("--"+a.flag, a.addr); err != nil {
			return err
		}
	}
	dir, err := dataDir(f.dataDir)
	if err != nil {
		return err
	}
	o := emulator.Options{
		DataDir: dir, Hostnames: f.hostnames, AMQPS: f.amqps, MQTTS: f.mqtts, HTTPS: f.https,
		Devices: f.devices, AnyDevice: f.anyDevice, Journal: f.journal, Logger: log,
	}
	if err := f.deviceSide.apply(&o); err != nil {
		return err
	}
	if err := f.rules.apply(&o); err != nil {
		return err
	}
	if err := f.play.apply(&o); err != nil {
		return err
	}
	if err := f.entra.apply(&o); err != nil {
		return err
	}
	hub, err := openHub(o)
	if err != nil {
		return err
	}
	defer hub.close(log)
	if err := writeConnectionStrings(hub, f.stringsDir, f.devices); err != nil {
		return err
	}
	ops, err := f.ops(hub, log)
	if err != nil {
		return err
	}
	if ops != nil {
		stop, _ := background(ctx, ops.Run)
		defer stop()
	}
	ready, err := newHubReady(hub, f.devices, f.hostnames[0])
	if err != nil {
		return err
	}
	if ops != nil {
		ready.HTTP = "http://" + ops.Addr()
		if err := hub.publish(ready.HTTP); err != nil {
			return err
		}
	}
	if f.asJSON {
		err = ready.writeJSON(s.out)
	} else {
		err = ready.writeText(s.out)
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// ops opens the pages for operators; nil if they are off.
func (f *hubFlags) ops(hub *embeddedHub, log *slog.Logger) (*app.Ops, error) {
	if f.http == "off" {
		return nil, nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(newHubCollector(hub))
	o := app.OpsOptions{
		Addr:     f.http,
		Ready:    func() error { return nil }, // it is, once its listeners are bound
		Status:   func() any { return hub.status() },
		Gatherer: registry,
		Prefixes: inspect.Prefixes(),
		Logger:   log,
	}
	o.Pages = inspect.New(inspect.Options{Hub: hub.Hub, Loopback: f.http == "" || isLoopback(f.http), Logger: log})
	if f.http != "" {
		return app.NewOps(o)
	}
	// Nobody asked for this port, so a second hub on the machine is no reason to fail.
	o.Addr = "127.0.0.1:9466"
	ops, err := app.NewOps(o)
	if err != nil {
		o.Addr = "127.0.0.1:0"
		ops, err = app.NewOps(o)
	}
	return ops, err
}

// dataDir is the given directory or the default one.
func dataDir(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	return hubStateDir()
}
