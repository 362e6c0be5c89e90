package hubservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// IoT Hub's resource in Entra ID, and how its SDKs put such a token
// (Azure/azure-iot-hub-python iothub_amqp_client.py, Azure/azure-iot-hub-node amqp_cbs.ts).
const (
	entraScope     = "https://iothubs.azure.net/.default"
	entraTokenType = "bearer"
	entraPrefix    = "Bearer "
)

// The remedies of a refusal by the hub and by Entra ID.
const (
	entraRole   = "give the identity the role IoT Hub Data Contributor on the hub (it takes some minutes to work)"
	entraRemedy = "check tenant, client and its secret or certificate"
)

// The ways of Entra.Identity.
const (
	EntraDefault  = ""         // azidentity's DefaultAzureCredential
	EntraManaged  = "managed"  // the managed identity of the machine
	EntraWorkload = "workload" // a Kubernetes service account, federated
)

// Entra says who we are to Microsoft Entra ID. The zero value is azidentity's
// DefaultAzureCredential: environment, workload identity, managed identity, az
// login, in this order.
type Entra struct {
	TenantID, ClientID string
	// ClientSecretFile holds the secret of the application ClientID.
	ClientSecretFile string
	// ClientCertificateFile holds its certificate and private key, PEM or PKCS #12
	// without a password.
	ClientCertificateFile string
	// Identity is EntraDefault, EntraManaged or EntraWorkload; with a secret or a
	// certificate it is empty.
	Identity string
	// Authority is where tokens come from, https; empty: Azure's public cloud, or
	// the environment variable AZURE_AUTHORITY_HOST.
	Authority string
}

// Who names the identity, for errors and status.
func (e Entra) Who() string {
	var parts []string
	switch {
	case e.Identity == EntraManaged:
		parts = append(parts, "managed identity")
	case e.Identity == EntraWorkload:
		parts = append(parts, "workload identity")
	case e.ClientSecretFile == "" && e.ClientCertificateFile == "":
		parts = append(parts, "default credential")
	}
	if e.ClientID != "" {
		parts = append(parts, fmt.Sprintf("client %q", e.ClientID))
	}
	if e.TenantID != "" {
		parts = append(parts, fmt.Sprintf("of tenant %q", e.TenantID))
	}
	return "Entra " + strings.Join(parts, " ")
}

// entraError is a token that Entra ID did not give. refused says that it was
// reached and said no.
type entraError struct {
	who, text string
	refused   bool
}

func (e *entraError) Error() string {
	return fmt.Sprintf("no Entra token for %s: %s", strings.TrimPrefix(e.who, "Entra "), e.text)
}

// entraCredentials is the one way of an Entra identity. What stands in files is
// read for each token, and each token is a new one: azidentity's cache would
// return the old one until it is nearly over, also after the hub refused it.
func entraCredentials(e Entra, host string, roots *x509.CertPool) *credentials {
	transport := http.DefaultTransport.(*http.Transport).Clone() // with the environment's proxy
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport.DisableKeepAlives = true // one token an hour
	client := &http.Client{Transport: transport}
	w := &way{role: roleEntra, who: e.Who(), remedy: entraRole}
	w.mint = func(ctx context.Context, now time.Time) (token, error) {
		secret, credential, err := e.credential(client)
		if err != nil {
			return token{}, err
		}
		t, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{entraScope}})
		if err != nil {
			return token{}, e.explain(err, secret)
		}
		left := t.ExpiresOn.Sub(now)
		if left <= 0 {
			left = time.Minute // by a clock that is wrong; whether it is over, the hub tells
		}
		return token{text: entraPrefix + t.Token, kind: entraTokenType, audience: entraScope, expires: t.ExpiresOn, left: left}, nil
	}
	return &credentials{host: host, ways: []*way{w}}
}

// longestEntraText has room for the default credential's list of what it tried.
const longestEntraText = 800

// explain says in one line why there is no token, without the secret, whatever
// the other side wrote.
func (e Entra) explain(err error, secret string) error {
	text, refused := err.Error(), false
	if failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok && failed.RawResponse != nil {
		status := failed.RawResponse.StatusCode
		refused = status/100 == 4 && status != http.StatusTooManyRequests
		// Of the answer only this is for people (RFC 6749 §5.2).
		var answer struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if b, err := runtime.Payload(failed.RawResponse); err == nil && json.Unmarshal(b, &answer) == nil && answer.Error != "" {
			text = fmt.Sprintf("%d %s: %s", status, answer.Error, answer.Description)
		}
	}
	if secret != "" {
		for _, s := range []string{secret, url.QueryEscape(secret)} {
			text = strings.ReplaceAll(text, s, "<redacted>")
		}
	}
	return &entraError{who: e.Who(), text: shortened(strings.Join(strings.Fields(text), " "), longestEntraText), refused: refused}
}

// knownAuthorities are Azure's clouds; any other authority is not asked for at
// the public one, which does not know it.
var knownAuthorities = []string{
	cloud.AzurePublic.ActiveDirectoryAuthorityHost, cloud.AzureGovernment.ActiveDirectoryAuthorityHost, cloud.AzureChina.ActiveDirectoryAuthorityHost,
}

// credential makes the identity's credential anew. secret is what an error must not repeat.
func (e Entra) credential(client *http.Client) (secret string, _ azcore.TokenCredential, err error) {
	o := azcore.ClientOptions{
		Transport: client,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // we try again ourselves
	}
	private := false
	if e.Authority != "" {
		o.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: e.Authority}
		private = !slices.ContainsFunc(knownAuthorities, func(known string) bool {
			return strings.TrimSuffix(known, "/") == strings.TrimSuffix(e.Authority, "/")
		})
	}
	var credential azcore.TokenCredential
	switch {
	case e.ClientSecretFile != "":
		var b []byte
		if b, err = os.ReadFile(e.ClientSecretFile); err != nil {
			break
		}
		if secret = strings.TrimSpace(strings.TrimPrefix(string(b), "\ufeff")); secret == "" {
			err = fmt.Errorf("%s is empty", e.ClientSecretFile)
			break
		}
		credential, err = azidentity.NewClientSecretCredential(e.TenantID, e.ClientID, secret,
			&azidentity.ClientSecretCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: private})
	case e.ClientCertificateFile != "":
		var b []byte
		if b, err = os.ReadFile(e.ClientCertificateFile); err != nil {
			break
		}
		certificates, key, parsing := azidentity.ParseCertificates(b, nil)
		if parsing != nil {
			err = fmt.Errorf("%s: %w", e.ClientCertificateFile, parsing)
			break
		}
		credential, err = azidentity.NewClientCertificateCredential(e.TenantID, e.ClientID, certificates, key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: private})
	case e.Identity == EntraManaged:
		// Its endpoint is on this machine; it needs the library's retries.
		managed := &azidentity.ManagedIdentityCredentialOptions{}
		if e.ClientID != "" {
			managed.ID = azidentity.ClientID(e.ClientID)
		}
		credential, err = azidentity.NewManagedIdentityCredential(managed)
	case e.Identity == EntraWorkload:
		credential, err = azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: o, TenantID: e.TenantID, ClientID: e.ClientID, DisableInstanceDiscovery: private})
	default:
		credential, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
			ClientOptions: azcore.ClientOptions{Cloud: o.Cloud, Transport: client}, TenantID: e.TenantID, DisableInstanceDiscovery: private})
	}
	if err != nil {
		return "", nil, e.explain(err, secret)
	}
	return secret, credential, nil
}
