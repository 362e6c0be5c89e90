package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Ops serves /livez, /readyz, /metrics and /status for operators. It answers
// whoever reaches it, so its address is a loopback one unless the operator says otherwise.
type Ops struct {
	listener net.Listener
	server   *http.Server
}

// OpsOptions is what the pages show.
type OpsOptions struct {
	// Addr is host:port; port 0 picks a free one.
	Addr string
	// Ready reports nil, or what is missing, one line each.
	Ready func() error
	// Status is encoded as JSON.
	Status func() any
	// Gatherer gives the metrics.
	Gatherer prometheus.Gatherer
	// Pages serves the paths below Prefixes, such as /inspect; nil: nobody does.
	Pages    http.Handler
	Prefixes []string
	// Logger is told what the HTTP server complains about.
	Logger *slog.Logger
}

// NewOps binds the address. Run serves; Close frees the address if Run is never called.
func NewOps(o OpsOptions) (*Ops, error) {
	l, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("http: cannot listen on %s: %w; choose another address with --http, or --http off", o.Addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			text(w, http.StatusServiceUnavailable, "not ready\n"+err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(o.Status()); err != nil {
			o.Logger.Debug("status page", "err", err) // the reader went away
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{}))
	return &Ops{listener: l, server: &http.Server{
		Handler:           o.route(mux),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}}, nil
}

// route sends requests below the prefixes to their pages as they are: the mux
// would clean their paths.
func (o *OpsOptions) route(others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, prefix := range o.Prefixes {
			if r.URL.Path == prefix || strings.HasPrefix(r.URL.Path, prefix+"/") {
				o.Pages.ServeHTTP(w, r)
				return
			}
		}
		others.ServeHTTP(w, r)
	})
}

func text(w http.ResponseWriter, code int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	// A failed write means that the asker has gone: nobody is left to tell.
	_, _ = io.WriteString(w, s)
}

// Addr is the address bound.
func (o *Ops) Addr() string { return o.listener.Addr().String() }

// Run serves until ctx is done.
func (o *Ops) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { o.server.Close() })
	defer stop()
	if err := o.server.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close frees the address.
func (o *Ops) Close() error { return o.listener.Close() }
