package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// selfSigned writes a certificate and its key, as openssl req -x509 does.
func selfSigned(t *testing.T, names []string, addresses ...net.IP) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ours"}, DNSNames: names, IPAddresses: addresses,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	return certFile, keyFile
}

func TestUseCertificate(t *testing.T) {
	certFile, keyFile := selfSigned(t, []string{"localhost", "*.hubs.test"}, net.IPv4(10, 1, 2, 3))
	dir := t.TempDir()
	i := open(t, dir)
	pair, err := i.UseCertificate(certFile, keyFile, []string{"a.hubs.test", "localhost", "10.1.2.3"})
	require.NoError(t, err)
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: i.RootCAs(), DNSName: "b.hubs.test"})
	require.NoError(t, err)
	given, err := os.ReadFile(certFile)
	require.NoError(t, err)
	ca, err := os.ReadFile(i.CAFile())
	require.NoError(t, err)
	require.Equal(t, string(given), string(ca), "what a client must trust")
	bundle, err := os.ReadFile(i.BundleFile())
	require.NoError(t, err)
	require.Contains(t, string(bundle), string(given))
	require.NotEqual(t, open(t, dir).CAFile(), i.CAFile(), "our own CA's file stays what it is")

	otherCert, otherKey := selfSigned(t, nil)
	for name, c := range map[string]struct {
		cert, key, host, want string
	}{
		"no key":      {certFile, "", "localhost", "give --tls-key too"},
		"no cert":     {"", keyFile, "localhost", "give --tls-cert too"},
		"missing":     {certFile + "x", keyFile, "localhost", "TLS certificate: open " + certFile + "x: no such file"},
		"missing key": {certFile, keyFile + "x", "localhost", "TLS key: open " + keyFile + "x: no such file"},
		"mixed up":    {certFile, otherKey, "localhost", "private key does not match public key"},
		"no PEM":      {keyFile, keyFile, "localhost", "failed to find certificate PEM data"},
		"other name":  {certFile, keyFile, "hub", `is not for host name "hub": add the name to it, or give one of its names (localhost, *.hubs.test, 10.1.2.3) with --hostname`},
		"nameless":    {otherCert, otherKey, "hub", "it has none as subject alternative names"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, t.TempDir()).UseCertificate(c.cert, c.key, []string{c.host})
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "identity: ")
		})
	}
}
