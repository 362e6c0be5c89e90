package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	caLife   = 20 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	leafRest = 30 * 24 * time.Hour // with less than this left a leaf is made anew
)

// authority is our CA. Its key and certificate share one file, so that they can
// never come from two processes.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func openAuthority(path string) (*authority, error) {
	text, err := createOnce(path, newAuthority)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: restore it, or delete it for a new CA (clients must trust it anew)", path)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s holds no ECDSA certificate authority: delete it for a new CA", path)
	}
	return &authority{key: key, cert: pair.Leaf}, nil
}

func newAuthority() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Downlink embedded hub CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return encodePair(key, der)
}

func serial() *big.Int {
	n := make([]byte, 16)
	rand.Read(n)
	n[0] &= 0x7f // positive (RFC 5280 §4.1.2.2)
	n[15] |= 1   // and not zero
	return new(big.Int).SetBytes(n)
}

func encodePair(key *ecdsa.PrivateKey, der []byte) ([]byte, error) {
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return b.Bytes(), nil
}

func (a *authority) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Certificate returns the listeners' certificate for the host names, 127.0.0.1
// and ::1. It is reused while the names are the same and it has a month left.
func (i *Identity) Certificate(hostnames []string) (tls.Certificate, error) {
	names, addresses, err := alternatives(hostnames)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("identity: %w", err)
	}
	path := i.file("server.pem")
	if text, err := os.ReadFile(path); err == nil {
		pair, err := tls.X509KeyPair(text, text)
		if err == nil && i.ca.serves(pair.Leaf, names, addresses, time.Now()) {
			return pair, nil
		}
	}
	text, err := i.ca.issue(names, addresses)
	if err == nil {
		err = replace(path, text, 0o600)
	}
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("identity: server certificate: %w", err)
	}
	return tls.X509KeyPair(text, text)
}

// CheckHostname refuses what cannot stand in a certificate as a host's name or address.
func CheckHostname(name string) error {
	_, _, err := alternatives([]string{name})
	return err
}

// alternatives sorts host names into DNS names and addresses.
func alternatives(hostnames []string) (names []string, addresses []net.IP, err error) {
	addresses = []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback}
	for _, h := range hostnames {
		if ip := net.ParseIP(strings.Trim(h, "[]")); ip != nil {
			if ip4 := ip.To4(); ip4 != nil {
				ip = ip4
			}
			if !slices.ContainsFunc(addresses, ip.Equal) {
				addresses = append(addresses, ip)
			}
			continue
		}
		h = strings.ToLower(h)
		if !validHost(h) {
			return nil, nil, fmt.Errorf("host name %q: write a name such as localhost or hub.local, without port", h)
		}
		if !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	slices.Sort(names)
	return names, addresses, nil
}

func validHost(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for _, label := range strings.Split(h, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

func (a *authority) serves(leaf *x509.Certificate, names []string, addresses []net.IP, now time.Time) bool {
	return leaf.CheckSignatureFrom(a.cert) == nil &&
		slices.Equal(leaf.DNSNames, names) &&
		slices.EqualFunc(leaf.IPAddresses, addresses, net.IP.Equal) &&
		now.After(leaf.NotBefore) && leaf.NotAfter.Sub(now) > leafRest
}

func (a *authority) issue(names []string, addresses []net.IP) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if a.cert.NotAfter.Before(now.Add(leafRest)) {
		return nil, errors.New("the CA in ca-key.pem has expired: delete it for a new CA (clients must trust it anew)")
	}
	end := now.Add(leafLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	common := "127.0.0.1"
	if len(names) > 0 && len(names[0]) <= 64 { // RFC 5280: ub-common-name
		common = names[0]
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: common},
		NotBefore: now.Add(-time.Hour), NotAfter: end,
		DNSNames: names, IPAddresses: addresses, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return encodePair(key, der)
}
