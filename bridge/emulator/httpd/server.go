// Package httpd is the embedded hub's HTTPS endpoint: the part of IoT Hub's
// service REST interface that the SDKs' registry managers and service clients
// use (devices, in bulk too, queries, twins, direct methods, statistics, purging
// of queues, feedback), under the real paths and with the real errors. It takes
// a SAS token of a policy with the right in the Authorization header. AMQP and
// MQTT over WebSocket come in here, too.
package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/twin"
)

// The largest bodies: of all requests, and of those that carry many devices or a method's payload.
const (
	maxBody      = 64 * 1024
	maxLargeBody = 1024 * 1024
)

// Authority decides who may do what.
type Authority interface {
	// AuthorizeHTTP verifies a policy's SAS token for the path of a resource, and
	// that the policy has one of the wanted rights. The error says why not; a *c2d.Refusal is answered as such.
	AuthorizeHTTP(token, path string, wanted identity.Rights) error
}

// DeviceLink reaches devices that are connected.
type DeviceLink interface {
	// UpdateTwin changes a twin and tells the device.
	UpdateTwin(device, generation string, c twin.Change) (twin.Twin, error)
	// Invoke calls a direct method and waits for the answer. The error is ctx's or a *c2d.Refusal.
	Invoke(ctx context.Context, device string, m Method) (status int, payload []byte, err error)
}

// Method is one call of a direct method.
type Method struct {
	Name                            string
	Payload                         []byte // JSON; nil: none
	ConnectTimeout, ResponseTimeout time.Duration
}

// Options make a Server. Store, Identity, Authority, Feedback, Twins and Devices are required.
type Options struct {
	Store     *c2d.Store
	Identity  *identity.Identity // device keys, where a device has none of its own
	Authority Authority
	Feedback  *feedback.Queue
	Twins     *twin.Store
	Devices   DeviceLink
	// Registry is asked before every registry operation; a *c2d.Refusal refuses it. nil: none is refused.
	Registry func() error
	Faults   *fault.Injector // may be nil
	// RetryAfter is told with every 429, in whole seconds, rounded up. 0: it is not.
	RetryAfter time.Duration
	// Tunnels serve connections that come over WebSocket, by subprotocol. They
	// must return when their own server closes.
	Tunnels map[string]func(net.Conn)
	Logger  *slog.Logger // nil: discard
}

// Server serves any number of listeners. Safe for concurrent use.
type Server struct {
	store     *c2d.Store
	identity  *identity.Identity
	authority Authority
	feedback  *feedback.Queue
	twins     *twin.Store
	devices   DeviceLink
	registry  func() error
	faults    *fault.Injector
	retry     time.Duration
	changing  sync.Mutex // serialises changes of twins, whose ETag is checked first
	tunnels   map[string]func(net.Conn)
	log       *slog.Logger
	http      *http.Server
	done      chan struct{} // closed by Close
	ending    sync.Once
	active    sync.RWMutex // held for reading by every request
}

// New makes a server; it listens nowhere yet.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = func() error { return nil }
	}
	s := &Server{
		store: o.Store, identity: o.Identity, authority: o.Authority, feedback: o.Feedback, twins: o.Twins, devices: o.Devices,
		registry: o.Registry, faults: o.Faults, retry: o.RetryAfter, tunnels: o.Tunnels,
		log: o.Logger.With("component", "httpd"), done: make(chan struct{}),
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 * 1024,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve accepts connections until Close, then returns nil. It owns l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close lets requests finish for a second, then ends all connections.
func (s *Server) Close() error {
	s.ending.Do(func() { close(s.done) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.active.Lock()
	defer s.active.Unlock()
	return err
}

// ServeHTTP routes by the raw path: a device ID is one percent-encoded segment,
// and "." is a legal one.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.RLock()
	defer s.active.RUnlock()
	path, err := segments(r.URL.EscapedPath())
	if err != nil {
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "the path is not percent-encoded correctly")
		return
	}
	if isWebSocket(path) {
		s.tunnel(w, r)
		return
	}
	t := s.route(r.Method, path)
	if t.serve == nil {
		s.fail(w, http.StatusNotFound, "NotFound", 404000, "the embedded hub does not serve this method and path")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, max(t.body, maxBody))
	if err := s.authority.AuthorizeHTTP(r.Header.Get("Authorization"), "/"+strings.Join(path, "/"), t.rights); err != nil {
		s.log.Info("refused a request", "err", err)
		s.fail(w, http.StatusUnauthorized, "IotHubUnauthorizedAccess", 401002, "Unauthorized")
		return
	}
	if r.URL.Query().Get("api-version") == "" {
		s.fail(w, http.StatusBadRequest, "InvalidProtocolVersion", 400001, "api-version is missing")
		return
	}
	if s.misbehave(w, r, t.device) {
		return
	}
	if t.registry {
		if err := s.registry(); err != nil {
			s.refuse(w, err)
			return
		}
	}
	t.serve(w, r)
}

func segments(escaped string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	for i, p := range parts {
		decoded, err := url.PathUnescape(p)
		if err != nil {
			return nil, err
		}
		parts[i] = decoded
	}
	return parts, nil
}

func (s *Server) reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.Debug("reply not sent", "err", err)
	}
}

// fail answers as the hub does: a JSON body whose Message starts with the
// error's name, which the SDKs cut out.
func (s *Server) fail(w http.ResponseWriter, status int, name string, code int, text string) {
	w.Header().Set("iothub-errorcode", name)
	s.reply(w, status, struct {
		Message          string
		ExceptionMessage string
	}{"ErrorCode:" + name + ";" + text, strconv.Itoa(code) + ": " + text})
}

// refuse answers with a refusal of the store.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	var r *c2d.Refusal
	if !errors.As(err, &r) {
		s.fail(w, http.StatusInternalServerError, "ServerError", 500001, err.Error())
		return
	}
	if r.Code/1000 == http.StatusTooManyRequests && s.retry > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((s.retry+time.Second-1)/time.Second), 10))
	}
	s.fail(w, r.Code/1000, nameOf(r.Code), r.Code, r.Text)
}
