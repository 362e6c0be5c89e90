package httpd_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/httpd"
)

func (f *fixture) create(ids ...string) {
	f.t.Helper()
	for _, id := range ids {
		_, err := f.store.Create(c2d.Device{ID: id})
		require.NoError(f.t, err)
	}
}

func TestListAsNodeAsks(t *testing.T) {
	f := newFixture(t)
	f.create("a", "b")
	status, _, out := f.do(http.MethodGet, "/devices/"+version, "r", "")
	require.Equal(t, 200, status)
	require.Len(t, out, 2)
}

func TestBulk(t *testing.T) {
	f := newFixture(t)
	post := func(body string) (int, map[string]any) {
		t.Helper()
		status, _, out := f.do(http.MethodPost, "/devices"+version, "w", body)
		return status, out.(map[string]any)
	}
	done := map[string]any{"isSuccessful": true, "errors": []any{}, "warnings": []any{}}
	// Node's addDevices, and Python's bulk_create_or_update_devices with a twin.
	status, out := post(`[{"id":"a","importMode":"create","authentication":{"symmetricKey":{"primaryKey":"","secondaryKey":""}}},
		{"id":"b","importMode":"createOrUpdate","status":"disabled","capabilities":{"iotEdge":true},"tags":{"site":"berlin"},"properties":{"desired":{"x":1}}}]`)
	require.Equal(t, 200, status, out)
	require.Equal(t, done, out)
	b, err := f.store.Get("b")
	require.NoError(t, err)
	require.True(t, b.Disabled)
	require.True(t, b.Edge)
	_, _, body := f.do(http.MethodGet, "/twins/b"+version, "s", "")
	require.Equal(t, map[string]any{"site": "berlin"}, body.(map[string]any)["tags"])

	// One of three fails: it is named, the others are done.
	status, out = post(`[{"id":"a","importMode":"create"},{"id":"c","importMode":"create"},{"id":"b","importMode":"createOrUpdate","status":"enabled"}]`)
	require.Equal(t, 400, status)
	require.Equal(t, map[string]any{"isSuccessful": false, "warnings": []any{}, "errors": []any{
		map[string]any{"deviceId": "a", "errorCode": "DeviceAlreadyExists", "errorStatus": "device a exists already"},
	}}, out)
	require.Equal(t, []string{"a", "b", "c"}, f.store.IDs())
	b, err = f.store.Get("b")
	require.NoError(t, err)
	require.False(t, b.Disabled)

	// ETags, under both names.
	status, _ = post(`[{"id":"b","importMode":"UpdateIfMatchETag","etag":"wrong"},{"id":"b","importMode":"updateIfMatchETag"}]`)
	require.Equal(t, 400, status)
	status, out = post(`[{"id":"b","importMode":"UpdateIfMatchETag","etag":"` + b.ETag + `","status":"disabled"}]`)
	require.Equal(t, 200, status, out)
	b, err = f.store.Get("b")
	require.NoError(t, err)
	require.True(t, b.Disabled)
	status, out = post(`[{"id":"b","importMode":"DeleteIfMatchETag","eTag":"\"` + b.ETag + `\""},{"id":"a","importMode":"Delete"},{"id":"c","importMode":"updateTwin","tags":{"k":1}}]`)
	require.Equal(t, 200, status, out)
	require.Equal(t, []string{"c"}, f.store.IDs())

	for _, bad := range []string{`{"id":"x","importMode":"explode"}`, `{"id":"x y","importMode":"create"}`, `{"id":"x","moduleId":"m"}`, `{"id":"nobody","importMode":"update"}`,
		`{"id":"x","importMode":"create","authentication":{"type":"selfSigned"}}`, `{"id":"nobody","importMode":"updateTwin"}`} {
		status, out = post("[" + bad + "]")
		require.Equal(t, 400, status, bad)
		require.Len(t, out["errors"], 1, bad)
	}
	f.fails(400, "ArgumentInvalid", http.MethodPost, "/devices"+version, "w", `[]`)
	f.fails(400, "ArgumentInvalid", http.MethodPost, "/devices"+version, "w", `{}`)
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodPost, "/devices"+version, "r", `[]`)
}

func TestQuery(t *testing.T) {
	f := newFixture(t)
	for i := range 25 {
		f.create(fmt.Sprintf("d%02d", i))
	}
	const all = `{"query":"SELECT * FROM devices"}`
	var got []any
	token, pages := "", 0
	for {
		status, h, out := f.do(http.MethodPost, "/devices/query"+version, "r", all, "x-ms-max-item-count", "10", "x-ms-continuation", token)
		require.Equal(t, 200, status, out)
		require.Equal(t, "Twin", h.Get("x-ms-item-type"))
		pages++
		for _, twin := range out.([]any) {
			got = append(got, twin.(map[string]any)["deviceId"])
		}
		if token = h.Get("x-ms-continuation"); token == "" {
			break
		}
	}
	require.Equal(t, 3, pages)
	require.Len(t, got, 25)
	require.Equal(t, "d24", got[24])
	_, h, out := f.do(http.MethodPost, "/devices/query"+version, "r", `{"query":"select * from devices"}`)
	require.Len(t, out, 25)
	require.Empty(t, h.Values("x-ms-continuation"), "Node goes on while the header is there")
	f.fails(400, "ArgumentInvalid", http.MethodPost, "/devices/query"+version, "r", `{"query":"SELECT deviceId FROM devices"}`)
	f.fails(400, "ArgumentInvalid", http.MethodPost, "/devices/query"+version, "r", all, "x-ms-max-item-count", "x")
	f.fails(400, "ArgumentInvalid", http.MethodPost, "/devices/query"+version, "r", all, "x-ms-continuation", "!")
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodPost, "/devices/query"+version, "s", all)
}

func TestTwins(t *testing.T) {
	f := newFixture(t)
	f.create("d")
	status, h, out := f.do(http.MethodGet, "/twins/d"+version, "s", "")
	require.Equal(t, 200, status)
	tw := out.(map[string]any)
	require.Equal(t, "0001-01-01T00:00:00Z", tw["lastActivityTime"])
	require.Equal(t, h.Get("ETag"), `"`+tw["etag"].(string)+`"`)
	etag := h.Get("ETag")
	status, _, out = f.do(http.MethodPatch, "/twins/d"+version, "s", `{"tags":{"site":"berlin","old":1},"properties":{"desired":{"x":1}}}`, "If-Match", etag)
	require.Equal(t, 200, status, out)
	f.fails(412, "PreconditionFailed", http.MethodPatch, "/twins/d"+version, "s", `{"tags":{}}`, "If-Match", etag)
	status, _, out = f.do(http.MethodPut, "/twins/d"+version, "w", `{"tags":{"site":"hamburg"},"properties":null}`)
	require.Equal(t, 200, status, out)
	require.Equal(t, map[string]any{"site": "hamburg"}, out.(map[string]any)["tags"])
	require.EqualValues(t, 1, out.(map[string]any)["properties"].(map[string]any)["desired"].(map[string]any)["x"])
	f.fails(400, "ArgumentInvalid", http.MethodPatch, "/twins/d"+version, "s", `{"tags":{"a.b":1}}`)
	f.fails(400, "ArgumentInvalid", http.MethodPatch, "/twins/d"+version, "s", `[]`)
	f.fails(404, "DeviceNotFound", http.MethodPatch, "/twins/e"+version, "s", `{}`)
	f.fails(404, "DeviceNotFound", http.MethodGet, "/twins/e"+version, "s", ``)
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodPatch, "/twins/d"+version, "r", `{}`)
}

func TestMethods(t *testing.T) {
	f := newFixture(t)
	f.create("d")
	var got httpd.Method
	f.link.invoke = func(m httpd.Method) (int, []byte, error) { got = m; return 201, []byte(`{"ok":true}`), nil }
	const path = "/twins/d/methods" + version
	status, _, out := f.do(http.MethodPost, path, "s", `{"methodName":"reboot","payload":{"in":3},"responseTimeoutInSeconds":7,"connectTimeoutInSeconds":2}`)
	require.Equal(t, 200, status, out)
	require.Equal(t, map[string]any{"status": 201.0, "payload": map[string]any{"ok": true}}, out)
	require.Equal(t, httpd.Method{Name: "reboot", Payload: []byte(`{"in":3}`), ResponseTimeout: 7 * time.Second, ConnectTimeout: 2 * time.Second}, got)
	f.link.invoke = func(httpd.Method) (int, []byte, error) { return 200, nil, nil }
	_, _, out = f.do(http.MethodPost, path, "s", `{"methodName":"reboot"}`)
	require.Equal(t, map[string]any{"status": 200.0, "payload": nil}, out)
	f.link.invoke = func(httpd.Method) (int, []byte, error) { return 200, []byte("{"), nil }
	f.fails(502, "GenericBadGateway", http.MethodPost, path, "s", `{"methodName":"reboot"}`)
	f.link.invoke = func(httpd.Method) (int, []byte, error) { return 0, nil, &c2d.Refusal{Code: 404103, Text: "offline"} }
	f.fails(404, "DeviceNotOnline", http.MethodPost, path, "s", `{"methodName":"reboot"}`)
	f.link.invoke = func(httpd.Method) (int, []byte, error) { return 0, nil, &c2d.Refusal{Code: 504101, Text: "no answer"} }
	f.fails(504, "GatewayTimeout", http.MethodPost, path, "s", `{"methodName":"reboot"}`)
	f.link.invoke = func(httpd.Method) (int, []byte, error) { return 0, nil, errors.New("odd") }
	f.fails(500, "ServerError", http.MethodPost, path, "s", `{"methodName":"reboot"}`)
	for _, bad := range []string{`{}`, `{"methodName":"x","responseTimeoutInSeconds":4}`, `{"methodName":"x","responseTimeoutInSeconds":1e300}`, `{"methodName":"x","connectTimeoutInSeconds":-1}`} {
		f.fails(400, "ArgumentInvalid", http.MethodPost, path, "s", bad)
	}
	f.fails(404, "DeviceNotFound", http.MethodPost, "/twins/e/methods"+version, "s", `{"methodName":"x"}`)
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodPost, path, "rw", `{"methodName":"x"}`)
}

func TestModules(t *testing.T) {
	f := newFixture(t)
	f.create("d")
	status, _, out := f.do(http.MethodGet, "/devices/d/modules"+version, "r", "")
	require.Equal(t, 200, status)
	require.Empty(t, out)
	f.fails(404, "DeviceNotFound", http.MethodGet, "/devices/e/modules"+version, "r", "")
	f.fails(404, "ModuleNotFound", http.MethodGet, "/devices/d/modules/m"+version, "r", "")
	f.fails(404, "ModuleNotFound", http.MethodGet, "/twins/d/modules/m"+version, "r", "")
	f.fails(501, "NotImplemented", http.MethodPut, "/devices/d/modules/m"+version, "w", "{}")
	f.fails(404, "ModuleNotFound", http.MethodPost, "/twins/d/modules/m/methods"+version, "s", "{}")
}

func TestFeedback(t *testing.T) {
	f := newFixture(t)
	const path = "/messages/serviceBound/feedback"
	status, _, out := f.do(http.MethodGet, path+version, "s", "")
	require.Equal(t, 204, status, out)
	f.feedback.Add(feedback.Record{MessageID: "m1", Device: "d", Generation: "7", Status: "Success", At: time.Date(2025, 1, 2, 3, 4, 5, 678e6, time.UTC)})
	status, h, out := f.do(http.MethodGet, "/messages/servicebound/feedback"+version, "s", "")
	require.Equal(t, 200, status)
	require.Equal(t, "application/vnd.microsoft.iothub.feedback.json", h.Get("Content-Type"))
	require.Equal(t, "1", h.Get("iothub-deliverycount"))
	require.Equal(t, []any{map[string]any{
		"originalMessageId": "m1", "description": "Success", "deviceGenerationId": "7", "deviceId": "d", "enqueuedTimeUtc": "2025-01-02T03:04:05.678Z", "statusCode": "Success",
	}}, out)
	token := h.Get("iothub-messagelocktoken")
	require.Equal(t, `"`+token+`"`, h.Get("ETag"))
	status, _, _ = f.do(http.MethodGet, path+version, "s", "")
	require.Equal(t, 204, status, "it is locked")
	status, _, _ = f.do(http.MethodPost, path+"/"+token+"/abandon"+version, "s", "")
	require.Equal(t, 204, status)
	f.fails(412, "DeviceMessageLockLost", http.MethodDelete, path+"/"+token+version, "s", "")
	_, h, _ = f.do(http.MethodGet, path+version, "s", "")
	require.Equal(t, "2", h.Get("iothub-deliverycount"))
	status, _, _ = f.do(http.MethodDelete, path+"/"+h.Get("iothub-messagelocktoken")+version, "s", "")
	require.Equal(t, 204, status)
	require.EqualValues(t, 1, f.feedback.Status().Completed)
	f.feedback.Add(feedback.Record{MessageID: "m2", Device: "d", Generation: "7", Status: "Expired"})
	_, h, _ = f.do(http.MethodGet, path+version, "s", "")
	status, _, _ = f.do(http.MethodDelete, path+"/"+h.Get("iothub-messagelocktoken")+version+"&reject", "s", "")
	require.Equal(t, 204, status)
	require.EqualValues(t, 1, f.feedback.Status().Rejected)
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodGet, path+version, "rw", "")
	f.fails(404, "NotFound", http.MethodGet, "/messages/events"+version, "s", "")
}

func TestRegistryThrottle(t *testing.T) {
	f := newFixture(t)
	f.create("d")
	f.registry = &c2d.Refusal{Condition: "com.microsoft:device-container-throttled", Code: 429001, Text: "too many"}
	f.fails(429, "ThrottlingException", http.MethodGet, "/devices/d"+version, "r", "")
	status, _, _ := f.do(http.MethodGet, "/statistics/devices"+version, "r", "")
	require.Equal(t, 200, status)
}

func TestFaults(t *testing.T) {
	f := newFixture(t)
	f.create("d", "e")
	onlyD := func(id string) bool { return id == "d" }
	f.faults.Add(fault.Request, 1, onlyD, fault.Action{Kind: fault.Reject, Condition: "com.microsoft:device-container-throttled"})
	status, _, _ := f.do(http.MethodGet, "/devices/e"+version, "r", "")
	require.Equal(t, 200, status)
	f.fails(429, "ThrottlingException", http.MethodGet, "/devices/d"+version, "r", "")
	f.faults.Add(fault.Request, 1, nil, fault.Action{Kind: fault.Reject})
	f.fails(500, "ServerError", http.MethodGet, "/devices/d"+version, "r", "")
	f.faults.Add(fault.Request, 1, nil, fault.Action{Kind: fault.Delay, Delay: 50 * time.Millisecond})
	begin := time.Now()
	status, _, _ = f.do(http.MethodGet, "/devices/d"+version, "r", "")
	require.Equal(t, 200, status)
	require.GreaterOrEqual(t, time.Since(begin), 50*time.Millisecond)
	// Dropped, a POST at that: the client of net/http repeats a GET by itself.
	f.faults.Add(fault.Request, 1, nil, fault.Action{Kind: fault.Drop})
	post := func(c *http.Client) error {
		r, err := http.NewRequest(http.MethodPost, "http://"+f.addr+"/devices/query"+version, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "r")
		_, err = c.Do(r) //nolint:bodyclose // there is none
		return err
	}
	require.Error(t, post(f.http))
	f.faults.Add(fault.Request, 1, nil, fault.Action{Kind: fault.Withhold})
	impatient := &http.Client{Transport: &http.Transport{}, Timeout: 50 * time.Millisecond}
	require.ErrorContains(t, post(impatient), "Timeout")
	impatient.CloseIdleConnections()
}
