package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/identity"
)

func newConnectionStringCmd(s streams) *cobra.Command {
	var dir, hostname string
	cmd := &cobra.Command{
		Use:   "connection-string POLICY | connection-string device ID",
		Short: "Print one connection string of the embedded hub, and nothing else",
		Long: `Print one connection string of the embedded hub with this data directory, and
nothing else: of a policy (service, iothubowner, device, registryRead,
registryReadWrite), or of a device. The hub need not run, but it must have run
with this directory once: the keys are made then.`,
		Example: `  downlink hub connection-string service > hub-service
  downlink hub connection-string --data-dir ./hub device berlin-pump7 > hub-device`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 2 && args[0] == "device":
				return nil
			case len(args) > 2 && args[0] == "device":
				return fmt.Errorf("connection-string device: unexpected argument %q (usage: device ID, one at a time)", args[2])
			case len(args) == 2:
				return fmt.Errorf("connection-string: unexpected argument %q (a device's string is: device ID)", args[1])
			}
			return exactArgs("POLICY")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := dataDir(dir)
			if err != nil {
				return err
			}
			kind, device := args[0], ""
			if len(args) == 2 {
				if device = args[1]; device == "" {
					return usagef("connection-string device: the ID is empty")
				}
				if !c2d.ValidID(device) {
					return usagef("connection-string device: %q is not a device ID; it has up to %d ASCII letters, digits and - : . + %% _ # * ? ! ( ) , = @ ; $ '", device, c2d.MaxIDLength)
				}
			} else if !slices.Contains(identity.Policies(), kind) {
				return usagef("connection-string: no policy %q: take one of %s", kind, strings.Join(identity.Policies(), ", "))
			}
			if cmd.Flags().Changed("hostname") {
				if err := checkHostnames([]string{hostname}); err != nil {
					return err
				}
			}
			if err := keysExist(d, dir != ""); err != nil {
				return err
			}
			if hostname == "" {
				hostname = storedHostname(d)
			}
			text, err := storedString(d, hostname, kind, device)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(s.out, text)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "directory of the hub's CA and keys (default: as downlink hub)")
	cmd.Flags().StringVar(&hostname, "hostname", "", "host name in the string (default: that of the hub that runs there, else localhost)")
	return cmd
}

// keysExist refuses a data directory that no hub has ever run with: new keys
// would fit no hub, and a mistyped directory is what this most likely is.
func keysExist(dir string, given bool) error {
	_, err := os.Stat(filepath.Join(dir, "master.key"))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && !given:
		return usagef("no hub has ever run with the data directory %s: start it with downlink hub, or name another with --data-dir", dir)
	case errors.Is(err, fs.ErrNotExist):
		return usagef("no hub has ever run with the data directory %s: start it with downlink hub --data-dir %s, or correct the path", dir, shellQuote(dir))
	default:
		return usagef("--data-dir: %w", err)
	}
}

// storedHostname is the name the hub of a data directory runs under.
func storedHostname(dir string) string {
	if e, err := readEndpoints(dir); err == nil && e.Hostname != "" {
		return e.Hostname
	}
	return "localhost"
}
