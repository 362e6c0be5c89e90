package hubservice

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
)

var _ bridge.Sender = (*Client)(nil)

const testKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func TestNewNamesTheWrongConnectionString(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "hub main: connection string: empty"},
		{"HostName=h;DeviceId=d;SharedAccessKey=" + testKey,
			"hub main: this is a device connection string; take the hub's service connection string (Shared access policies, policy service)"},
		{"HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=" + testKey, "hub main: this is a module connection string; take"},
		{"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=service;SharedAccessKey=" + testKey + ";EntityPath=e",
			"hub main: this is an Event Hubs connection string; take the hub's service connection string"},
		{"HostName=h;SharedAccessKeyName=service;SharedAccessSignature=SharedAccessSignature sr=other&sig=AA%3D%3D&se=1",
			"hub main: its SharedAccessSignature is for another resource than the hub"},
	} {
		_, err := New(Options{ConnectionString: c.text})
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), testKey)
	}
	service := "HostName=h;SharedAccessKeyName=service;SharedAccessKey=" + testKey
	_, err := New(Options{Hub: "west", ConnectionString: service, Address: "localhost"})
	require.EqualError(t, err, `hub west: address "localhost": want host:port`)

	c, err := New(Options{ConnectionString: service})
	require.NoError(t, err)
	require.Equal(t, "h:5671", c.options.Address)
	require.Equal(t, 512, cap(c.window))
	require.EqualError(t, c.Ready(), "hub main: connecting to h:5671")
	require.False(t, c.Stats().Connected)
}

func TestCredential(t *testing.T) {
	mint := func(c *Client, now int64) (token, error) {
		return c.credentials.ways[0].mint(t.Context(), time.Unix(now, 0))
	}
	c, err := New(Options{ConnectionString: "HostName=hub.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=" + testKey})
	require.NoError(t, err)
	signed, err := mint(c, 1767225600-3600)
	require.NoError(t, err)
	require.Equal(t, int64(1767225600), signed.expires.Unix())
	require.Equal(t, time.Hour, signed.left)
	require.Equal(t, "SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&se=1767225600&skn=service", signed.text)

	c, err = New(Options{ConnectionString: "HostName=hub.azure-devices.net;SharedAccessSignature=" + signed.text})
	require.NoError(t, err)
	fixed, err := mint(c, 1767225599)
	require.NoError(t, err)
	require.Equal(t, signed.text, fixed.text)
	require.Equal(t, time.Second, fixed.left)
	require.Equal(t, int64(1767225600), fixed.expires.Unix())
	_, err = mint(c, 1767225600)
	require.EqualError(t, err, "put-token: 401 the SharedAccessSignature of the connection string expired at 2026-01-01T00:00:00Z")
	require.True(t, isUnauthorized(err))
}
