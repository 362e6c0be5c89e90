package natsio

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Probe asks a server what a login may do and what is there, and changes nothing. It is for one
// goroutine. Close it.
type Probe struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	where  string
	canary string
	serial int
	safe   bool  // the server refuses what it must refuse
	unsafe error // it does not, or cannot be asked
	errs   chan error
}

const (
	// probeReply is a reply subject that only servers may use. A server checks whether a client may publish to a
	// subject first and refuses such a reply then, before the message goes anywhere (nats-server,
	// client.processInboundClientMsg), so that either answer tells what we want to know.
	probeReply  = "_R_.downlink-check."
	probeToken  = "downlink-check" // in place of wildcards: nobody uses it, whatever happens
	probeAnswer = 3 * time.Second
)

// ErrCannotTell is why a right is neither known to be there nor to be missing.
var ErrCannotTell = errors.New("the server does not say whether it is allowed")

// OpenProbe connects, three seconds a server at most. The error names the server and the cause.
func OpenProbe(o Options) (*Probe, error) {
	p := &Probe{errs: make(chan error, 64)}
	nc, settings, err := o.dial(func(error) {}, nats.NoReconnect(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case p.errs <- err:
		default: // nobody has asked for so many
		}
	}))
	if err != nil {
		return nil, err
	}
	p.nc, p.where = nc, settings.servers
	p.canary = "_INBOX." + probeToken + "." + nats.NewInbox()[len(nats.InboxPrefix):]
	if v := nc.ConnectedServerVersion(); tooOld(v) {
		nc.Close()
		return nil, tooOldError(p.where, v)
	}
	if p.js, _, err = settings.jetStream(nc); err != nil {
		nc.Close()
		return nil, err
	}
	return p, nil
}

// Close ends the connection.
func (p *Probe) Close() { p.nc.Close() }

// Server names the server and its version.
func (p *Probe) Server() string { return p.where + ", nats-server " + p.nc.ConnectedServerVersion() }

// May is nil if the login has a right, as far as one subject of it shows. Otherwise the
// error is what the server says, or ErrCannotTell. Nothing is published or received.
func (p *Probe) May(ctx context.Context, r Right) error {
	subject, queue, _ := strings.Cut(r.Subject, " ")
	subject = oneOf(subject)
	// First on a subject that nobody listens to: a server that let such messages
	// through must not be given ours.
	if !p.safe && p.unsafe == nil {
		_, p.unsafe = p.refusal(ctx, p.canary)
		p.safe = p.unsafe == nil
	}
	if !p.safe {
		return p.unsafe
	}
	if r.Op == opPublish {
		denied, err := p.refusal(ctx, subject)
		if denied {
			return errors.New("not allowed")
		}
		return err
	}
	sub, err := p.nc.QueueSubscribeSync(subject, queue)
	if err != nil {
		return oneLine{err}
	}
	defer func() { _ = sub.Unsubscribe() }()
	p.serial++
	reply := probeReply + strconv.Itoa(p.serial)
	if err := p.nc.PublishRequest(p.canary, reply, nil); err != nil { // its answer comes behind that to the subscription
		return oneLine{err}
	}
	denied := false
	for {
		err := p.next(ctx)
		switch {
		case err == nil:
			return ErrCannotTell
		case !errors.Is(err, nats.ErrPermissionViolation):
			return oneLine{err}
		case strings.Contains(err.Error(), "Subscription to "+strconv.Quote(subject)):
			denied = true
		case !strings.Contains(err.Error(), strconv.Quote(reply)) && !strings.Contains(err.Error(), strconv.Quote(p.canary)):
			// of something before
		case denied:
			return errors.New("not allowed")
		default:
			return nil
		}
	}
}

// refusal publishes to a subject what the server must refuse in any case: for the subject (denied), or for its reply.
func (p *Probe) refusal(ctx context.Context, subject string) (denied bool, err error) {
	p.serial++
	reply := probeReply + strconv.Itoa(p.serial)
	if err := p.nc.PublishRequest(subject, reply, nil); err != nil {
		return false, oneLine{err}
	}
	for {
		got := p.next(ctx)
		switch {
		case got == nil:
			return false, ErrCannotTell
		case strings.Contains(got.Error(), strconv.Quote(reply)):
			return false, nil
		case errors.Is(got, nats.ErrPermissionViolation) && strings.Contains(got.Error(), "Publish to"):
			return true, nil // it may name what the subject is mapped to
		case !errors.Is(got, nats.ErrPermissionViolation):
			return false, oneLine{got}
		}
	}
}

// next is the server's next error; nil if there is none in time.
func (p *Probe) next(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeAnswer)
	defer cancel()
	select {
	case err := <-p.errs:
		return err
	case <-ctx.Done():
		return nil
	}
}

// oneOf is a subject of a pattern.
func oneOf(pattern string) string {
	tokens := strings.Split(pattern, ".")
	for i, t := range tokens {
		if t == "*" || t == ">" {
			tokens[i] = probeToken
		}
	}
	return strings.Join(tokens, ".")
}

// Subjects are what a stream stores; empty for one that takes its messages from other streams. A stream that
// does not exist is a *MissingError.
func (p *Probe) Subjects(ctx context.Context, stream string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, &MissingError{Stream: stream}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, apiError(err))
	}
	return s.CachedInfo().Config.Subjects, nil
}

// StoredBy names a stream that stores a subject, "" if there is none.
func (p *Probe) StoredBy(ctx context.Context, subject string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	name, err := p.js.StreamNameBySubject(ctx, subject)
	switch {
	case err == nil:
		return name, nil
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return "", nil
	}
	return "", apiError(err)
}

// Uncovered lists the patterns of which a stream with these subjects stores nothing.
func Uncovered(patterns, subjects []string) []string {
	var list []string
	for _, p := range patterns {
		found := false
		for _, s := range subjects {
			found = found || collide(p, s)
		}
		if !found {
			list = append(list, p)
		}
	}
	return list
}
