package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"downlink/bridge/natsio"
)

// bridgePages asks a running bridge's /readyz and /status.
type bridgePages struct {
	base   string // "": it serves none
	client *http.Client
}

func newBridgePages(base string) *bridgePages {
	// Not by a proxy, which a machine may have set.
	return &bridgePages{base: base, client: &http.Client{Transport: &http.Transport{}, Timeout: 3 * time.Second}}
}

func (p *bridgePages) close() { p.client.CloseIdleConnections() }

func (p *bridgePages) get(ctx context.Context, page string) (body []byte, code int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+page, nil)
	if err != nil {
		return nil, 0, err
	}
	res, err := p.client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, 4<<20))
	return body, res.StatusCode, err
}

// pagesSeen is what the pages say. Fields that we do not know, and those that another
// version does not have, do no harm.
type pagesSeen struct {
	ready   bool
	missing []string
	version string
	engine  engineStatus
	links   map[string]linkStatus
	streams map[string]natsio.LeaseStatus
	has     bool // a bridge runs there
}

// engineStatus is the bridge's part of /status, as far as it is shown.
type engineStatus struct {
	Accepted uint64            `json:"accepted"`
	Dead     uint64            `json:"dead"`
	Waiting  uint64            `json:"waiting"`
	Hubs     []engineHubStatus `json:"hubs"`
}

type engineHubStatus struct {
	Name         string          `json:"name"`
	State        string          `json:"state"`
	Cause        string          `json:"cause"`
	Until        time.Time       `json:"until"`
	InFlight     int             `json:"in_flight"`
	Window       int             `json:"window"`
	Lanes        int             `json:"lanes"`
	LanesWaiting int             `json:"lanes_waiting"`
	Waiting      int             `json:"waiting"`
	Pace         json.RawMessage `json:"pace"`
}

// paceStatus is a hub's pace.
type paceStatus struct {
	Rate   float64 `json:"rate,omitempty"`   // messages a second
	Source string  `json:"source,omitempty"` // tier, learned, …
	Used   int64   `json:"used,omitempty"`   // of today's quota
	Limit  int64   `json:"limit,omitempty"`
}

func (h *engineHubStatus) pace() *paceStatus {
	var p paceStatus
	if len(h.Pace) == 0 || json.Unmarshal(h.Pace, &p) != nil || p == (paceStatus{}) {
		return nil
	}
	return &p
}

// linkStatus is a connection to a hub.
type linkStatus struct {
	Connected    bool      `json:"connected"`
	Since        time.Time `json:"since"`
	Reconnects   int       `json:"reconnects"`
	TokenExpires time.Time `json:"token_expires"`
}

// look asks both pages. The error says that nothing of use answers there.
func (p *bridgePages) look(ctx context.Context) (*pagesSeen, error) {
	body, code, err := p.get(ctx, "/status")
	if err != nil {
		return nil, fmt.Errorf("%s does not answer (is the bridge up, and is that its address?): %w", p.base, shortest(err))
	}
	var parts map[string]json.RawMessage
	if code != http.StatusOK || json.Unmarshal(body, &parts) != nil || parts["ready"] == nil {
		return nil, fmt.Errorf("%s/status is no page of downlink (status %d): is that the bridge's address?", p.base, code)
	}
	s := &pagesSeen{links: make(map[string]linkStatus), streams: make(map[string]natsio.LeaseStatus)}
	for name, part := range parts {
		hub, isHub := strings.CutPrefix(name, "hub ")
		stream, isStream := strings.CutPrefix(name, "stream ")
		switch {
		case name == "version":
			_ = json.Unmarshal(part, &s.version)
		case name == "bridge":
			s.has = json.Unmarshal(part, &s.engine) == nil
		case isHub:
			var l linkStatus
			if json.Unmarshal(part, &l) == nil {
				s.links[hub] = l
			}
		case isStream:
			var l natsio.LeaseStatus
			if json.Unmarshal(part, &l) == nil {
				s.streams[stream] = l
			}
		}
	}
	if !s.has {
		return nil, fmt.Errorf("no bridge runs in the process at %s (a relay?): is that the bridge's address?", p.base)
	}
	body, code, err = p.get(ctx, "/readyz")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.base, shortest(err))
	}
	s.ready = code == http.StatusOK
	if !s.ready {
		for line := range strings.Lines(string(body)) {
			if line = strings.TrimSpace(line); line != "" && line != "not ready" {
				s.missing = append(s.missing, line)
			}
		}
	}
	return s, nil
}

// shortest is the innermost cause: http's own text repeats the URL.
func shortest(err error) error {
	for {
		inner, ok := err.(interface{ Unwrap() error }) //nolint:errorlint // step by step
		if !ok || inner.Unwrap() == nil {
			return err
		}
		err = inner.Unwrap()
	}
}
