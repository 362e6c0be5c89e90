package mqttd_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
)

// The first three are captures that others published (Microsoft's MQTT tutorial,
// SDK issues); the rest pins the encoding.
func TestTopic(t *testing.T) {
	const guid = "1c8b3d7a-8a0f-4a4e-9a53-5a3c6f9f3c11"
	lower, camel := "/devices/d1/messages/devicebound", "/devices/d1/messages/deviceBound"
	for name, c := range map[string]struct {
		m    c2d.Message
		want string
	}{
		"CLI":           {c2d.Message{To: lower, MessageID: guid, ContentEncoding: "utf-8", Ack: "none"}, "%24.mid=" + guid + "&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&%24.ce=utf-8&iothub-ack=none"},
		"portal":        {c2d.Message{To: camel, MessageID: guid, Ack: "full"}, "%24.mid=" + guid + "&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&iothub-ack=full"},
		"no properties": {c2d.Message{To: lower}, "%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound"},
		"everything": {
			c2d.Message{
				To: "/devices/d%31/messages/devicebound", MessageID: "m+1", CorrelationID: "c d", UserID: "ü", ContentType: "application/json",
				ContentEncoding: "utf-8", ExpiresAt: time.Date(2025, 1, 2, 4, 4, 5, 678e6, time.FixedZone("", 3600)), Ack: "positive",
				Properties: []c2d.Property{{Name: "verb", Value: "reboot"}, {Name: "empty"}, {Name: "a null", Null: true}, {Name: "iothub-message-schema", Null: true}},
			},
			"%24.exp=2025-01-02T03%3A04%3A05.6780000Z&%24.mid=m%2B1&%24.to=%2Fdevices%2Fd%2531%2Fmessages%2Fdevicebound" +
				"&%24.cid=c%20d&%24.uid=%C3%BC&%24.ct=application%2Fjson&%24.ce=utf-8&iothub-ack=positive&verb=reboot&empty=&a%20null&%24.schema",
		},
		"system properties that AMQP carries among the others": {
			c2d.Message{To: lower, Properties: []c2d.Property{
				{Name: "iothub-creation-time-utc", Value: "2025-01-02T03:04:05.0000000Z"},
				{Name: "iothub-message-schema", Value: "s"}, {Name: "iothub-operation", Value: "o"},
			}},
			"%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&%24.ctime=2025-01-02T03%3A04%3A05.0000000Z&%24.schema=s&iothub-operation=o",
		},
		"nothing is encoded twice and no plus means space": {
			c2d.Message{To: lower, Properties: []c2d.Property{{Name: "a&b=c", Value: "100%25 +/#?é\x00~-._"}, {Name: "$x", Value: "$"}}},
			"%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&a%26b%3Dc=100%2525%20%2B%2F%23%3F%C3%A9%00~-._&%24x=%24",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "devices/d1/messages/devicebound/"+c.want, mqttd.Topic("d1", &c.m))
		})
	}
}

func TestTopicHoldsTheDeviceIDAsItIs(t *testing.T) {
	got := mqttd.Topic("a:b+c#", &c2d.Message{To: "/devices/a:b+c#/messages/devicebound"})
	require.Equal(t, "devices/a:b+c#/messages/devicebound/%24.to=%2Fdevices%2Fa%3Ab%2Bc%23%2Fmessages%2Fdevicebound", got)
}

func FuzzTopic(f *testing.F) {
	f.Add("name", "value", "m1")
	f.Add("a&b=%", "+ \x00/#é", "")
	f.Fuzz(func(t *testing.T, name, value, id string) {
		topic := mqttd.Topic("d", &c2d.Message{To: "t", MessageID: id, Properties: []c2d.Property{{Name: name, Value: value}}})
		bag, ok := strings.CutPrefix(topic, "devices/d/messages/devicebound/")
		require.True(t, ok)
		require.NotContains(t, bag, "/")
		pairs := strings.Split(bag, "&")
		n, v, ok := strings.Cut(pairs[len(pairs)-1], "=")
		require.True(t, ok)
		n, err := url.PathUnescape(n)
		require.NoError(t, err)
		v, err = url.PathUnescape(v)
		require.NoError(t, err)
		switch name {
		case "iothub-creation-time-utc":
			name = "$.ctime"
		case "iothub-message-schema":
			name = "$.schema"
		}
		require.Equal(t, [2]string{name, value}, [2]string{n, v})
	})
}

func TestParseUsername(t *testing.T) {
	for in, want := range map[string]mqttd.Login{
		"h.net/d1/?api-version=2021-04-12":                                                  {Host: "h.net", Device: "d1", APIVersion: "2021-04-12"},
		"h.net/d1/api-version=2020-09-30":                                                   {Host: "h.net", Device: "d1", APIVersion: "2020-09-30"}, // amenzhinsky/iothub
		"h.net/d1/?api-version=2019-10-01&DeviceClientType=azure-iot-device%2F2.14.0%20%28": {Host: "h.net", Device: "d1", APIVersion: "2019-10-01"},
		"h.net/d1/?DeviceClientType=a/b&api-version=2021-04-12&model-id=dtmi%3Aa":           {Host: "h.net", Device: "d1", APIVersion: "2021-04-12"},
		"h.net/d1/m1/?api-version=2021-04-12":                                               {Host: "h.net", Device: "d1", Module: "m1", APIVersion: "2021-04-12"},
		"h.net/d1/m1/api-version=2021-04-12":                                                {Host: "h.net", Device: "d1", Module: "m1", APIVersion: "2021-04-12"},
		"h.net/a?b#c%41/?api-version=1":                                                     {Host: "h.net", Device: "a?b#c%41", APIVersion: "1"}, // IDs are not encoded
	} {
		got, err := mqttd.ParseUsername(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{
		"", "h", "h/", "h/d1", "h/d1/", "h/d1/?", "h/d1/?api-version=", "/d1/?api-version=1", "h//?api-version=1",
		"h/d1/m1", "h/d1/m1/", "h/d1/m1/x/?api-version=1", "h/d1//?api-version=1", "h/d1/?x=api-version=1",
	} {
		_, err := mqttd.ParseUsername(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseUsername(f *testing.F) {
	f.Add("h.net/d1/?api-version=2021-04-12")
	f.Add("h.net/d1/m1/api-version=2021-04-12&DeviceClientType=x")
	f.Add("h/d1/?")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := mqttd.ParseUsername(s)
		if err != nil {
			require.Zero(t, l)
			return
		}
		require.NotEmpty(t, l.Host)
		require.NotEmpty(t, l.APIVersion)
		require.True(t, strings.HasPrefix(s, l.Host+"/"+l.Device+"/"))
		require.NotContains(t, l.Device, "/")
	})
}
