package config_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

// ca is a certificate, of which the tests use nothing but that it is one.
const ca = `-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUHWr5ZcTVaXY2Ajhxom/ohNVJegcwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjIyMjQ4NDdaGA8yMTI2MTAyOTIyNDg0
N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAlI
yN/7EMOXYDPgoho786owO4O2m7VQZu1n8ejH1tzWM6r8nQ4m6Naaz5j3TVsNetlA
R2TTucE1xnJUKEKla2mjUzBRMB0GA1UdDgQWBBT7XlLcyoBiIPIMzc2Gj3EiWiK6
EjAfBgNVHSMEGDAWgBT7XlLcyoBiIPIMzc2Gj3EiWiK6EjAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIFGqYa/xK0kucAuv4Plsr6b9f8B2G5PnNfSQ
FY9hIXQiAiAuIGjtr2IkpBSnyBeERxaOjbR3Hm1HbhtpsGvpmMmHiQ==
-----END CERTIFICATE-----
`

// A file of certificates or credentials that is not there, or useless, is a
// mistake of the configuration, on both sides alike.
func TestNamedFiles(t *testing.T) {
	const text = `version: 1
bridge:
  nats: {token_file: FILE}
  hubs: [{connection_string_file: hub, ca_file: ca.pem}]
  routes: [{subject: "cmd.{device}", stream: C, device: "{device}"}]
relay:
  nats: {creds_file: creds, tls: {ca_file: FILE}}
  devices: [{connection_string_file: device, ca_file: FILE}]
`
	for _, c := range []struct{ file, token, ca string }{
		{"missing", "cannot read DIR/missing: no such file or directory", "cannot read DIR/missing: no such file or directory"},
		{".", "cannot read DIR: is a directory", "cannot read DIR: is a directory"},
		{"blank", "DIR/blank is empty", "DIR/blank is empty"},
		{"hub", "", "DIR/hub: no certificate in it; it holds CA certificates in PEM, which begin with -----BEGIN CERTIFICATE-----"},
	} {
		t.Run(c.file, func(t *testing.T) {
			dir := folder(t, map[string]string{
				"c.yaml": strings.ReplaceAll(text, "FILE", c.file), "hub": service, "device": device, "blank": "\n", "creds": "x", "ca.pem": ca,
			})
			file := filepath.Join(dir, "c.yaml")
			var want []string
			if c.token != "" {
				want = append(want, file+":3: bridge.nats.token_file: "+c.token)
			}
			relay := []string{file + ":7: relay.nats.tls.ca_file: " + c.ca, file + ":8: relay.devices[0].ca_file: " + c.ca}
			lines := func(l []string) string { return strings.ReplaceAll(strings.Join(l, "\n"), "DIR", dir) }

			_, err := config.Load(file, config.LoadOptions{NoEnvironment: true})
			require.EqualError(t, err, lines(append(want, relay...)))
			_, err = config.Load(file, config.LoadOptions{NoEnvironment: true, Side: config.RelaySide})
			require.EqualError(t, err, lines(relay), "the relay's machine need not have the bridge's files")
			_, err = config.Load(file, config.LoadOptions{NoEnvironment: true, SkipSecrets: true})
			require.NoError(t, err)
		})
	}
}
