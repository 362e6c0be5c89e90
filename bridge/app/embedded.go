package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// fieldError is a failure that one field of the configuration is about.
type fieldError struct {
	path string
	err  error
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }

func (e *fieldError) Unwrap() error { return e.err }

// inSide says which side failed to be built, unless the error names its field.
func inSide(side string, err error) error {
	var field *fieldError
	if errors.As(err, &field) {
		return err
	}
	return fmt.Errorf("%s: %w", side, err)
}

// embeddedError names the field behind an embedded NATS server that did not start.
// The server tells the reason as text only.
func embeddedError(side, listen string, err error) error {
	path := side + ".nats.embedded"
	text := err.Error()
	switch {
	case strings.Contains(text, "address already in use"):
		err = fmt.Errorf("%s is in use: stop what listens there, or take another address (127.0.0.1:0 takes a free port)", listen)
		return &fieldError{path + ".listen", err}
	case strings.Contains(text, "Error listening on port"):
		if i := strings.LastIndex(text, "bind: "); i >= 0 {
			text = strings.TrimSuffix(text[i+len("bind: "):], `"`)
		}
		err = fmt.Errorf("cannot listen on %s: %s; take another address, such as 127.0.0.1:4222", listen, text)
		return &fieldError{path + ".listen", err}
	}
	return &fieldError{path, err}
}

// quietStart holds an embedded server's errors back until it has started: why it
// does not start is the error of the start, told once.
func quietStart(log *slog.Logger) (quiet *slog.Logger, started func()) {
	up := &atomic.Bool{}
	return slog.New(&startHandler{log.Handler(), up}), func() { up.Store(true) }
}

type startHandler struct {
	slog.Handler
	up *atomic.Bool
}

func (h *startHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError && !h.up.Load() {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *startHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &startHandler{h.Handler.WithAttrs(attrs), h.up}
}

func (h *startHandler) WithGroup(name string) slog.Handler {
	return &startHandler{h.Handler.WithGroup(name), h.up}
}
