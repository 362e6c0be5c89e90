package natsio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/synadia-io/orbit.go/natscontext"
)

// dialSettings is what dialing tells of the server.
type dialSettings struct {
	servers           string // for people
	domain, apiPrefix string // of a context
}

// jetStream is the JetStream to use, and the prefix of its API with a dot at its end.
func (s dialSettings) jetStream(nc *nats.Conn) (js jetstream.JetStream, api string, err error) {
	switch {
	case s.domain != "":
		api = "$JS." + s.domain + ".API."
		js, err = jetstream.NewWithDomain(nc, s.domain)
	case s.apiPrefix != "":
		api = strings.TrimSuffix(s.apiPrefix, ".") + "."
		js, err = jetstream.NewWithAPIPrefix(nc, s.apiPrefix)
	default:
		api = jetstream.DefaultAPIPrefix
		js, err = jetstream.New(nc)
	}
	if err != nil {
		return nil, "", fmt.Errorf("nats: %w", err)
	}
	return js, api, nil
}

// dial is nats.Connect with everything that Options says, and extra after it.
func (o Options) dial(fileErr func(error), extra ...nats.Option) (*nats.Conn, dialSettings, error) {
	opts := append([]nats.Option{
		nats.Name(o.name()),
		nats.Timeout(dialTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
	}, extra...)
	if o.Context != "" {
		return o.dialContext(opts)
	}
	urls := o.URLs
	if len(urls) == 0 {
		urls = []string{nats.DefaultURL}
	}
	shown := make([]string, len(urls))
	for i, u := range urls {
		if shown[i] = redact(u); shown[i] == "" {
			// The text itself may hold a password.
			return nil, dialSettings{}, fmt.Errorf("nats url %d: not a URL such as nats://127.0.0.1:4222", i+1)
		}
	}
	settings := dialSettings{servers: strings.Join(shown, ", ")}
	auth, err := o.credentials(fileErr)
	if err != nil {
		return nil, settings, err
	}
	nc, err := nats.Connect(strings.Join(urls, ","), append(opts, auth...)...)
	if err != nil {
		return nil, settings, connError(settings.servers, err)
	}
	return nc, settings, nil
}

func (o Options) dialContext(opts []nats.Option) (*nats.Conn, dialSettings, error) {
	if len(o.URLs) > 0 || o.CredsFile+o.NKeyFile+o.TokenFile+o.User+o.PasswordFile+o.CAFile+o.CertFile+o.KeyFile != "" {
		return nil, dialSettings{}, fmt.Errorf("nats context %q: leave out url, credentials and tls, the context has them", o.Context)
	}
	nc, s, err := natscontext.Connect(o.Context, opts...)
	settings := dialSettings{servers: "context " + o.Context, domain: s.JSDomain, apiPrefix: s.JSAPIPrefix}
	if err != nil {
		return nil, settings, fmt.Errorf("nats context %q: %w", o.Context, cause(err))
	}
	var shown []string
	for _, u := range strings.Split(s.URL, ",") {
		if r := redact(strings.TrimSpace(u)); r != "" {
			shown = append(shown, r)
		}
	}
	if len(shown) > 0 {
		settings.servers = strings.Join(shown, ", ")
	}
	return nc, settings, nil
}

// Prefixes are what the subjects of a connection begin with. The zero value stands for the defaults.
type Prefixes struct {
	API    string // of JetStream's API, with a dot at its end
	Domain string // of JetStream, if the context names one
	Inbox  string // of answers
}

// Prefixes tells them without a connection: they are a context's, if one is named. It reads that context and
// the key files in it.
func (o Options) Prefixes() (Prefixes, error) {
	p := Prefixes{API: jetstream.DefaultAPIPrefix, Inbox: strings.TrimSuffix(nats.InboxPrefix, ".")}
	if o.Context == "" {
		return p, nil
	}
	// natscontext has no other way to give its settings away than to connect; nothing is dialed.
	nc, s, err := natscontext.Connect(o.Context, nats.SetCustomDialer(noDialer{}), nats.RetryOnFailedConnect(true), nats.ReconnectWait(time.Minute))
	if err != nil {
		return p, fmt.Errorf("nats context %q: %w", o.Context, cause(err))
	}
	nc.Close()
	switch {
	case s.JSDomain != "":
		p.Domain, p.API = s.JSDomain, "$JS."+s.JSDomain+".API."
	case s.JSAPIPrefix != "":
		p.API = strings.TrimSuffix(s.JSAPIPrefix, ".") + "."
	}
	if s.InboxPrefix != "" {
		p.Inbox = s.InboxPrefix
	}
	return p, nil
}

type noDialer struct{}

func (noDialer) Dial(string, string) (net.Conn, error) { return nil, errors.New("not dialed") }

// credentials turns the files into options, after reading each once, since a file
// that is missing at start is a mistake in the configuration.
func (o Options) credentials(fileErr func(error)) ([]nats.Option, error) {
	var opts []nats.Option
	var kinds []string
	if o.CredsFile != "" {
		kinds = append(kinds, "creds_file")
		b, err := os.ReadFile(o.CredsFile)
		if err == nil {
			if _, err = nkeys.ParseDecoratedJWT(b); err == nil {
				_, err = nkeys.ParseDecoratedUserNKey(b)
			}
		}
		if err != nil {
			return nil, fileError("creds_file", o.CredsFile, err)
		}
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.NKeyFile != "" {
		kinds = append(kinds, "nkey_file")
		opt, err := nats.NkeyOptionFromSeed(o.NKeyFile)
		if err != nil {
			return nil, fileError("nkey_file", o.NKeyFile, err)
		}
		opts = append(opts, opt)
	}
	if o.TokenFile != "" {
		kinds = append(kinds, "token_file")
		read := secretFile("token_file", o.TokenFile)
		if _, err := read(); err != nil {
			return nil, err
		}
		opts = append(opts, nats.TokenHandler(func() string {
			s, err := read()
			fileErr(err)
			return s
		}))
	}
	if o.User != "" || o.PasswordFile != "" {
		kinds = append(kinds, "user")
		if o.User == "" || o.PasswordFile == "" {
			return nil, errors.New("nats: user and password_file go together")
		}
		read := secretFile("password_file", o.PasswordFile)
		if _, err := read(); err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserInfoHandler(func() (string, string) {
			s, err := read()
			fileErr(err)
			return o.User, s
		}))
	}
	if len(kinds) > 1 {
		return nil, fmt.Errorf("nats: %s: only one kind of credential at a time", strings.Join(kinds, " and "))
	}
	for option, path := range map[string]string{"tls ca_file": o.CAFile, "tls cert_file": o.CertFile, "tls key_file": o.KeyFile} {
		if path == "" {
			continue
		}
		if _, err := os.ReadFile(path); err != nil {
			return nil, fileError(option, path, err)
		}
	}
	if o.CAFile != "" {
		opts = append(opts, nats.RootCAs(o.CAFile))
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("nats: tls cert_file and key_file go together")
	}
	if o.CertFile != "" {
		opts = append(opts, nats.ClientCert(o.CertFile, o.KeyFile))
	}
	return opts, nil
}

// shown names the servers for people, without credentials.
func (o Options) shown() string {
	if o.Context != "" {
		return "context " + o.Context
	}
	s := ""
	for _, u := range o.URLs {
		if r := redact(u); r != "" {
			if s != "" {
				s += ", "
			}
			s += r
		}
	}
	if s == "" {
		return nats.DefaultURL
	}
	return s
}

// secretFile reads a one-line secret, without the line's end that editors add.
func secretFile(option, path string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fileError(option, path, err)
		}
		s := strings.TrimRight(string(b), "\r\n")
		if s == "" {
			return "", fileError(option, path, errors.New("the file is empty"))
		}
		return s, nil
	}
}

func fileError(option, path string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("nats %s %s: %w", option, path, err)
}
