package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/identity"
	"downlink/bridge/internal/sas"
)

func open(t *testing.T, dir string) *identity.Identity {
	t.Helper()
	i, err := identity.Open(dir)
	require.NoError(t, err)
	return i
}

func TestConnectionStringsAreStable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	a := open(t, dir)
	service, err := a.ServiceConnectionString("localhost", "service")
	require.NoError(t, err)
	device, err := a.DeviceConnectionString("localhost", "d:1")
	require.NoError(t, err)

	b := open(t, dir)
	again, err := b.ServiceConnectionString("localhost", "service")
	require.NoError(t, err)
	require.Equal(t, service, again)
	again, err = b.DeviceConnectionString("localhost", "d:1")
	require.NoError(t, err)
	require.Equal(t, device, again)

	cs, err := sas.Parse(service)
	require.NoError(t, err)
	require.Equal(t, sas.KindService, cs.Kind())
	require.Equal(t, "service", cs.KeyName)
	require.Len(t, cs.Key, 32)
	cs, err = sas.Parse(device)
	require.NoError(t, err)
	require.Equal(t, sas.KindDevice, cs.Kind())
	require.Equal(t, "d:1", cs.DeviceID)

	other, err := open(t, t.TempDir()).ServiceConnectionString("localhost", "service")
	require.NoError(t, err)
	require.NotEqual(t, service, other)
}

// The derivation is a promise to whoever saved a connection string: a literal
// master key, literal keys.
func TestKeysAreDerivedAsBefore(t *testing.T) {
	dir := t.TempDir()
	master := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "master.key"), []byte(master), 0o600))
	i := open(t, dir)
	service, err := i.ServiceConnectionString("localhost", "service")
	require.NoError(t, err)
	require.Equal(t, "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=MWO20z1MT39E5KI7PZp4co8fefJ64EJvBrZuh4H+7hM=", service)
	device, err := i.DeviceConnectionString("localhost", "d1")
	require.NoError(t, err)
	require.Equal(t, "HostName=localhost;DeviceId=d1;SharedAccessKey=1X8d2pxdJqVzEpLVU4pVWQrJMK0n6SCg0xkPr7bmetU=", device)
}

func TestPoliciesAndTheirRights(t *testing.T) {
	i := open(t, t.TempDir())
	want := map[string]identity.Rights{
		"iothubowner":       identity.RegistryRead | identity.RegistryWrite | identity.ServiceConnect | identity.DeviceConnect,
		"service":           identity.ServiceConnect,
		"device":            identity.DeviceConnect,
		"registryRead":      identity.RegistryRead,
		"registryReadWrite": identity.RegistryRead | identity.RegistryWrite,
	}
	seen := map[string]bool{}
	for _, name := range identity.Policies() {
		p, ok := i.Policy(name)
		require.True(t, ok)
		require.Equal(t, want[name], p.Rights, name)
		require.False(t, seen[string(p.Primary)] || seen[string(p.Secondary)], "keys differ")
		seen[string(p.Primary)], seen[string(p.Secondary)] = true, true
	}
	require.Len(t, seen, 2*len(want))
	_, ok := i.Policy("Service")
	require.False(t, ok)
	_, err := i.ServiceConnectionString("localhost", "sevice")
	require.EqualError(t, err, `identity: no policy "sevice": take one of iothubowner, service, device, registryRead, registryReadWrite`)
}

func TestImpossibleConnectionStrings(t *testing.T) {
	i := open(t, t.TempDir())
	for _, id := range []string{"", "a;b", "a/b", "a\x00b"} {
		_, err := i.DeviceConnectionString("localhost", id)
		require.Error(t, err, id)
	}
	_, err := i.ServiceConnectionString("localhost:5671", "service")
	require.ErrorContains(t, err, "without port")
}

func TestFilesAreSecretWhereTheyMustBe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	i := open(t, dir)
	_, err := i.Certificate([]string{"localhost"})
	require.NoError(t, err)
	mode := func(name string) os.FileMode {
		st, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		return st.Mode().Perm()
	}
	require.Equal(t, os.FileMode(0o700), mode("."))
	for _, secret := range []string{"master.key", "ca-key.pem", "server.pem"} {
		require.Equal(t, os.FileMode(0o600), mode(secret), secret)
	}
	require.Equal(t, os.FileMode(0o644), mode("ca.pem"))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 5, "no temporary file stays")
}

func TestCertificateIsReusedUntilNamesChange(t *testing.T) {
	dir := t.TempDir()
	i := open(t, dir)
	first, err := i.Certificate([]string{"localhost", "Hub.Local", "192.0.2.7"})
	require.NoError(t, err)
	for _, name := range []string{"localhost", "hub.local", "127.0.0.1", "::1", "192.0.2.7"} {
		_, err := first.Leaf.Verify(x509.VerifyOptions{Roots: i.RootCAs(), DNSName: name})
		require.NoError(t, err, name)
	}
	again, err := open(t, dir).Certificate([]string{"hub.local", "localhost", "192.0.2.7"})
	require.NoError(t, err)
	require.Equal(t, first.Certificate, again.Certificate)

	changed, err := i.Certificate([]string{"other"})
	require.NoError(t, err)
	require.NotEqual(t, first.Certificate, changed.Certificate)
	_, err = changed.Leaf.Verify(x509.VerifyOptions{Roots: i.RootCAs(), DNSName: "other"})
	require.NoError(t, err, "the CA is the same")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "server.pem"), []byte("damaged"), 0o600))
	healed, err := i.Certificate([]string{"other"})
	require.NoError(t, err)
	require.Greater(t, time.Until(healed.Leaf.NotAfter), 300*24*time.Hour)

	for _, bad := range []string{"", "a b", "localhost:8883", "a..b", strings.Repeat("a", 64)} {
		_, err := i.Certificate([]string{bad})
		require.ErrorContains(t, err, fmt.Sprintf("host name %q", bad))
	}
}

func TestBundleHoldsTheSystemsCAsAndOurs(t *testing.T) {
	system := filepath.Join(t.TempDir(), "system.pem")
	theirs, err := os.ReadFile(open(t, t.TempDir()).CAFile())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(system, theirs, 0o600))
	t.Setenv("SSL_CERT_FILE", system)

	i := open(t, t.TempDir())
	ours, err := os.ReadFile(i.CAFile())
	require.NoError(t, err)
	bundle, err := os.ReadFile(i.BundleFile())
	require.NoError(t, err)
	require.Equal(t, string(theirs)+string(ours), string(bundle))
}

func TestDamagedFilesAreNamed(t *testing.T) {
	for _, name := range []string{"master.key", "ca-key.pem"} {
		dir := t.TempDir()
		open(t, dir)
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("c2hvcnQ="), 0o600))
		_, err := identity.Open(dir)
		require.ErrorContains(t, err, path+" is damaged: restore it, or delete it")
		require.NotContains(t, err.Error(), "c2hvcnQ")
	}
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := identity.Open(file)
	require.ErrorContains(t, err, "data directory")
	_, err = identity.Open("")
	require.ErrorContains(t, err, "no data directory")
}

func TestManyOpenersAgree(t *testing.T) {
	dir := t.TempDir()
	const n = 16
	var wg sync.WaitGroup
	opened := make([]*identity.Identity, n)
	leaves := make([]tls.Certificate, n)
	for k := range n {
		wg.Go(func() {
			i, err := identity.Open(dir)
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			opened[k] = i
			if leaves[k], err = i.Certificate([]string{"localhost"}); err != nil {
				t.Errorf("certificate: %v", err)
			}
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	want, err := opened[0].ServiceConnectionString("localhost", "service")
	require.NoError(t, err)
	for k := range n {
		got, err := opened[k].ServiceConnectionString("localhost", "service")
		require.NoError(t, err)
		require.Equal(t, want, got)
		_, err = leaves[k].Leaf.Verify(x509.VerifyOptions{Roots: opened[0].RootCAs(), DNSName: "localhost"})
		require.NoError(t, err)
	}
	ca, err := os.ReadFile(opened[0].CAFile())
	require.NoError(t, err)
	require.Contains(t, string(ca), "BEGIN CERTIFICATE")
	require.NotContains(t, string(ca), "PRIVATE")
}
