// Package identity is who the embedded hub is: one random master key, from
// which the keys of all policies and devices are derived, and a certificate
// authority of its own. Both live in a data directory and stay the same across
// restarts; nothing here needs a running hub.
//
// The files: master.key and ca-key.pem (secret, made once), ca.pem (the CA's
// certificate), ca-bundle.pem (the system's CAs and ours), server.pem (the
// listeners' key and certificate, made anew when the host names change), and
// own-ca.pem and own-ca-bundle.pem for a certificate of the owner's.
package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"downlink/bridge/internal/sas"
)

// Rights are what a policy allows (IoT Hub developer guide, "Control access").
type Rights int

// The rights; a set of them is their sum.
const (
	RegistryRead Rights = 1 << iota
	RegistryWrite
	ServiceConnect
	DeviceConnect
)

var policies = []struct {
	name   string
	rights Rights
}{
	{"iothubowner", RegistryRead | RegistryWrite | ServiceConnect | DeviceConnect},
	{"service", ServiceConnect},
	{"device", DeviceConnect},
	{"registryRead", RegistryRead},
	{"registryReadWrite", RegistryRead | RegistryWrite},
}

// Policy is a shared access policy with its two keys.
type Policy struct {
	Name               string
	Rights             Rights
	Primary, Secondary []byte
}

// Identity is an opened data directory. Safe for concurrent use.
type Identity struct {
	dir    string
	master []byte
	ca     *authority
	// What clients trust: our CA, until UseCertificate.
	caFile, bundleFile string
	trusted            []*x509.Certificate
}

// Open reads the identity in dir, making what is missing. Several processes may
// open one directory at the same time: they agree on what was made first.
func Open(dir string) (*Identity, error) {
	if dir == "" {
		return nil, errors.New("identity: no data directory given")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("identity: data directory: %w", err)
	}
	i := &Identity{dir: dir, caFile: filepath.Join(dir, "ca.pem"), bundleFile: filepath.Join(dir, "ca-bundle.pem")}
	if i.master, err = masterKey(i.file("master.key")); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if i.ca, err = openAuthority(i.file("ca-key.pem")); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := publish(i.caFile, i.ca.certPEM()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := publish(i.bundleFile, append(systemBundle(), i.ca.certPEM()...)); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return i, nil
}

func (i *Identity) file(name string) string { return filepath.Join(i.dir, name) }

// Dir is the data directory's absolute path.
func (i *Identity) Dir() string { return i.dir }

// CAFile is the path of the CA's certificate, or of the owner's chain after UseCertificate.
func (i *Identity) CAFile() string { return i.caFile }

// BundleFile is the path of a bundle of the system's CAs and of CAFile, for
// clients that take one file and no more.
func (i *Identity) BundleFile() string { return i.bundleFile }

// CA is the CA's certificate.
func (i *Identity) CA() *x509.Certificate { return i.ca.cert }

// RootCAs is a new pool that holds the CA alone, with the owner's chain after UseCertificate.
func (i *Identity) RootCAs() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.ca.cert)
	for _, c := range i.trusted {
		pool.AddCert(c)
	}
	return pool
}

// Policies are the names of the hub's policies.
func Policies() []string {
	names := make([]string, len(policies))
	for n, p := range policies {
		names[n] = p.name
	}
	return names
}

// Policy returns a policy by its name, which is case-sensitive.
func (i *Identity) Policy(name string) (Policy, bool) {
	for _, p := range policies {
		if p.name == name {
			return Policy{
				Name: p.name, Rights: p.rights,
				Primary: i.derive("policy", name, "primary"), Secondary: i.derive("policy", name, "secondary"),
			}, true
		}
	}
	return Policy{}, false
}

// DeviceKeys returns the keys of the device with this ID.
func (i *Identity) DeviceKeys(id string) (primary, secondary []byte) {
	return i.derive("device", id, "primary"), i.derive("device", id, "secondary")
}

// derive makes a key from the master key. No part may contain NUL, which keeps
// the parts apart.
func (i *Identity) derive(kind, name, which string) []byte {
	m := hmac.New(sha256.New, i.master)
	m.Write([]byte("downlink hub\x00" + kind + "\x00" + name + "\x00" + which))
	return m.Sum(nil)
}

// ServiceConnectionString is the connection string of a policy for the hub under that host name.
func (i *Identity) ServiceConnectionString(host, policy string) (string, error) {
	p, ok := i.Policy(policy)
	if !ok {
		return "", fmt.Errorf("identity: no policy %q: take one of %s", policy, strings.Join(Policies(), ", "))
	}
	return checked(sas.ConnectionString{HostName: host, KeyName: p.Name, Key: p.Primary})
}

// DeviceConnectionString is the connection string of a device, registered or
// not, for the hub under that host name, with the key that is derived for it.
func (i *Identity) DeviceConnectionString(host, id string) (string, error) {
	primary, _ := i.DeviceKeys(id)
	return KeyConnectionString(host, id, primary)
}

// KeyConnectionString is the connection string of a device that has a key of its own.
func KeyConnectionString(host, id string, key []byte) (string, error) {
	if id == "" || strings.ContainsAny(id, ";/\x00") {
		return "", fmt.Errorf("identity: device ID %q cannot stand in a connection string", id)
	}
	return checked(sas.ConnectionString{HostName: host, DeviceID: id, Key: key})
}

// checked refuses what its reader would refuse, such as a host name with a port.
func checked(c sas.ConnectionString) (string, error) {
	text := c.Reveal()
	if _, err := sas.Parse(text); err != nil {
		return "", fmt.Errorf("identity: %w", err)
	}
	return text, nil
}

func masterKey(path string) ([]byte, error) {
	text, err := createOnce(path, func() ([]byte, error) {
		key := make([]byte, 32)
		rand.Read(key) // never fails, crypto/rand
		return []byte(base64.StdEncoding.EncodeToString(key) + "\n"), nil
	})
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s is damaged: restore it, or delete it for new keys (all connection strings change)", path)
	}
	return key, nil
}
