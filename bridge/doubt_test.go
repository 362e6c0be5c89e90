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

// slowNext tells later what it has found, or that it has found nothing.
type slowNext struct {
	Mailbox
	found, nothing time.Duration
}

func (m slowNext) Next(ctx context.Context, b Box, above uint64) (*Parcel, error) {
	q, err := m.Mailbox.Next(ctx, b, above)
	if q == nil && err == nil {
		sleep(ctx, m.nothing)
	} else {
		sleep(ctx, m.found)
	}
	return q, err
}

// What waits is purged by hand, and the box is found to be empty just when new messages are put there: they are not
// forgotten with the old ones.
func TestParkedWhileTheBoxIsFoundEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for _, name := range numbered(80) {
			w.publish("cmd.d", name)
		}
		p := w.run(t, func(o *Options) { o.Mailbox = slowNext{o.Mailbox, 0, time.Second} })
		time.Sleep(10 * time.Second)
		require.Equal(t, 80, w.boxed())
		w.set(func() { clear(w.entries); w.full["d"] = false })
		p.Freed("main", "d")
		time.Sleep(500 * time.Millisecond)
		for _, name := range []string{"a", "b", "c"} {
			w.publish("cmd.d", name)
		}
		w.quiet(t, "after the purge")
		require.Equal(t, []string{"a", "b", "c"}, w.names("d"))
		p.stop(t)
	})
}

// lateSource brings its first message behind a barrier.
type lateSource struct {
	*process
	begun time.Time
	after time.Duration
}

func (s lateSource) Receive(ctx context.Context) (Delivery, error) {
	if !sleep(ctx, time.Until(s.begun.Add(s.after))) {
		return nil, ctx.Err()
	}
	return s.process.Receive(ctx)
}

// The process before put a message into the mailbox, and its ack got lost. Whenever the message comes again, while its entry
// is in flight, is being deleted or is gone, however long reading takes, and whether the mailbox still knows
// its ID or not, it is not sent twice, and nothing of it stays behind.
func TestComesAgainWhileItsEntryEnds(t *testing.T) {
	for _, reading := range []time.Duration{0, 700 * time.Millisecond, 1200 * time.Millisecond} {
		for after := time.Duration(0); after < 10*time.Second; after += 100 * time.Millisecond {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.publish("cmd.d", "a")
				in := w.log[0]
				q := &Parcel{Envelope: bySubject{}.Map(&in)[0].Envelope, Message: &in, At: in.Time}
				earlier := &process{w: w, held: true}
				_, err := worldMailbox{earlier}.Append(t.Context(), q)
				require.NoError(t, err)
				if after >= 5*time.Second {
					clear(w.ids)
				}
				w.slow = func() time.Duration { return time.Second }
				p := w.run(t, func(o *Options) {
					o.Sources[0] = lateSource{o.Sources[0].(*process), time.Now(), after % (5 * time.Second)}
					o.Hubs[0].Sender = slowHub{o.Hubs[0].Sender, time.Second}
					o.Mailbox = slowNext{o.Mailbox, reading, reading}
				})
				time.Sleep(20 * time.Second)
				w.quiet(t, after.String())
				require.Equal(t, []string{"a"}, w.names("d"), "after %s, reading takes %s", after, reading)
				p.stop(t)
			})
		}
	}
}

// slowAnswers stores at once, and says so later, or says that it does not know.
type slowAnswers struct {
	Mailbox
	err error
}

func (m slowAnswers) Append(ctx context.Context, q *Parcel) (bool, error) {
	repeat, err := m.Mailbox.Append(ctx, q)
	if string(q.Message.Payload) == "late" && err == nil && !repeat {
		sleep(ctx, time.Second)
		if m.err != nil {
			q.Entry = 0
			return false, m.err
		}
	}
	return repeat, err
}

// lateBehindWhatWaits has "late" and "last" come for a device for which 80 messages wait in the mailbox, and which has room
// soon after: all are sent once, in order.
func lateBehindWhatWaits(t *testing.T, change func(*Options), why ...any) {
	t.Helper()
	w := newWorld()
	w.full["d"] = true
	for _, name := range numbered(80) {
		w.publish("cmd.d", name)
	}
	p := w.run(t, change)
	time.Sleep(10 * time.Second)
	require.Equal(t, 80, w.boxed())
	w.publish("cmd.d", "late")
	w.publish("cmd.d", "last")
	time.Sleep(500 * time.Millisecond)
	w.set(func() { w.full["d"] = false })
	p.Freed("main", "d")
	w.quiet(t, "")
	require.Equal(t, append(numbered(80), "late", "last"), w.names("d"), why...)
	require.Zero(t, w.boxed())
	p.stop(t)
}

// A message is read from the mailbox and sent while the answer to its append is on its way, or lost: the
// copy in memory is not sent as well.
func TestSentFromTheMailboxBeforeItsAppendIsAnswered(t *testing.T) {
	for _, lost := range []error{nil, errors.New("no answer from JetStream")} {
		synctest.Test(t, func(t *testing.T) {
			lateBehindWhatWaits(t, func(o *Options) { o.Mailbox = slowAnswers{o.Mailbox, lost} }, lost)
		})
	}
}

// slowAcks is a source that takes a second for the ack of "late".
type slowAcks struct{ *process }

func (s slowAcks) Receive(ctx context.Context) (Delivery, error) {
	d, err := s.process.Receive(ctx)
	if err != nil {
		return nil, err
	}
	return slowAck{d.(*worldDelivery)}, nil
}

type slowAck struct{ *worldDelivery }

func (d slowAck) Ack(ctx context.Context) error {
	if string(d.in.Payload) == "late" {
		sleep(ctx, time.Second)
	}
	return d.worldDelivery.Ack(ctx)
}

// A message is stored in the mailbox, read, sent and deleted there, and its box found empty, all while its ack is on
// its way to its source: it has left the lane by then, and is not sent from there as well.
func TestSentFromTheMailboxBeforeItsAckHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lateBehindWhatWaits(t, func(o *Options) { o.Sources[0] = slowAcks{o.Sources[0].(*process)} })
	})
}

// The head of a lane that spills is in flight when it is stored, and its device turns out to have no room while its ack
// is on its way: it is put back, and neither passed over nor overtaken.
func TestPutBackBeforeItsAckHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		w.publish("cmd.d", "late")
		for _, name := range numbered(80) {
			w.publish("cmd.d", name)
		}
		p := w.run(t, func(o *Options) {
			o.Sources[0] = slowAcks{o.Sources[0].(*process)}
			o.Hubs[0].Sender = slowHub{o.Hubs[0].Sender, 500 * time.Millisecond}
		})
		time.Sleep(10 * time.Second)
		require.Equal(t, 81, w.boxed())
		w.set(func() { w.full["d"] = false })
		p.Freed("main", "d")
		w.quiet(t, "")
		require.Equal(t, append([]string{"late"}, numbered(80)...), w.names("d"))
		p.stop(t)
	})
}

// A message got its fate while the answer to its append was lost, and the search for its entry finds nothing, be it that
// the server stores it later or that it breaks the box's order. Whoever reads the entry does not send it, and either
// deletes it or leaves it to the search that is under way.
func TestStrayThatIsFoundByNoSearch(t *testing.T) {
	for _, readFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.publish("cmd.d", "0000")
			stray := &Parcel{Entry: 1, Message: &w.log[0], Envelope: &mapping.Envelope{Hub: "main", Device: "d", Body: w.log[0].Payload}}
			w.acked[1], w.entries[1], w.last = true, stray, 1
			p := w.run(t, func(o *Options) { o.Mailbox = slowNext{Mailbox: o.Mailbox, found: time.Second} })
			time.Sleep(100 * time.Millisecond)
			id := identityOf(stray.Message, stray.Envelope)
			p.strays.add(id)
			if readFirst {
				time.Sleep(2 * time.Second)
				require.Equal(t, 1, w.boxed())
				require.EqualValues(t, 1, p.strays.missed(id))
				require.NoError(t, worldMailbox{p}.Delete(t.Context(), 1))
			} else {
				require.Zero(t, p.strays.missed(id))
			}
			w.quiet(t, "the entry stays")
			require.Empty(t, w.names("d"))
			p.stop(t)
		})
	}
}
