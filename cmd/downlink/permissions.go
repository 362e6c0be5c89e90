package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/natsio"
)

func newPermissionsCmd(s streams) *cobra.Command {
	f := &sideFlags{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "permissions FILE",
		Short: "Print the least rights that a configuration needs, on NATS and at the hub",
		Long: `Print the permissions that the bridge's and the relay's logins need on NATS, as a
block to paste into the user of a nats-server configuration, and the least right
at the hub. They are just those of this configuration: after a change, print them
again. With storage.create: false they are fewer; then somebody else makes the
streams and buckets.

Secrets are not read. Of a NATS context its prefixes are.
"downlink check --connect" tries each of them.`,
		Example: `  downlink permissions bridge.yaml
  downlink permissions downlink.yaml --side relay --json`,
		Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := f.load(args[0], true)
			if err != nil {
				return err
			}
			var list []*app.Rights
			if c.Bridge != nil {
				r, err := app.BridgeRights(c.Bridge)
				if err != nil {
					return asUsage(err)
				}
				list = append(list, r)
			}
			if c.Relay != nil {
				r, err := app.RelayRights(c.Relay)
				if err != nil {
					return asUsage(err)
				}
				list = append(list, r)
			}
			if asJSON {
				return json.NewEncoder(s.out).Encode(rightsJSON(list))
			}
			for i, r := range list {
				if i > 0 {
					fmt.Fprintln(s.out)
				}
				if _, err := fmt.Fprint(s.out, rightsText(r)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array, an object a side")
	return cmd
}

// sideRights are a side's rights for programs: each with its reason, and as nats-server's permissions.
type sideRights struct {
	*app.Rights
	Permissions map[string]map[string][]string `json:"permissions"`
}

func rightsJSON(list []*app.Rights) []sideRights {
	out := []sideRights{}
	for _, r := range list {
		p := map[string]map[string][]string{}
		for _, op := range []string{"publish", "subscribe"} {
			var subjects []string
			for _, right := range r.NATS {
				if right.Op == op {
					subjects = append(subjects, right.Subject)
				}
			}
			p[op] = map[string][]string{"allow": subjects}
			if len(subjects) == 0 {
				p[op] = map[string][]string{"deny": {">"}} // an empty list would allow all
			}
		}
		out = append(out, sideRights{r, p})
	}
	return out
}

func rightsText(r *app.Rights) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# NATS: what the login of %s %s needs, and no more.\n", r.Side, r.Name)
	if r.Embedded {
		b.WriteString("# Its server runs in its own process and asks for no login; this is for one that does.\n")
	}
	b.WriteString(natsio.Permissions(r.NATS, ""))
	for _, note := range r.Notes {
		b.WriteString("# Note: " + note + ".\n")
	}
	for _, h := range r.Hubs {
		who := "hub " + h.Hub
		if h.Device != "" {
			who = "device " + h.Device
		}
		fmt.Fprintf(&b, "\n# At the %s: %s.\n", who, h.Text)
		for _, need := range h.Needs {
			b.WriteString("#   " + need + "\n")
		}
		if h.Source != "" {
			b.WriteString("#   (" + h.Source + ")\n")
		}
	}
	return b.String()
}
