package natsio

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func isReady(t testing.TB, c *Conn) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Ready() == nil && c.NATS().FlushTimeout(time.Second) == nil }, 30*time.Second, 10*time.Millisecond, "%v", c.Ready())
}

// becomes waits until Ready says something that contains all parts, on one line, and returns it.
func becomes(t testing.TB, ready func() error, parts ...string) (last error) {
	t.Helper()
	says := func() bool {
		if last = ready(); last == nil || strings.Contains(last.Error(), "\n") {
			return false
		}
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(last.Error(), p) })
	}
	for deadline := time.Now().Add(30 * time.Second); !says(); {
		if time.Now().After(deadline) {
			require.FailNow(t, "Ready does not say it", "want %q, last: %v", parts, last)
		}
		require.NoError(t, sleep(t.Context(), 5*time.Millisecond))
	}
	return last
}

const secret = "s3cr3t-word"

// rotates connects with a wrong credential, which must be said and not end the connection, then puts
// the right one into the file.
func rotates(t *testing.T, n *bridgetest.NATS, o Options, file, wrong, right string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, []byte(wrong), 0o600))
	o.URLs = []string{n.URL()}
	c := connect(t, o)
	require.NotContains(t, becomes(t, c.Ready, n.URL(), "authorization violation").Error(), secret)
	require.NoError(t, os.WriteFile(file, []byte(right), 0o600))
	isReady(t, c)
}

func TestConnectWithToken(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.Authorization = secret })
	file := filepath.Join(t.TempDir(), "token")
	rotates(t, n, Options{TokenFile: file}, file, "wrong\n", secret+"\n")
}

func TestConnectWithUserAndPassword(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.Username, o.Password = "bridge", secret })
	file := filepath.Join(t.TempDir(), "password")
	rotates(t, n, Options{User: "bridge", PasswordFile: file}, file, "wrong\n", secret+"\r\n")
}

func TestConnectWithURLCredentials(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.Username, o.Password = "bridge", secret })
	isReady(t, connectTo(t, "nats://bridge:"+secret+"@"+n.Addr()))
	c := connect(t, Options{URLs: []string{"nats://bridge:x" + secret + "@" + n.Addr()}})
	require.NotContains(t, becomes(t, c.Ready, n.URL(), "authorization violation").Error(), secret)
}

func TestConnectWithNKey(t *testing.T) {
	t.Parallel()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	public, err := user.PublicKey()
	require.NoError(t, err)
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })
	dir := t.TempDir()
	isReady(t, connect(t, Options{URLs: []string{n.URL()}, NKeyFile: write(t, dir, "seed", string(seed)+"\n")}))

	other, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err = other.Seed()
	require.NoError(t, err)
	c := connect(t, Options{URLs: []string{n.URL()}, NKeyFile: write(t, dir, "other", string(seed))})
	becomes(t, c.Ready, n.URL(), "authorization violation")
}

// operator is a JWT set-up: an operator, one account, and credentials for its users.
type operator struct {
	account nkeys.KeyPair
	setup   func(*server.Options)
}

func newOperator(t testing.TB) *operator {
	t.Helper()
	pair := func(kp nkeys.KeyPair, err error) (nkeys.KeyPair, string) {
		require.NoError(t, err)
		pub, err := kp.PublicKey()
		require.NoError(t, err)
		return kp, pub
	}
	op, opPub := pair(nkeys.CreateOperator())
	acc, accPub := pair(nkeys.CreateAccount())
	opClaims := jwt.NewOperatorClaims(opPub)
	accJWT, err := jwt.NewAccountClaims(accPub).Encode(op)
	require.NoError(t, err)
	resolver := &server.MemAccResolver{}
	require.NoError(t, resolver.Store(accPub, accJWT))
	return &operator{account: acc, setup: func(o *server.Options) {
		o.TrustedOperators = []*jwt.OperatorClaims{opClaims}
		o.AccountResolver = resolver
		o.JetStream = false
	}}
}

func (o *operator) creds(t testing.TB, expires time.Time) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	pub, err := user.PublicKey()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	claims := jwt.NewUserClaims(pub)
	if !expires.IsZero() {
		claims.Expires = expires.Unix()
	}
	token, err := claims.Encode(o.account)
	require.NoError(t, err)
	b, err := jwt.FormatUserConfig(token, seed)
	require.NoError(t, err)
	return string(b)
}

func TestConnectWithCreds(t *testing.T) {
	t.Parallel()
	op := newOperator(t)
	n := bridgetest.RunNATS(t, op.setup)
	stranger := newOperator(t)
	file := filepath.Join(t.TempDir(), "bridge.creds")
	rotates(t, n, Options{CredsFile: file}, file, stranger.creds(t, time.Time{}), op.creds(t, time.Time{}))
}

// A credential that expires while connected is renewed from the file.
func TestConnectRenewsExpiredCreds(t *testing.T) {
	t.Parallel()
	op := newOperator(t)
	n := bridgetest.RunNATS(t, op.setup)
	dir := t.TempDir()
	file := write(t, dir, "bridge.creds", op.creds(t, time.Now().Add(2*time.Second)))
	c := connect(t, Options{URLs: []string{n.URL()}, CredsFile: file})
	renewed := time.Now()
	require.Eventually(t, func() bool {
		if time.Since(renewed) > 3*time.Second { // on a slow machine it may be over before it is used
			renewed = time.Now()
			write(t, dir, "bridge.creds", op.creds(t, renewed.Add(4*time.Second)))
		}
		return c.Ready() == nil
	}, 30*time.Second, 5*time.Millisecond)
	becomes(t, c.Ready, n.URL())
	require.NoError(t, os.WriteFile(file, []byte(op.creds(t, time.Time{})), 0o600))
	isReady(t, c)
}

// authority is a CA with its certificates as files.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), pool: x509.NewCertPool()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.pool.AddCert(a.cert)
	write(t, a.dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return a
}

func (a *authority) issue(t testing.TB, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	return write(t, a.dir, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(t, a.dir, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
}

func runTLS(t *testing.T, a *authority) *bridgetest.NATS {
	cert, err := tls.LoadX509KeyPair(a.issue(t, "server"))
	require.NoError(t, err)
	return bridgetest.RunNATS(t, func(o *server.Options) {
		o.TLS, o.TLSVerify = true, true
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	})
}

func TestConnectWithTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := runTLS(t, a)
	certFile, keyFile := a.issue(t, "client")
	ca := filepath.Join(a.dir, "ca.pem")
	isReady(t, connect(t, Options{URLs: []string{n.URL()}, CAFile: ca, CertFile: certFile, KeyFile: keyFile}))

	c := connect(t, Options{URLs: []string{n.URL()}, CertFile: certFile, KeyFile: keyFile})
	becomes(t, c.Ready, n.URL(), "certificate")
	c = connect(t, Options{URLs: []string{n.URL()}, CAFile: ca})
	becomes(t, c.Ready, n.URL())
}

func TestConnectWithContext(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	save := func(name string, settings map[string]string) {
		b, err := json.Marshal(settings)
		require.NoError(t, err)
		write(t, dir, name+".json", string(b))
	}
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.Username, o.Password = "bridge", secret })
	save("plain", map[string]string{"url": n.URL(), "user": "bridge", "password": secret})
	isReady(t, connect(t, Options{Context: "plain"}))
	save("wrong", map[string]string{"url": n.URL(), "user": "bridge", "password": "x" + secret})
	c := connect(t, Options{Context: "wrong"})
	require.NotContains(t, becomes(t, c.Ready, n.URL(), "authorization violation").Error(), secret)

	op := newOperator(t)
	n = bridgetest.RunNATS(t, op.setup)
	save("creds", map[string]string{"url": n.URL(), "creds": write(t, home, "c.creds", op.creds(t, time.Time{}))})
	isReady(t, connect(t, Options{Context: "creds"}))

	a := newAuthority(t)
	n = runTLS(t, a)
	certFile, keyFile := a.issue(t, "client")
	save("tls", map[string]string{"url": n.URL(), "ca": filepath.Join(a.dir, "ca.pem"), "cert": certFile, "key": keyFile})
	isReady(t, connect(t, Options{Context: "tls"}))

	_, err := Connect(Options{Context: "absent"})
	require.ErrorContains(t, err, `nats context "absent": unknown context "absent"`)
	_, err = Connect(Options{Context: "plain", User: "x"})
	require.ErrorContains(t, err, "leave out")
}

// A context's JetStream domain is used for everything.
func TestConnectWithContextDomain(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "nats", "context")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.JetStreamDomain = "cloud" })
	n.CreateStream(t, "S", "cmd.>")
	write(t, dir, "cloud.json", fmt.Sprintf(`{"url": %q, "jetstream_domain": "cloud"}`, n.URL()))
	c := connect(t, Options{Context: "cloud"})
	s, err := NewJetStreamSource(SourceOptions{Conn: c, Stream: "S", Consumer: "c", Start: "all"})
	require.NoError(t, err)
	run(t, s.Run)
	publish(t, n.JetStream(t), 1, 1)
	d, err := s.Receive(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Ack(t.Context()))
}

func TestConnectLater(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.Stop()
	c := connect(t, Options{URLs: []string{n.URL()}})
	require.EqualError(t, becomes(t, c.Ready, n.URL(), "connection refused"), n.URL()+": connection refused")
	n.Start(t)
	isReady(t, c)
	n.Restart(t)
	isReady(t, c)
	n.Stop()
	becomes(t, c.Ready, n.URL())
}

func TestConnectOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := write(t, dir, "empty", "\n")
	some := write(t, dir, "some", secret)
	missing := filepath.Join(dir, "missing")
	for want, o := range map[string]Options{
		"token_file " + missing + ": no such file or directory": {TokenFile: missing},
		"token_file " + empty + ": the file is empty":           {TokenFile: empty},
		"password_file " + missing:                              {User: "u", PasswordFile: missing},
		"user and password_file go together":                    {User: "u"},
		"creds_file " + some:                                    {CredsFile: some},
		"nkey_file " + some:                                     {NKeyFile: some},
		"token_file and user: only one kind":                    {TokenFile: some, User: "u", PasswordFile: some},
		"cert_file and key_file go together":                    {CertFile: some},
		"tls ca_file " + missing + ": no such file":             {CAFile: missing},
		some: {CAFile: some},
		"nats url 2: not a URL such as nats://127.0.0.1:4222":               {URLs: []string{"127.0.0.1", "nats://u:" + secret + "%zz@h"}},
		"nats url 1: not a URL such as nats://127.0.0.1:4222":               {URLs: []string{""}},
		`nats context "x": leave out url, credentials and tls, the context`: {Context: "x", URLs: []string{"nats://h"}},
	} {
		_, err := Connect(o)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
		require.NotContains(t, err.Error(), secret)
	}
}

// What is not allowed is named, with the route that needs it.
func TestConnectNamesMissingPermissions(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		admin := &server.User{Username: "admin", Password: "admin"}
		bridge := &server.User{Username: "bridge", Password: secret, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.CREATE.S.>", "downlink.dead.>"}},
			Subscribe: &server.SubjectPermission{Deny: []string{"core.>"}},
		}}
		o.Users = []*server.User{admin, bridge}
	})
	js := n.JetStream(t, nats.UserInfo("admin", "admin"))
	_, err := js.CreateStream(t.Context(), Stream{Name: "S", Subjects: []string{"cmd.>"}}.config())
	require.NoError(t, err)
	o := Options{URLs: []string{n.URL()}, User: "bridge", PasswordFile: write(t, t.TempDir(), "p", secret)}

	c := connect(t, o)
	s, err := NewJetStreamSource(SourceOptions{Conn: c, Stream: "S", Consumer: "downlink", Filters: []string{"cmd.>"}, Routes: []string{"a", "b"}})
	require.NoError(t, err)
	run(t, s.Run)
	becomes(t, s.Ready, `missing NATS permission: publish to "$JS.API.CONSUMER.CREATE.S.downlink.cmd.>" (routes a, b)`)

	c = connect(t, o)
	k, err := NewCoreSource(CoreOptions{Conn: c, Queue: "q", Subjects: []string{"core.x"}})
	require.NoError(t, err)
	run(t, k.Run)
	becomes(t, k.Ready, `missing NATS permission: subscribe to "core.x"`)

	c = connect(t, o)
	d, err := NewDeadLetters(DeadLettersOptions{Conn: c, Create: true})
	require.NoError(t, err)
	run(t, d.Run)
	require.Eventually(t, func() bool { return d.Ready() == nil }, 30*time.Second, 10*time.Millisecond)
	require.Error(t, d.Store(t.Context(), letter()))
	becomes(t, d.Ready, `missing NATS permission: publish to "downlink.dead.expired.commands" (dead letters)`)
}

func TestDeniedOperation(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`nats: permissions violation: Permissions Violation for Publish to "a.b"`:                             `publish to "a.b"`,
		`nats: permissions violation: Permissions Violation for Subscription to "a.>" using queue "q"`:        `subscribe to "a.>"`,
		`nats: permissions violation: Permissions Violation for Publish to "$JS.ACK.S.c.1.2.3.4.5"`:           `publish to "$JS.ACK.S.c.>"`,
		`nats: permissions violation: Permissions Violation for Publish to "$JS.ACK.hub.acc.S.c.1.2.3.4.5.x"`: `publish to "$JS.ACK.hub.acc.S.c.>"`,
		`nats: permissions violation`: `publish to "?"`,
	} {
		require.Equal(t, want, deniedOperation(errors.New(text)))
	}
	c := &Conn{denied: map[string]time.Time{}}
	for i := range 3 * deniedMax {
		c.deny(fmt.Sprintf("publish to \"%d\"", i))
	}
	require.Len(t, c.denied, deniedMax)
	require.False(t, c.deny(`publish to "0"`))
	c.denied[`publish to "0"`] = time.Now().Add(-2 * deniedFor)
	require.True(t, c.deny(`publish to "x"`))
	require.Empty(t, c.deniedOf(func(_, s string) bool { return s == "0" }))
	require.Equal(t, `publish to "x"`, c.deniedOf(func(op, s string) bool { return op == "publish" && s == "x" }))
}

func TestTooOld(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{"2.10.29": true, "1.4.1": true, "2.11.0": false, "2.15.2": false, "3.0.0": false, "": false, "dev": false, "2.11.0-RC.1": false} {
		require.Equal(t, want, tooOld(v), v)
	}
	require.EqualError(t, tooOldError("nats://h:4222", "2.10.7"), "nats://h:4222: nats-server 2.10.7 is too old: Downlink needs 2.11 or newer")
}

func TestCauseIsOneShortLine(t *testing.T) {
	t.Parallel()
	require.EqualError(t, connError("nats://h", errors.New("nats: a\r\n b")), "nats://h: a b")
	require.EqualError(t, connError("nats://h", nats.ErrNoServers), "nats://h: connection refused")
	require.EqualError(t, connError("nats://h", nil), "nats://h: connecting")
	require.EqualError(t, connError("nats://h", &net.OpError{Err: &net.DNSError{Name: "h", Err: "no such host"}}), "nats://h: lookup h: no such host")
	require.Equal(t, "nats://h:1", redact("nats://user:pass@h:1/x?y"))
	require.Equal(t, "nats://h:1", redact("user:pass@h:1"))
}

func TestReconnectDelayGrowsToALimit(t *testing.T) {
	t.Parallel()
	for attempt := 1; attempt < 40; attempt++ {
		d := reconnectDelay(attempt)
		require.Positive(t, d)
		require.LessOrEqual(t, d, longestWait*3/2)
	}
	require.Greater(t, reconnectDelay(20), time.Second)
}
