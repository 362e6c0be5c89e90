package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/bench"
)

func newBenchIsolationCmd(s streams) *cobra.Command {
	var o bench.IsolationOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "isolation",
		Short: "Measure what healthy devices notice of full, unknown and slow ones",
		Long: `Measure what healthy devices notice of others. The embedded hub serves 500
messages a second; the load is spread over all devices, of which 1 % are full, 1 %
unknown to the hub and 1 % slow to make room. A pair is one run with these and
one without, each on servers of its own.

Then one device has very many messages (--ahead) and another one behind them:
how long that waits, beside how fast the bridge reads past the others.`,
		Example: `  downlink bench isolation
  downlink bench isolation --pairs 3 --for 5s --ahead 100000 --json`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range []string{"devices", "pairs", "rate"} {
				if n, _ := cmd.Flags().GetInt(f); n == 0 {
					return usagef("--%s: 0 is too few", f)
				}
			}
			if err := o.Check(); err != nil {
				return usagef("--%w", err)
			}
			var err error
			if o.Command, err = bench.Own("bench", "part"); err != nil {
				return err
			}
			p := func(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }
			if !asJSON {
				p("%d messages a second for %d devices, %v a run; of the healthy devices:", o.Rate, o.Devices, o.For)
				n := 0
				o.Progress = func(r bench.IsolationPair) {
					n++
					p("pair %-2d  without %6.1f/s p50 %6.2f ms p99 %6.2f ms  with %6.1f/s p50 %6.2f ms p99 %6.2f ms  (full: %d refused, unknown: %d sent, slow: %d accepted)", n,
						r.Without.Goodput, r.Without.P50, r.Without.P99, r.With.Goodput, r.With.P50, r.With.P99, r.Troubled.Refused, r.Troubled.Unknown, r.Troubled.Slow)
				}
			}
			r, err := bench.Isolation(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(s.out).Encode(r)
			}
			p("")
			p("  goodput     with/without %s", spreadOf(r.Goodput, 3, 1))
			p("  p50 ms      more %s", spreadOf(r.MoreP50, 2, 1))
			p("  p99 ms      more %s", spreadOf(r.MoreP99, 2, 1))
			if a := r.Ahead; a != nil {
				printAhead(p, a)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.Devices, "devices", 1000, "devices, the troubled ones among them")
	fs.IntVar(&o.Pairs, "pairs", 7, "runs of each, in turn")
	fs.IntVar(&o.Rate, "rate", 400, "messages a second for all devices together, at most 500")
	fs.DurationVar(&o.For, "for", 10*time.Second, "how long one run takes")
	fs.IntVar(&o.Ahead, "ahead", 1_000_000, "messages of one device ahead of another's; 0: not measured")
	fs.DurationVar(&o.AheadLimit, "ahead-limit", 5*time.Minute, "how long that one may take to arrive")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object at the end")
	return cmd
}

func printAhead(p func(string, ...any), a *bench.Ahead) {
	p("")
	p("behind %d messages of another device:", a.Messages)
	if !a.Arrived {
		p("  not at the hub within %.1f s; read until then at %.0f/s, %d of them sent", a.Delay.Seconds(), a.Spill, a.Sent)
	} else {
		p("  at the hub after %.2f s; the bridge had read it after %.2f s, at %.0f/s: %.0f ms more than that explains (%d of them sent meanwhile)",
			a.Delay.Seconds(), a.ReadPast.Seconds(), a.Spill, float64(a.More.Microseconds())/1e3, a.Sent)
	}
	p("  a plain copy from stream to stream does %.0f/s here", a.Copy)
}
