package hubbench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"downlink/bridge/internal/sas"
)

// leg is one run of messages to one place, the same way to the hub and to the sink.
type leg struct {
	Options
	address string
	cs      sas.ConnectionString
	roots   *x509.CertPool
	devices []string
}

// run connects, then sends and returns how many messages a second were accepted.
func (l *leg) run(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	senders := make([]*amqp.Sender, l.Senders)
	for i := range senders {
		conn, err := l.dial(ctx)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		session, err := conn.NewSession(ctx, nil)
		if err != nil {
			return 0, err
		}
		if senders[i], err = session.NewSender(ctx, "/messages/devicebound", nil); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	var sending sync.WaitGroup
	for i, s := range senders {
		share := l.Messages / l.Senders
		if i < l.Messages%l.Senders {
			share++
		}
		sending.Go(func() {
			if err := l.send(ctx, s, i*len(l.devices)/l.Senders, share); err != nil {
				cancel(err)
			}
		})
	}
	sending.Wait()
	took := time.Since(begin)
	return float64(l.Messages) / took.Seconds(), context.Cause(ctx)
}

// dial authenticates by SASL PLAIN with a token, which ends with the connection; the sink takes anything.
func (l *leg) dial(ctx context.Context) (*amqp.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	token := sas.Sign(l.cs.HostName, l.cs.KeyName, l.cs.Key, time.Now().Add(time.Hour))
	return amqp.Dial(ctx, "amqps://"+l.address, &amqp.ConnOptions{
		HostName: l.cs.HostName, TLSConfig: &tls.Config{RootCAs: l.roots, ServerName: l.cs.HostName},
		SASLType: amqp.SASLTypePlain(l.cs.KeyName+"@sas.root."+l.cs.HostName, token),
	})
}

// send keeps a window of sends going, beginning with the given device.
func (l *leg) send(ctx context.Context, sender *amqp.Sender, device, count int) error {
	body := bytes.Repeat([]byte("x"), l.Size)
	receipts := make(chan amqp.SendReceipt, l.Window)
	window := make(chan struct{}, l.Window)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var answers sync.WaitGroup
	answers.Go(func() {
		for r := range receipts {
			state, err := r.Wait(ctx)
			if err == nil {
				err = accepted(state)
			}
			if err != nil {
				cancel(err)
				return
			}
			<-window
		}
	})
	err := func() error {
		defer close(receipts)
		for i := range count {
			select {
			case window <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			to := "/devices/" + l.devices[(device+i)%len(l.devices)] + "/messages/devicebound"
			receipt, err := sender.SendWithReceipt(ctx, &amqp.Message{
				Properties:            &amqp.MessageProperties{MessageID: strconv.Itoa(i), To: &to},
				ApplicationProperties: map[string]any{"verb": "reboot"},
				Data:                  [][]byte{body},
			}, nil)
			if err != nil {
				return err
			}
			receipts <- receipt
		}
		return nil
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
