package hubservice_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/entra"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/hubservice"
	"downlink/mapping"
)

func runThis(t testing.TB, c *hubservice.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

// entraOptions are a client's that has its secret in a file.
func entraOptions(t *testing.T, issuer *bridgetest.Issuer, devices ...string) (*bridgetest.Hub, hubservice.Options, *bridgetest.Log, string) {
	h := bridgetest.RunHubWith(t, emulator.Options{Devices: devices, Entra: &entra.Options{Issuer: issuer.URL(), RootCAs: issuer.RootCAs()}})
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte(issuer.Secret+"\n"), 0o600))
	o := options(h)
	o.ConnectionString = ""
	o.Host = h.Hostname()
	o.RootCAs = h.RootCAs()
	text, err := os.ReadFile(issuer.CAFile())
	require.NoError(t, err)
	require.True(t, o.RootCAs.AppendCertsFromPEM(text))
	o.Entra = &hubservice.Entra{TenantID: issuer.Tenant, ClientID: issuer.Client, ClientSecretFile: file, Authority: issuer.Authority()}
	log := &bridgetest.Log{}
	o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() {
		require.NotContains(t, log.String(), issuer.Secret)
		require.NotContains(t, log.String(), "eyJ")
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return h, o, log, file
}

func TestEntra(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	h, o, _, _ := entraOptions(t, issuer, "d1")
	c := run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1", MessageID: "m"}))
	require.Len(t, h.Queue("d1"), 1)
	require.NoError(t, c.Ready())
	require.Equal(t, "entra", c.Stats().Credential)
	require.Equal(t, 1, issuer.Granted())
	require.InDelta(t, time.Hour.Seconds(), time.Until(c.Stats().TokenExpires).Seconds(), 60)

	o.WebSocket, o.Address = true, h.HTTPAddr()
	c = run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1", MessageID: "m"}))
}

// Renewed before it expires, on the same link; the hub would close it otherwise.
func TestEntraRenewal(t *testing.T) {
	t.Parallel()
	issuer := bridgetest.RunIssuer(t)
	issuer.SetLifetime(12 * time.Second) // a quarter of it is left to get the next one
	_, o, _, _ := entraOptions(t, issuer, "d1")
	c := run(t, o)
	ctx := within(t, 2*soon)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	first := c.Stats().TokenExpires
	require.Eventually(t, func() bool { return time.Now().After(first.Add(time.Second)) }, soon, 50*time.Millisecond)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.Zero(t, c.Stats().Reconnects)
	require.GreaterOrEqual(t, issuer.Granted(), 2)
}

// The secret is wrong, and then it is not: Ready names who we are and what to
// check, without the secret, although the issuer repeats it.
func TestEntraRefusesTheClient(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	h, o, log, file := entraOptions(t, issuer, "d1")
	require.NoError(t, os.WriteFile(file, []byte("not the secret+"), 0o600))
	c := run(t, o)
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), "unauthorized: no Entra token for ") }, soon, time.Millisecond)
	text := c.Ready().Error()
	require.Contains(t, text, fmt.Sprintf("client %q of tenant %q", issuer.Client, issuer.Tenant))
	require.Contains(t, text, ": 401 invalid_client: AADSTS7000215: Invalid client secret provided: <redacted>; ")
	require.Contains(t, text, "check tenant, client and its secret or certificate")
	require.NotContains(t, text, "\n")
	require.NotContains(t, log.String(), "not the secret")
	require.Zero(t, issuer.Granted())
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "level=ERROR") }, soon, time.Millisecond)
	require.Equal(t, 1, strings.Count(log.String(), "level=ERROR"))

	require.NoError(t, os.WriteFile(file, []byte(issuer.Secret), 0o600))
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
	require.Len(t, h.Queue("d1"), 1)

	o.Entra.ClientSecretFile = file + "-missing"
	c = run(t, o)
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), "not connected: no Entra token for ") }, soon, time.Millisecond)
	require.ErrorContains(t, c.Ready(), "secret-missing: no such file")
}

// The hub refuses the token: a new one is fetched, then Ready names the role.
func TestHubRefusesEntra(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	h, o, log, _ := entraOptions(t, issuer, "d1")
	issuer.Change(func(claims map[string]any) { claims["aud"] = "https://vault.azure.net" })
	c := run(t, o)
	require.Eventually(t, func() bool {
		return strings.Contains(fmt.Sprint(c.Ready()), "unauthorized: the hub refuses Entra client ")
	}, soon, time.Millisecond)
	require.ErrorContains(t, c.Ready(), "give the identity the role IoT Hub Data Contributor on the hub")
	require.GreaterOrEqual(t, issuer.Granted(), 2)
	issuer.Change(nil)
	ctx := within(t, soon)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.NoError(t, c.Ready())

	// In the middle of its life, to one message.
	granted := issuer.Granted()
	h.Faults().Add(fault.Transfer, 1, nil, fault.Action{Kind: fault.Reject, Condition: "amqp:unauthorized-access"})
	require.Error(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.Eventually(t, func() bool { return issuer.Granted() == granted+1 }, soon, time.Millisecond)
	require.NoError(t, c.Send(ctx, &mapping.Envelope{Device: "d1"}))
	require.Zero(t, c.Stats().Reconnects)
	require.NotContains(t, log.String(), "vault.azure.net")
}

// The default credential takes what the environment has.
func TestEntraDefault(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	_, o, _, _ := entraOptions(t, issuer, "d1")
	o.Entra = &hubservice.Entra{Authority: issuer.Authority()}
	t.Setenv("AZURE_TENANT_ID", issuer.Tenant)
	t.Setenv("AZURE_CLIENT_ID", issuer.Client)
	t.Setenv("AZURE_CLIENT_SECRET", issuer.Secret)
	c := run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
	require.Equal(t, 1, issuer.Granted())
}

// An application's certificate: the assertion is signed with the key in the file.
func TestEntraCertificate(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	_, o, _, _ := entraOptions(t, issuer, "d1")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	file := filepath.Join(t.TempDir(), "client.pem")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	issuer.Assert(func(assertion string) bool {
		// Which RSA algorithm, azidentity chooses by the kind of authority.
		signed, err := jose.ParseSignedCompact(assertion, []jose.SignatureAlgorithm{jose.RS256, jose.PS256})
		if err != nil {
			return false
		}
		_, err = signed.Verify(&key.PublicKey)
		return err == nil
	})
	o.Entra = &hubservice.Entra{TenantID: issuer.Tenant, ClientID: issuer.Client, ClientCertificateFile: file, Authority: issuer.Authority()}
	c := run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
	require.Equal(t, 1, issuer.Granted())

	require.NoError(t, os.WriteFile(file, []byte("no certificate"), 0o600))
	c = run(t, o)
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(c.Ready()), file+": ") }, soon, time.Millisecond)
}

// Workload identity: a service account's token in a file is exchanged for one of Entra.
func TestEntraWorkload(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	_, o, _, _ := entraOptions(t, issuer, "d1")
	o.Entra = &hubservice.Entra{Authority: issuer.Authority(), Identity: hubservice.EntraWorkload, TenantID: issuer.Tenant, ClientID: issuer.Client}
	c := run(t, o) // without the webhook's variable
	require.Eventually(t, func() bool {
		return strings.Contains(fmt.Sprint(c.Ready()), fmt.Sprintf("no Entra token for workload identity client %q of tenant %q", issuer.Client, issuer.Tenant))
	}, soon, time.Millisecond)

	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("the service account's token"), 0o600))
	issuer.Assert(func(assertion string) bool { return assertion == "the service account's token" })
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	c = run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
}

// Managed identity, by the endpoint that App Service puts into the environment.
func TestEntraManaged(t *testing.T) {
	issuer := bridgetest.RunIssuer(t)
	h, o, _, _ := entraOptions(t, issuer, "d1")
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-IDENTITY-HEADER") != "header" || r.FormValue("resource") != "https://iothubs.azure.net" || r.FormValue("client_id") != issuer.Client {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, `{"access_token": %q, "expires_on": "%d", "resource": "https://iothubs.azure.net", "token_type": "Bearer"}`,
			issuer.Sign(nil), time.Now().Add(time.Hour).Unix())
	}))
	t.Cleanup(endpoint.Close)
	t.Setenv("IDENTITY_ENDPOINT", endpoint.URL)
	t.Setenv("IDENTITY_HEADER", "header")
	o.Entra = &hubservice.Entra{Identity: hubservice.EntraManaged, ClientID: issuer.Client}
	c := run(t, o)
	require.NoError(t, c.Send(within(t, soon), &mapping.Envelope{Device: "d1"}))
	require.Len(t, h.Queue("d1"), 1)
}
