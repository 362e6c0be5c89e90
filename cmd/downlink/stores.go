package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
)

// storeFlags find what a bridge keeps on NATS: by its configuration file, or by
// the flags for a connection and the bridge's name.
type storeFlags struct {
	nats       natsFlags
	configFile string
	name       string
}

func (f *storeFlags) register(cmd *cobra.Command) {
	f.nats.register(cmd)
	cmd.Flags().StringVarP(&f.configFile, "config", "c", "", "take the bridge's name and NATS from this configuration file; connection flags precede it")
	cmd.Flags().StringVar(&f.name, "name", "", "the bridge's name (default: the file's, else downlink)")
}

// connectionFlags are those that say where NATS is, or who asks.
var connectionFlags = []string{"server", "context", "creds", "nkey-file", "token-file", "user", "password-file", "tls-ca", "tls-cert", "tls-key"}

// stores is a connection to the NATS of a bridge.
type stores struct {
	conn   *natsio.Conn
	name   string
	config *config.Config // nil without -c
}

// load reads the configuration file, if one was given, without the secrets in it.
func (f *storeFlags) load() (*config.Config, error) {
	if f.configFile == "" {
		if f.nats.given("config") {
			return nil, usagef("-c is empty")
		}
		return nil, nil
	}
	c, err := config.Load(f.configFile, config.LoadOptions{Side: config.BridgeSide, SkipSecrets: true})
	if err != nil {
		return nil, asUsage(err)
	}
	if c.Bridge == nil {
		return nil, usagef("%s: it has no bridge section", f.configFile)
	}
	return c, nil
}

// open connects. client is how servers list the connection.
func (f *storeFlags) open(ctx context.Context, client string, log *slog.Logger) (*stores, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	return f.connect(ctx, c, client, log)
}

func (f *storeFlags) connect(ctx context.Context, c *config.Config, client string, log *slog.Logger) (*stores, error) {
	s := &stores{name: "downlink", config: c}
	if c != nil {
		s.name = c.Bridge.Name
	}
	if f.name != "" {
		s.name = f.name
	} else if f.nats.given("name") {
		return nil, usagef("--name is empty")
	}
	if strings.ContainsAny(s.name, ".*> \t\r\n/\\") {
		return nil, usagef("--name: %q is no bridge's name: it is one token of a subject", s.name)
	}
	var err error
	if c == nil || f.ownConnection() {
		s.conn, err = f.nats.connect(ctx, client, log)
		return s, err
	}
	o, err := natsOptions(f.configFile, c.Bridge.NATS)
	if err != nil {
		return nil, err
	}
	o.Name, o.Logger = client, log
	s.conn, err = f.nats.dial(ctx, o)
	return s, err
}

func (f *storeFlags) ownConnection() bool {
	for _, name := range connectionFlags {
		if f.nats.given(name) {
			return true
		}
	}
	return false
}

// natsOptions say how to reach the NATS of a configuration from outside its process.
func natsOptions(file string, n config.NATS) (natsio.Options, error) {
	o := natsio.Options{
		URLs: n.URL, Context: n.Context, CredsFile: n.CredsFile, NKeyFile: n.NKeyFile, TokenFile: n.TokenFile,
		User: n.User, PasswordFile: n.PasswordFile, CAFile: n.TLS.CAFile, CertFile: n.TLS.CertFile, KeyFile: n.TLS.KeyFile,
	}
	if n.Embedded == nil {
		return o, nil
	}
	host, port, err := net.SplitHostPort(n.Embedded.Listen)
	if err != nil || port == "0" {
		return o, usagef("%s: bridge.nats.embedded.listen is %q, so its port is not known here: give --server", file, n.Embedded.Listen)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return natsio.Options{URLs: []string{"nats://" + net.JoinHostPort(host, port)}}, nil
}

// sourceStreams lists the configuration's streams, or without one those that the bridge has consumers of.
func sourceStreams(ctx context.Context, trail *natsio.Trail, c *config.Config) (names []string, err error) {
	if c == nil {
		return trail.Streams(ctx)
	}
	for _, route := range c.Bridge.Routes {
		if route.Stream != "" && !slices.Contains(names, route.Stream) {
			names = append(names, route.Stream)
		}
	}
	return names, nil
}

// missingStore words that a stream of a bridge is not there.
func missingStore(err error, name, what string) error {
	var missing *natsio.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	return fmt.Errorf("%w: no bridge named %s has kept %s on this NATS (is it the right server or context, and the right --name?)", err, name, what)
}

// moment reads a time, or how long ago it was: 90m, 36h, 7d, 2026-01-02, 2026-01-02T15:04:05Z.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("%s: %q is neither how long ago (90m, 36h, 7d) nor a time (2026-01-02, 2026-01-02T15:04:05Z; UTC)", flag, text)
}

// at is a time in tables.
func at(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// dash is a cell of a table.
func dash(s string) string { return visible(orDash(s)) }
