package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

var fixedTime = time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "plain-1.2/3": "plain-1.2/3", "a b": "'a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "edge.>": "'edge.>'", "ö": "'ö'",
	} {
		require.Equal(t, want, shellQuote(in))
	}
}

// TestVisible: no message can send control sequences to a terminal.
func TestVisible(t *testing.T) {
	require.Equal(t, "plain \"text\" ö\t€", visible("plain \"text\" ö\t€"))
	for _, in := range []string{"\x1b[2J", "a\rb", "\u009b31m", "\xff", "\x00"} {
		out := visible(in)
		require.NotEqual(t, in, out)
		for _, r := range out {
			require.False(t, r < 0x20 || r >= 0x7f && r < 0xa0, "%q", out)
		}
	}
	require.Equal(t, "a\nb", shownPayload([]byte("a\nb")))
	require.Equal(t, `2 bytes: "\xff\xfe"`, shownPayload([]byte("\xff\xfe")))
}

func TestPrint(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, printNATS(&b, &nats.Msg{Subject: "a.b", Header: nats.Header{"X": {"1", "2"}, "A": {"z"}}, Data: []byte("hi")}))
	require.Equal(t, "a.b\n  A: z\n  X: 1\n  X: 2\nhi\n\n", b.String())
	b.Reset()
	require.NoError(t, printC2D(&b, &mapping.C2D{Device: "d1", MessageID: "m", Ack: "full", Body: []byte("hi"),
		Properties: []mapping.Property{{Name: "verb", Value: "reboot"}, {Name: "flag", Null: true}, {Name: "empty"}}}))
	require.Equal(t, "d1\n  message-id: m\n  ack: full\n  verb=reboot\n  flag\n  empty=\nhi\n\n", b.String())
}

func TestLocal(t *testing.T) {
	for host, want := range map[string]bool{
		"HostName=localhost;DeviceId=d": true, "HostName=hub.localhost;DeviceId=d": true, "HostName=127.0.0.1;DeviceId=d": true,
		"HostName=x.azure-devices.net;DeviceId=d":                           false,
		"HostName=x.azure-devices.net;GatewayHostName=localhost;DeviceId=d": true,
		"HostName=localhost.example.com;DeviceId=d":                         false,
	} {
		require.Equal(t, want, local(access{connectionString: host}), host)
	}
	require.True(t, local(access{connectionString: "HostName=x.azure-devices.net", address: "[::1]:8883"}))
	require.False(t, local(access{connectionString: "HostName=localhost", address: "10.1.2.3:8883"}))
}

func TestInvocation(t *testing.T) {
	require.Equal(t, "go run ./cmd/downlink", invocation("/tmp/go-build123/b001/exe/downlink"))
	require.Equal(t, "downlink", invocation("downlink"))
	require.Equal(t, "./downlink", invocation("./downlink"))
	require.Equal(t, "'/opt/my tools/downlink'", invocation("/opt/my tools/downlink"))
}

func TestTerminal(t *testing.T) {
	require.False(t, terminal(strings.NewReader("")))
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	require.False(t, terminal(null))
}

// TestEnvelope: send refuses what a bridge would refuse, in the words of the command line.
func TestEnvelope(t *testing.T) {
	f := sendFlags{
		device: "d-1", timeout: 1, ack: "full", data: "hi {x}", properties: []string{"verb=re{boot}", "empty="},
		message: mapping.MessageRule{MessageID: "m{1}", ContentType: "text/plain"},
	}
	require.NoError(t, f.fill(streams{}, fixedTime))
	e := f.envelope
	require.Equal(t, "d-1", e.Device)
	require.Equal(t, "text/plain", e.ContentType)
	require.Equal(t, mapping.AckFull, e.Ack)
	require.Equal(t, "hi {x}", string(e.Body))
	require.Equal(t, []mapping.Property{{Name: "verb", Value: "re{boot}"}, {Name: "empty"}}, e.Properties)
	require.Empty(t, e.CorrelationID)
	require.True(t, e.ExpiresAt.IsZero())

	big := sendFlags{device: "d1", timeout: 1, data: strings.Repeat("x", 70_000)}
	err := big.fill(streams{}, fixedTime)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "xxx")
	require.NotContains(t, err.Error(), "routes[0]")
}

func TestAskFirst(t *testing.T) {
	for answer, yes := range map[string]bool{"y\n": true, "YES\n": true, "yes": true, "n\n": false, "\n": false, "": false, "yeah\n": false} {
		var errs bytes.Buffer
		err := askFirst(streams{in: strings.NewReader(answer), err: &errs}, "d1", "h.azure-devices.net")
		require.Equal(t, yes, err == nil, "%q", answer)
		require.Contains(t, errs.String(), "d1")
		require.Contains(t, errs.String(), "h.azure-devices.net")
	}
}
