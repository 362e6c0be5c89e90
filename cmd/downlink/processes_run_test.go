//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/hubdevice"
	"downlink/cmd/downlink/process"
)

// waitLimit bounds each wait: several times what a take-over takes, on a busy machine.
const waitLimit = 2 * time.Minute

// landscape is the four processes, and the test's own connection to NATS.
type landscape struct {
	t     *testing.T
	dir   string
	began time.Time
	http  *http.Client

	all                       []*process.Process // every one that was ever started, in order
	nats, hub, bridge, relay  *process.Process
	natsURL, bridgeURL, store string
	relayURL                  string
	ready                     hubReady // of the hub
	nc                        *nats.Conn
	js                        jetstream.JetStream
}

// newLandscape builds the binaries and starts all four.
func newLandscape(t *testing.T, devices []string) *landscape {
	t.Helper()
	dir := t.TempDir()
	l := &landscape{t: t, dir: dir, began: time.Now(), store: filepath.Join(dir, "store"),
		http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}}
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", dir+string(filepath.Separator), ".", "github.com/nats-io/nats-server/v2")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(l.end)
	l.say("built")

	l.startNATS(freeAddress(t))
	l.startHub(devices)
	l.writeConfigs(devices)
	l.connect()
	l.startBridge()
	l.startRelay()
	l.awaitReady(l.bridgeURL)
	l.awaitReady(l.relayURL)
	l.say("all four are ready")
	return l
}

// say logs a step with the time since the start.
func (l *landscape) say(format string, args ...any) {
	l.t.Helper()
	l.t.Logf("%5.1fs  %s", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// start starts a program whose output goes to a file of its own.
func (l *landscape) start(name, program string, args ...string) *process.Process {
	l.t.Helper()
	name = fmt.Sprintf("%s-%d", name, len(l.all)+1)
	p, err := process.Start(name, filepath.Join(l.dir, name+".log"), filepath.Join(l.dir, program), args...)
	require.NoError(l.t, err)
	l.all = append(l.all, p)
	return p
}

func (l *landscape) freeze(p *process.Process) {
	l.t.Helper()
	require.NoError(l.t, p.Freeze())
}

func (l *landscape) wake(p *process.Process) {
	l.t.Helper()
	require.NoError(l.t, p.Wake())
}

// end ends whatever runs, and after a failure shows what the processes said last.
func (l *landscape) end() {
	if l.nc != nil {
		l.nc.Close()
	}
	for _, p := range slices.Backward(l.all) { // the servers last, so that their clients' logs end well
		p.Kill()
	}
	l.http.CloseIdleConnections()
	if !l.t.Failed() {
		return
	}
	for _, p := range l.all {
		l.t.Logf("the end of the log of %s:\n%s", p.Name, p.Tail(25))
	}
}

// await polls until done reports nil, and fails the test with its last answer
// when that takes too long or a process ends by itself.
func (l *landscape) await(what string, done func() error) {
	l.t.Helper()
	deadline := time.After(waitLimit)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		for _, p := range l.all {
			require.NoError(l.t, p.Surprise())
		}
		select {
		case <-tick.C:
		case <-deadline:
			l.t.Fatalf("waited %s for %s: %v", waitLimit, what, err)
		}
	}
}

// logged waits for a line of a process's log that has text in it.
func (l *landscape) logged(p *process.Process, text string) string {
	l.t.Helper()
	var found string
	l.await(text+" in the log of "+p.Name, func() error {
		line, ok := p.Line(text)
		found = line
		return orNot(nil, ok, "not there")
	})
	return found
}

// startNATS starts the nats-server on the one store; after the first time at the same address.
func (l *landscape) startNATS(address string) {
	l.t.Helper()
	file := filepath.Join(l.dir, "nats.conf")
	writeTo(l.t, file, fmt.Sprintf("listen: %q\njetstream {store_dir: %q, sync_interval: always}\n", address, l.store))
	l.nats = l.start("nats", "nats-server", "-c", file)
	line := strings.TrimSpace(l.logged(l.nats, "Listening for client connections on "))
	l.natsURL = "nats://" + line[strings.LastIndexByte(line, ' ')+1:]
	l.logged(l.nats, "Server is ready")
}

func (l *landscape) startHub(devices []string) {
	l.t.Helper()
	args := []string{"hub", "--json", "--data-dir", filepath.Join(l.dir, "hub"), "--log-format", "json", "--log-level", "debug",
		"--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0"}
	for _, d := range devices {
		args = append(args, "--device", d)
	}
	l.hub = l.start("hub", "downlink", args...)
	require.NoError(l.t, json.Unmarshal([]byte(l.logged(l.hub, `"event":"ready"`)), &l.ready))
}

func (l *landscape) writeConfigs(devices []string) {
	l.t.Helper()
	writeTo(l.t, filepath.Join(l.dir, "bridge.yaml"), fmt.Sprintf(`version: 1
http: 127.0.0.1:0
log: {level: debug, format: json}
bridge:
  name: cloud
  nats: {url: [%q]}
  hubs:
    - {connection_string: %q, amqp_address: %q, ca_file: %q}
  routes:
    - name: commands
      subject: "cmd.{site}.{pump}.{verb}"
      stream: COMMANDS
      create: true
      start: all
      device: "{site}-{pump}"
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "X-*"}
`, l.natsURL, l.ready.ServiceConnectionString, l.ready.AMQPS, l.ready.CAFile))

	var list strings.Builder
	for _, d := range devices {
		fmt.Fprintf(&list, "    - {connection_string: %q, mqtt_address: %q, ca_file: %q}\n", l.ready.Devices[d], l.ready.MQTTS, l.ready.CAFile)
	}
	writeTo(l.t, filepath.Join(l.dir, "relay.yaml"), fmt.Sprintf(`version: 1
http: 127.0.0.1:0
log: {level: debug, format: json}
relay:
  name: site
  nats: {url: [%q]}
  devices:
%s  publish:
    subject: 'edge.{device}.{property["verb"]}'
    stream: EDGE
    create: true
`, l.natsURL, list.String()))
}

func (l *landscape) startBridge() {
	l.t.Helper()
	l.bridge = l.start("bridge", "downlink", "bridge", "-c", filepath.Join(l.dir, "bridge.yaml"))
	l.bridgeURL = l.pages(l.bridge)
}

func (l *landscape) startRelay() {
	l.t.Helper()
	l.relay = l.start("relay", "downlink", "relay", "-c", filepath.Join(l.dir, "relay.yaml"))
	l.relayURL = l.pages(l.relay)
}

// pages is where a process that was told port 0 serves its pages.
func (l *landscape) pages(p *process.Process) string {
	l.t.Helper()
	var line struct{ HTTP string }
	require.NoError(l.t, json.Unmarshal([]byte(l.logged(p, `"msg":"started"`)), &line))
	return "http://" + line.HTTP
}

func (l *landscape) awaitReady(url string) {
	l.t.Helper()
	l.await(url+"/readyz", func() error {
		_, err := l.page(url + "/readyz")
		return err
	})
}

func (l *landscape) page(url string) ([]byte, error) {
	r, err := l.http.Get(url) //nolint:noctx // the client has a time-out
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(b.String()))
	}
	return b.Bytes(), nil
}

func (l *landscape) connect() {
	l.t.Helper()
	var err error
	l.nc, err = nats.Connect(l.natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.Timeout(patience))
	require.NoError(l.t, err)
	l.js, err = jetstream.New(l.nc, jetstream.WithDefaultTimeout(10*time.Second))
	require.NoError(l.t, err)
}

// consumer is what JetStream says of the bridge's consumer.
func (l *landscape) consumer() (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	c, err := l.js.Consumer(ctx, "COMMANDS", "downlink-cloud")
	if err != nil {
		return nil, err
	}
	return c.CachedInfo(), nil
}

// stored is how many messages a stream holds.
func (l *landscape) stored(stream string) (int, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	s, err := l.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return int(s.CachedInfo().State.Msgs), nil
}

// inHands is how many messages the relay has received and not completed.
func (l *landscape) inHands() (int, error) {
	body, err := l.page(l.relayURL + "/status")
	if err != nil {
		return 0, err
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(body, &parts); err != nil {
		return 0, err
	}
	n := 0
	for name, part := range parts {
		if !strings.HasPrefix(name, "relay ") {
			continue
		}
		var s struct{ Hub hubdevice.Stats }
		if err := json.Unmarshal(part, &s); err != nil {
			return 0, err
		}
		n += s.Hub.Unacked
	}
	return n, nil
}

// books are the hub's counts, summed up over the devices.
type books struct {
	c2d.Counts
	Pending, Connected int
}

// unacked is how many messages were handed to a device and have no PUBACK.
// Right as long as messages end in no other way, which the test's end checks.
func (b books) unacked() int { return int(b.Delivered - b.Redelivered - b.Completed) }

// books reads the hub's status page; all devices for none.
func (l *landscape) books(devices ...string) (books, error) {
	body, err := l.page(l.ready.HTTP + "/status")
	if err != nil {
		return books{}, err
	}
	var s hubStatus
	if err := json.Unmarshal(body, &s); err != nil {
		return books{}, err
	}
	if len(devices) == 0 {
		devices = slices.Collect(maps.Keys(s.Devices))
	}
	var sum books
	for _, id := range devices {
		d := s.Devices[id]
		sum.Pending += d.Pending
		if d.Connected {
			sum.Connected++
		}
		sum.Accepted += d.Counts.Accepted
		sum.Refused += d.Counts.Refused
		sum.Delivered += d.Counts.Delivered
		sum.Redelivered += d.Counts.Redelivered
		sum.Completed += d.Counts.Completed
		sum.Expired += d.Counts.Expired
		sum.Exceeded += d.Counts.Exceeded
		sum.Rejected += d.Counts.Rejected
		sum.Purged += d.Counts.Purged
	}
	return sum, nil
}
