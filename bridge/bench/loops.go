package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/Azure/go-amqp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge/emulator/hubbench"
)

// LoopSpec is what the bridge is compared with: a loop that only moves messages.
type LoopSpec struct {
	Hub    Address `json:"hub"`
	Window int     `json:"window"`
	// Of the minimal loop: where the messages are.
	NATS   string `json:"nats,omitempty"`
	Stream string `json:"stream,omitempty"`
	// Of the raw send leg, which makes them itself.
	Messages int `json:"messages,omitempty"`
	Devices  int `json:"devices,omitempty"`
	Body     int `json:"body,omitempty"`
}

func (l *LoopSpec) dial(ctx context.Context) (*amqp.Conn, *amqp.Sender, error) {
	pem, err := os.ReadFile(l.Hub.CAFile)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	target, err := hubbench.NewTarget(l.Hub.AMQP, l.Hub.ConnectionString, roots)
	if err != nil {
		return nil, nil, err
	}
	return target.Dial(ctx)
}

// message is what all that is measured sends: the same fields and sizes.
func message(device, id, verb, correlation, user, trace string, body []byte) *amqp.Message {
	to := "/devices/" + device + "/messages/devicebound"
	return &amqp.Message{
		Properties:            &amqp.MessageProperties{To: &to, MessageID: id, CorrelationID: correlation},
		ApplicationProperties: map[string]any{"verb": verb, "X-User": user, "X-Trace": trace},
		Data:                  [][]byte{body},
	}
}

// minimalPart consumes in batches, sends, and acks what was accepted: no order,
// no lanes, no mapping by configuration, no fates, nothing for what goes wrong.
type minimalPart struct{ LoopSpec }

// minimalConsumer is its durable.
const minimalConsumer = "minimal"

func (l *minimalPart) run(ctx context.Context, ready func(Ready)) error {
	conn, sender, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	nc, err := nats.Connect(l.NATS, nats.Timeout(connectLimit))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, l.Stream, jetstream.ConsumerConfig{
		Durable: minimalConsumer, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 4096,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1024))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	ready(Ready{})
	return hubbench.Pump(context.WithoutCancel(ctx), sender, l.Window, func(context.Context) (hubbench.Send, error) {
		m, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return hubbench.Send{}, io.EOF
		}
		if err != nil {
			return hubbench.Send{}, err
		}
		tokens := strings.Split(m.Subject(), ".")
		meta, err := m.Metadata()
		if err != nil || len(tokens) != 4 {
			return hubbench.Send{}, fmt.Errorf("not one of our messages: %s", m.Subject())
		}
		h := m.Headers()
		id := l.Stream + ":" + strconv.FormatUint(meta.Sequence.Stream, 10)
		return hubbench.Send{
			Message: message(tokens[1]+"-"+tokens[2], id, tokens[3], h.Get("Correlation-Id"), h.Get("X-User"), h.Get("X-Trace"), m.Data()),
			Done:    m.Ack,
		}, nil
	})
}

func (l *minimalPart) count() int { return 0 }

// rawPart sends without a source.
type rawPart struct{ LoopSpec }

func (l *rawPart) run(ctx context.Context, ready func(Ready)) error {
	conn, sender, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ready(Ready{})
	body := bytes.Repeat([]byte("x"), l.Body)
	i := -1
	// The answers to what has left are awaited also when the end comes first.
	err = hubbench.Pump(context.WithoutCancel(ctx), sender, l.Window, func(context.Context) (hubbench.Send, error) {
		if i++; i == l.Messages || ctx.Err() != nil {
			return hubbench.Send{}, io.EOF
		}
		return hubbench.Send{Message: message(deviceID(i%l.Devices), "raw:"+strconv.Itoa(i), "reboot", "c-1", "ann", trace, body)}, nil
	})
	if err != nil {
		return err
	}
	<-ctx.Done() // to be asked what it took
	return nil
}

func (l *rawPart) count() int { return 0 }
