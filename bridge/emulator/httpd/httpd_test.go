package httpd_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/httpd"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/twin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// doorman takes the rights from the token: "r", "w", "s" or any of them.
type doorman struct{}

func (doorman) AuthorizeHTTP(token, path string, wanted identity.Rights) error {
	var have identity.Rights
	for _, c := range token {
		have |= map[rune]identity.Rights{'r': identity.RegistryRead, 'w': identity.RegistryWrite, 's': identity.ServiceConnect}[c]
	}
	if have&wanted == 0 || !strings.HasPrefix(path, "/") {
		return errors.New("no")
	}
	return nil
}

// link stands for the device endpoint.
type link struct {
	twins  *twin.Store
	invoke func(httpd.Method) (int, []byte, error)
}

func (l *link) UpdateTwin(device, generation string, c twin.Change) (twin.Twin, error) {
	return l.twins.Update(device, generation, c, nil)
}

func (l *link) Invoke(_ context.Context, _ string, m httpd.Method) (int, []byte, error) {
	return l.invoke(m)
}

type fixture struct {
	t        *testing.T
	store    *c2d.Store
	feedback *feedback.Queue
	link     *link
	faults   *fault.Injector
	registry error
	addr     string
	http     *http.Client
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	id, err := identity.Open(t.TempDir())
	require.NoError(t, err)
	f := &fixture{
		t: t, store: c2d.New(c2d.Options{}), feedback: feedback.New(feedback.Options{HubName: "hub", Rules: feedback.Rules{BatchSize: 1}}),
		link: &link{twins: twin.New(nil)}, faults: &fault.Injector{},
	}
	s := httpd.New(httpd.Options{
		Store: f.store, Identity: id, Authority: doorman{}, Feedback: f.feedback, Twins: f.link.twins, Devices: f.link, Faults: f.faults,
		Registry: func() error { return f.registry },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	f.addr, f.http = l.Addr().String(), &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	t.Cleanup(func() {
		f.http.CloseIdleConnections()
		require.NoError(t, s.Close())
		require.NoError(t, <-served)
	})
	return f
}

const version = "?api-version=2021-04-12"

// do makes a request and returns status, headers and the JSON body as a map or list.
func (f *fixture) do(method, path, token, body string, headers ...string) (int, http.Header, any) {
	f.t.Helper()
	r, err := http.NewRequest(method, "http://"+f.addr+path, strings.NewReader(body))
	require.NoError(f.t, err)
	r.Header.Set("Authorization", token)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := f.http.Do(r)
	require.NoError(f.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(f.t, err)
	var out any
	if len(text) > 0 {
		require.NoError(f.t, json.Unmarshal(text, &out), string(text))
	}
	return res.StatusCode, res.Header, out
}

// fails makes a request that must be refused with this status and error name.
func (f *fixture) fails(status int, name, method, path, token, body string, headers ...string) {
	f.t.Helper()
	got, h, out := f.do(method, path, token, body, headers...)
	require.Equal(f.t, status, got, out)
	require.Equal(f.t, name, h.Get("iothub-errorcode"))
	// Node splits Message at ";" and ":" (azure-iot-hub-node, rest_api_client.ts).
	require.Regexp(f.t, `^ErrorCode:`+name+`;`, out.(map[string]any)["Message"])
}

func TestDeviceLife(t *testing.T) {
	f := newFixture(t)
	path := "/devices/d%3A1" + version
	status, h, out := f.do(http.MethodPut, path, "w", `{"deviceId":"d:1","status":"enabled","authentication":{"type":"sas","symmetricKey":{"primaryKey":null,"secondaryKey":null}},"capabilities":{"iotEdge":false}}`)
	require.Equal(t, 200, status, out)
	d := out.(map[string]any)
	require.Equal(t, "d:1", d["deviceId"])
	require.Equal(t, "enabled", d["status"])
	require.Equal(t, "Disconnected", d["connectionState"])
	require.Equal(t, "0001-01-01T00:00:00", d["lastActivityTime"])
	require.Equal(t, `"`+d["etag"].(string)+`"`, h.Get("ETag"))
	keys := d["authentication"].(map[string]any)["symmetricKey"].(map[string]any)
	require.Len(t, keys["primaryKey"], 44)
	require.NotEqual(t, keys["primaryKey"], keys["secondaryKey"])

	f.fails(409, "DeviceAlreadyExists", http.MethodPut, path, "w", `{"deviceId":"d:1"}`)
	f.fails(412, "PreconditionFailed", http.MethodPut, path, "w", `{"deviceId":"d:1"}`, "If-Match", `"other"`)
	key := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef"))
	status, _, out = f.do(http.MethodPut, path, "w", `{"deviceId":"d:1","status":"disabled","statusReason":"broken","authentication":{"symmetricKey":{"primaryKey":"`+key+`"}}}`, "If-Match", h.Get("ETag"))
	require.Equal(t, 200, status, out)
	require.Equal(t, "disabled", out.(map[string]any)["status"])
	require.Equal(t, "broken", out.(map[string]any)["statusReason"])
	require.Equal(t, key, out.(map[string]any)["authentication"].(map[string]any)["symmetricKey"].(map[string]any)["primaryKey"])

	require.NoError(t, f.store.Enqueue(c2d.Message{To: "/devices/d:1/messages/devicebound"}))
	_, _, out = f.do(http.MethodGet, path, "r", "")
	require.EqualValues(t, 1, out.(map[string]any)["cloudToDeviceMessageCount"])
	status, _, out = f.do(http.MethodDelete, "/devices/d%3A1/commands"+version, "s", "")
	require.Equal(t, 200, status)
	require.Equal(t, map[string]any{"totalMessagesPurged": 1.0, "deviceId": "d:1", "moduleId": nil}, out)

	f.fails(412, "PreconditionFailed", http.MethodDelete, path, "w", "")
	status, _, _ = f.do(http.MethodDelete, path, "w", "", "If-Match", "*")
	require.Equal(t, 204, status)
	f.fails(404, "DeviceNotFound", http.MethodGet, path, "r", "")
	f.fails(404, "DeviceNotFound", http.MethodDelete, path, "w", "", "If-Match", "*")
	f.fails(404, "DeviceNotFound", http.MethodDelete, "/devices/d%3A1/commands"+version, "s", "")
	f.fails(404, "DeviceNotFound", http.MethodPut, path, "w", "{}", "If-Match", "*")
}

func TestListAndStatistics(t *testing.T) {
	f := newFixture(t)
	for _, id := range []string{"b", "a", "."} {
		status, _, out := f.do(http.MethodPut, "/devices/"+strings.ReplaceAll(id, ".", "%2E")+version, "w", "{}")
		require.Equal(t, 200, status, out)
	}
	_, err := f.store.Update(c2d.Device{ID: "b", Disabled: true}, "*")
	require.NoError(t, err)
	x, err := f.store.Attach("a", c2d.SessionOptions{})
	require.NoError(t, err)
	defer x.Detach()

	_, _, out := f.do(http.MethodGet, "/devices"+version, "r", "")
	require.Len(t, out, 3)
	_, _, out = f.do(http.MethodGet, "/devices"+version+"&top=2", "r", "")
	require.Len(t, out, 2)
	require.Equal(t, "Connected", out.([]any)[1].(map[string]any)["connectionState"])
	_, _, out = f.do(http.MethodGet, "/statistics/devices"+version, "r", "")
	require.Equal(t, map[string]any{"totalDeviceCount": 3.0, "enabledDeviceCount": 2.0, "disabledDeviceCount": 1.0}, out)
	_, _, out = f.do(http.MethodGet, "/statistics/service"+version, "w", "")
	require.Equal(t, map[string]any{"connectedDeviceCount": 1.0}, out)
}

func TestRefusals(t *testing.T) {
	f := newFixture(t)
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodGet, "/devices/d"+version, "", "")
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodGet, "/devices/d"+version, "s", "")
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodPut, "/devices/d"+version, "r", "{}")
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodDelete, "/devices/d"+version, "r", "")
	f.fails(401, "IotHubUnauthorizedAccess", http.MethodDelete, "/devices/d/commands"+version, "rw", "")
	f.fails(400, "InvalidProtocolVersion", http.MethodGet, "/devices/d", "r", "")
	f.fails(404, "NotFound", http.MethodGet, "/jobs/d"+version, "r", "")
	f.fails(404, "NotFound", http.MethodPatch, "/devices/d"+version, "rw", "")
	f.fails(400, "ArgumentInvalid", http.MethodGet, "/devices"+version+"&top=x", "r", "")
	for _, body := range []string{
		"", "[]", "{", `{"deviceId":"e"}`, `{"status":"asleep"}`, `{"authentication":{"type":"selfSigned"}}`,
		`{"authentication":{"symmetricKey":{"primaryKey":"!"}}}`, `{"authentication":{"symmetricKey":{"secondaryKey":"c2hvcnQ="}}}`,
		`{"statusReason":"` + strings.Repeat("x", 129) + `"}`,
	} {
		f.fails(400, "ArgumentInvalid", http.MethodPut, "/devices/d"+version, "w", body)
	}
	f.fails(400, "ArgumentInvalid", http.MethodPut, "/devices/a%20b"+version, "w", "{}")
	f.fails(413, "MessageTooLarge", http.MethodPut, "/devices/d"+version, "w", `{"x":"`+strings.Repeat("x", 70_000)+`"}`)
	require.Empty(t, f.store.IDs())
}

func TestBadRequestsEndTheirConnection(t *testing.T) {
	f := newFixture(t)
	for name, text := range map[string]string{
		"not HTTP":    "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\r\n\r\n",
		"big headers": "GET /devices HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 64*1024) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", f.addr)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			_, _ = io.WriteString(c, text) // may be cut off while we write
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				defer res.Body.Close()
				require.GreaterOrEqual(t, res.StatusCode, 400)
				require.True(t, res.Close)
			}
		})
	}
}
