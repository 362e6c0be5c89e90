package mqttd

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The topics of direct methods (developer guide, "Understand and invoke direct methods").
const (
	methodCall   = "$iothub/methods/POST/"
	methodAnswer = "$iothub/methods/res/"
	// maxMethod bounds a call's and an answer's payload (developer guide, "Quotas and throttling").
	maxMethod = 128 * 1024
)

// Why a direct method got no answer.
var (
	// ErrNotOnline: the device is not connected, or does not take methods (404103).
	ErrNotOnline = errors.New("the device is not online")
	// ErrNoAnswer: the device did not answer in time, or its connection ended (504101).
	ErrNoAnswer = errors.New("the device did not answer in time")
	// ErrMethodTooLarge: the payload is larger than 128 KB.
	ErrMethodTooLarge = errors.New("the payload is larger than 128 KB")
)

// Method is one call of a direct method.
type Method struct {
	Name    string
	Payload []byte // JSON; may be empty
	// ConnectTimeout is how long a device that is not there is waited for; 0: not at all.
	ConnectTimeout time.Duration
	// ResponseTimeout bounds the wait for the answer; 0: 30 s.
	ResponseTimeout time.Duration
}

// MethodResult is what a device answered.
type MethodResult struct {
	Status  int
	Payload []byte
}

// Invoke calls a direct method of a device and waits for its answer. It fails
// with one of the errors above or ctx's.
func (s *Server) Invoke(ctx context.Context, device string, m Method) (MethodResult, error) {
	if m.Name == "" {
		return MethodResult{}, errors.New("the method has no name")
	}
	if len(m.Payload) > maxMethod {
		return MethodResult{}, ErrMethodTooLarge
	}
	if m.ResponseTimeout <= 0 {
		m.ResponseTimeout = 30 * time.Second
	}
	c, err := s.await(ctx, device, directMethods, m.ConnectTimeout)
	if err != nil {
		return MethodResult{}, err
	}
	return c.invoke(ctx, m)
}

func (c *conn) invoke(ctx context.Context, m Method) (MethodResult, error) {
	answer := make(chan MethodResult, 1)
	c.mu.Lock()
	c.calls.last++
	id := c.calls.last
	if c.calls.waiting == nil {
		c.calls.waiting = map[uint64]chan MethodResult{}
	}
	c.calls.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.calls.waiting, id)
	}()
	topic := methodCall + url.PathEscape(m.Name) + "/?$rid=" + strconv.FormatUint(id, 10)
	if err := c.publish(topic, m.Payload); err != nil {
		c.abort()
		return MethodResult{}, ErrNotOnline
	}
	timer := time.NewTimer(m.ResponseTimeout)
	defer timer.Stop()
	select {
	case r := <-answer:
		return r, nil
	case <-timer.C:
		return MethodResult{}, ErrNoAnswer
	case <-c.done:
		return MethodResult{}, ErrNoAnswer
	case <-ctx.Done():
		return MethodResult{}, ctx.Err()
	}
}

// calls are the direct methods that a connection has not answered; guarded by conn.mu.
type calls struct {
	last    uint64
	waiting map[uint64]chan MethodResult
}

// answered handles a device's answer to a direct method. One that nobody waits
// for any more has no effect.
func (c *conn) answered(topic string, body []byte) error {
	rid, err := requestID(topic)
	if err != nil {
		return err
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(topic, methodAnswer), "/")
	status, err := strconv.Atoi(text)
	if err != nil {
		return violation("answer to a direct method with status %.20q", text)
	}
	if len(body) > maxMethod {
		return violation("answer to a direct method of %d bytes", len(body))
	}
	id, err := strconv.ParseUint(rid, 10, 64)
	c.mu.Lock()
	waiting := c.calls.waiting[id]
	delete(c.calls.waiting, id)
	c.mu.Unlock()
	if err != nil || waiting == nil {
		c.log.Debug("ignored an answer to a direct method that nobody waits for")
		return nil
	}
	waiting <- MethodResult{Status: status, Payload: body}
	return nil
}

// await returns a device's connection once it is subscribed to f.
func (s *Server) await(ctx context.Context, device string, f filter, limit time.Duration) (*conn, error) {
	var timer <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		timer = t.C
	}
	for {
		s.mu.Lock()
		if s.arrival == nil {
			s.arrival = make(chan struct{})
		}
		arrival := s.arrival
		s.mu.Unlock()
		if c := s.connected(device, f); c != nil {
			return c, nil
		}
		if limit <= 0 {
			return nil, ErrNotOnline
		}
		select {
		case <-arrival:
		case <-timer:
			return nil, ErrNotOnline
		case <-s.done:
			return nil, ErrNotOnline
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// announce tells await that some device may have what it waits for.
func (s *Server) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arrival != nil {
		close(s.arrival)
		s.arrival = nil
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
