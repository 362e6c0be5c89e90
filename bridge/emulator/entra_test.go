package emulator_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/entra"
)

// putBearer puts a token of this type and returns the answer.
func putBearer(t *testing.T, h *emulator.Hub, kind, token string) (status any, text string) {
	t.Helper()
	s := dialSession(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	tx, err := s.NewSender(ctx, "$cbs", nil)
	require.NoError(t, err)
	rx, err := s.NewReceiver(ctx, "$cbs", nil)
	require.NoError(t, err)
	require.NoError(t, tx.Send(ctx, &amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: "1"},
		ApplicationProperties: map[string]any{"operation": "put-token", "type": kind, "name": "https://iothubs.azure.net/.default"},
		Value:                 token,
	}, nil))
	m, err := rx.Receive(ctx, nil)
	require.NoError(t, err)
	text, _ = m.ApplicationProperties["status-description"].(string)
	return m.ApplicationProperties["status-code"], text
}

func TestEntraTokens(t *testing.T) {
	issuer, other := bridgetest.RunIssuer(t), bridgetest.RunIssuer(t)
	h := runHub(t, emulator.Options{Devices: []string{"d1"}, Entra: &entra.Options{Issuer: issuer.URL(), RootCAs: issuer.RootCAs()}})
	now := time.Now().Unix()

	good := issuer.Sign(nil)
	for _, x := range []struct{ name, kind, text string }{
		{"as Python has it", "bearer", "Bearer " + good},
		{"as Node has it", "servicebus.windows.net:sastoken", "Bearer " + good},
		{"as C# has it", "Bearer", good},
	} {
		status, text := putBearer(t, h, x.kind, x.text)
		require.EqualValues(t, 200, status, "%s: %s", x.name, text)
	}
	for _, x := range []struct{ name, text string }{
		{"another issuer's key", other.Sign(map[string]any{"iss": issuer.URL()})},
		{"another issuer", issuer.Sign(map[string]any{"iss": other.URL()})},
		{"another audience", issuer.Sign(map[string]any{"aud": "https://vault.azure.net"})},
		{"no audience", issuer.Sign(map[string]any{"aud": nil})},
		{"expired", issuer.Sign(map[string]any{"exp": now - 1})},
		{"no expiry", issuer.Sign(map[string]any{"exp": nil})},
		{"not yet valid", issuer.Sign(map[string]any{"nbf": now + 3600})},
		{"changed", good[:len(good)-8] + "AAAAAAAA"},
		{"no signature", "eyJhbGciOiJub25lIn0.e30."},
		{"no token", "abc"},
	} {
		status, text := putBearer(t, h, "bearer", "Bearer "+x.text)
		require.EqualValues(t, 401, status, x.name)
		require.NotContains(t, text, x.text)
	}
	status, _ := putBearer(t, h, "jwt", good)
	require.EqualValues(t, 401, status)

	plain := runHub(t, emulator.Options{})
	status, text := putBearer(t, plain, "bearer", "Bearer "+good)
	require.EqualValues(t, 401, status)
	require.Contains(t, text, "not Entra tokens")

	_, err := emulator.Start(emulator.Options{Entra: &entra.Options{Issuer: "http://x"}})
	require.ErrorContains(t, err, `hub: entra issuer "http://x": want an https URL`)

	// REST takes them too.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"}}}
	t.Cleanup(client.CloseIdleConnections)
	for token, want := range map[string]int{good: 200, "abc": 401} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+h.HTTPAddr()+"/devices/d1?api-version=2021-04-12", nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(r)
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, want, res.StatusCode)
	}
}

// The hub starts without its issuer; tokens are refused until that can be asked.
func TestEntraIssuerComesLater(t *testing.T) {
	v, err := entra.New(entra.Options{Issuer: "https://127.0.0.1:1/t/v2.0"})
	require.NoError(t, err)
	_, err = v.Verify("Bearer x")
	require.ErrorContains(t, err, "cannot ask the issuer https://127.0.0.1:1/t/v2.0: ")
}
