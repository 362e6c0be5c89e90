package natsio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Stream is a stream to create if it does not exist.
type Stream struct {
	Name     string
	Subjects []string
	// Duplicates is how long message IDs are remembered. Zero: the server's default, two minutes.
	Duplicates time.Duration
	// Replicas is 1 if zero.
	Replicas int
}

func (s Stream) config() jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: s.Name, Subjects: s.Subjects, Duplicates: s.Duplicates, Replicas: max(s.Replicas, 1)}
}

// ServerOptions configures an embedded nats-server.
type ServerOptions struct {
	// Name is the server's name. Default downlink.
	Name string
	// Listen is host:port. Default 127.0.0.1:4222; port 0 picks a free one.
	Listen string
	// StoreDir keeps JetStream's files. Empty: a temporary directory that Close removes.
	StoreDir string
	// Streams are created at start if they do not exist.
	Streams []Stream
	// Logger gets the server's own log at debug.
	Logger *slog.Logger
}

// Server is a nats-server with JetStream in this process. Every stored message
// is on the disk before it is acknowledged (sync_interval: always). It takes no
// signals. Safe for concurrent use.
type Server struct {
	srv  *server.Server
	temp string
}

// StartServer starts a server and returns once it accepts connections and its
// streams exist. The caller closes it.
func StartServer(o ServerOptions) (_ *Server, err error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:4222"
	}
	host, portText, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("embedded nats: listen %q: not host:port, such as 127.0.0.1:4222", o.Listen)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("embedded nats: listen %q: %q is not a port", o.Listen, portText)
	}
	opts := &server.Options{
		ServerName: o.Name, Host: host, Port: int(port),
		JetStream: true, StoreDir: o.StoreDir, SyncAlways: true,
		NoSigs: true,
	}
	if opts.ServerName == "" {
		opts.ServerName = "downlink"
	}
	if port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	s := &Server{}
	if o.StoreDir == "" {
		if s.temp, err = os.MkdirTemp("", "downlink-nats-"); err != nil {
			return nil, fmt.Errorf("embedded nats: %w", err)
		}
		opts.StoreDir = s.temp
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.srv, err = server.NewServer(opts); err != nil {
		return nil, fmt.Errorf("embedded nats: %w", err)
	}
	fatal := make(chan string, 1)
	s.srv.SetLoggerV2(&serverLog{log: logger(o.Logger), fatal: fatal}, true, false, false)
	s.srv.Start() // returns; a listener that fails is reported through Fatalf only
	select {
	case text := <-fatal:
		return nil, errors.New("embedded nats: " + text)
	default:
	}
	if !s.srv.ReadyForConnections(10 * time.Second) {
		return nil, fmt.Errorf("embedded nats: not listening on %s after 10s", o.Listen)
	}
	return s, s.createStreams(o.Streams)
}

// URL is where clients connect to.
func (s *Server) URL() string { return s.srv.ClientURL() }

// Close stops the server, waits until it has ended and removes a temporary store.
func (s *Server) Close() error {
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}
	if s.temp != "" {
		return os.RemoveAll(s.temp)
	}
	return nil
}

func (s *Server) createStreams(streams []Stream) error {
	if len(streams) == 0 {
		return nil
	}
	nc, err := nats.Connect("", nats.InProcessServer(s.srv))
	if err != nil {
		return fmt.Errorf("embedded nats: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("embedded nats: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*apiTimeout)
	defer cancel()
	for _, st := range streams {
		if err := createStream(ctx, js, st.config()); err != nil {
			return fmt.Errorf("embedded nats: stream %s: %w", st.Name, oneLine{err})
		}
	}
	return nil
}

// createStream creates a stream unless one of that name exists; an existing one stays as it is.
func createStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	_, err := js.CreateStream(ctx, cfg)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil
	}
	return err
}

// serverLog is a nats-server's logger on top of slog.
type serverLog struct {
	log   *slog.Logger
	fatal chan<- string
}

func (l *serverLog) debug(format string, v []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("nats-server: " + fmt.Sprintf(format, v...))
	}
}

func (l *serverLog) Noticef(format string, v ...any) { l.debug(format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.debug(format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.debug(format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.debug(format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.debug(format, v) }

// Fatalf must not end the process, whatever the server thinks.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Error("nats-server: " + fmt.Sprintf(format, v...))
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}
