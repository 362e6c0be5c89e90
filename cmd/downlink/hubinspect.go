package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/emulator/inspect"
)

// hubPages is a running hub's pages, found by its data directory.
type hubPages struct {
	dataDir string
	asJSON  bool
	base    string
}

func (p *hubPages) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.dataDir, "data-dir", "", "data directory of the hub that runs (default: as downlink hub)")
	cmd.Flags().BoolVar(&p.asJSON, "json", false, "print the hub's JSON as it is")
}

func (p *hubPages) open() error {
	dir, err := dataDir(p.dataDir)
	if err != nil {
		return err
	}
	e, err := readEndpoints(dir)
	if err != nil {
		return err
	}
	if e.HTTP == "" {
		return fmt.Errorf("the hub with the data directory %s serves no pages: start it as downlink hub, without --http off", dir)
	}
	p.base = e.HTTP
	return nil
}

// call makes a request and returns the body.
func (p *hubPages) call(ctx context.Context, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, p.base+path, nil)
	if err != nil {
		return nil, err
	}
	// Not by a proxy, which a developer's machine may have set.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("the hub does not answer at %s (has it ended?): %w", p.base, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("hub: %s", strings.TrimSpace(string(body)))
	}
	return body, nil
}

func devicePath(root, id, below string) string {
	return root + "/devices/" + strings.ReplaceAll(url.PathEscape(id), ".", "%2E") + below
}

func newHubListCmd(s streams) *cobra.Command {
	p := &hubPages{}
	limit := 100
	cmd := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List the devices of the embedded hub that runs",
		Long: `List the devices of the embedded hub that runs, those whose ID begins with
PREFIX, with what is pending and what happened to their messages. With --json one
device a line.`,
		Example: `  downlink hub ls
  downlink hub ls pump- --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("PREFIX")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit: %d is below 1", limit)
			}
			if err := p.open(); err != nil {
				return err
			}
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return p.list(cmd.Context(), s.out, prefix, limit)
		},
	}
	p.register(cmd)
	cmd.Flags().IntVar(&limit, "limit", limit, "how many devices to list at most")
	return cmd
}

func (p *hubPages) list(ctx context.Context, out io.Writer, prefix string, limit int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(out)
	if !p.asJSON {
		fmt.Fprintln(w, "DEVICE\tSTATUS\tCONNECTED\tPENDING\tACCEPTED\tREFUSED\tCOMPLETED\tDEAD")
	}
	after, more := "", false
	for left := limit; left > 0; {
		q := url.Values{"prefix": {prefix}, "after": {after}, "limit": {fmt.Sprint(min(left, 1000))}}
		body, err := p.call(ctx, http.MethodGet, "/inspect/devices?"+q.Encode())
		if err != nil {
			return err
		}
		var page inspect.DeviceList
		if err := json.Unmarshal(body, &page); err != nil {
			return err
		}
		for _, d := range page.Devices {
			if p.asJSON {
				if err := enc.Encode(d); err != nil {
					return err
				}
				continue
			}
			c := d.Counts
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\n", d.DeviceID, d.Status, yes(d.Connected), d.Pending, c.Accepted, c.Refused,
				c.Completed, c.Expired+c.Exceeded+c.Rejected+c.Purged)
		}
		left -= len(page.Devices)
		if after, more = page.Next, page.Next != ""; !more {
			break
		}
	}
	if !p.asJSON && more {
		fmt.Fprintf(w, "… and more: --limit, or a PREFIX\n")
	}
	return w.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newHubShowCmd(s streams) *cobra.Command {
	p := &hubPages{}
	cmd := &cobra.Command{
		Use:   "show [DEVICE]",
		Short: "Show one device of the embedded hub that runs, with its queue, or the hub",
		Long: `Show one device of the embedded hub that runs: its state, its counts and the
messages in its queue. Without DEVICE, show the hub.`,
		Example: `  downlink hub show berlin-pump7
  downlink hub show --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("DEVICE")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.open(); err != nil {
				return err
			}
			path := "/inspect"
			if len(args) == 1 {
				path = devicePath("/inspect", args[0], "")
			}
			body, err := p.call(cmd.Context(), http.MethodGet, path)
			if err != nil {
				return err
			}
			if p.asJSON || len(args) == 0 {
				_, err = s.out.Write(body)
				return err
			}
			var d inspect.Device
			if err := json.Unmarshal(body, &d); err != nil {
				return err
			}
			return showDevice(s.out, d)
		},
	}
	p.register(cmd)
	return cmd
}

func showDevice(out io.Writer, d inspect.Device) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	c := d.Counts
	fmt.Fprintf(w, "device\t%s\nstatus\t%s\nconnected\t%s\n", d.DeviceID, d.Status, yes(d.Connected))
	fmt.Fprintf(w, "messages\t%d sent: %d accepted, %d refused\n", c.Sends, c.Accepted, c.Refused)
	fmt.Fprintf(w, "\t%d delivered (%d again), %d completed\n", c.Delivered, c.Redelivered, c.Completed)
	fmt.Fprintf(w, "\t%d expired, %d over their delivery count, %d rejected, %d purged\n", c.Expired, c.Exceeded, c.Rejected, c.Purged)
	fmt.Fprintf(w, "telemetry\t%d\npending\t%d\n", c.Telemetry, len(d.Queue))
	if err := w.Flush(); err != nil || len(d.Queue) == 0 {
		return err
	}
	fmt.Fprintln(w, "\nSEQ\tSTATE\tDELIVERIES\tEXPIRES\tMESSAGE ID\tBODY")
	for _, m := range d.Queue {
		body := fmt.Sprintf("%d bytes", len(m.BodyBase64))
		if m.Body != nil {
			body = fmt.Sprintf("%.60q", *m.Body)
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", m.Sequence, m.State, m.Deliveries, m.ExpiryTime.Format(time.RFC3339), m.MessageID, body)
	}
	return w.Flush()
}

func newHubPurgeCmd(s streams) *cobra.Command {
	p := &hubPages{}
	cmd := &cobra.Command{
		Use:   "purge DEVICE...",
		Short: "Empty the queues of devices of the embedded hub that runs",
		Long: `Empty the queues of devices of the embedded hub that runs. Whoever asked for
feedback about these messages is told Purged.`,
		Example: `  downlink hub purge berlin-pump7`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactArgs("DEVICE")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.open(); err != nil {
				return err
			}
			for _, id := range args {
				body, err := p.call(cmd.Context(), http.MethodDelete, devicePath("/admin", id, "/queue"))
				if err != nil {
					return err
				}
				answer := struct {
					Device string `json:"deviceId"`
					Purged int    `json:"purged"`
				}{Device: id}
				if err := json.Unmarshal(body, &answer); err != nil {
					return err
				}
				if p.asJSON {
					err = json.NewEncoder(s.out).Encode(answer)
				} else {
					_, err = fmt.Fprintf(s.out, "%s: %d purged\n", id, answer.Purged)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	p.register(cmd)
	return cmd
}
