package config

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"
)

// maxCredential bounds a file of certificates or credentials. A bundle of all
// public CAs has a few hundred kilobytes.
const maxCredential = 4 << 20

// checkFiles finds the files of certificates and NATS credentials that are not
// there or hold nothing of use: another start would not mend that. What is
// in them is read again by who uses it.
func (p *problems) checkFiles(c *Config, side Side) {
	for _, text := range texts(c) {
		section, _, _ := strings.Cut(text.path, ".")
		switch {
		case !strings.HasSuffix(text.path, "_file"), *text.value == "", !side.has(Side(section)):
		case strings.HasSuffix(text.path, "connection_string_file"): // readSecrets reads it
		default:
			p.checkFile(text.path, *text.value)
		}
	}
}

func (p *problems) checkFile(at, file string) {
	b, err := readFile(file, maxCredential)
	switch {
	case err != nil:
		p.addf(at, "cannot read %s: %w", file, reason(err))
	case len(bytes.TrimSpace(b)) == 0:
		p.addf(at, "%s is empty", file)
	case strings.HasSuffix(at, "ca_file"):
		if err := checkCAs(b); err != nil {
			p.addf(at, "%s: %w", file, err)
		}
	}
}

func checkCAs(pem []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return errors.New("no certificate in it; it holds CA certificates in PEM, which begin with -----BEGIN CERTIFICATE-----")
	}
	return nil
}
