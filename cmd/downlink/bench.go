package main

import "github.com/spf13/cobra"

func newBenchCmd(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure parts of downlink on this machine",
		Long: `Measure parts of downlink on this machine. What is measured runs in turn with
something to compare it with, in one run: read the ratios, the rates differ from
machine to machine.`,
		Example: `  downlink bench bridge
  downlink bench isolation
  downlink bench hub`,
		Args: onlyCommands,
		RunE: func(*cobra.Command, []string) error { return usagef("which one? try: downlink bench bridge") },
	}
	cmd.AddCommand(newBenchBridgeCmd(s), newBenchIsolationCmd(s), newBenchHubCmd(s), newBenchPartCmd(s))
	return cmd
}
