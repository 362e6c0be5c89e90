package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

// UseCertificate returns the listeners' certificate from files of the hub's
// owner, in the place of one of our CA: a PEM chain, leaf first, and its key. It
// must be for each of the host names. From then on CAFile, BundleFile and RootCAs
// are what a client needs to trust it, as far as the chain tells: put the CA into
// the file too, unless clients trust it already. Call it before the identity is shared.
func (i *Identity) UseCertificate(certFile, keyFile string, hostnames []string) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("identity: %w", err)
	}
	switch {
	case certFile == "":
		return fail(fmt.Errorf("a TLS key without its certificate: give --tls-cert too"))
	case keyFile == "":
		return fail(fmt.Errorf("a TLS certificate without its key: give --tls-key too"))
	}
	certText, err := os.ReadFile(certFile)
	if err != nil {
		return fail(fmt.Errorf("TLS certificate: %w", err))
	}
	keyText, err := os.ReadFile(keyFile)
	if err != nil {
		return fail(fmt.Errorf("TLS key: %w", err))
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return fail(fmt.Errorf("TLS certificate %s with key %s: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: ")))
	}
	for _, h := range hostnames {
		if err := pair.Leaf.VerifyHostname(strings.Trim(h, "[]")); err != nil {
			return fail(fmt.Errorf("TLS certificate %s is not for host name %q: add the name to it, or give one of its names (%s) with --hostname", certFile, h, names(pair.Leaf)))
		}
	}
	var chain []byte
	for _, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fail(fmt.Errorf("TLS certificate %s: %w", certFile, err))
		}
		i.trusted = append(i.trusted, cert)
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	// Under other names than our CA's: whoever opens the directory publishes that again.
	i.caFile, i.bundleFile = i.file("own-ca.pem"), i.file("own-ca-bundle.pem")
	if err := publish(i.caFile, chain); err != nil {
		return fail(err)
	}
	if err := publish(i.bundleFile, append(systemBundle(), chain...)); err != nil {
		return fail(err)
	}
	return pair, nil
}

func names(leaf *x509.Certificate) string {
	all := append([]string{}, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "it has none as subject alternative names"
	}
	return strings.Join(all, ", ")
}
