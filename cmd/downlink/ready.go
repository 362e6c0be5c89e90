package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newReadyCmd asks a running process whether it is ready: a health check for
// containers, whose image has neither a shell nor curl.
func newReadyCmd(s streams) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "ready [URL]",
		Short: "Ask a bridge, relay or hub that runs whether it is ready",
		Long: `Ask a process of downlink that runs whether it is ready, at URL/readyz, and print
what it says. The exit code is 0 if it is ready, and 1 if it is not or does not
answer. Without a URL that is http://127.0.0.1:9464, a bridge's; a relay's
default is 127.0.0.1:9465, and an embedded hub's 127.0.0.1:9466.`,
		Example: "  downlink ready\n  downlink ready http://127.0.0.1:9466",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("ready: unexpected argument %q", args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			base := "http://127.0.0.1:9464"
			if len(args) > 0 {
				base = args[0]
			}
			if u, err := url.Parse(base); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				return usagef("ready: %q is no URL such as http://127.0.0.1:9464", base)
			}
			if timeout <= 0 {
				return usagef("--timeout: %v is not above 0", timeout)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return askReady(ctx, s, strings.TrimSuffix(base, "/")+"/readyz")
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

func askReady(ctx context.Context, s streams, page string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return usagef("ready: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	res, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 64*1024))
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	if _, err := s.out.Write(text); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New("not ready: " + page + " answers " + res.Status)
	}
	return nil
}
