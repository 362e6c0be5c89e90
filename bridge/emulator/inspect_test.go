package emulator_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/inspect"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
)

// look asks a hub's pages.
type look struct {
	t    *testing.T
	page http.Handler
}

func newLook(t *testing.T, h *emulator.Hub) *look {
	return &look{t, inspect.New(inspect.Options{Hub: h, Loopback: true})}
}

func (l *look) do(status int, method, path, body string, headers ...string) []byte {
	l.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost:9466"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	w := httptest.NewRecorder()
	l.page.ServeHTTP(w, r)
	out, err := io.ReadAll(w.Result().Body)
	require.NoError(l.t, err)
	require.Equal(l.t, status, w.Code, "%s %s: %s", method, path, out)
	return out
}

func (l *look) get(path string, into any) {
	l.t.Helper()
	require.NoError(l.t, json.Unmarshal(l.do(200, http.MethodGet, path, ""), into))
}

func TestInspect(t *testing.T) {
	h := runHub(t, emulator.Options{
		Devices: []string{"pump-1", "pump-2", "real", ".", "off"}, Virtual: []virtual.Rule{{Pattern: "pump-1"}},
		Throttle: throttle.Options{Tier: throttle.S1},
	})
	l := newLook(t, h)
	require.NoError(t, h.DisableDevice("off"))
	d := connected(t, h, "real")
	d.subscribe(t, "real", 1)
	m := message("real", "m1", "hello")
	m.Properties = []c2d.Property{{Name: "verb", Value: "reboot"}, {Name: "none", Null: true}}
	m.CorrelationID, m.Ack = "c1", "full"
	require.NoError(t, h.Enqueue(m))
	d.next(t) // delivered, and not acknowledged
	require.NoError(t, h.Enqueue(message("pump-1", "m2", "x")))
	require.Eventually(t, func() bool { return h.Counts("pump-1").Completed == 1 }, wait, tick, "by itself")
	require.NoError(t, h.Enqueue(message("pump-2", "m3", "\xff\x00")))
	require.NoError(t, h.Enqueue(message(".", "m4", "")))
	require.Error(t, h.Enqueue(message("nobody", "m5", "")))

	var s inspect.Summary
	l.get("/inspect", &s)
	require.Equal(t, []int{5, 1, 2}, []int{s.Devices.Total, s.Devices.Disabled, s.Devices.Connected})
	require.Equal(t, 1, s.UnknownSends)
	require.Equal(t, "S1", s.Throttle.Tier)

	var list inspect.DeviceList
	l.get("/inspect/devices?limit=2", &list)
	require.Len(t, list.Devices, 2)
	require.Equal(t, []string{".", "off"}, []string{list.Devices[0].DeviceID, list.Devices[1].DeviceID})
	require.Equal(t, "disabled", list.Devices[1].Status)
	l.get("/inspect/devices?after="+list.Next, &list)
	require.Len(t, list.Devices, 3)
	list = inspect.DeviceList{}
	l.get("/inspect/devices?prefix=pump-", &list)
	require.Len(t, list.Devices, 2)
	require.Empty(t, list.Next)
	require.True(t, list.Devices[0].Connected)
	require.EqualValues(t, 1, list.Devices[0].Counts.Completed)

	var one inspect.Device
	l.get("/inspect/devices/real", &one)
	require.Len(t, one.Queue, 1)
	q := one.Queue[0]
	require.Equal(t, "Invisible", q.State)
	require.Equal(t, []string{"m1", "c1", "full", "hello", "reboot"}, []string{q.MessageID, q.CorrelationID, q.Ack, *q.Body, *q.Properties["verb"]})
	require.Contains(t, q.Properties, "none")
	require.Nil(t, q.Properties["none"], "a null property is not an empty one")
	require.Equal(t, 1, q.Deliveries)
	require.WithinDuration(t, time.Now().Add(time.Hour), q.ExpiryTime, time.Minute)
	one = inspect.Device{}
	l.get("/inspect/devices/pump-2", &one)
	require.Equal(t, "\xff\x00", string(one.Queue[0].BodyBase64))
	require.Nil(t, one.Queue[0].Body)
	one = inspect.Device{}
	l.get("/inspect/devices/%2E", &one)
	require.Equal(t, ".", one.DeviceID)

	var log struct{ Records []inspect.Record }
	l.get("/inspect/devices/pump-1/log", &log)
	require.Len(t, log.Records, 1)
	require.Equal(t, "Success", log.Records[0].Outcome)

	newService(t, h)
	var connections struct {
		Services int
		Devices  []inspect.Connection
	}
	l.get("/inspect/connections", &connections)
	require.Equal(t, 1, connections.Services)
	require.Len(t, connections.Devices, 2)
	require.Equal(t, "mqtt", connections.Devices[0].Transport)
	require.Equal(t, 1, connections.Devices[0].InFlight)
	require.Equal(t, []string{"virtual", "pump-1", "complete"}, []string{connections.Devices[1].Transport, connections.Devices[1].DeviceID, connections.Devices[1].Behaviour})

	require.JSONEq(t, `{"purged":1}`, string(l.do(200, http.MethodDelete, "/admin/devices/pump-2/queue", "")))
	require.Empty(t, h.Queue("pump-2"))
	require.JSONEq(t, `{"disconnected":true}`, string(l.do(200, http.MethodDelete, "/admin/devices/real/connection", "")))
	require.Eventually(t, func() bool { return len(h.Connections()) == 0 }, wait, tick)
	require.JSONEq(t, `{"devices":0,"services":1}`, string(l.do(200, http.MethodPost, "/admin/expire", `{"devices":"*","services":true}`)))
}

func TestInspectTelemetry(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1", "d2"}})
	l := newLook(t, h)
	var page struct {
		Messages []struct {
			Sequence   uint64
			DeviceID   string
			Body       string
			Properties map[string]string
		}
		Last uint64
	}
	l.get("/inspect/telemetry?wait=10ms", &page)
	require.Empty(t, page.Messages)
	a, b := connected(t, h, "d1"), connected(t, h, "d2")
	a.Publish("devices/d1/messages/events/k=v", 1, false, "one")
	l.get("/inspect/telemetry?device=d1&wait=30s", &page)
	require.Len(t, page.Messages, 1)
	require.Equal(t, "one", page.Messages[0].Body)
	require.Equal(t, map[string]string{"k": "v"}, page.Messages[0].Properties)
	require.True(t, b.Publish("devices/d2/messages/events/", 1, false, "two").WaitTimeout(wait))
	l.get("/inspect/telemetry?after=1", &page)
	require.Len(t, page.Messages, 1)
	require.Equal(t, "d2", page.Messages[0].DeviceID)
	require.EqualValues(t, 2, page.Last)
	l.get("/inspect/telemetry?limit=1", &page)
	require.Len(t, page.Messages, 1)
}

func TestInspectRefuses(t *testing.T) {
	l := newLook(t, runHub(t, emulator.Options{Devices: []string{"d1"}}))
	for path, status := range map[string]int{
		"/inspect/devices/nobody": 404, "/inspect/devices/nobody/log": 404, "/inspect/nothing": 404, "/admin/faults/7": 404, "/inspect/devices?limit=x": 400,
		"/inspect/devices?limit=0": 400, "/inspect/telemetry?wait=1h": 400, "/inspect/telemetry?after=x": 400, "/inspect/telemetry?limit=0": 400,
	} {
		l.do(status, http.MethodGet, path, "")
	}
	for _, path := range []string{"/admin/devices/nobody/queue", "/admin/devices/nobody/connection", "/admin/faults/7", "/admin/faults/x"} {
		l.do(404, http.MethodDelete, path, "")
	}
	l.do(400, http.MethodPost, "/admin/expire", `{"device":"d"}`)
	// A web page in a browser neither reads nor changes anything.
	l.do(403, http.MethodGet, "/inspect", "", "Host", "evil.example")
	l.do(200, http.MethodGet, "/inspect", "", "Host", "127.0.0.1:9466")
	l.do(200, http.MethodGet, "/inspect", "", "Host", "[::1]:9466")
	l.do(403, http.MethodPost, "/admin/faults", "transfer=drop", "Origin", "https://evil.example")
}

func TestAdminFaults(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"pump-1"}})
	l := newLook(t, h)
	s := newService(t, h)
	send := func() amqp.DeliveryState {
		t.Helper()
		to := "/devices/pump-1/messages/devicebound"
		return s.send(t, &amqp.Message{Properties: &amqp.MessageProperties{To: &to}})
	}
	var got inspect.Fault
	require.NoError(t, json.Unmarshal(l.do(200, http.MethodPost, "/admin/faults",
		`{"point":"transfer","kind":"reject","condition":"amqp:internal-error","text":"on request","device":"pump-*","times":2}`,
		"Content-Type", "application/json"), &got))
	require.Equal(t, "reject", got.Kind)
	rejected := send().(*amqp.StateRejected)
	require.EqualValues(t, "amqp:internal-error", rejected.Error.Condition)
	require.Equal(t, "on request", rejected.Error.Description)
	var list struct{ Faults []inspect.Fault }
	l.get("/admin/faults", &list)
	require.Len(t, list.Faults, 1)
	require.Equal(t, []int{got.ID, 1, 1}, []int{list.Faults[0].ID, list.Faults[0].Left, list.Faults[0].Hits})
	require.IsType(t, &amqp.StateRejected{}, send())
	require.IsType(t, &amqp.StateAccepted{}, send())
	l.get("/admin/faults", &list)
	require.Empty(t, list.Faults)

	l.do(200, http.MethodPost, "/admin/faults", "transfer=release,times=always\n")
	require.IsType(t, &amqp.StateReleased{}, send())
	require.IsType(t, &amqp.StateReleased{}, send())
	l.get("/admin/faults", &list)
	l.do(200, http.MethodDelete, "/admin/faults/"+strconv.Itoa(list.Faults[0].ID), "")
	require.IsType(t, &amqp.StateAccepted{}, send())
	l.do(200, http.MethodPost, "/admin/faults", `{"point":"transfer","kind":"throttle","for":"1h"}`, "Content-Type", "application/json; charset=utf-8")
	rejected = send().(*amqp.StateRejected)
	require.EqualValues(t, fault.Throttled, rejected.Error.Condition)
	require.JSONEq(t, `{"removed":1}`, string(l.do(200, http.MethodDelete, "/admin/faults", "")))
	require.IsType(t, &amqp.StateAccepted{}, send())

	for body, want := range map[string]string{
		`{"point":"transfer","kind":"explode"}`:           "the kind is none of",
		`{"point":"transfer","kind":"delay"}`:             "delay needs a duration",
		`{"point":"transfer","kind":"delay","delay":"x"}`: "is no duration",
		`{"point":"transfer","kind":"drop","for":"-1s"}`:  "is no duration",
		`{"point":"nowhere","kind":"drop"}`:               "none of open",
		`{"point":"transfer","kind":"drop","often":true}`: "unknown field",
		`{"point":"transfer","kind":"drop","times":-1}`:   "times is below 0",
	} {
		require.Contains(t, string(l.do(400, http.MethodPost, "/admin/faults", body, "Content-Type", "application/json")), want)
	}
	require.Contains(t, string(l.do(400, http.MethodPost, "/admin/faults", "transfer")), "write POINT=KIND")
}
