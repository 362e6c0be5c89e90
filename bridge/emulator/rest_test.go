package emulator_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/internal/sas"
)

// rest is a back end on the hub's REST endpoint.
type rest struct {
	t    *testing.T
	h    *emulator.Hub
	http *http.Client
}

func newREST(t *testing.T, h *emulator.Hub) *rest {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: h.Hostname()}}
	t.Cleanup(transport.CloseIdleConnections)
	return &rest{t, h, &http.Client{Transport: transport, Timeout: wait}}
}

// do makes a request as a policy, or with a token, and returns status, headers and body.
func (r *rest) do(policy, method, path, body string, headers ...string) (int, http.Header, string) {
	r.t.Helper()
	q, err := http.NewRequest(method, "https://"+r.h.HTTPAddr()+path+"?api-version=2021-04-12", strings.NewReader(body))
	require.NoError(r.t, err)
	authorization := policy
	if !strings.HasPrefix(policy, "SharedAccessSignature") && policy != "" {
		authorization = policyToken(r.t, r.h, policy)
	}
	q.Header.Set("Authorization", authorization)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	res, err := r.http.Do(q)
	require.NoError(r.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(r.t, err)
	return res.StatusCode, res.Header, string(text)
}

func TestPoliciesByCall(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	r := newREST(t, h)
	const read, write, service = "r", "w", "s"
	policies := map[string]string{"iothubowner": "rws", "service": "s", "device": "", "registryRead": "r", "registryReadWrite": "rw"}
	for _, c := range []struct{ needs, method, path, body string }{
		{read, "GET", "/devices/d1", ""}, {read, "GET", "/devices", ""}, {read, "GET", "/statistics/devices", ""}, {read, "GET", "/statistics/service", ""},
		{read, "POST", "/devices/query", `{"query":"SELECT * FROM devices"}`}, {read, "GET", "/devices/d1/modules", ""},
		{write, "PUT", "/devices/d1", "{}"}, {write, "POST", "/devices", `[{"id":"d1","importMode":"update"}]`},
		{service, "DELETE", "/devices/d1/commands", ""}, {service, "GET", "/messages/serviceBound/feedback", ""},
		{service, "POST", "/twins/d1/methods", `{"methodName":"x"}`}, {read + service, "GET", "/twins/d1", ""}, {write + service, "PATCH", "/twins/d1", "{}"},
	} {
		for policy, rights := range policies {
			status, header, body := r.do(policy, c.method, c.path, c.body, "If-Match", "*")
			if strings.ContainsAny(rights, c.needs) {
				require.NotEqual(t, 401, status, "%s %s as %s: %s", c.method, c.path, policy, body)
				continue
			}
			require.Equal(t, 401, status, "%s %s as %s", c.method, c.path, policy)
			require.Equal(t, "IotHubUnauthorizedAccess", header.Get("iothub-errorcode"))
		}
	}
	owner, err := h.ConnectionString("iothubowner")
	require.NoError(t, err)
	cs, err := sas.Parse(owner)
	require.NoError(t, err)
	sign := func(resource string, expires time.Time) string {
		return sas.Sign(resource, cs.KeyName, cs.Key, expires)
	}
	soon := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		token  string
		status int
	}{
		"with a port, as Python has it in its host name": {sign(cs.HostName+":8443", soon), 200},
		"for this device alone":                          {sign(cs.HostName+"/devices/d1", soon), 200},
		"for another device":                             {sign(cs.HostName+"/devices/d2", soon), 401},
		"for another hub":                                {sign("other.example", soon), 401},
		"expired":                                        {sign(cs.HostName, time.Now().Add(-time.Minute)), 401},
		"wrong key":                                      {sas.Sign(cs.HostName, cs.KeyName, []byte("wrong"), soon), 401},
		"none":                                           {"", 401},
	} {
		status, _, body := r.do(c.token, "GET", "/devices/d1", "")
		require.Equal(t, c.status, status, "%s: %s", name, body)
	}
}

func TestKeysThatAreSetAreHonoured(t *testing.T) {
	h := runHub(t, emulator.Options{})
	r := newREST(t, h)
	primary, secondary := []byte("0123456789abcdef"), []byte("fedcba9876543210fedcba9876543210")
	body := func(first, second []byte) string {
		return `{"deviceId":"d1","authentication":{"type":"sas","symmetricKey":{"primaryKey":"` +
			base64.StdEncoding.EncodeToString(first) + `","secondaryKey":"` + base64.StdEncoding.EncodeToString(second) + `"}}}`
	}
	status, _, text := r.do("registryReadWrite", "PUT", "/devices/d1", body(primary, secondary))
	require.Equal(t, 200, status, text)
	signIn := func(key []byte) error {
		t.Helper()
		o := options(t, h, "d1").SetPassword(sas.Sign(h.Hostname()+"/devices/d1", "", key, time.Now().Add(time.Hour)))
		d, err := connect(t, o)
		if err == nil {
			d.Disconnect(0)
		}
		return err
	}
	require.NoError(t, signIn(primary))
	require.NoError(t, signIn(secondary))
	require.Error(t, signIn([]byte("another key that is not right")))
	// They are there as long as the hub is, and what an update changes is changed.
	_, header, text := r.do("registryRead", "GET", "/devices/d1", "")
	require.Contains(t, text, base64.StdEncoding.EncodeToString(secondary))
	status, _, text = r.do("registryReadWrite", "PUT", "/devices/d1", body(secondary, primary), "If-Match", header.Get("ETag"))
	require.Equal(t, 200, status, text)
	require.NoError(t, signIn(primary))
	status, _, _ = r.do("registryReadWrite", "PUT", "/devices/d1", body(secondary, primary), "If-Match", header.Get("ETag"))
	require.Equal(t, 412, status)
	own, err := h.DeviceConnectionString("d1")
	require.NoError(t, err)
	cs, err := sas.Parse(own)
	require.NoError(t, err)
	require.Equal(t, secondary, cs.Key, "the hub's own connection string has the key that was set")
}

func TestFeedbackByREST(t *testing.T) {
	h := runHub(t, emulator.Options{
		Devices: []string{"d1"}, Virtual: []virtual.Rule{{Pattern: "*", Behaviour: virtual.Behaviour{Kind: virtual.Reject}}},
		Feedback: feedback.Rules{BatchSize: 2, Every: time.Hour},
	})
	r := newREST(t, h)
	for _, id := range []string{"m1", "m2"} {
		m := message("d1", id, "x")
		m.Ack = "negative"
		require.NoError(t, h.Enqueue(m))
	}
	var header http.Header
	var text string
	require.Eventually(t, func() bool {
		var status int
		status, header, text = r.do("service", "GET", "/messages/serviceBound/feedback", "")
		return status == 200
	}, wait, tick)
	var records []map[string]string
	require.NoError(t, json.Unmarshal([]byte(text), &records))
	require.Len(t, records, 2)
	require.Equal(t, []string{"m1", "Rejected"}, []string{records[0]["originalMessageId"], records[0]["statusCode"]})
	token := strings.Trim(header.Get("ETag"), `"`)
	status, _, _ := r.do("service", "DELETE", "/messages/serviceBound/feedback/"+token, "")
	require.Equal(t, 204, status)
	status, _, _ = r.do("service", "DELETE", "/messages/serviceBound/feedback/"+token, "")
	require.Equal(t, 412, status)
}

func TestMethodAndTwinByREST(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	r := newREST(t, h)
	status, header, _ := r.do("service", "POST", "/twins/d1/methods", `{"methodName":"reboot"}`)
	require.Equal(t, 404, status)
	require.Equal(t, "DeviceNotOnline", header.Get("iothub-errorcode"))
	d := connected(t, h, "d1")
	for _, filter := range []string{"$iothub/methods/POST/#", "$iothub/twin/PATCH/properties/desired/#"} {
		tok := d.Subscribe(filter, 0, nil)
		require.True(t, tok.WaitTimeout(wait))
		require.NoError(t, tok.Error())
	}
	type answer struct {
		status int
		body   string
	}
	answered := make(chan answer, 1)
	go func() {
		status, _, text := r.do("service", "POST", "/twins/d1/methods", `{"methodName":"reboot","payload":{"in":3}}`)
		answered <- answer{status, text}
	}()
	call := d.next(t)
	require.Equal(t, `{"in":3}`, string(call.Payload()))
	_, rid, _ := strings.Cut(call.Topic(), "$rid=")
	d.Publish("$iothub/methods/res/201/?$rid="+rid, 0, false, `{"ok":true}`)
	got := <-answered
	require.Equal(t, 200, got.status)
	require.JSONEq(t, `{"status":201,"payload":{"ok":true}}`, got.body)

	status, _, text := r.do("service", "PATCH", "/twins/d1", `{"properties":{"desired":{"rate":5}}}`)
	require.Equal(t, 200, status, text)
	require.Contains(t, string(d.next(t).Payload()), `"rate":5`)
	_, _, text = r.do("registryRead", "GET", "/devices/d1", "")
	require.Contains(t, text, `"connectionState":"Connected"`)
}

func TestRegistryThrottleByREST(t *testing.T) {
	h := runHub(t, emulator.Options{Now: stopped(), Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.S1, Burst: -1}})
	r := newREST(t, h)
	status, _, _ := r.do("registryRead", "GET", "/devices/d1", "")
	require.Equal(t, 200, status)
	status, header, text := r.do("registryRead", "GET", "/devices/d1", "")
	require.Equal(t, 429, status)
	require.Equal(t, "ThrottlingException", header.Get("iothub-errorcode"))
	require.Contains(t, text, "ErrorCode:ThrottlingException;")
	require.Empty(t, header.Get("Retry-After"), "IoT Hub is not known to send it")
	require.NoError(t, h.Enqueue(c2d.Message{To: "/devices/d1/messages/devicebound"}))
}

func TestRetryAfterByREST(t *testing.T) {
	h := runHub(t, emulator.Options{Now: stopped(), Devices: []string{"d1"}, Throttle: throttle.Options{Tier: throttle.S1, Burst: -1, RetryAfter: 1500 * time.Millisecond}})
	r := newREST(t, h)
	status, header, _ := r.do("registryRead", "GET", "/devices/d1", "")
	require.Equal(t, 200, status)
	require.Empty(t, header.Get("Retry-After"))
	status, header, _ = r.do("registryRead", "GET", "/devices/d1", "")
	require.Equal(t, 429, status)
	require.Equal(t, "2", header.Get("Retry-After"))
}
