package bridgetest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Issuer is a stand-in for Microsoft Entra ID that lives as long as its test: it
// publishes its keys and gives tokens to clients that know their secret (OAuth
// 2.0 client credentials, as azidentity asks for them).
type Issuer struct {
	// Tenant, Client and Secret are what it knows.
	Tenant, Client, Secret string

	server *httptest.Server
	signer jose.Signer
	public jose.JSONWebKey
	t      testing.TB

	mu       sync.Mutex // guards below
	lifetime time.Duration
	granted  int
	change   func(claims map[string]any)
	asserts  func(assertion string) bool
}

// RunIssuer starts an issuer on a free port of 127.0.0.1.
func RunIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	i := &Issuer{
		// azidentity keeps the tokens of a client as long as the process lives, also for the next test.
		Tenant: "11111111-2222-3333-4444-555555555555", Client: uuid.NewString(), Secret: "s3cret of the client~",
		public: jose.JSONWebKey{Key: &key.PublicKey, KeyID: "k1", Algorithm: string(jose.RS256), Use: "sig"},
		t:      t, lifetime: time.Hour,
	}
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k1"))
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.public}})
	})
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", i.token)
	i.server = httptest.NewTLSServer(mux)
	t.Cleanup(i.server.Close)
	return i
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]any{
		"issuer": i.URL(), "jwks_uri": i.server.URL + "/keys",
		"token_endpoint":                        i.Authority() + i.Tenant + "/oauth2/v2.0/token",
		"authorization_endpoint":                i.Authority() + i.Tenant + "/oauth2/v2.0/authorize",
		"id_token_signing_alg_values_supported": []string{"RS256"},
	})
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	secret := r.FormValue("client_secret")
	if r.PathValue("tenant") != i.Tenant || r.FormValue("client_id") != i.Client || secret != i.secret() && !i.asserted(r.FormValue("client_assertion")) {
		// As no decent issuer would, it repeats the secret.
		reply(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided: " + secret})
		return
	}
	if r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") == "" {
		reply(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	i.mu.Lock()
	i.granted++
	lifetime := i.lifetime
	i.mu.Unlock()
	audience := strings.TrimSuffix(strings.Fields(r.FormValue("scope"))[0], "/.default")
	reply(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": int(lifetime / time.Second), "access_token": i.Sign(map[string]any{"aud": audience}),
	})
}

func (i *Issuer) asserted(assertion string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return assertion != "" && i.asserts != nil && i.asserts(assertion)
}

// Assert has good decide about client assertions, which stand in for the secret:
// signed with a certificate's key, or a federated service's token.
func (i *Issuer) Assert(good func(assertion string) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asserts = good
}

func (i *Issuer) secret() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.Secret
}

// Sign makes a token of the issuer; claims replace the usual ones, nil removes one.
func (i *Issuer) Sign(claims map[string]any) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	all := map[string]any{
		"iss": i.URL(), "sub": i.Client, "aud": "https://iothubs.azure.net",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(i.lifetime).Unix(),
	}
	for name, value := range claims {
		all[name] = value
	}
	if i.change != nil {
		i.change(all)
	}
	for name, value := range all {
		if value == nil {
			delete(all, name)
		}
	}
	text, err := jwt.Signed(i.signer).Claims(all).Serialize()
	if err != nil {
		panic(err) // our own claims
	}
	return text
}

// SetLifetime sets how long the next tokens are valid. The default is an hour.
func (i *Issuer) SetLifetime(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lifetime = d
}

// SetSecret changes the client's secret.
func (i *Issuer) SetSecret(s string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.Secret = s
}

// Change has change alter the claims of tokens from now on; nil ends it.
func (i *Issuer) Change(change func(claims map[string]any)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.change = change
}

// Granted is how many tokens clients got.
func (i *Issuer) Granted() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.granted
}

// URL is the iss of its tokens.
func (i *Issuer) URL() string { return i.Authority() + i.Tenant + "/v2.0" }

// Authority is the authority that azidentity takes, with a slash at its end.
func (i *Issuer) Authority() string { return i.server.URL + "/" }

// RootCAs trusts the issuer.
func (i *Issuer) RootCAs() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.server.Certificate())
	return pool
}

// CAFile is a file of the test's with the issuer's certificate and these besides.
func (i *Issuer) CAFile(others ...string) string {
	i.t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw})
	for _, file := range others {
		b, err := os.ReadFile(file)
		require.NoError(i.t, err)
		text = append(text, b...)
	}
	path := filepath.Join(i.t.TempDir(), "issuer-ca.pem")
	require.NoError(i.t, os.WriteFile(path, text, 0o600))
	return path
}
