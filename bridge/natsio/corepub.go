package natsio

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"downlink/mapping"
)

// CorePublisher publishes to core NATS in the order of the calls. A publication is done
// once the server has answered a flush behind it: it has it, whether or not
// anyone listens. While the server is away publications wait; those
// whose flush got lost are sent again, so they may repeat.
type CorePublisher struct {
	box *outbox
}

// NewCorePublisher checks the options. It does no I/O; Run does.
func NewCorePublisher(o PublisherOptions) (*CorePublisher, error) {
	if o.Stream != "" || o.Create {
		return nil, errors.New("nats: a core publisher has no stream")
	}
	return &CorePublisher{box: newOutbox(o)}, nil
}

// Publish is as OrderedPublisher's, with a flush for the ack.
func (p *CorePublisher) Publish(ctx context.Context, pub *mapping.Publication, done func(error)) error {
	return p.box.publish(ctx, pub, done)
}

// Ready is nil while publications get through. Otherwise it is one line with the cause.
func (p *CorePublisher) Ready() error { return p.box.ready() }

// Run publishes until ctx is done. It returns nil.
func (p *CorePublisher) Run(ctx context.Context) error { return p.box.run(ctx, p.session) }

func (p *CorePublisher) session(ctx context.Context, l *link) error {
	if p.box.idle() {
		p.box.well()
	}
	for {
		if err := p.box.send(l, p.box.o.Window, func(uint64, *nats.Msg) {}); err != nil {
			return err
		}
		if _, ok := p.box.oldest(); ok {
			if err := p.flush(ctx, l); err != nil {
				return err
			}
			p.box.flushed()
			p.box.well()
		}
		p.box.report()
		if p.box.unsent() {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.closed:
			return nil
		case err := <-l.errs:
			return err
		case <-p.box.work:
		}
	}
}

// flush waits until the server has handled all that was sent.
func (p *CorePublisher) flush(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := l.nc.FlushWithContext(ctx); err != nil {
		return connError(l.at.servers, err)
	}
	// The server says what it refuses before it answers the flush.
	if err := l.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return errors.New("missing NATS permission: " + deniedOperation(err))
	}
	return nil
}

// flushed answers all that was sent.
func (b *outbox) flushed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.queue[:b.sent] {
		if e.flying {
			b.settle(e, nil)
		}
	}
}

// unsent reports whether something waits to be sent.
func (b *outbox) unsent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent < len(b.queue)
}
