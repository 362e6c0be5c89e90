package app

import (
	"crypto/x509"
	"fmt"
	"os"
)

// RootCAs are the CAs to trust: the system's, and those in the PEM file if one is
// named. nil means the system's alone. The error names the file, not the setting it came from.
func RootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no PEM certificate in %s", file)
	}
	return pool, nil
}
