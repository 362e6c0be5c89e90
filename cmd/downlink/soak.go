package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
	"downlink/cmd/downlink/soak"
)

type soakFlags struct {
	long, settle time.Duration
	seed         uint64
	rate         float64
	devices      int
	faults       string
	dir          string
	sabotage     string
	asJSON       bool
}

func newSoakCmd(s streams, logs *logFlags) *cobra.Command {
	f := &soakFlags{}
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Run everything under random faults, and check that every promise is kept",
		Long: `Run bridge, relays, hub and NATS servers as processes on this machine, publish
through them while they are killed, frozen, cut off and refused at random, wait
until nothing moves, and check from what is durable: no message lost, order per
device, payload and properties intact, one fate each, receipts as the fates,
repeats recognisable and bounded. docs/soak.md says how to read the table.

Exit code 1 if a promise was broken; then the seed and each message's trail are
printed. The seed decides what is published and which faults there are; when
they hit is up to the machine. --sabotage breaks the bridge on purpose, and must
make it fail.`,
		Example: `  downlink soak --for 60s
  downlink soak --for 30m --seed 42 --messages-per-second 100 --devices 50
  downlink soak --for 20s --sabotage drop`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, s, logs) },
	}
	fs := cmd.Flags()
	fs.DurationVar(&f.long, "for", time.Minute, "how long to publish and disturb; settling comes on top")
	fs.Uint64Var(&f.seed, "seed", 0, "seed of the traffic and the faults (default: a random one, which is printed)")
	fs.Float64Var(&f.rate, "messages-per-second", 50, "messages to publish a second, all devices together")
	fs.IntVar(&f.devices, "devices", 20, fmt.Sprintf("devices, at least %d", soak.MinDevices))
	fs.StringVar(&f.faults, "faults", "all", "kinds of faults, separated by commas, all or none: "+strings.Join(soak.FaultKinds(), ", "))
	fs.DurationVar(&f.settle, "settle", 4*time.Minute, "how long everything may take to come to rest afterwards")
	fs.StringVar(&f.dir, "dir", "", "directory to make and keep everything in: streams, journal, logs (default: a temporary one, gone at the end)")
	fs.StringVar(&f.sabotage, "sabotage", "", "break the bridge: "+sabotageNames())
	fs.BoolVar(&f.asJSON, "json", false, "print the report as one JSON object")
	cmd.AddCommand(newSoakNATSCmd(s, logs), newSoakBridgeCmd(s, logs))
	return cmd
}

func (f *soakFlags) options() (o soak.Options, err error) {
	o = soak.Options{For: f.long, Settle: f.settle, Seed: f.seed, Rate: f.rate, Devices: f.devices, Sabotage: f.sabotage}
	switch {
	case f.long <= 0:
		return o, usagef("--for: %v is not above 0", f.long)
	case f.settle <= 0:
		return o, usagef("--settle: %v is not above 0", f.settle)
	case !(f.rate > 0 && f.rate <= 10_000):
		return o, usagef("--messages-per-second: %v is not between 0 and 10000", f.rate)
	case f.devices < soak.MinDevices || f.devices > 1000:
		return o, usagef("--devices: %d is not between %d and 1000", f.devices, soak.MinDevices)
	}
	if _, ok := sabotages[f.sabotage]; f.sabotage != "" && !ok {
		return o, usagef("--sabotage: %q is none of %s", f.sabotage, sabotageNames())
	}
	switch f.faults {
	case "all":
		o.Faults = soak.FaultKinds()
	case "none", "":
	default:
		for kind := range strings.SplitSeq(f.faults, ",") {
			if !slices.Contains(soak.FaultKinds(), kind) {
				return o, usagef("--faults: %q is none of %s, all, none", kind, strings.Join(soak.FaultKinds(), ", "))
			}
			o.Faults = append(o.Faults, kind)
		}
	}
	return o, nil
}

func (f *soakFlags) run(cmd *cobra.Command, s streams, logs *logFlags) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("seed") {
		o.Seed = uint64(rand.Uint32()) // short enough to type
	}
	log, err := logs.logger(s.err, "", "")
	if err != nil {
		return err
	}
	o.Progress = func(line string) { log.Info(line, "component", "soak") }
	if o.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("soak: %w", err)
	}
	remove := func() error { return nil }
	if o.Dir, err = filepath.Abs(f.dir); err == nil && f.dir != "" {
		err = newDir(o.Dir)
	} else if err == nil {
		o.Dir, remove, err = temporary.make("downlink-soak-")
	}
	if err != nil {
		return err
	}
	r, err := soak.Run(cmd.Context(), o)
	if err != nil {
		return errors.Join(fmt.Errorf("soak with seed %d: %w", o.Seed, err), remove())
	}
	if f.asJSON {
		err = json.NewEncoder(s.out).Encode(r)
	} else {
		err = r.WriteText(s.out)
	}
	if err = errors.Join(err, remove()); err != nil {
		return err
	}
	if !r.OK() {
		return fmt.Errorf("soak with seed %d: %d violations", o.Seed, r.Violated)
	}
	return nil
}

// newDir makes a directory, or takes an empty one: what another run left would be taken for this one's.
func newDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return os.MkdirAll(dir, 0o700)
	case err != nil:
		return usagef("--dir: %w", err)
	case len(entries) > 0:
		return usagef("--dir: %s is not empty: give a directory that is new", dir)
	}
	return nil
}

// newSoakNATSCmd is a NATS server of a soak.
func newSoakNATSCmd(s streams, logs *logFlags) *cobra.Command {
	var store string
	cmd := &cobra.Command{
		Use: "nats", Short: "Run a NATS server of a soak", Hidden: true, Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.logger(s.err, "", "")
			if err != nil {
				return err
			}
			srv, err := natsio.StartServer(natsio.ServerOptions{Name: "soak", Listen: "127.0.0.1:0", StoreDir: store, Logger: log})
			if err != nil {
				return err
			}
			if err := json.NewEncoder(s.out).Encode(map[string]string{"event": "ready", "url": srv.URL()}); err != nil {
				return errors.Join(err, srv.Close())
			}
			<-cmd.Context().Done()
			return srv.Close()
		},
	}
	cmd.Flags().StringVar(&store, "store-dir", "", "JetStream's directory")
	return cmd
}

// newSoakBridgeCmd is a bridge of a soak that breaks a promise.
func newSoakBridgeCmd(s streams, logs *logFlags) *cobra.Command {
	f := &daemonFlags{}
	var sabotage string
	cmd := &cobra.Command{
		Use: "bridge", Short: "Run a bridge that breaks a promise", Hidden: true, Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.between = sabotages[sabotage]; f.between == nil {
				return usagef("--sabotage: %q is none of %s", sabotage, sabotageNames())
			}
			return f.run(cmd, s, logs, config.BridgeSide, func(c *config.Config) error {
				c.Relay = nil
				return nil
			})
		},
	}
	f.register(cmd, "hub")
	cmd.Flags().StringVar(&sabotage, "sabotage", "", "which one")
	return cmd
}
