package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"downlink/bridge/emulator/hubbench"
)

func newBenchHubCmd(s streams) *cobra.Command {
	var o hubbench.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Measure how fast the embedded hub takes messages",
		Long: `Send messages with go-amqp over TLS on loopback, to the embedded hub and to a
sink that accepts everything unread, in turn. The hub's devices complete each
message at once. A pair is one run to each; the ratio says what the hub's queues,
rules and devices cost.`,
		Example: `  downlink bench hub
  downlink bench hub --pairs 3 --messages 20000 --json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range []string{"messages", "pairs", "senders", "window", "size", "devices", "credit"} {
				if n, _ := cmd.Flags().GetInt(f); n == 0 {
					return usagef("--%s: 0 is too few", f)
				}
			}
			if err := o.Check(); err != nil {
				return usagef("--%v", err)
			}
			n := 0
			o.Progress = func(p hubbench.Pair) {
				if n++; !asJSON {
					fmt.Fprintf(s.out, "pair %-2d  hub %7.0f/s  sink %7.0f/s  hub/sink %.2f\n", n, p.Hub, p.Sink, p.Ratio)
				}
			}
			if !asJSON {
				fmt.Fprintf(s.out, "%d messages of %d bytes a run, %d sender(s) with %d in flight, to %d devices\n", o.Messages, o.Size, o.Senders, o.Window, o.Devices)
			}
			r, err := hubbench.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(s.out).Encode(r)
			}
			_, err = fmt.Fprintf(s.out, "median   hub %7.0f/s  sink %7.0f/s  hub/sink %.2f (%.2f to %.2f)\n", r.Hub, r.Sink, r.Ratio, r.Lowest, r.Highest)
			return err
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.Messages, "messages", 50_000, "messages of one run")
	fs.IntVar(&o.Pairs, "pairs", 11, "runs to each, in turn")
	fs.IntVar(&o.Senders, "senders", 1, "connections that send at once")
	fs.IntVar(&o.Window, "window", 512, "messages of one connection that wait for their answer")
	fs.IntVar(&o.Size, "size", 256, "bytes of a body")
	fs.IntVar(&o.Devices, "devices", 1000, "devices that the messages go to in turn")
	fs.IntVar(&o.Credit, "credit", 1000, "link credit that the hub and the sink grant; the hub's own default is 100")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object at the end")
	return cmd
}
