package bridge

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// lateMailbox stores what it is given; that the answer to the first append got lost shows much later.
type lateMailbox struct {
	Mailbox
	appends int
}

func (m *lateMailbox) Append(ctx context.Context, q *Parcel) (bool, error) {
	repeat, err := m.Mailbox.Append(ctx, q)
	if m.appends++; m.appends == 1 && err == nil {
		sleep(ctx, 5*time.Second)
		q.Entry = 0
		return false, errors.New("no answer from JetStream")
	}
	return repeat, err
}

// slowHub takes its time.
type slowHub struct {
	Sender
	each time.Duration
}

func (h slowHub) Send(ctx context.Context, e *mapping.Envelope) error {
	sleep(ctx, h.each)
	return h.Sender.Send(ctx, e)
}

// The head of a lane that spills is accepted by the hub after the mailbox has stored it, and before it shows that
// the answer to that got lost, or soon after: its entry neither stays behind nor is sent again, nor hides another.
func TestAcceptedWhileItsAppendIsInDoubt(t *testing.T) {
	for _, each := range []time.Duration{time.Second, 5*time.Second + 20*time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			for _, name := range numbered(80) { // more than a lane holds
				w.publish("cmd.d", name)
			}
			p := w.run(t, func(o *Options) {
				o.Mailbox = &lateMailbox{Mailbox: o.Mailbox}
				o.Hubs[0].Sender = slowHub{o.Hubs[0].Sender, each}
			})
			w.quiet(t, each.String())
			require.Equal(t, numbered(80), w.names("d"))
			p.stop(t)
		})
	}
}
