package telemetry_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Topics as device SDKs write them.
func TestParseBag(t *testing.T) {
	type bag = []telemetry.Property
	for name, c := range map[string]struct {
		bag                 string
		system, application bag
	}{
		"nothing": {"", nil, nil},
		"Python": {"%24.mid=5e1f&%24.ct=application%2Fjson&%24.ce=utf-8&tornado-warning=yes",
			bag{{Name: "message-id", Value: "5e1f"}, {Name: "content-type", Value: "application/json"}, {Name: "content-encoding", Value: "utf-8"}},
			bag{{Name: "tornado-warning", Value: "yes"}}},
		"Node": {"$.mid=1&$.cid=a%20b&$.uid=u&temperatureAlert=true",
			bag{{Name: "message-id", Value: "1"}, {Name: "correlation-id", Value: "a b"}, {Name: "user-id", Value: "u"}},
			bag{{Name: "temperatureAlert", Value: "true"}}},
		"null and empty":        {"a&b=", nil, bag{{Name: "a", Null: true}, {Name: "b"}}},
		"cut before decoded":    {"a%26b=c%3Dd%26e&f=g=h", nil, bag{{Name: "a&b", Value: "c=d&e"}, {Name: "f", Value: "g=h"}}},
		"plus is itself":        {"a=b+c", nil, bag{{Name: "a", Value: "b+c"}}},
		"question mark, slash":  {"?a=b/", nil, bag{{Name: "a", Value: "b"}}},
		"unknown system name":   {"%24.new=1", nil, bag{{Name: "$.new", Value: "1"}}},
		"repeated, empty pairs": {"&a=1&&a=2&", nil, bag{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			system, application, err := telemetry.ParseBag(c.bag)
			require.NoError(t, err)
			require.Equal(t, c.system, system)
			require.Equal(t, c.application, application)
		})
	}
	for _, bad := range []string{"a=%zz", "%2", "=b", "a=%ff"} {
		_, _, err := telemetry.ParseBag(bad)
		require.ErrorContains(t, err, "property bag: ", bad)
	}
}

func FuzzParseBag(f *testing.F) {
	f.Add("%24.mid=5e1f&a&b=&c=%26%3D")
	f.Add("?a=b/")
	f.Add("%2")
	f.Fuzz(func(t *testing.T, s string) {
		system, application, err := telemetry.ParseBag(s)
		if err != nil {
			return
		}
		m := telemetry.Message{System: system, Properties: application}
		if m.Size() > len(s) {
			t.Fatalf("%q grew to %d bytes", s, m.Size())
		}
		if _, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	l := telemetry.NewLog(telemetry.Limits{Messages: 3})
	for _, device := range []string{"a", "b", "a", "b", "a"} {
		l.Add(telemetry.Message{Device: device})
	}
	sequences := func(q telemetry.Query) (out []uint64) {
		for _, m := range l.Read(q) {
			out = append(out, m.Sequence)
		}
		return out
	}
	require.Equal(t, []uint64{3, 4, 5}, sequences(telemetry.Query{}))
	require.Equal(t, []uint64{3, 5}, sequences(telemetry.Query{Device: "a"}))
	require.Equal(t, []uint64{4, 5}, sequences(telemetry.Query{After: 3}))
	require.Equal(t, []uint64{4}, sequences(telemetry.Query{After: 3, Max: 1}))
	require.Empty(t, sequences(telemetry.Query{After: ^uint64(0)}))
	require.Equal(t, uint64(5), l.Last())

	l = telemetry.NewLog(telemetry.Limits{Bytes: 10_000})
	for range 100 {
		l.Add(telemetry.Message{Body: make([]byte, 1000)})
	}
	require.Len(t, l.Read(telemetry.Query{}), 7) // of 1256 bytes each
	l.Add(telemetry.Message{Body: make([]byte, 20_000)})
	require.Empty(t, l.Read(telemetry.Query{}))
}

func TestWait(t *testing.T) {
	var l telemetry.Log
	got := make(chan []telemetry.Message)
	go func() {
		m, _ := l.Wait(t.Context(), telemetry.Query{Device: "b"})
		got <- m
	}()
	l.Add(telemetry.Message{Device: "a"})
	l.Add(telemetry.Message{Device: "b"})
	require.Equal(t, "b", (<-got)[0].Device)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := l.Wait(ctx, telemetry.Query{Device: "c"})
	require.ErrorIs(t, err, context.Canceled)
}

func TestMessageJSON(t *testing.T) {
	m := telemetry.Message{
		Sequence: 1, Device: "d1", Generation: "7", Enqueued: time.Unix(0, 0),
		System:     []telemetry.Property{{Name: "message-id", Value: "m1"}},
		Properties: []telemetry.Property{{Name: "a", Value: "1"}, {Name: "n", Null: true}, {Name: "a", Value: "2"}},
		Body:       []byte(`{"t":1}`),
	}
	text, err := json.Marshal(m)
	require.NoError(t, err)
	require.JSONEq(t, `{"sequence":1,"deviceId":"d1","generationId":"7","enqueuedTime":"1970-01-01T00:00:00Z",
		"systemProperties":{"message-id":"m1"},"properties":{"a":"2","n":null},"body":"{\"t\":1}"}`, string(text))
	require.Equal(t, "m1", m.Lookup("message-id"))
	require.Empty(t, m.Lookup("to"))
	m.Body = []byte{0xff}
	text, err = json.Marshal(m)
	require.NoError(t, err)
	require.Contains(t, string(text), `"bodyBase64":"/w=="`)
}
