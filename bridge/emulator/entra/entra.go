// Package entra verifies bearer tokens of Microsoft Entra ID, or of an issuer
// that stands in for it, for the embedded hub: signature (RS256) by the issuer's
// published keys, issuer, audience, times.
package entra

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// Audience is IoT Hub's resource in Entra ID.
const Audience = "https://iothubs.azure.net"

// askTimeout bounds a request to the issuer: a connection's reader waits for it.
const askTimeout = 5 * time.Second

// Options say whose tokens are good.
type Options struct {
	// Issuer is the iss of the tokens, an https URL; its keys are found through
	// /.well-known/openid-configuration below it.
	Issuer string
	// RootCAs are trusted for the issuer; nil: the system's.
	RootCAs *x509.CertPool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Identity is who a verified token speaks for.
type Identity struct {
	Subject string // the application or user, for logs
	Expires time.Time
}

// Verifier verifies tokens. Safe for concurrent use.
type Verifier struct {
	options Options
	client  *http.Client

	mu       sync.Mutex // guards below
	verifier *oidc.IDTokenVerifier
}

// New makes a Verifier. It asks the issuer for nothing before the first token, so
// that the two may start in any order.
func New(o Options) (*Verifier, error) {
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("entra issuer %q: want an https URL, such as https://sts.windows.net/TENANT/", o.Issuer)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12}
	transport.DisableKeepAlives = true // a few requests in the life of a hub
	return &Verifier{options: o, client: &http.Client{Transport: transport, Timeout: askTimeout}}, nil
}

// Verify checks a token, with or without "Bearer " before it. It may ask the
// issuer for its keys. The error never contains the token.
func (v *Verifier) Verify(text string) (Identity, error) {
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.Background(), v.client), askTimeout)
	defer cancel()
	verifier, err := v.discover(ctx)
	if err != nil {
		return Identity{}, fmt.Errorf("cannot ask the issuer %s: %w", v.options.Issuer, err)
	}
	t, err := verifier.Verify(ctx, Bare(text))
	if err != nil {
		return Identity{}, errors.New(strings.TrimPrefix(err.Error(), "oidc: "))
	}
	return Identity{Subject: t.Subject, Expires: t.Expiry}, nil
}

// discover finds the issuer's keys, once.
func (v *Verifier) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.verifier != nil {
		return v.verifier, nil
	}
	p, err := oidc.NewProvider(ctx, v.options.Issuer)
	if err != nil {
		return nil, err
	}
	v.verifier = p.VerifierContext(ctx, &oidc.Config{
		ClientID: Audience, SupportedSigningAlgs: []string{oidc.RS256}, Now: v.options.Now,
	})
	return v.verifier, nil
}

const prefix = "bearer "

// IsBearer reports whether text is a token with "Bearer " before it.
func IsBearer(text string) bool {
	return len(text) > len(prefix) && strings.EqualFold(text[:len(prefix)], prefix)
}

// Bare is text without "Bearer ".
func Bare(text string) string {
	if IsBearer(text) {
		return text[len(prefix):]
	}
	return text
}
