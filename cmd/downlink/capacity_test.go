//go:build linux

package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// BenchmarkHubCapacity fills a hub, a process of its own, with 100,000
// registered devices and then connects 10,000 of them over MQTT with TLS, each
// subscribed to its C2D messages and to what else an SDK subscribes to. It
// reports what the hub's memory is then.
func BenchmarkHubCapacity(b *testing.B) {
	const registered, connected = 100_000, 10_000
	enoughFiles(b, connected+500)
	dir := b.TempDir()
	binary := filepath.Join(dir, "downlink")
	out, err := exec.CommandContext(b.Context(), "go", "build", "-buildvcs=false", "-o", binary, ".").CombinedOutput()
	require.NoError(b, err, "%s", out)
	for b.Loop() {
		h := runBinary(b, binary, b.TempDir())
		start := h.rss(b)
		h.register(b, registered)
		full := h.rss(b)
		began := time.Now()
		devices := h.connect(b, connected)
		took := time.Since(began)
		idle := h.rss(b)

		var statistics struct{ ConnectedDeviceCount int }
		h.get(b, "/statistics/service", &statistics)
		require.Equal(b, connected, statistics.ConnectedDeviceCount)
		for _, d := range devices {
			d.Close()
		}
		b.ReportMetric(start, "MB-empty")
		b.ReportMetric(full, "MB-100k-registered")
		b.ReportMetric(idle, "MB-10k-connected")
		b.ReportMetric(connected/took.Seconds(), "connects/s")
		h.stop(b)
	}
}

// enoughFiles raises the limit of open files, which the hub inherits, or skips.
func enoughFiles(b *testing.B, want uint64) {
	b.Helper()
	var l syscall.Rlimit
	require.NoError(b, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
	if l.Cur >= want {
		return
	}
	if l.Max < want {
		b.Skipf("at most %d files may be open here, and this takes %d: raise the hard limit (ulimit -Hn)", l.Max, want)
	}
	l.Cur = l.Max
	require.NoError(b, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l))
}

// hubProcess is a running downlink hub.
type hubProcess struct {
	cmd   *exec.Cmd
	ready hubReady
	roots *x509.CertPool
	token string // of iothubowner: good for everything, and for every device
	http  *http.Client
}

func runBinary(b *testing.B, binary, dir string) *hubProcess {
	b.Helper()
	h := &hubProcess{cmd: exec.CommandContext(b.Context(), binary, "hub", "--json", "--data-dir", dir,
		"--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--http", "off")}
	stdout, err := h.cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, h.cmd.Start())
	require.NoError(b, json.NewDecoder(stdout).Decode(&h.ready))
	h.roots, err = certPool("--ca-file", h.ready.CAFile)
	require.NoError(b, err)
	h.token = ownerToken(b, h.ready)
	h.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.roots, ServerName: h.ready.Hostname}}}
	return h
}

func (h *hubProcess) stop(b *testing.B) {
	b.Helper()
	h.http.CloseIdleConnections()
	require.NoError(b, h.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(b, h.cmd.Wait())
}

// rss is the process's memory in MB of 1,000,000 bytes, as the kernel sees it.
func (h *hubProcess) rss(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			require.NoError(b, err)
			return float64(kb) * 1024 / 1e6
		}
	}
	require.FailNow(b, "no VmRSS")
	return 0
}

// ownerToken signs a token as the developer guide says, "Control access with shared access signatures".
func ownerToken(b *testing.B, r hubReady) string {
	b.Helper()
	key, err := base64.StdEncoding.DecodeString(part(r.OwnerConnectionString, "SharedAccessKey"))
	require.NoError(b, err)
	expiry := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(r.Hostname + "\n" + expiry))
	return "SharedAccessSignature sr=" + r.Hostname + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil))) +
		"&se=" + expiry + "&skn=iothubowner"
}

func (h *hubProcess) do(b *testing.B, method, path string, body []byte) *http.Response {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), method, "https://"+h.ready.HTTPS+path+"?api-version=2021-04-12", bytes.NewReader(body))
	require.NoError(b, err)
	r.Header.Set("Authorization", h.token)
	r.Header.Set("Content-Type", "application/json")
	res, err := h.http.Do(r)
	require.NoError(b, err)
	return res
}

func (h *hubProcess) get(b *testing.B, path string, into any) {
	b.Helper()
	res := h.do(b, http.MethodGet, path, nil)
	defer res.Body.Close()
	require.Equal(b, http.StatusOK, res.StatusCode)
	require.NoError(b, json.NewDecoder(res.Body).Decode(into))
}

func capacityID(i int) string { return fmt.Sprintf("device-%06d", i) }

// register creates n devices, 100 with each request, as the SDKs' bulk calls do.
func (h *hubProcess) register(b *testing.B, n int) {
	b.Helper()
	type device struct {
		ID         string `json:"id"`
		ImportMode string `json:"importMode"`
	}
	for first := 0; first < n; first += 100 {
		batch := make([]device, 100)
		for i := range batch {
			batch[i] = device{capacityID(first + i), "create"}
		}
		body, err := json.Marshal(batch)
		require.NoError(b, err)
		res := h.do(b, http.MethodPost, "/devices", body)
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		require.NoError(b, err)
		require.Equal(b, http.StatusOK, res.StatusCode, "%s", text)
	}
	var statistics struct{ TotalDeviceCount int }
	h.get(b, "/statistics/devices", &statistics)
	require.Equal(b, n, statistics.TotalDeviceCount)
}

// connect connects n devices and subscribes each to all its topics.
func (h *hubProcess) connect(b *testing.B, n int) []net.Conn {
	b.Helper()
	conns := make([]net.Conn, n)
	config := &tls.Config{RootCAs: h.roots, ServerName: h.ready.Hostname}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range conns {
		g.Go(func() (err error) {
			conns[i], err = dialDevice(h.ready.MQTTS, config, h.ready.Hostname, capacityID(i), h.token)
			return err
		})
	}
	require.NoError(b, g.Wait())
	return conns
}

func dialDevice(addr string, config *tls.Config, host, id, token string) (net.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: config}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion, hello.ClientIdentifier = "MQTT", 4, id
	hello.UsernameFlag, hello.Username = true, host+"/"+id+"/?api-version=2021-04-12"
	hello.PasswordFlag, hello.Password = true, []byte(token)
	s := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	s.MessageID = 1
	s.Topics = []string{"devices/" + id + "/messages/devicebound/#", "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"}
	s.Qoss = []byte{1, 0, 0, 0}
	for _, p := range []packets.ControlPacket{hello, s} {
		if err := p.Write(c); err != nil {
			return nil, err
		}
		answer, err := packets.ReadPacket(c)
		if err != nil {
			return nil, err
		}
		if ack, ok := answer.(*packets.ConnackPacket); ok && ack.ReturnCode != 0 {
			return nil, fmt.Errorf("%s: CONNACK %d", id, ack.ReturnCode)
		}
	}
	return c, nil
}
