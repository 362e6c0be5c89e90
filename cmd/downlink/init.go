package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"downlink/configs"
)

func newInitCmd(s streams) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a short commented configuration",
		Long: `Write a short commented configuration with a bridge and a relay section, as a
start for your own. FILE is downlink.yaml without an argument; "-" is standard
output. An existing file stays as it is without --force.`,
		Example: "  downlink init\n  downlink init bridge.yaml --force\n  downlink init - | less",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("FILE")(cmd, args)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			path := "downlink.yaml"
			if len(args) == 1 {
				path = args[0]
			}
			if path == "" {
				return usagef("FILE is empty")
			}
			if path == "-" {
				_, err := fmt.Fprint(s.out, configs.Init)
				return err
			}
			if err := writeNew(path, []byte(configs.Init), force); err != nil {
				return err
			}
			_, err := fmt.Fprintf(s.out, initSteps, path)
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing file")
	return cmd
}

const initSteps = `wrote %[1]s

To try it without Azure, take the "#" from its two ca_file lines, and:
  downlink hub --data-dir hub --device berlin-pump7      in a shell of its own
  downlink hub connection-string --data-dir hub service > hub-service
  downlink hub connection-string --data-dir hub device berlin-pump7 > hub-device
  nats-server -js                                        in a shell of its own
Then, each in a shell of its own:
  downlink bridge -c %[1]s
  downlink relay -c %[1]s
  downlink sub 'edge.>'
  downlink pub cmd.berlin.pump7.reboot '{"delay":5}' -H X-User=ann
`

// writeNew writes a file that must not exist yet, unless force is set.
func writeNew(path string, b []byte, force bool) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists already: name another file, or give --force to replace it", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
