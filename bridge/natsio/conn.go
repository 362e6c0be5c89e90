package natsio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	dialTimeout  = 3 * time.Second
	pingInterval = 10 * time.Second // two missed: the link is dead, although TCP may take minutes to notice
	apiTimeout   = 5 * time.Second
	pageTimeout  = 30 * time.Second       // for an answer of many megabytes; asked again too soon, a slow server never gets done
	firstWait    = 100 * time.Millisecond // back-off of everything that retries
	longestWait  = 5 * time.Second
	deniedFor    = time.Minute // how long a refused subject stays in Ready after its last refusal
	deniedMax    = 64
)

// Options says where a NATS server is and how to log in. At most one kind of
// credential is set; TLS and a client certificate go with any of them. Files
// are read again at each reconnect, so that they can be replaced in place; only
// the public half of an nkey is fixed at start.
type Options struct {
	// Name is how servers list the connection. Default downlink.
	Name string
	// URLs lists servers. Default nats://127.0.0.1:4222.
	URLs []string
	// Context names a context of the nats CLI (or is the absolute path of one), instead of all the rest.
	Context string
	// CredsFile is a .creds file: a user JWT and its seed.
	CredsFile string
	// NKeyFile holds an nkey seed.
	NKeyFile string
	// TokenFile holds a token.
	TokenFile string
	// User and PasswordFile go together.
	User, PasswordFile string
	// CAFile is a PEM bundle to trust instead of the system's.
	CAFile string
	// CertFile and KeyFile are the client's certificate, PEM.
	CertFile, KeyFile string
	// Logger takes the changes of state. Default: nothing is logged.
	Logger *slog.Logger
}

// Conn is one connection that never gives up. Safe for concurrent use.
type Conn struct {
	nc  *nats.Conn // set once; not for callbacks, which may run before
	js  jetstream.JetStream
	api string // prefix of JetStream's API, with a dot at its end
	log *slog.Logger

	mu        sync.Mutex
	servers   string // for people, without credentials
	lastErr   error  // why the latest attempt failed
	fileErr   error  // a credential's file that could not be read again
	down      bool   // a streak of failed attempts has been logged
	denied    map[string]time.Time
	listeners map[chan struct{}]struct{}
	session   context.Context // done, with errSessionOver, once the connection is lost
	endOf     context.CancelCauseFunc
}

// errSessionOver is why a request gets no answer any more.
var errSessionOver = errors.New("the connection was lost before the answer came")

// Connect starts a connection and returns it after one attempt at each server,
// which takes at most three seconds a server; reconnecting goes on in the
// background, for ever. It fails only for options or files that cannot work.
func Connect(o Options) (*Conn, error) {
	c := &Conn{log: o.logger(), servers: o.shown(), denied: map[string]time.Time{}, listeners: map[chan struct{}]struct{}{}}
	c.session, c.endOf = context.WithCancelCause(context.Background())
	nc, settings, err := o.dial(c.file,
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		// Without this nats.go closes the connection for good once a server said "authorization
		// violation" twice, and a credential that is being rotated ends the process.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ConnectHandler(c.connected),
		nats.ReconnectHandler(c.connected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.endSession(); c.disconnected(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.disconnected(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { c.asyncError(sub, err) }),
	)
	if err != nil {
		return nil, err
	}
	c.nc = nc
	c.mu.Lock()
	c.servers = settings.servers
	c.mu.Unlock()
	c.js, c.api, err = settings.jetStream(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// NATS is the connection itself.
func (c *Conn) NATS() *nats.Conn { return c.nc }

// JetStream is the JetStream of the connection's account, or of its context's domain.
func (c *Conn) JetStream() jetstream.JetStream { return c.js }

// Ready is nil while the connection is up and usable. Otherwise it is one line:
// the server, without credentials, and the cause.
func (c *Conn) Ready() error {
	c.mu.Lock()
	servers, last, file := c.servers, c.lastErr, c.fileErr
	c.mu.Unlock()
	if !c.nc.IsConnected() {
		if file != nil {
			return file
		}
		if err := c.nc.LastError(); err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
			last = err
		}
		return connError(servers, last)
	}
	if v := c.nc.ConnectedServerVersion(); tooOld(v) {
		return tooOldError(servers, v)
	}
	if what := c.deniedOf(func(op, subject string) bool { return op == "subscribe" || strings.HasPrefix(subject, "$JS.") }); what != "" {
		return errors.New("missing NATS permission: " + what)
	}
	return nil
}

// Close sends what is buffered, waiting two seconds at most, and closes.
func (c *Conn) Close() {
	if c.nc.IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = c.nc.FlushWithContext(ctx) // what does not get out comes again to the next owner
	}
	c.nc.Close()
	c.endSession()
}

func (c *Conn) endSession() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endOf(errSessionOver)
	c.session, c.endOf = context.WithCancelCause(context.Background())
}

// request calls ask with a context for one request: limit at most, and not beyond the loss
// of the connection, with which the answer is lost as well.
func (c *Conn) request(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	defer context.AfterFunc(session, func() { end(errSessionOver) })()
	err := ask(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errSessionOver) {
		return errSessionOver // not context.Canceled, which would be the caller's own
	}
	return err
}

// publish blocks until JetStream has acknowledged m, five seconds at most and not beyond the loss of the connection. While
// the server is away it fails at once, because what is put into the connection's buffer then is sent when
// the server is back, behind the caller's back: another process may have gone on with the message by then.
func (c *Conn) publish(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	err = c.request(ctx, apiTimeout, func(ctx context.Context) (err error) {
		ack, err = c.js.PublishMsg(ctx, m, opts...)
		return err
	})
	return ack, err
}

// usable is Ready without permissions: whether a request has a chance at all.
func (c *Conn) usable() error {
	if c.nc.IsConnected() && !tooOld(c.nc.ConnectedServerVersion()) {
		return nil
	}
	return c.Ready()
}

// notify returns a channel that gets a value at each (re)connect.
func (c *Conn) notify() (_ <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	c.listeners[ch] = struct{}{}
	c.mu.Unlock()
	return ch, func() {
		c.mu.Lock()
		delete(c.listeners, ch)
		c.mu.Unlock()
	}
}

// deniedOf names one recently refused operation that match wants, as
// `publish to "x"`. Of several it is the first by name, so that the text is stable.
func (c *Conn) deniedOf(match func(op, subject string) bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []string
	for what, at := range c.denied {
		if time.Since(at) > deniedFor {
			delete(c.denied, what)
			continue
		}
		if op, quoted, ok := strings.Cut(what, " to "); ok && match(op, strings.Trim(quoted, `"`)) {
			found = append(found, what)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

func (c *Conn) connected(nc *nats.Conn) {
	c.mu.Lock()
	c.lastErr, c.fileErr, c.down = nil, nil, false
	clear(c.denied) // a server disconnects a client whose permissions change
	for ch := range c.listeners {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.log.Info("NATS connected", "server", redact(nc.ConnectedUrl()), "version", nc.ConnectedServerVersion())
}

func (c *Conn) disconnected(err error) {
	if err == nil { // closed by us
		return
	}
	c.mu.Lock()
	c.lastErr = err
	first := !c.down
	c.down = true
	text := connError(c.servers, err)
	c.mu.Unlock()
	if first {
		c.log.Warn("NATS connection lost or not yet there, trying again", "err", text)
	}
}

func (c *Conn) asyncError(sub *nats.Subscription, err error) {
	switch {
	case errors.Is(err, nats.ErrPermissionViolation):
		what := deniedOperation(err)
		if c.deny(what) {
			c.log.Error("missing NATS permission", "err", what)
		}
	case errors.Is(err, nats.ErrSlowConsumer):
		c.log.Debug("NATS subscription is full", "subject", sub.Subject) // its owner counts and warns
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		c.disconnected(err)
	default:
		c.log.Warn("NATS reported an error", "err", err)
	}
}

// deny records a refused operation. first: it was not refused lately. Of very many, such as the
// reply subjects of strangers, only some are kept.
func (c *Conn) deny(what string) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.denied[what]
	if !known && len(c.denied) >= deniedMax {
		maps.DeleteFunc(c.denied, func(_ string, at time.Time) bool { return time.Since(at) > deniedFor })
		if len(c.denied) >= deniedMax {
			return false
		}
	}
	c.denied[what] = time.Now()
	return !known
}

// file records that a credential's file could not be read, which the server
// only sees as a wrong credential.
func (c *Conn) file(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fileErr = err
}

// deniedOperation is `publish to "x"` or `subscribe to "x"`, from the server's text
// `Permissions Violation for Publish to "x"`.
func deniedOperation(err error) string {
	text := err.Error()
	op := "publish"
	if strings.Contains(text, "for Subscription to") {
		op = "subscribe"
	}
	_, rest, ok := strings.Cut(text, `"`)
	if !ok {
		return op + ` to "?"`
	}
	subject, _, _ := strings.Cut(rest, `"`)
	// $JS.ACK[.domain.account].stream.consumer and five numbers or more: one permission for all of them.
	if tokens := strings.Split(subject, "."); strings.HasPrefix(subject, "$JS.ACK.") && len(tokens) >= 9 {
		n := 4
		if len(tokens) >= 11 {
			n = 6
		}
		subject = strings.Join(tokens[:n], ".") + ".>"
	}
	return op + ` to "` + subject + `"`
}

// connError is "SERVERS: cause" in one line.
func connError(servers string, err error) error {
	if err == nil {
		return errors.New(servers + ": connecting")
	}
	return fmt.Errorf("%s: %w", servers, cause(err))
}

// cause is what a person must know of a failed connection: "connection refused",
// not the layers around it.
func cause(err error) error {
	var network *net.OpError // a file's error names the file, so it stays whole
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(err, &network) && errors.As(network.Err, &errno):
		return errno
	case errors.As(err, &dns):
		return fmt.Errorf("lookup %s: %s", dns.Name, dns.Err)
	case errors.Is(err, io.EOF):
		return errors.New("connection closed")
	case errors.Is(err, nats.ErrNoServers):
		// The first attempt's error is hidden when a server refuses the connection.
		return syscall.ECONNREFUSED
	case errors.Is(err, nats.ErrAuthorization):
		return authError{err}
	}
	return oneLine{err}
}

// authError words every refused login alike: nats.go gives "nats: Authorization Violation".
type authError struct{ err error }

func (authError) Error() string   { return "authorization violation" }
func (e authError) Unwrap() error { return e.err }

// oneLine keeps an error's text on one line, without nats.go's prefix.
type oneLine struct{ err error }

func (e oneLine) Error() string {
	return strings.TrimPrefix(strings.Join(strings.Fields(e.err.Error()), " "), "nats: ")
}
func (e oneLine) Unwrap() error { return e.err }

// redact is the URL's scheme and host. Empty: not a server's URL.
func redact(s string) string {
	if s != "" && !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// tooOld reports a server before 2.11, the first one with pinned clients. A version that
// is not understood passes: proxies and forks have their own.
func tooOld(version string) bool {
	major, rest, ok := strings.Cut(version, ".")
	if !ok {
		return false
	}
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (a < 2 || a == 2 && b < 11)
}

func tooOldError(servers, version string) error {
	return fmt.Errorf("%s: nats-server %s is too old: Downlink needs 2.11 or newer", servers, version)
}

// newBackOff is the pause between tries of everything in this package.
func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = firstWait, longestWait, 2
	return b
}

// reconnectDelay is the same back-off for nats.go, which counts the attempts itself.
func reconnectDelay(attempts int) time.Duration {
	b := newBackOff()
	d := b.NextBackOff()
	for range min(attempts, 8) - 1 {
		d = b.NextBackOff()
	}
	return d
}

// sleep waits unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (o Options) name() string {
	if o.Name == "" {
		return "downlink"
	}
	return o.Name
}

func (o Options) logger() *slog.Logger { return logger(o.Logger) }

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.With("component", "nats")
}
