package hubbench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"downlink/bridge/internal/sas"
)

// Target is a service endpoint to send to.
type Target struct {
	address string
	policy  sas.ConnectionString
	roots   *x509.CertPool
}

// NewTarget is the endpoint at address (host:port) of the hub that a service connection string is for.
func NewTarget(address, connectionString string, roots *x509.CertPool) (Target, error) {
	policy, err := sas.Parse(connectionString)
	return Target{address, policy, roots}, err
}

// Dial connects and attaches a sender of C2D messages. It authenticates by SASL
// PLAIN with a token, which ends with the connection; a sink takes anything. The
// caller closes the connection.
func (t Target) Dial(ctx context.Context) (*amqp.Conn, *amqp.Sender, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	token := sas.Sign(t.policy.HostName, t.policy.KeyName, t.policy.Key, time.Now().Add(time.Hour))
	conn, err := amqp.Dial(ctx, "amqps://"+t.address, &amqp.ConnOptions{
		HostName: t.policy.HostName, TLSConfig: &tls.Config{RootCAs: t.roots, ServerName: t.policy.HostName},
		SASLType: amqp.SASLTypePlain(t.policy.KeyName+"@sas.root."+t.policy.HostName, token),
	})
	if err != nil {
		return nil, nil, err
	}
	session, err := conn.NewSession(ctx, nil)
	if err == nil {
		var sender *amqp.Sender
		if sender, err = session.NewSender(ctx, "/messages/devicebound", nil); err == nil {
			return conn, sender, nil
		}
	}
	_ = conn.Close()
	return nil, nil, err
}

// Send is one message, and what is to be done once the hub has accepted it; nil: nothing.
type Send struct {
	Message *amqp.Message
	Done    func() error
}

// Pump sends what next yields, at most window of them unanswered at a time, until
// next fails; io.EOF is the end. It returns when every answer has come, with the
// first error: a message that is not accepted is one. Done is called in the order of the sends.
func Pump(ctx context.Context, sender *amqp.Sender, window int, next func(context.Context) (Send, error)) error {
	type sent struct {
		receipt amqp.SendReceipt
		done    func() error
	}
	receipts := make(chan sent, window)
	places := make(chan struct{}, window)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var answers sync.WaitGroup
	answers.Go(func() {
		for s := range receipts {
			state, err := s.receipt.Wait(ctx)
			if err == nil {
				err = accepted(state)
			}
			if err == nil && s.done != nil {
				err = s.done()
			}
			if err != nil {
				cancel(err)
				return
			}
			<-places
		}
	})
	err := func() error {
		defer close(receipts)
		for {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			s, err := next(ctx)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			receipt, err := sender.SendWithReceipt(ctx, s.Message, nil)
			if err != nil {
				return err
			}
			receipts <- sent{receipt, s.Done}
		}
	}()
	answers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func accepted(state amqp.DeliveryState) error {
	switch state := state.(type) {
	case *amqp.StateAccepted:
		return nil
	case *amqp.StateRejected:
		if state.Error != nil {
			return fmt.Errorf("a message was refused: %s: %s", state.Error.Condition, state.Error.Description)
		}
	}
	return fmt.Errorf("a message was not accepted: %T", state)
}
