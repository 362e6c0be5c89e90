package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"downlink/bridge/natsio"
)

// natsFlags say how to reach a NATS server: the nats block of the
// configuration file, as flags.
type natsFlags struct {
	servers              []string
	context              string
	creds, nkey          string
	token                string
	user, password       string
	caFile, cert, keyPEM string
	connectTimeout       time.Duration
	given                func(flag string) bool // whether a flag was on the command line
}

func (f *natsFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.given = fs.Changed
	fs.StringSliceVarP(&f.servers, "server", "s", nil, "NATS server URL, repeatable (default $NATS_URL or nats://127.0.0.1:4222)")
	fs.StringVar(&f.context, "context", "", "context of the nats CLI, instead of the other connection flags")
	fs.StringVar(&f.creds, "creds", "", "credentials file (JWT and seed)")
	fs.StringVar(&f.nkey, "nkey-file", "", "file with an nkey seed")
	fs.StringVar(&f.token, "token-file", "", "file with a token")
	fs.StringVar(&f.user, "user", "", "user name, with --password-file")
	fs.StringVar(&f.password, "password-file", "", "file with the user's password")
	fs.StringVar(&f.caFile, "tls-ca", "", "CA certificate to trust for the server")
	fs.StringVar(&f.cert, "tls-cert", "", "client certificate, with --tls-key")
	fs.StringVar(&f.keyPEM, "tls-key", "", "client key")
	fs.DurationVar(&f.connectTimeout, "connect-timeout", 5*time.Second, "how long to try to reach the server")
}

// connect returns once the connection stands, or says why it does not within --connect-timeout.
func (f *natsFlags) connect(ctx context.Context, name string, log *slog.Logger) (*natsio.Conn, error) {
	servers := f.servers
	if f.given != nil && f.given("server") && strings.Join(servers, "") == "" {
		return nil, usagef("--server is empty")
	}
	if len(servers) == 0 && f.context == "" {
		servers = []string{"nats://127.0.0.1:4222"}
		if env := os.Getenv("NATS_URL"); env != "" {
			servers = strings.Split(env, ",")
		}
	}
	for _, server := range servers {
		if scheme, _, ok := strings.Cut(server, "://"); ok && !slices.Contains([]string{"nats", "tls", "ws", "wss"}, strings.TrimSpace(scheme)) {
			return nil, usagef("NATS server %s://…: the scheme is not nats, tls, ws or wss", scheme)
		}
	}
	return f.dial(ctx, natsio.Options{
		Name: name, URLs: servers, Context: f.context,
		CredsFile: f.creds, NKeyFile: f.nkey, TokenFile: f.token, User: f.user, PasswordFile: f.password,
		CAFile: f.caFile, CertFile: f.cert, KeyFile: f.keyPEM, Logger: log,
	})
}

// dial connects as options say, within --connect-timeout.
func (f *natsFlags) dial(ctx context.Context, o natsio.Options) (*natsio.Conn, error) {
	if f.connectTimeout <= 0 {
		return nil, usagef("--connect-timeout: %s is not a time to wait", f.connectTimeout)
	}
	conn, err := natsio.Connect(o)
	if err != nil {
		return nil, asUsage(err)
	}
	if err := waitReady(ctx, f.connectTimeout, conn.Ready); err != nil {
		conn.Close()
		return nil, fmt.Errorf("NATS: %w", err)
	}
	return conn, nil
}

// waitReady polls ready until it is nil, and gives its last answer when the time is over.
func waitReady(ctx context.Context, limit time.Duration, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not ready within %s: %w", limit, err)
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}
