// Package inspect is how people and tests look into a running hub, and make it
// misbehave: JSON over HTTP, under /inspect (which changes nothing) and /admin.
// It has no authentication: whoever serves it keeps it on a loopback address, or
// means to show it.
package inspect

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/telemetry"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
)

// Hub is what is inspected; *emulator.Hub is one.
type Hub interface {
	Hostname() string
	DevicePage(prefix, after string, n int) []string
	Device(id string) (c2d.Device, error)
	Queue(id string) []c2d.Pending
	Counts(id string) c2d.Counts
	Log(id string) []c2d.Record
	Statistics() (total, disabled, connected int)
	UnknownSends() int
	Connections() []mqttd.Connection
	VirtualConnections() []virtual.Connection
	ServiceConnections() int
	Telemetry() *telemetry.Log
	Feedback() *feedback.Queue
	Throttle() throttle.Status
	Faults() *fault.Injector
	PurgeDevice(id string) (int, error)
	DisconnectDevice(id string) bool
	ExpireTokens(pattern string) int
	ExpireServiceTokens() int
}

// Options make the pages.
type Options struct {
	Hub Hub // required
	// Loopback says that the pages are on a loopback address: then they answer
	// only to a Host that is an IP address or localhost, so that no web page
	// reaches them through a name of its own.
	Loopback bool
	Logger   *slog.Logger // nil: discard
}

// Prefixes are the beginnings of the paths that the handler serves.
func Prefixes() []string { return []string{"/inspect", "/admin"} }

const maxBody = 64 * 1024

type pages struct {
	hub      Hub
	loopback bool
	log      *slog.Logger
}

// New returns the handler.
func New(o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &pages{hub: o.Hub, loopback: o.Loopback, log: o.Logger.With("component", "inspect")}
	return http.NewCrossOriginProtection().Handler(p)
}

// handler serves one page; its answer is JSON, an error is a line of text.
type handler func(ctx context.Context, r *http.Request) (any, error)

// failure is an error with its HTTP status.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

func bad(text string) error { return &failure{http.StatusBadRequest, text} }

// ServeHTTP routes by the raw path: a device ID is one percent-encoded segment, and "." is a legal one.
func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.loopback && !local(r.Host) {
		http.Error(w, "this page answers to an IP address or localhost alone", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	path := strings.Split(strings.Trim(r.URL.EscapedPath(), "/"), "/")
	for i, s := range path {
		decoded, err := url.PathUnescape(s)
		if err != nil {
			http.Error(w, "the path is not percent-encoded correctly", http.StatusBadRequest)
			return
		}
		path[i] = decoded
	}
	serve := p.route(r.Method, path)
	if serve == nil {
		http.Error(w, "no such page: see /inspect, /inspect/devices, /inspect/devices/ID, /inspect/devices/ID/log, /inspect/connections, /inspect/telemetry, /admin/faults", http.StatusNotFound)
		return
	}
	out, err := serve(r.Context(), r)
	if err != nil {
		status := http.StatusInternalServerError
		switch e := err.(type) { //nolint:errorlint // they come unwrapped
		case *failure:
			status = e.status
		case *c2d.Refusal:
			status = e.Code / 1000
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		p.log.Debug("page not sent", "err", err)
	}
}

func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}

func (p *pages) route(method string, path []string) handler {
	call := method + " " + path[0]
	if len(path) > 1 {
		call += "/" + path[1]
	}
	switch len(path) {
	case 1, 2:
		switch call {
		case "GET inspect":
			return p.summary
		case "GET inspect/devices":
			return p.devices
		case "GET inspect/connections":
			return p.connections
		case "GET inspect/telemetry":
			return p.telemetry
		case "GET admin/faults":
			return p.faults
		case "POST admin/faults":
			return p.script
		case "DELETE admin/faults":
			return p.clear
		case "POST admin/expire":
			return p.expire
		}
	case 3:
		switch call {
		case "GET inspect/devices":
			return with(path[2], p.device)
		case "DELETE admin/faults":
			return with(path[2], p.remove)
		}
	case 4:
		switch call + "/" + path[3] {
		case "GET inspect/devices/log":
			return with(path[2], p.records)
		case "DELETE admin/devices/queue":
			return with(path[2], p.purge)
		case "DELETE admin/devices/connection":
			return with(path[2], p.disconnect)
		}
	}
	return nil
}

func with(name string, f func(name string) (any, error)) handler {
	return func(context.Context, *http.Request) (any, error) { return f(name) }
}

// number reads a number from the query, or gives a default; it is at most limit.
func number(r *http.Request, name string, otherwise, limit uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, bad(name + ": " + strconv.Quote(text) + " is no number")
	}
	return min(n, limit), nil
}

// when is nil for a time that never was.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
