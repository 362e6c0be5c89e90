package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/bench"
	"downlink/bridge/spread"
)

// newBenchPartCmd is how the benchmarks start this binary again as one of their
// processes. It is not for people: what it reads and writes is in bench's comment.
func newBenchPartCmd(s streams) *cobra.Command {
	return &cobra.Command{
		Use:    "part",
		Short:  "One process of a benchmark",
		Hidden: true,
		Args:   exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.Part(cmd.Context(), s.in, s.out, s.err)
		},
	}
}

func newBenchBridgeCmd(s streams) *cobra.Command {
	var o bench.SpeedOptions
	var waiting bench.WaitingOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bridge",
		Short: "Measure the bridge beside a minimal loop and a raw send",
		Long: `Measure the bridge from JetStream to the embedded hub, beside a minimal loop that
consumes in batches, sends, and acks what was accepted, and beside sends
without any source. NATS, the hub, and what is measured are processes of their
own. A round is one run of each; CPU and memory are those of the process that
moves the messages.

With --rate it takes the latency, from the publication to the ack, at that rate.
With --hub-delay it measures again with the hub so much farther away. With
--waiting it measures nothing but the bridge's memory while so many messages
wait for a hub that takes none.`,
		Example: `  downlink bench bridge
  downlink bench bridge --pairs 3 --messages 20000 --json
  downlink bench bridge --hub-delay 20ms
  downlink bench bridge --waiting 1000000 --waiting-devices 100000`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range []string{"messages", "pairs", "body", "devices", "window", "waiting-devices"} {
				if n, _ := cmd.Flags().GetInt(f); n == 0 {
					return usagef("--%s: 0 is too few", f)
				}
			}
			command, err := bench.Own("bench", "part")
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("waiting") {
				waiting.Command, waiting.Body, waiting.Window = command, o.Body, o.Window
				return benchWaiting(cmd.Context(), s.out, waiting, asJSON)
			}
			o.Command = command
			return benchSpeed(cmd.Context(), s.out, o, asJSON)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.Messages, "messages", 100_000, "messages that wait in the stream when a run begins")
	fs.IntVar(&o.Devices, "devices", 1000, "devices that the messages go to in turn")
	fs.IntVar(&o.Pairs, "pairs", 7, "runs of each, in turn")
	fs.IntVar(&o.Body, "body", 256, "bytes of a body")
	fs.IntVar(&o.Window, "window", 512, "messages in flight to the hub at once")
	fs.IntVar(&o.Rate, "rate", 1000, "messages a second while the latency is taken; 0: not at all")
	fs.DurationVar(&o.RateFor, "rate-for", 3*time.Second, "how long one run at that rate takes")
	fs.DurationVar(&o.HubDelay, "hub-delay", 0, "measure again with a round trip to the hub that is so much longer, half of it each way")
	fs.StringVar(&o.Profiles, "profiles", "", "directory for CPU profiles of the last pair: bridge.pprof and minimal.pprof")
	fs.IntVar(&waiting.Messages, "waiting", 0, "measure the memory of so many waiting messages instead")
	fs.IntVar(&waiting.Devices, "waiting-devices", 1000, "devices that they are for")
	fs.DurationVar(&waiting.Limit, "waiting-limit", 10*time.Minute, "how long the bridge may take until it reads no more of them")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object at the end")
	return cmd
}

func benchSpeed(ctx context.Context, out io.Writer, o bench.SpeedOptions, asJSON bool) error {
	if err := o.Check(); err != nil {
		return usagef("--%w", err)
	}
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if !asJSON {
		p("%d messages of %d bytes a run, to %d devices, %d in flight; each a process of its own", o.Messages, o.Body, o.Devices, o.Window)
		n := 0
		o.Progress = func(r bench.Round) {
			n++
			p("round %-2d  raw %7.0f/s %5.1f us  minimal %7.0f/s %5.1f us  bridge %7.0f/s %5.1f us %5.1f MB", n,
				r.Raw.Rate, r.Raw.CPU, r.Minimal.Rate, r.Minimal.CPU, r.Bridge.Rate, r.Bridge.CPU, float64(r.Bridge.Peak)/1e6)
		}
	}
	r, err := bench.Speed(ctx, o)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	p("")
	printComparison(p, r.Near)
	if l := r.Latency; l != nil {
		p("")
		p("latency at %d/s, in ms: published to acked", l.Rate)
		p("  p50         minimal %s  bridge %s  more %s", spreadOf(l.MinimalP50, 2, 1), spreadOf(l.BridgeP50, 2, 1), spreadOf(l.MoreP50, 2, 1))
		p("  p99         minimal %s  bridge %s  more %s", spreadOf(l.MinimalP99, 2, 1), spreadOf(l.BridgeP99, 2, 1), spreadOf(l.MoreP99, 2, 1))
	}
	if f := r.Far; f != nil {
		p("")
		p("with the hub %v farther away: a window of %d carries at most %.0f/s, which leaves %.0f/s to expect", f.Delay, r.Window, f.Bound, f.Explained)
		printComparison(p, f.Comparison)
		p("  of expected bridge/expected %s", spreadOf(f.OfExplained, 2, 1))
	}
	return nil
}

func printComparison(p func(string, ...any), c bench.Comparison) {
	p("  msgs/s      raw %s  minimal %s  bridge %s", spreadOf(c.Raw, 0, 1), spreadOf(c.Minimal, 0, 1), spreadOf(c.Bridge, 0, 1))
	p("  CPU us/msg  raw %s  minimal %s  bridge %s", spreadOf(c.RawCPU, 1, 1), spreadOf(c.MinimalCPU, 1, 1), spreadOf(c.BridgeCPU, 1, 1))
	p("  peak MB     minimal %s  bridge %s", spreadOf(c.PeakOfMinimal, 1, 1e6), spreadOf(c.Peak, 1, 1e6))
	p("  throughput  bridge/minimal %s  minimal/raw %s", spreadOf(c.Throughput, 2, 1), spreadOf(c.MinimalToRaw, 2, 1))
	p("  CPU         bridge/minimal %s", spreadOf(c.CPU, 2, 1))
}

// spreadOf prints a median and, in parentheses, the extremes.
func spreadOf(s spread.Spread, digits int, unit float64) string {
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, s.Median/unit, digits, s.Lowest/unit, digits, s.Highest/unit)
}

func benchWaiting(ctx context.Context, out io.Writer, o bench.WaitingOptions, asJSON bool) error {
	if err := o.Check(); err != nil {
		return usagef("--%w", err)
	}
	r, err := bench.Waiting(ctx, o)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	p("%d messages of %d bytes wait for %d devices: %d read and held, %d in the mailbox, %d not read yet", r.Messages, r.Body, r.Devices, r.Held, r.Parked, r.Unread)
	p("  memory      %.1f MB, before %.1f MB, peak %.1f MB; of it Go objects %.1f MB, before %.1f MB", mb(r.RSS), mb(r.RSSBefore), mb(r.Peak), mb(r.Heap), mb(r.HeapBefore))
	p("  a device    %.0f bytes for each of %d with a message held or in the mailbox; at the peak %.0f", r.PerDevice, r.WaitingDevices, r.PeakPerDevice)
	p("  it took     %.1f s until the bridge read no more", r.Took.Seconds())
	return nil
}
