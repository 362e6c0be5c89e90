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
	c, err := New(Options{ConnectionString: "HostName=hub.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=" + testKey})
	require.NoError(t, err)
	token, expires, err := c.credential.mint(time.Unix(1767225600-3600, 0))
	require.NoError(t, err)
	require.Equal(t, int64(1767225600), expires.Unix())
	require.Equal(t, "SharedAccessSignature sr=hub.azure-devices.net&sig=wtPa8AvNr8O4HhpZCyRljwuLNCfwxOEwhwNuBbeOd78%3D&se=1767225600&skn=service", token)

	c, err = New(Options{ConnectionString: "HostName=hub.azure-devices.net;SharedAccessSignature=" + token})
	require.NoError(t, err)
	fixed, expires, err := c.credential.mint(time.Unix(1767225599, 0))
	require.NoError(t, err)
	require.Equal(t, token, fixed)
	require.Equal(t, int64(1767225600), expires.Unix())
	_, _, err = c.credential.mint(time.Unix(1767225600, 0))
	require.EqualError(t, err, "put-token: 401 the SharedAccessSignature of the connection string expired at 2026-01-01T00:00:00Z")
	require.True(t, isUnauthorized(err))
}
