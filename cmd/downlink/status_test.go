package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

// TestStatus: a real bridge, while it runs and when it is down.
func TestStatus(t *testing.T) {
	p := runPlant(t, "ok")
	status := func(args ...string) result {
		return cli(t, append([]string{"status", "-c", p.file, "--interval", "20ms"}, args...)...)
	}
	before := status()
	require.Equal(t, exitFailed, before.code)
	require.Contains(t, before.stdout, "plant: not known to run")
	require.Contains(t, before.stdout, "does not answer (is the bridge up, and is that its address?): connection refused")
	require.Regexp(t, `COMMANDS +0 +0 +0 +stream COMMANDS does not exist`, before.stdout)
	require.Equal(t, "downlink: the bridge is not ready\n", before.stderr)

	bridge := p.start(t)
	up := status()
	require.Equal(t, exitOK, up.code, up.stdout+up.stderr)
	require.Regexp(t, `^bridge +plant: ready\nbacklog +0 messages: 0 not read yet, 0 in the mailbox, 0 in memory\n`, up.stdout)
	require.Contains(t, up.stdout, "nothing to do")
	require.Regexp(t, `\nmain +open +connected +0 of \d+ +0 +0 +0 `, up.stdout)
	require.Regexp(t, `\nCOMMANDS +0 +0 +0 +-\n`, up.stdout)
	p.publish(t, "nobody", "x", nil)
	p.has(t, "PLANT_DEAD", 1)
	p.settled(t)
	require.Contains(t, status().stdout, "1: 1 device-not-found (downlink dead ls)")
	j := objects(t, status("--json").stdout)[0]
	require.Equal(t, true, j["ready"])
	require.EqualValues(t, 1, j["dead"].(map[string]any)["total"])
	require.Equal(t, true, j["streams"].([]any)[0].(map[string]any)["owned"])
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"ready": true, "bridge": {}, "stream COMMANDS": {"owned": false, "owner": "host 12 abc"}}`)
	}))
	defer standby.Close()
	require.Regexp(t, `\nCOMMANDS +0 +0 +1 +this process stands by for host 12 abc\n`, status("--http", standby.URL).stdout)

	// Without the file: its streams are found by its consumers.
	byFlags := cli(t, "status", "--http", "http://"+p.pages+"/", "--name", "plant", "-s", p.nats.URL(), "--interval", "20ms")
	require.Equal(t, exitOK, byFlags.code, byFlags.stdout)
	require.Regexp(t, `\nCOMMANDS +0 +0 +1 +-\n`, byFlags.stdout)

	watch := start(t, "status", "-c", p.file, "--interval", "20ms", "--watch", "--json")
	require.Eventually(t, func() bool { return strings.Count(watch.out.String(), "\n") >= 3 }, patience, 10*time.Millisecond)
	require.Equal(t, exitOK, watch.stop(t))

	require.Equal(t, exitOK, bridge.stop(t))
	for range 3 {
		p.publish(t, "ok", "x", nil)
	}
	_, err := p.js.Publish(t.Context(), "plant.mailbox.main.ok.COMMANDS.-", nil)
	require.NoError(t, err)
	down := status()
	require.Equal(t, exitFailed, down.code)
	require.Contains(t, down.stdout, "4 messages: 3 not read yet, 1 in the mailbox, 0 in memory (of a bridge that is down: what comes again from the streams)")
	require.Contains(t, down.stdout, "1: 1 device-not-found")
}

// TestStatusPages: what the pages say is shown, whatever else they say.
func TestStatusPages(t *testing.T) {
	n := bridgetest.RunNATS(t)
	ready := false
	var accepted atomic.Uint64
	body := `{"version": "9", "ready": false, "new": [1], "hub main": {"connected": false, "since": "2026-01-02T03:04:05Z"}, "bridge": {"accepted": 7, "waiting": 100, "later": {},
		"hubs": [{"name": "main", "state": "paused", "cause": "quota", "in_flight": 1, "window": 2, "lanes": 4, "lanes_waiting": 3, "waiting": 100, "mailbox": {"entries": 5},
		"pace": {"rate": 0.5, "source": "S1 x1", "used": 12, "limit": 400000, "more": true}}]}}`
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			if !ready {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, "not ready\nhub main: paused\nNATS: gone\n")
			}
			return
		}
		fmt.Fprint(w, strings.Replace(body, "7,", fmt.Sprint(accepted.Add(1000), ","), 1))
	}))
	defer page.Close()
	args := []string{"status", "--http", page.URL, "-s", n.URL(), "--interval", "20ms"}
	got := cli(t, args...)
	require.Equal(t, exitFailed, got.code)
	require.Regexp(t, `^bridge +downlink: NOT READY\n +hub main: paused\n +NATS: gone\nbacklog +100 messages: `, got.stdout)
	require.Regexp(t, `\nrate +[1-9]\d*\.\d messages a second accepted by the hubs, of 0.5 that they take\n`, got.stdout)
	require.Contains(t, got.stdout, "3m at the hubs' pace")
	require.Regexp(t, `main +paused: quota +NOT CONNECTED since 2026-01-02T03:04:05.000Z +1 of 2 +4 +3 +100 +0.5/s \(S1 x1\), 12 of 400000 used today`, got.stdout)
	require.InDelta(t, 200, objects(t, cli(t, append(args, "--json")...).stdout)[0]["backlog"].(map[string]any)["drain_seconds"], 0.01)
	ready = true
	require.Equal(t, exitOK, cli(t, args...).code)

	// NATS is away, and the bridge still answers.
	got = cli(t, "status", "--http", page.URL, "-s", "nats://127.0.0.1:1", "--connect-timeout", "50ms", "--interval", "20ms")
	require.Equal(t, exitOK, got.code)
	require.Contains(t, got.stdout, "(as far as it could be asked for)")
	require.Regexp(t, `\nNATS +not ready within 50ms: nats://127.0.0.1:1`, got.stdout)

	for _, strange := range []string{"<html>", `{"a": 1}`, `{"ready": true}`, `[]`} {
		body = strange
		got = cli(t, args...)
		require.Equal(t, exitFailed, got.code)
		require.Contains(t, got.stdout, "is that the bridge's address?")
	}
	for flag, want := range map[string]string{"--http=9464": `--http: "9464" is neither`, "--http=ftp://x": "neither host:port", "--interval=1ms": "--interval: 1ms", "--name=a.b": `"a.b" is no bridge's name`} {
		got = cli(t, "status", flag)
		require.Equal(t, exitUsage, got.code, got.stderr)
		require.Contains(t, got.stderr, want)
	}
}

func TestSpell(t *testing.T) {
	for seconds, want := range map[float64]string{0.1: "1s", 59: "59s", 61: "1m", 3600: "1h0m", 1e20: "more than a hundred years"} {
		require.Equal(t, want, spell(seconds))
	}
}
