package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
)

func newStatusCmd(s streams, logs *logFlags) *cobra.Command {
	f := &statusFlags{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a bridge has to do, how fast it goes, and whether it is ready",
		Long: `Show a bridge: whether it is ready, and if not what is missing; how many messages
wait in its streams, in the mailbox and in memory, how fast they go out and how long
that takes at the hub's pace; each hub's state; and the dead letters.

It asks the bridge's own pages (-c FILE says where, or --http) and its NATS, and
shows what it can get: a bridge that is down leaves its backlog on NATS. The rate
is measured over --interval. The exit code is 0 if the bridge is ready, else 1.`,
		Example: `  downlink status -c bridge.yaml
  downlink status --http 127.0.0.1:9464 --server nats://127.0.0.1:4222 --json
  downlink status -c bridge.yaml --watch`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, s, logs) },
	}
	f.store.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.http, "http", "", "address of the bridge's pages (default: the file's, else 127.0.0.1:9464)")
	fs.BoolVar(&f.watch, "watch", false, "show it again and again, until Ctrl-C")
	fs.DurationVar(&f.interval, "interval", time.Second, "over how long the rate is measured, and how often --watch shows")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object, with --watch one a line each time")
	return cmd
}

type statusFlags struct {
	store         storeFlags
	http          string
	watch, asJSON bool
	interval      time.Duration
}

// errNotReady is the exit code of a bridge that is not ready; what is missing was shown.
var errNotReady = errors.New("the bridge is not ready")

func (f *statusFlags) run(cmd *cobra.Command, s streams, logs *logFlags) error {
	ctx := cmd.Context()
	if f.interval < 10*time.Millisecond {
		return usagef("--interval: %s is below 10ms", f.interval)
	}
	log, err := logs.ifAsked(s.err)
	if err != nil {
		return err
	}
	c, err := f.store.load()
	if err != nil {
		return err
	}
	base, err := f.pages(c)
	if err != nil {
		return err
	}
	w := &statusWatch{pages: newBridgePages(base), config: c, name: "downlink"}
	defer w.pages.close()
	st, err := f.store.connect(ctx, c, "downlink status", log)
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return err
	case err != nil:
		w.natsErr = err // the bridge may be reachable all the same
		w.name = cmp.Or(f.store.name, bridgeName(c))
	default:
		defer st.conn.Close()
		w.name = st.name
		if w.trail, err = natsio.NewTrail(st.conn, st.name); err != nil {
			return asUsage(err)
		}
		if w.letters, err = natsio.NewLetters(st.conn, st.name); err != nil {
			return asUsage(err)
		}
	}
	return f.show(ctx, s, w)
}

func (f *statusFlags) show(ctx context.Context, s streams, w *statusWatch) error {
	for first := true; ; first = false {
		if first {
			w.sample(ctx)
		}
		if err := pause(ctx, f.interval); err != nil {
			if f.watch {
				return nil
			}
			return err
		}
		r := w.report(ctx)
		if ctx.Err() != nil && f.watch {
			return nil
		}
		var err error
		if f.asJSON {
			err = r.encode(s.out)
		} else {
			if f.watch && terminal(s.out) {
				fmt.Fprint(s.out, "\x1b[H\x1b[2J")
			} else if !first {
				fmt.Fprintln(s.out)
			}
			err = r.print(s.out)
		}
		switch {
		case err != nil:
			return err
		case f.watch:
		case !r.Ready:
			return errNotReady
		default:
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func bridgeName(c *config.Config) string {
	if c == nil {
		return "downlink"
	}
	return c.Bridge.Name
}

// pages is the base URL of the bridge's pages; "" if it serves none.
func (f *statusFlags) pages(c *config.Config) (string, error) {
	address := f.http
	if address == "" && c != nil {
		if address = c.HTTP; address == "off" {
			return "", nil
		}
	}
	address = cmp.Or(address, "127.0.0.1:9464")
	if strings.Contains(address, "://") {
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return "", usagef("--http: %q is neither host:port nor a URL such as http://127.0.0.1:9464", address)
		}
		return strings.TrimSuffix(address, "/"), nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return "", usagef("--http: %q is neither host:port nor a URL such as http://127.0.0.1:9464", address)
	}
	if port == "0" {
		return "", usagef("%s: http is %q, so its port is not known here: give --http", f.store.configFile, address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}
