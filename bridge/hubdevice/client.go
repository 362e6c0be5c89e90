package hubdevice

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
)

// Options configures a Client. ConnectionString is required.
type Options struct {
	// ConnectionString is the device's: HostName, DeviceId and SharedAccessKey (or
	// SharedAccessSignature, which cannot be renewed). GatewayHostName is respected.
	ConnectionString string
	// Address is host:port to dial. Default: GatewayHostName or HostName, port 8883.
	// The certificate is verified against that host name in any case.
	Address string
	// RootCAs are trusted instead of the system's. Default: the system's.
	RootCAs *x509.CertPool
	// TokenLifetime is how long a SAS token is valid. The client reconnects with a
	// new one after about 4/5 of it. Default 1h, at least 2s.
	TokenLifetime time.Duration
	// Grace is how long an orderly disconnect, at the end of Run and to renew the
	// token, waits for Ack of the messages that Receive returned. Default 5s.
	Grace time.Duration
	// Version is told to the hub as DeviceClientType "downlink/VERSION". Default "devel".
	Version string
	// Logger is for state changes and failures. Default: none.
	Logger *slog.Logger
}

// Client receives as one device. Run keeps it connected; Receive yields what
// arrives. All methods are safe for concurrent use.
type Client struct {
	credential sas.ConnectionString
	device     string
	address    string
	serverName string
	username   string
	rootCAs    *x509.CertPool
	lifetime   time.Duration
	grace      time.Duration
	logger     *slog.Logger
	timing     timing

	running    atomic.Bool
	strayTopic sync.Once

	mu        sync.Mutex
	inbox     *inbox        // of the current connection, nil between two
	wake      chan struct{} // closed and replaced when Receive should look again
	problem   error         // what Ready says; nil while connected
	connected time.Time     // since when; zero while not connected
	drops     int           // accepted connections in a row that the hub closed early
	stats     Stats
}

// timing is what tests shorten.
type timing struct {
	retry, retryMax     time.Duration // after a failed or lost connection
	refused, refusedMax time.Duration // after a refused credential
	stable              time.Duration // a connection that lived so long was a good one
}

// takenOver is how many connections in a row the hub must close early before we
// conclude that another client uses the identity.
const takenOver = 3

// Stats counts since New.
type Stats struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // connected since
	Connects  uint64    `json:"connects"`       // connections that the hub accepted
	Received  uint64    `json:"received"`       // PUBLISHes of C2D messages, repeats included
	Acked     uint64    `json:"acked"`          // PUBACKs written
	Unacked   int       `json:"unacked"`        // received on this connection, PUBACK not written
}

// New checks the options and returns a Client that is not connected. It does no I/O.
// Errors never contain the key.
func New(o Options) (*Client, error) {
	cs, err := sas.Parse(o.ConnectionString)
	if err != nil {
		return nil, fmt.Errorf("hubdevice: %w", err)
	}
	switch kind := cs.Kind(); {
	case kind == sas.KindModule:
		return nil, fmt.Errorf("hubdevice: the connection string is for module %q of device %q; cloud-to-device messages go to devices only, so the relay needs a device's connection string", cs.ModuleID, cs.DeviceID)
	case kind != sas.KindDevice:
		return nil, fmt.Errorf("hubdevice: this is a connection string of kind %q; the relay needs a device's, with DeviceId in it", kind)
	case cs.X509:
		return nil, fmt.Errorf("hubdevice: device %q authenticates by X.509 certificate (x509=true), which is not supported; give it a symmetric key", cs.DeviceID)
	case strings.ContainsRune(cs.DeviceID, '/'):
		return nil, fmt.Errorf("hubdevice: %q is not a device id: \"/\" is not allowed", cs.DeviceID)
	}
	if o.TokenLifetime == 0 {
		o.TokenLifetime = time.Hour
	}
	if o.TokenLifetime < 2*time.Second {
		return nil, fmt.Errorf("hubdevice: token lifetime %s is too short; at least 2s", o.TokenLifetime)
	}
	if o.Grace == 0 {
		o.Grace = 5 * time.Second
	}
	if o.Grace < 0 {
		return nil, fmt.Errorf("hubdevice: grace %s is negative", o.Grace)
	}
	if o.Version == "" {
		o.Version = "devel"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	serverName := cs.HostName
	if cs.GatewayHostName != "" {
		serverName = cs.GatewayHostName
	}
	if o.Address == "" {
		o.Address = net.JoinHostPort(serverName, "8883")
	}
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return nil, fmt.Errorf("hubdevice: address %q is not host:port", o.Address)
	}
	return &Client{
		credential: cs,
		device:     cs.DeviceID,
		address:    o.Address,
		serverName: serverName,
		username:   cs.HostName + "/" + cs.DeviceID + "/?api-version=" + apiVersion + "&DeviceClientType=" + sas.Escape("downlink/"+o.Version),
		rootCAs:    o.RootCAs,
		lifetime:   o.TokenLifetime,
		grace:      o.Grace,
		logger:     o.Logger.With("component", "hubdevice", "device_id", cs.DeviceID),
		timing: timing{
			retry: 500 * time.Millisecond, retryMax: time.Minute,
			refused: 15 * time.Second, refusedMax: 5 * time.Minute,
			stable: 30 * time.Second,
		},
		wake:    make(chan struct{}),
		problem: fmt.Errorf("device %s: not connected yet", cs.DeviceID),
	}, nil
}

// Device returns the device ID.
func (c *Client) Device() string { return c.device }

// Ready is nil while connected and subscribed, or else says in one line what is
// wrong and what to do about it.
func (c *Client) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem == nil && c.drops >= takenOver {
		return c.takeOver()
	}
	return c.problem
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Since, s.Connected = c.connected, !c.connected.IsZero()
	if c.inbox != nil {
		s.Unacked = c.inbox.unacked()
	}
	return s
}

// Receive blocks for the next message, in the order in which the hub sent them on
// a connection. It fails only when ctx is done. Between connections it waits. The
// caller must call Ack on each message at some time; the hub sends at most about 50
// without.
func (c *Client) Receive(ctx context.Context) (*Message, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.mu.Lock()
		wake := c.wake
		var m *Message
		if c.inbox != nil {
			m = c.inbox.take()
		}
		c.mu.Unlock()
		if m != nil {
			return m, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Run connects and stays connected until ctx is done, however long the hub cannot be
// reached or refuses us; Ready says why. At the end it hands out nothing more, waits
// up to Grace for what was handed out to be acked, and disconnects in order. It
// returns nil then; an error only if it runs already.
func (c *Client) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return errors.New("hubdevice: Run is running already")
	}
	defer c.running.Store(false)

	retry := c.backoff(c.timing.retry, c.timing.retryMax)
	refused := c.backoff(c.timing.refused, c.timing.refusedMax)
	renewal := false
	for ctx.Err() == nil {
		conn, err := c.connect(ctx)
		var wait time.Duration
		switch {
		case err == nil:
			refused.Reset()
			c.up(conn, renewal)
			var stable bool
			renewal, stable, err = c.serve(ctx, conn)
			if stable {
				retry.Reset()
			}
			if err != nil {
				c.down(err, stable)
				wait = retry.NextBackOff()
			}
		case ctx.Err() != nil:
		default:
			renewal = false
			wait = c.failed(err, retry, refused)
		}
		c.adopt(nil)
		pause(ctx, wait)
	}
	c.mu.Lock()
	c.connected, c.problem = time.Time{}, fmt.Errorf("device %s: stopped", c.device)
	c.mu.Unlock()
	return nil
}

// failed notes an attempt that came to nothing and says how long to wait.
func (c *Client) failed(err error, retry, refused *backoff.ExponentialBackOff) time.Duration {
	var e *bridge.Error
	errors.As(err, &e)
	switch {
	case e != nil && e.Class == bridge.Unauthorized:
		c.fail(err)
		return refused.NextBackOff()
	case e != nil && e.Class == bridge.LinkLost && e.Op == opSubscribe:
		c.down(err, false) // the hub had accepted this one
	default:
		c.fail(err)
	}
	return retry.NextBackOff()
}

// serve waits for the end of a connection. renewal: it ended to get a new token;
// stable: it had lived long enough to be a good one; err: it was lost.
func (c *Client) serve(ctx context.Context, conn *connection) (renewal, stable bool, err error) {
	defer conn.close()
	proven := time.NewTimer(c.timing.stable)
	defer proven.Stop()
	var renew <-chan time.Time
	if !conn.renew.IsZero() {
		t := time.NewTimer(time.Until(conn.renew))
		defer t.Stop()
		renew = t.C
	}
	for {
		select {
		case <-proven.C:
			stable = true
			c.proven()
		case <-renew:
			conn.settle(c.grace)
			return true, stable, nil
		case <-ctx.Done():
			conn.inbox.pause()
			c.stopping()
			conn.settle(c.grace)
			return false, stable, nil
		case <-conn.wire.ended:
			return false, stable, c.lost("receive", conn.wire.cause)
		}
	}
}

// arrived is paho's handler; it must not block.
func (c *Client) arrived(conn *connection, m mqtt.Message) {
	c2d, ok := decodeTopic(c.device, m.Topic(), m.Payload())
	if !ok {
		// A session kept from another client may be subscribed to more. It is not ours to complete.
		c.strayTopic.Do(func() {
			c.logger.Warn("hub sends on a topic that is not devicebound, as another client of this device subscribed to; ignored", "subject", m.Topic())
		})
		return
	}
	c.mu.Lock()
	c.stats.Received++
	c.mu.Unlock()
	c.logger.Debug("received", "message_id", c2d.MessageID)
	if !conn.inbox.add(c2d, m) {
		conn.wire.end(fmt.Errorf("protocol error: more than %d messages without a PUBACK", maxUnacked))
	}
}

func (c *Client) completed(n int) {
	c.mu.Lock()
	c.stats.Acked += uint64(n)
	c.mu.Unlock()
}

// adopt makes b the inbox that Receive takes from; the one before is closed.
func (c *Client) adopt(b *inbox) {
	c.mu.Lock()
	old := c.inbox
	c.inbox = b
	c.mu.Unlock()
	if old != nil {
		old.close()
	}
	c.announce()
}

// announce lets Receive look again.
func (c *Client) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.wake)
	c.wake = make(chan struct{})
}

func (c *Client) up(conn *connection, renewal bool) {
	c.mu.Lock()
	c.problem, c.connected = nil, time.Now()
	c.stats.Connects++
	drops := c.drops
	c.mu.Unlock()
	level := slog.LevelInfo
	if renewal || drops > 0 { // once per streak
		level = slog.LevelDebug
	}
	c.logger.Log(context.Background(), level, "connected", "hub", c.credential.HostName, "session_present", conn.session)
}

func (c *Client) stopping() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = fmt.Errorf("device %s: stopping", c.device)
}

// fail notes a failed attempt to connect.
func (c *Client) fail(err error) {
	c.mu.Lock()
	before := c.problem
	c.problem = fmt.Errorf("device %s: %w", c.device, err)
	c.connected = time.Time{}
	c.drops = 0 // the hub refuses or is away: nobody takes over
	same := before != nil && before.Error() == c.problem.Error()
	c.mu.Unlock()
	c.warn(!same, "cannot connect", err)
}

// down notes the loss of an accepted connection.
func (c *Client) down(err error, stable bool) {
	c.mu.Lock()
	if stable {
		c.drops = 0
	}
	c.drops++
	drops := c.drops
	c.connected = time.Time{}
	c.problem = fmt.Errorf("device %s: %w", c.device, err)
	if drops >= takenOver {
		c.problem = c.takeOver()
	}
	problem := c.problem
	c.mu.Unlock()
	c.warn(drops == 1, "connection lost", err)
	if drops == takenOver {
		c.logger.Error("the hub drops every connection", "err", problem)
	}
}

// proven notes that the connection lived long enough: nobody else takes it.
func (c *Client) proven() {
	c.mu.Lock()
	drops := c.drops
	c.drops = 0
	c.mu.Unlock()
	if drops > 0 {
		c.logger.Info("connection is stable again")
	}
}

// takeOver explains repeated early drops. The hub gives no reason on MQTT 3.1.1.
func (c *Client) takeOver() error {
	if strings.ContainsAny(c.device, "+#") {
		return fmt.Errorf("device %s: the hub closes each connection soon after it accepted it, most likely because + and # in a device id make its subscription illegal in MQTT; use another id", c.device)
	}
	return fmt.Errorf("device %s: the hub closes each connection soon after it accepted it (%d in a row): another client uses this device's identity; stop it, or give the relay a device of its own", c.device, c.drops)
}

func (c *Client) warn(first bool, text string, err error) {
	level := slog.LevelWarn
	if !first {
		level = slog.LevelDebug
	}
	c.logger.Log(context.Background(), level, text, "err", err)
}

func (c *Client) backoff(initial, highest time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: initial, MaxInterval: highest, Multiplier: 2, RandomizationFactor: 0.5}
}

// jitter spreads the renewals of many relays that started together.
func (c *Client) jitter(d time.Duration) time.Duration { return rand.N(d + 1) }

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
