package sas_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/internal/sas"
)

// The key is the bytes 0 to 31. Signatures were computed with Python's hmac and
// base64 from the documented rule, not with this package.
const key64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func key(t testing.TB) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(key64)
	require.NoError(t, err)
	return b
}

func TestSignGolden(t *testing.T) {
	for _, c := range []struct {
		resource, keyName string
		expiry            int64
		want              string
	}{
		{"hub.azure-devices.net", "service", 1767225600,
			"SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&se=1767225600&skn=service"},
		{"hub.azure-devices.net/devices/pump-7", "", 1767225600,
			"SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpump-7&sig=vsT0DGxGzCpewtjIAsB%2Fn2dmJO8uapp%2BCsDHPMiwV5E%3D&se=1767225600"},
		{"hub.azure-devices.net/devices/a#b%c", "", 1767225600,
			"SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fa%23b%25c&sig=CDA9AYfxipd6zwbGoHfkAKZgeW6ERxMnIcgblmzDUuI%3D&se=1767225600"},
		{"0ne00000001/registrations/reg-1", "registration", 1767225600,
			"SharedAccessSignature sr=0ne00000001%2Fregistrations%2Freg-1&sig=n%2BWvgXejkofS7MXiGAfccAAcnPNb%2BOmhfuLAgZfbC4c%3D&se=1767225600&skn=registration"},
	} {
		got := sas.Sign(c.resource, c.keyName, key(t), time.Unix(c.expiry, 0))
		require.Equal(t, c.want, got)

		tok, err := sas.ParseToken(got)
		require.NoError(t, err)
		require.True(t, tok.Verify(key(t)))
		require.Equal(t, c.resource, tok.Resource)
		require.Equal(t, c.keyName, tok.KeyName)
		require.Equal(t, c.expiry, tok.Expiry.Unix())
	}
}

// Each SDK writes the same token in its own way; all are legal.
func TestParseTokenVariants(t *testing.T) {
	for name, text := range map[string]string{
		"Python: / raw in sig":         "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpump-7&sig=vsT0DGxGzCpewtjIAsB/n2dmJO8uapp%2BCsDHPMiwV5E%3D&se=1767225600",
		"Node: order sr, sig, skn, se": "SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&skn=service&se=1767225600",
		"any order":                    "SharedAccessSignature skn=service&se=1767225600&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&sr=hub.azure-devices.net",
		"sr raw":                       "SharedAccessSignature sr=hub.azure-devices.net/devices/pump-7&sig=5V1%2BFrawD241O192eykO6PN4CALiU1FCEf7RDRfW5ts%3D&se=1767225600",
		"sr in lower-case hex":         "SharedAccessSignature sr=hub.azure-devices.net%2fdevices%2fpump-7&sig=ySqpyfvqULfXCfajOg3CuIOLkQYdI0A3gFvW5Mhqveo%3d&se=1767225600",
		"sig not encoded at all":       "SharedAccessSignature sr=hub.azure-devices.net&sig=D/fom27mTFZFR1wtcV6FOuKy4NxlzoW+InKiH2UcONQ=&se=1767225605",
		"unknown field":                "SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&se=1767225600&x=1",
	} {
		tok, err := sas.ParseToken(text)
		require.NoError(t, err, name)
		require.True(t, tok.Verify(key(t)), name)
		require.False(t, tok.Verify([]byte("another")), name)
		require.True(t, tok.Covers("HUB.azure-devices.net/devices/pump-7/messages/devicebound"), name)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok), "wtPa8", name)
	}
	// The same token with sr encoded otherwise than it was signed is another text.
	tok, err := sas.ParseToken("SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpump-7&sig=5V1%2BFrawD241O192eykO6PN4CALiU1FCEf7RDRfW5ts%3D&se=1767225600")
	require.NoError(t, err)
	require.False(t, tok.Verify(key(t)))
}

func TestParseTokenErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "must start with",
		"Bearer abc":            "must start with",
		"SharedAccessSignature": "must start with",
		"SharedAccessSignature sr=h&sig=AA%3D%3D":                        "se is missing",
		"SharedAccessSignature sig=AA%3D%3D&se=1":                        "sr is missing",
		"SharedAccessSignature sr=h&se=1":                                "sig is missing",
		"SharedAccessSignature sr=h&sr=h&sig=AA%3D%3D&se=1":              "sr is there twice",
		"SharedAccessSignature sr=%zz&sig=AA%3D%3D&se=1":                 "sr is not percent-encoded",
		"SharedAccessSignature sr=h&sig=%zz&se=1":                        "sig is not percent-encoded",
		"SharedAccessSignature sr=h&sig=AA%3D%3D&se=1&skn=%zz":           "skn is not percent-encoded",
		"SharedAccessSignature sr=h&sig=!&se=1":                          "sig is not base64",
		"SharedAccessSignature sr=h&sig=AA%3D%3D&se=soon":                "se is not a time",
		"SharedAccessSignature sr=h&sig=AA%3D%3D&se=-1":                  "se is not a time",
		"SharedAccessSignature sr=h&sig=AA%3D%3D&se=9999999999999999999": "se is not a time",
	} {
		_, err := sas.ParseToken(text)
		require.ErrorContains(t, err, want, text)
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		token, resource string
		want            bool
	}{
		{"hub.net", "hub.net", true},
		{"hub.net", "HUB.NET/messages/devicebound", true},
		{"hub.net", "amqps://hub.net:5671/messages/devicebound", true},
		{"https://hub.net/", "hub.net", true},
		{"hub.net/devices/d1", "hub.net/devices/d1", true},
		{"hub.net/devices/d1", "hub.net/devices/d1/messages/events", true},
		{"hub.net/devices/d1/", "hub.net/devices/d1", true},
		{"hub.net/devices/d1", "hub.net/devices/d10", false},
		{"hub.net/devices/d1", "hub.net/devices/D1", false},
		{"hub.net/devices/d1", "hub.net/devices", false},
		{"hub.net/devices/d1", "hub.net", false},
		{"hub.net", "hub.net.evil", false},
		{"hub.ne", "hub.net", false},
		{"hub.net/devices/a%23b", "hub.net/devices/a#b", true}, // encoded once more by the sender
		{"hub.net/devices/a#b", "hub.net/devices/a#b", true},
		{"/devices/d1", "/devices/d1", false},
	} {
		tok, err := sas.ParseToken(sas.Sign(c.token, "", key(t), time.Unix(1767225600, 0)))
		require.NoError(t, err)
		require.Equal(t, c.want, tok.Covers(c.resource), "%s covers %s", c.token, c.resource)
	}
}

func TestParseKinds(t *testing.T) {
	for _, c := range []struct {
		text string
		kind sas.Kind
		want sas.ConnectionString
	}{
		{"HostName=hub.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=" + key64, sas.KindService,
			sas.ConnectionString{HostName: "hub.azure-devices.net", KeyName: "service", Key: key(t)}},
		{"HostName=hub.azure-devices.net;DeviceId=pump-7;SharedAccessKey=" + key64, sas.KindDevice,
			sas.ConnectionString{HostName: "hub.azure-devices.net", DeviceID: "pump-7", Key: key(t)}},
		{"HostName=hub.azure-devices.net;DeviceId=a=b;x509=true", sas.KindDevice,
			sas.ConnectionString{HostName: "hub.azure-devices.net", DeviceID: "a=b", X509: true}},
		{"HostName=hub.azure-devices.net;DeviceId=pump-7;ModuleId=m;SharedAccessKey=" + key64 + ";GatewayHostName=edge.local", sas.KindModule,
			sas.ConnectionString{HostName: "hub.azure-devices.net", DeviceID: "pump-7", ModuleID: "m", Key: key(t), GatewayHostName: "edge.local"}},
		{"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=service;SharedAccessKey=" + key64 + ";EntityPath=hub", sas.KindEventHubs,
			sas.ConnectionString{Endpoint: "sb://ns.servicebus.windows.net/", KeyName: "service", Key: key(t), EntityPath: "hub"}},
		{"HostName=hub.azure-devices.net;DeviceId=pump-7;SharedAccessSignature=SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpump-7&sig=AA%3D%3D&se=1767225600", sas.KindDevice,
			sas.ConnectionString{HostName: "hub.azure-devices.net", DeviceID: "pump-7",
				Token: "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpump-7&sig=AA%3D%3D&se=1767225600"}},
	} {
		got, err := sas.Parse(c.text)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
		require.Equal(t, c.kind, got.Kind())
		require.Equal(t, c.text, got.Reveal())
	}

	got, err := sas.Parse(" sharedaccesskey = " + key64 + " ;SHAREDACCESSKEYNAME=service; hostname=localhost;\n")
	require.NoError(t, err)
	require.Equal(t, sas.ConnectionString{HostName: "localhost", KeyName: "service", Key: key(t)}, got)
	require.Equal(t, sas.KindUnknown, sas.ConnectionString{}.Kind())
	require.Equal(t, []string{"unknown", "service", "device", "module", "Event Hubs"}, []string{
		sas.KindUnknown.String(), sas.KindService.String(), sas.KindDevice.String(), sas.KindModule.String(), sas.KindEventHubs.String()})
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "empty"},
		{" \n", "empty"},
		{"pump-7", "part 1 has no \"=\""},
		{"HostName=h;SharedAccessKeyName=s;SharedAccesKey=" + key64, "unknown part \"SharedAccesKey\""},
		{"HostName=h;SharedAccessKeyName=s;SharedAccessKey=" + key64 + ";HostName=h", "HostName is there twice"},
		{"HostName=;SharedAccessKeyName=s;SharedAccessKey=" + key64, "HostName is empty"},
		{"SharedAccessKeyName=s;SharedAccessKey=" + key64, "HostName is missing"},
		{"HostName=h;SharedAccessKey=" + key64, "SharedAccessKeyName is missing (service) or DeviceId is (device)"},
		{"HostName=h;SharedAccessKeyName=s", "SharedAccessKey is missing"},
		{"HostName=h;DeviceId=d", "SharedAccessKey is missing"},
		{"HostName=h;DeviceId=d;x509=true;SharedAccessKey=" + key64, "take one of"},
		{"HostName=h;x509=true", "x509=true without DeviceId"},
		{"HostName=h;DeviceId=d;x509=yes", "x509 must be true"},
		{"HostName=h;ModuleId=m;SharedAccessKeyName=s;SharedAccessKey=" + key64, "ModuleId without DeviceId"},
		{"HostName=h:5671;SharedAccessKeyName=s;SharedAccessKey=" + key64, "without port"},
		{"HostName=https://h;SharedAccessKeyName=s;SharedAccessKey=" + key64, "without scheme"},
		{"HostName=h/x;SharedAccessKeyName=s;SharedAccessKey=" + key64, "not a host name"},
		{"HostName=h;SharedAccessKeyName=s;SharedAccessKey=***", "SharedAccessKey is not base64"},
		{"HostName=h;DeviceId=d;SharedAccessSignature=nonsense", "SharedAccessSignature: sas token"},
		{"HostName=h;Endpoint=sb://x/;SharedAccessKeyName=s;SharedAccessKey=" + key64, "both Endpoint"},
		{"HostName=h;EntityPath=x;SharedAccessKeyName=s;SharedAccessKey=" + key64, "EntityPath without Endpoint"},
		{"Endpoint=sb://x/;SharedAccessKey=" + key64, "SharedAccessKeyName is missing"},
		{"HostName=h;SharedAccessKeyName=s;SharedAccessKey=AAEC;AwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "part 4 is unknown"},
	} {
		_, err := sas.Parse(c.text)
		require.ErrorContains(t, err, c.want, c.text)
		require.NotContains(t, err.Error(), "AwQF")
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	const secret = "AAECAwQFBgcICQoL"
	c, err := sas.Parse("HostName=h;SharedAccessKeyName=s;SharedAccessKey=" + key64)
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "a", c, "b", &c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "a", c, "b", []any{c})
	js, err := json.Marshal(map[string]any{"c": c})
	require.NoError(t, err)
	all := fmt.Sprintf("%v %+v %#v %s %q", c, c, c, &c, c) + log.String() + string(js)
	require.NotContains(t, all, secret)
	require.NotContains(t, all, fmt.Sprint([]byte{0, 1, 2, 3, 4}))
	require.Contains(t, all, "HostName=h;SharedAccessKeyName=s;SharedAccessKey=<redacted>")

	tok, err := sas.ParseToken("SharedAccessSignature sr=h&sig=AAECAwQFBgcICQoL&se=1&skn=a%20b")
	require.NoError(t, err)
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", tok, tok, tok), secret)
	require.Equal(t, "SharedAccessSignature sr=h&sig=<redacted>&se=1&skn=a%20b", tok.String())
}

func FuzzParse(f *testing.F) {
	f.Add("HostName=hub.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=" + key64)
	f.Add("HostName=h;DeviceId=d;x509=true;")
	f.Add("Endpoint=sb://x/;SharedAccessKeyName=s;SharedAccessKey=" + key64 + ";EntityPath=e")
	f.Add(";;=;a=b")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := sas.Parse(s)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.NotEqual(t, sas.KindUnknown, c.Kind())
		again, err := sas.Parse(c.Reveal())
		require.NoError(t, err)
		require.Equal(t, c, again)
		if k := base64.StdEncoding.EncodeToString(c.Key); len(k) >= 16 && strings.Count(c.Reveal(), k) == 1 {
			require.NotContains(t, c.String(), k)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add("SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&se=1767225600&skn=service")
	f.Add("SharedAccessSignature sr=%2F&sig=AA==&se=0")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := sas.ParseToken(s)
		if err != nil {
			return
		}
		require.False(t, tok.Verify([]byte("no")) && tok.Verify([]byte("neither")))
		_ = tok.Covers(tok.Resource)
		_ = tok.Expiry.Format(time.RFC3339)
		again, err := sas.ParseToken(sas.Sign(tok.Resource, tok.KeyName, []byte("k"), tok.Expiry))
		require.NoError(t, err)
		require.True(t, again.Verify([]byte("k")))
		require.Equal(t, tok.Resource, again.Resource)
	})
}
