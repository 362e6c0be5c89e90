package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"downlink/bridge/tcplink"
	"downlink/cmd/downlink/process"
)

// The actors: one process each.
const (
	actorNATS   = "nats"   // in the cloud
	actorEdge   = "edge"   // the NATS beside the devices
	actorHub    = "hub"    //
	actorBridge = "bridge" //
	actorRelay  = "relay"  // of the healthy devices
	actorAway   = "away"   // the relay of those that are often away
)

// startLimit is how long a process may take to say that it has started, on a busy machine.
const startLimit = 60 * time.Second

// askLimit is how long the hub or a NATS server may take to answer, on a busy machine.
const askLimit = 15 * time.Second

// actor is one process of the stage, in one life after the other.
type actor struct {
	name string
	args func() []string

	mu   sync.Mutex
	life *process.Process // nil: not running
}

// stage is the processes and the links between them.
type stage struct {
	o       Options
	dir     string
	devices []device
	http    *http.Client
	actors  map[string]*actor
	links   map[string]*tcplink.Link

	mu    sync.Mutex
	lives []*process.Process // every one that was ever started
	urls  map[string]string  // of the NATS servers, as of their last start
	hub   hubReady
}

// hubReady is what `downlink hub --json` says.
type hubReady struct {
	AMQPS   string            `json:"amqps"`
	MQTTS   string            `json:"mqtts"`
	HTTP    string            `json:"http"`
	CAFile  string            `json:"ca_file"`
	Service string            `json:"service_connection_string"`
	Devices map[string]string `json:"devices"`
}

// linkNames are CLIENT-SERVER; the publisher's is never cut.
var linkNames = []string{"bridge-nats", "bridge-hub", "relay-hub", "relay-edge", "away-hub", "away-edge", "publisher-nats"}

// raise starts everything. On failure the caller calls fall all the same.
func (s *stage) raise(ctx context.Context) error {
	s.actors = map[string]*actor{
		actorNATS: {args: func() []string { return s.natsArgs(actorNATS) }}, actorEdge: {args: func() []string { return s.natsArgs(actorEdge) }},
		actorHub: {args: s.hubArgs}, actorBridge: {args: s.bridgeArgs},
		actorRelay: {args: func() []string { return []string{"relay", "-c", s.file("relay.yaml")} }},
		actorAway:  {args: func() []string { return []string{"relay", "-c", s.file("away.yaml")} }},
	}
	s.links, s.urls = make(map[string]*tcplink.Link), make(map[string]string)
	for name, a := range s.actors {
		a.name = name
	}
	for _, name := range linkNames {
		l, err := tcplink.Listen("127.0.0.1:1") // until its server has started
		if err != nil {
			return err
		}
		s.links[name] = l
	}
	for _, name := range []string{actorNATS, actorEdge, actorHub} {
		if err := s.start(ctx, name); err != nil {
			return err
		}
	}
	return s.writeConfigs()
}

func (s *stage) file(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) natsArgs(name string) []string {
	return []string{"soak", "nats", "--store-dir", s.file(name + "-store")}
}

func (s *stage) hubArgs() []string {
	args := []string{
		"hub", "--json", "--data-dir", s.file("hub"), "--journal", s.journal(), "--feedback-every", "1s",
		"--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0",
	}
	for _, d := range s.devices {
		if d.role != unknown {
			args = append(args, "--device", d.id)
		}
		switch d.role {
		case taking:
			args = append(args, "--virtual", d.id+"=complete:20ms")
		case coming:
			args = append(args, "--virtual", d.id+"=complete:20ms,online=4s,offline=4s")
		case refusing:
			args = append(args, "--virtual", d.id+"=reject:20ms")
		}
	}
	return args
}

func (s *stage) journal() string { return s.file("hub-journal.jsonl") }

func (s *stage) bridgeArgs() []string {
	args := []string{"bridge", "-c", s.file("bridge.yaml")}
	if s.o.Sabotage != "" {
		args = append([]string{"soak"}, append(args, "--sabotage", s.o.Sabotage)...)
	}
	return args
}

// start starts an actor that is not running, and returns when it has said where it is.
func (s *stage) start(ctx context.Context, name string) error {
	a := s.actors[name]
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.life != nil {
		return nil
	}
	s.mu.Lock()
	life := fmt.Sprintf("%s-%d", name, len(s.lives)+1)
	s.mu.Unlock()
	p, err := process.Start(life, s.file(life+".log"), s.o.Program, append(a.args(), "--log-format", "json", "--log-level", "debug")...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.lives = append(s.lives, p)
	s.mu.Unlock()
	a.life = p
	return s.locate(ctx, name, p)
}

// locate waits for an actor to say where it is, and has the links follow it.
func (s *stage) locate(ctx context.Context, name string, p *process.Process) error {
	switch name {
	case actorNATS, actorEdge:
		var at struct{ URL string }
		if err := said(ctx, p, `"event":"ready"`, &at); err != nil {
			return err
		}
		s.mu.Lock()
		s.urls[name] = at.URL
		s.mu.Unlock()
		s.follow(name, strings.TrimPrefix(at.URL, "nats://"))
	case actorHub:
		var at hubReady
		if err := said(ctx, p, `"event":"ready"`, &at); err != nil {
			return err
		}
		s.mu.Lock()
		s.hub = at
		s.mu.Unlock()
		s.links["bridge-hub"].Target(at.AMQPS)
		s.links["relay-hub"].Target(at.MQTTS)
		s.links["away-hub"].Target(at.MQTTS)
	}
	return nil
}

func (s *stage) follow(server, address string) {
	for name, l := range s.links {
		if strings.HasSuffix(name, "-"+server) {
			l.Target(address)
		}
	}
}

// said waits for a line of JSON in a process's log.
func said(ctx context.Context, p *process.Process, text string, into any) error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if line, ok := p.Line(text); ok {
			if err := json.Unmarshal([]byte(line), into); err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Ended():
			return fmt.Errorf("%s ended before it was ready: %s", p.Name, strings.TrimSpace(p.Tail(3)))
		case <-limit.C:
			return fmt.Errorf("%s: not ready after %v", p.Name, startLimit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// kill kills an actor -9, if it runs.
func (s *stage) kill(name string) {
	a := s.actors[name]
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.life != nil {
		a.life.Kill()
		a.life = nil
	}
}

// endLimit is how long a process may take to end in good order: its shutdown_grace, and some more.
const endLimit = 30 * time.Second

// end ends an actor in good order, if it runs.
func (s *stage) end(ctx context.Context, name string) error {
	a := s.actors[name]
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.life == nil {
		return nil
	}
	if err := a.life.Terminate(); err != nil {
		return err
	}
	limit := time.NewTimer(endLimit)
	defer limit.Stop()
	select {
	case <-a.life.Ended():
		a.life = nil
		return nil
	case <-limit.C:
		return fmt.Errorf("%s: still runs %v after SIGTERM: %s", a.life.Name, endLimit, strings.TrimSpace(a.life.Tail(3)))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// running is an actor's process; nil if it does not run.
func (s *stage) running(name string) *process.Process {
	a := s.actors[name]
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.life
}

// fall ends everything, whatever state it is in.
func (s *stage) fall() {
	s.mu.Lock()
	lives := slices.Clone(s.lives)
	s.mu.Unlock()
	for _, p := range slices.Backward(lives) {
		p.Kill()
	}
	for _, l := range s.links {
		l.Close()
	}
	s.http.CloseIdleConnections()
}

// surprise is an error if a process has ended that nobody had told to.
func (s *stage) surprise() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.lives {
		if err := p.Surprise(); err != nil {
			errs = append(errs, fmt.Errorf("%w\n%s", err, p.Tail(15)))
		}
	}
	return errors.Join(errs...)
}

func (s *stage) url(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.urls[name]
}

func (s *stage) hubPages() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hub.HTTP
}

// script has the hub misbehave. It fails while the hub is away.
func (s *stage) script(ctx context.Context, rule string) error {
	return s.call(ctx, http.MethodPost, "/admin/faults", "text/plain", rule, nil)
}

// heal ends what is scripted.
func (s *stage) heal(ctx context.Context) error {
	return s.call(ctx, http.MethodDelete, "/admin/faults", "", "", nil)
}

// disconnect cuts a device's connection at the hub.
func (s *stage) disconnect(ctx context.Context, device string) error {
	return s.call(ctx, http.MethodDelete, "/admin/devices/"+url.PathEscape(device)+"/connection", "", "", nil)
}

// expire lets all tokens expire now.
func (s *stage) expire(ctx context.Context) error {
	return s.call(ctx, http.MethodPost, "/admin/expire", "application/json", `{"devices":"*","services":true}`, nil)
}

// pending is how many messages the hub holds for its devices.
func (s *stage) pending(ctx context.Context) (n int, err error) {
	var status struct {
		Devices map[string]struct{ Pending int }
	}
	if err := s.call(ctx, http.MethodGet, "/status", "", "", &status); err != nil {
		return 0, err
	}
	for _, d := range status.Devices {
		n += d.Pending
	}
	return n, nil
}

// errBadOrder is for an order that the hub does not understand: our mistake, unlike a hub that is away.
var errBadOrder = errors.New("the hub does not understand that")

func (s *stage) call(ctx context.Context, method, path, contentType, body string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.hubPages()+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	answer, err := s.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(answer.Body); err != nil {
		return err
	}
	if answer.StatusCode == http.StatusBadRequest {
		return fmt.Errorf("%s %s %q: %w: %s", method, path, body, errBadOrder, strings.TrimSpace(b.String()))
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, strings.TrimSpace(b.String()))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b.Bytes(), into)
}

// writeConfigs writes the files of bridge and relays, who reach everything through links.
func (s *stage) writeConfigs() error {
	ready := s.hub
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
http: 127.0.0.1:0
bridge:
  name: %s
  nats: {url: ["nats://%s"]}
  hubs:
    - {connection_string: %q, amqp_address: %q, ca_file: %q}
  routes:
%s`, bridgeName, s.links["bridge-nats"].Addr(), ready.Service, s.links["bridge-hub"].Addr(), ready.CAFile, routes)
	return errors.Join(
		os.WriteFile(s.file("bridge.yaml"), []byte(b.String()), 0o600),
		s.writeRelay(actorRelay, siteName, healthy, watching), s.writeRelay(actorAway, siteName+"-away", away))
}

func (s *stage) writeRelay(actor, name string, roles ...role) error {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
http: 127.0.0.1:0
relay:
  name: %s
  nats: {url: ["nats://%s"]}
  publish: {subject: 'edge.{device}.{property["verb"]}', stream: %s, create: true}
  devices:
`, name, s.links[actor+"-edge"].Addr(), streamEdge)
	for _, d := range s.devices {
		if slices.Contains(roles, d.role) {
			fmt.Fprintf(&b, "    - {connection_string: %q, mqtt_address: %q, ca_file: %q}\n", s.hub.Devices[d.id], s.links[actor+"-hub"].Addr(), s.hub.CAFile)
		}
	}
	return os.WriteFile(s.file(actor+".yaml"), []byte(b.String()), 0o600)
}
