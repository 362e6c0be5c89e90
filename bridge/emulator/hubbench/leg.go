package hubbench

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/Azure/go-amqp"
)

// leg is one run of messages to one place, the same way to the hub and to the sink.
type leg struct {
	Options
	target  Target
	devices []string
}

// run connects, then sends and returns how many messages a second were accepted.
func (l *leg) run(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	senders := make([]*amqp.Sender, l.Senders)
	for i := range senders {
		conn, sender, err := l.target.Dial(ctx)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		senders[i] = sender
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

// send keeps a window of sends going, beginning with the given device.
func (l *leg) send(ctx context.Context, sender *amqp.Sender, device, count int) error {
	body := bytes.Repeat([]byte("x"), l.Size)
	i := -1
	return Pump(ctx, sender, l.Window, func(context.Context) (Send, error) {
		if i++; i == count {
			return Send{}, io.EOF
		}
		to := "/devices/" + l.devices[(device+i)%len(l.devices)] + "/messages/devicebound"
		return Send{Message: &amqp.Message{
			Properties:            &amqp.MessageProperties{MessageID: strconv.Itoa(i), To: &to},
			ApplicationProperties: map[string]any{"verb": "reboot"},
			Data:                  [][]byte{body},
		}}, nil
	})
}
