package main

import (
	"crypto/x509"
	"os"
)

// certPool is the system's CAs plus those in file; nil, which means the
// system's, without a file. origin says in errors who named the file.
func certPool(origin, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, usagef("%s: %w", origin, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, usagef("%s: no PEM certificate in %s", origin, file)
	}
	return pool, nil
}
