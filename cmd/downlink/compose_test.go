package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"downlink/bridge/bridgetest"
)

// composeFile is what this test knows of deploy/compose.yaml.
type composeFile struct {
	Services map[string]struct {
		Image       string
		Command     []string
		Volumes     []string
		DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
		Healthcheck struct{ Test []string }
	}
	Volumes map[string]any
}

// TestCompose runs the services of deploy/compose.yaml as they stand there, but
// for the places: each in this process, its paths in a directory of the test and its ports
// free ones. A command goes the whole way.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile("../../deploy/compose.yaml")
	require.NoError(t, err)
	var c composeFile
	require.NoError(t, yaml.Unmarshal(text, &c))
	require.Len(t, c.Services, 4)

	server := bridgetest.RunNATS(t)
	hub := map[string]string{}
	dirs := map[string]string{"hub": t.TempDir(), "relay": t.TempDir()}
	run := func(name string, more ...string) {
		service := c.Services[name]
		require.Equal(t, "downlink", service.Image)
		places := append([]string{
			"nats://nats:4222", server.URL(), "/run/hub", dirs["hub"], "/var/lib/downlink", dirs[name],
		}, more...)
		args := rewrite(service.Command, places)
		for i, a := range args {
			if file, ok := strings.CutPrefix(a, "/etc/downlink/"); ok {
				args[i] = placed(t, service.Volumes, file, places)
			}
		}
		start(t, args...)
		check := service.Healthcheck.Test
		require.Equal(t, []string{"CMD", "/usr/local/bin/downlink"}, check[:2])
		require.Eventually(t, func() bool { return cli(t, rewrite(check[2:], places)...).code == exitOK }, patience, 20*time.Millisecond, "%s is not ready", name)
		for dependency, d := range service.DependsOn {
			require.Contains(t, c.Services, dependency)
			require.Equal(t, "service_healthy", d.Condition)
			require.NotEmpty(t, c.Services[dependency].Healthcheck.Test)
		}
		for _, v := range service.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(source, "./") {
				require.Contains(t, c.Volumes, source)
			}
		}
	}
	// in makes two places of one port: where the process listens, and where it is asked.
	in := func(port string) []string {
		addr := freeAddress(t)
		hub[port] = addr
		return []string{"0.0.0.0:" + port, addr, "127.0.0.1:" + port, addr}
	}
	var ports []string
	for _, p := range []string{"5671", "8883", "443", "9466"} {
		ports = append(ports, in(p)...)
	}
	run("hub", ports...)
	// The names of the containers lead nowhere here, so the files say where the hub is;
	// the name that its certificate is for stays.
	ca := "ca_file: " + dirs["hub"] + "/ca.pem"
	run("bridge", append(in("9464"), ca, ca+"\n      amqp_address: "+hub["5671"])...)
	run("relay", append(append(in("9465"), in("4222")...), ca, ca+"\n      mqtt_address: "+hub["8883"])...)

	nc, err := nats.Connect(server.URL(), nats.Timeout(patience))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "cmd.berlin.pump7.reboot", []byte("now"))
	require.NoError(t, err)
	edge, err := nats.Connect("nats://"+hub["4222"], nats.Timeout(patience))
	require.NoError(t, err)
	defer edge.Close()
	edgeStreams, err := jetstream.New(edge)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s, err := edgeStreams.Stream(t.Context(), "EDGE")
		if err != nil {
			return false
		}
		m, err := s.GetLastMsgForSubject(t.Context(), "edge.berlin-pump7.reboot")
		return err == nil && string(m.Data) == "now"
	}, patience, 10*time.Millisecond)
}

// rewrite puts places into the arguments, old and new in turn. An earlier pair
// wins, and a new place may hold an old one's text.
func rewrite(args, places []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		for p := 0; p < len(places); p += 2 {
			a = regexp.MustCompile(regexp.QuoteMeta(places[p])+`\b`).ReplaceAllLiteralString(a, places[p+1])
		}
		out[i] = a
	}
	return out
}

// placed is a copy of a mounted configuration file, with its places.
func placed(t *testing.T, volumes []string, file string, places []string) string {
	t.Helper()
	for _, v := range volumes {
		source, target, _ := strings.Cut(v, ":")
		if target != "/etc/downlink/"+file+":ro" {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../../deploy", source))
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), file)
		writeTo(t, path, rewrite([]string{string(text)}, places)[0])
		return path
	}
	require.Failf(t, "not mounted", "%s", file)
	return ""
}

func TestReady(t *testing.T) {
	_, r := startHub(t, t.TempDir())
	got := cli(t, "ready", r.HTTP)
	require.Equal(t, exitOK, got.code)
	require.Equal(t, "ok\n", got.stdout)
	require.Equal(t, exitOK, cli(t, "ready", r.HTTP+"/").code)
	got = cli(t, "ready", "http://"+freeAddress(t))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "not ready: ")
	// Another page is no yes.
	got = cli(t, "ready", r.HTTP+"/nowhere")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "404")
	for _, args := range [][]string{{"ready", "127.0.0.1:1"}, {"ready", "ftp://a"}, {"ready", "--timeout", "0s"}, {"ready", "a", "b"}} {
		require.Equal(t, exitUsage, cli(t, args...).code, args)
	}
}

func TestHubConnectionStringFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "strings")
	_, r := startHub(t, t.TempDir(), "--connection-strings", dir, "--device", "d1", "--http", "off")
	for name, want := range map[string]string{"service": r.ServiceConnectionString, "iothubowner": r.OwnerConnectionString, "device-d1": r.Devices["d1"]} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want+"\n", string(text))
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	require.FileExists(t, filepath.Join(dir, "registryRead"))
	file := filepath.Join(t.TempDir(), "file")
	writeTo(t, file, "")
	got := cli(t, "hub", "--data-dir", t.TempDir(), "--amqps", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--https", "127.0.0.1:0", "--connection-strings", file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "--connection-strings: ")
}
