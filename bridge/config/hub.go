package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"downlink/bridge/internal/sas"
)

// hub checks one hub: how it is reached, and that one thing says who we are to it.
func (p *problems) hub(at string, h *Hub) {
	if h.Entra != nil || p.has(at+".entra") {
		p.withEntra(at, h)
	} else {
		p.secret(at, h.ConnectionString, h.ConnectionStringFile, h.Embedded, "entra: {} with host: NAME, or embedded: true", checkHubString)
		if h.Host != "" {
			p.addf(at+".host", "has no meaning without entra: the connection string names the hub; remove it")
		}
		p.secondary(at, h)
	}
	p.oneOf(at+".transport", h.Transport)
	p.oneOf(at+".property_charset", h.PropertyCharset)
	p.oneOf(at+".feedback", h.Feedback)
	p.pace(at, h)
	if h.Window < 1 || h.Window > 65535 {
		p.addf(at+".window", "%d is out of range; take 1 to 65535", h.Window)
	}
	if h.AMQPAddress != "" {
		p.address(at+".amqp_address", h.AMQPAddress, false)
		p.noneWith(at+".amqp_address", h.Embedded, "embedded: true")
		if h.Transport == "websocket" {
			p.addf(at+".amqp_address", "has no meaning with transport: websocket; write https_address")
		}
	}
	if h.HTTPSAddress != "" {
		p.address(at+".https_address", h.HTTPSAddress, false)
		p.noneWith(at+".https_address", h.Embedded, "embedded: true")
		if h.Transport == "amqp" {
			p.addf(at+".https_address", "has no meaning with transport: amqp; write amqp_address, or transport: websocket")
		}
	}
	if h.CAFile != "" {
		p.noneWith(at+".ca_file", h.Embedded, "embedded: true")
	}
}

// secondary checks the second connection string, which is like the first.
func (p *problems) secondary(at string, h *Hub) {
	const key = ".secondary_connection_string"
	value, file := h.SecondaryConnectionString, h.SecondaryConnectionStringFile
	inline := !value.IsZero() && (value.file == "" || value.file != file)
	switch {
	case inline && file != "":
		p.addf(at+key+"_file", "set as well as secondary_connection_string; keep one of the two")
		return
	case inline || file != "":
		p.noneWith(at+p.src.first(at, key, key+"_file"), h.Embedded, "embedded: true")
	}
	if inline {
		err := checkHubString(value)
		if err == nil {
			err = sameHub(h.ConnectionString, value)
		}
		if err != nil {
			p.add(at+key, err)
		}
	}
}

// sameHub tells a secondary connection string that is another hub's. Its error
// has no secret in it.
func sameHub(primary, secondary Secret) error {
	a, err := sas.Parse(primary.Reveal())
	if err != nil {
		return nil // said already, or not read
	}
	b, err := sas.Parse(secondary.Reveal())
	if err != nil || strings.EqualFold(a.HostName, b.HostName) {
		return err
	}
	return fmt.Errorf("for the hub %s, but the connection string is for %s; take the same hub's secondary one", show(b.HostName), show(a.HostName))
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// withEntra checks a hub with Microsoft Entra ID.
func (p *problems) withEntra(at string, h *Hub) {
	inline := func(s Secret, file string) bool { return !s.IsZero() && (s.file == "" || s.file != file) }
	for _, other := range given(
		named{"connection_string", inline(h.ConnectionString, h.ConnectionStringFile)}, named{"connection_string_file", h.ConnectionStringFile != ""},
		named{"secondary_connection_string", inline(h.SecondaryConnectionString, h.SecondaryConnectionStringFile)},
		named{"secondary_connection_string_file", h.SecondaryConnectionStringFile != ""}, named{"embedded", h.Embedded},
	) {
		p.addf(at+".entra", "set as well as %s; keep one of the two: entra with host: NAME, or %[1]s", other)
	}
	switch {
	case p.has(at + ".host"):
	case strings.Contains(h.Host, "SharedAccessKey"):
		p.addf(at+".host", "a connection string; write the hub's host name alone, such as my-hub.azure-devices.net")
	case h.Host == "":
		p.addf(at+".host", "missing; with entra the hub's host name stands here, such as host: my-hub.azure-devices.net")
	case !hostName.MatchString(h.Host):
		p.addf(at+".host", "%s is not a host name, such as my-hub.azure-devices.net (without scheme and port)", show(h.Host))
	}
	if h.Entra != nil {
		p.entra(at+".entra", h.Entra)
	}
}

func (p *problems) entra(at string, e *Entra) {
	p.oneOf(at+".identity", e.Identity)
	application := given(named{"client_secret_file", e.ClientSecretFile != ""}, named{"client_certificate_file", e.ClientCertificateFile != ""})
	if len(application) > 1 {
		p.addf(at+"."+application[1], "set as well as %s; keep one of the two", application[0])
	}
	if len(application) > 0 {
		if e.Identity == "managed" || e.Identity == "workload" {
			p.noneWith(at+"."+application[0], true, "identity: "+e.Identity)
		}
		for _, id := range []named{{"tenant_id", e.TenantID == ""}, {"client_id", e.ClientID == ""}} {
			if id.set && !p.has(at+"."+id.name) {
				p.addf(at+"."+id.name, "missing; %s goes with tenant_id and client_id", application[0])
			}
		}
	} else if e.Identity == "default" && e.ClientID != "" {
		p.addf(at+".client_id", "has no meaning here; add client_secret_file or client_certificate_file, or identity: managed or workload")
	}
	if e.Identity == "managed" {
		p.noneWith(at+".tenant_id", e.TenantID != "", "identity: managed")
		p.noneWith(at+".authority", e.Authority != "", "identity: managed")
	}
	for _, id := range []struct{ key, value string }{{"tenant_id", e.TenantID}, {"client_id", e.ClientID}} {
		if id.value != "" && !entraID.MatchString(id.value) {
			p.addf(at+"."+id.key, "%s is not an ID, such as 12345678-1234-1234-1234-123456789012", show(id.value))
		}
	}
	if e.Authority != "" {
		u, err := url.Parse(e.Authority)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			p.addf(at+".authority", "%s is not an authority, such as https://login.microsoftonline.us/ (without the tenant)", show(e.Authority))
		}
	}
}

var entraID = regexp.MustCompile(`^[A-Za-z0-9.-]{1,255}$`)

// ReadAgain returns the hub's connection strings as they are now, those in files
// read anew; one that cannot be used is empty, and the error says why, by field and
// file, without a secret. Safe for concurrent use.
func (h *Hub) ReadAgain() (primary, secondary string, err error) {
	primary, secondary = h.ConnectionString.Reveal(), h.SecondaryConnectionString.Reveal()
	var first, second error
	if h.ConnectionStringFile != "" {
		if primary, err = readHubString(h.ConnectionStringFile); err != nil {
			first = fmt.Errorf("connection_string_file: %w", err)
		}
	}
	if h.SecondaryConnectionStringFile != "" {
		if secondary, err = readHubString(h.SecondaryConnectionStringFile); err != nil {
			second = fmt.Errorf("secondary_connection_string_file: %w", err)
		}
	}
	return primary, secondary, errors.Join(first, second)
}

// InFiles reports whether ReadAgain may ever return something new.
func (h *Hub) InFiles() bool {
	return h.ConnectionStringFile != "" || h.SecondaryConnectionStringFile != ""
}

func readHubString(file string) (string, error) {
	s, err := readSecret(file)
	if err != nil {
		return "", err
	}
	if err := checkHubString(s); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return s.Reveal(), nil
}

// readSecret reads the file of a secret; the error names the file.
func readSecret(file string) (Secret, error) {
	b, err := readFile(file, maxSecret)
	if err != nil {
		return Secret{}, fmt.Errorf("cannot read the secret from %s: %w", file, reason(err))
	}
	text, err := SecretText(b)
	if err != nil {
		return Secret{}, fmt.Errorf("%s %w", file, err)
	}
	s := NewSecret(text)
	s.file = file
	return s, nil
}

// first is the first of these keys that stands in the file, or the first of them.
func (s *source) first(at string, keys ...string) string {
	if i := slices.IndexFunc(keys, func(k string) bool { return s.given(at + k) }); i >= 0 {
		return keys[i]
	}
	return keys[0]
}
