package natsio

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// silent is a source behind the barrier: four messages of a former owner are pending,
// and the fifth came first.
func silent(t *testing.T) *puller {
	t.Helper()
	s, err := NewJetStreamSource(SourceOptions{Stream: "S", Consumer: "c"})
	require.NoError(t, err)
	p := &puller{s: s, retry: newBackOff()}
	s.barrier.attach(position{deliveredConsumer: 4, deliveredStream: 4, pending: 4})
	p.handle(delivered(5, 5))
	return p
}

func delivered(seq, consumer uint64) *nats.Msg {
	return &nats.Msg{
		Subject: "x", Sub: &nats.Subscription{}, Header: nats.Header{pinHeader: {"mine"}},
		Reply: fmt.Sprintf("$JS.ACK.S.c.1.%d.%d.%d.0", seq, consumer, seq),
	}
}

// heartbeat is the server's word that it has nothing for us.
func heartbeat() *nats.Msg {
	return &nats.Msg{Subject: "inbox.0", Header: nats.Header{"Status": {"100"}}}
}

func (p *puller) letOut() (seqs []uint64) {
	for _, h := range p.s.queue {
		seqs = append(seqs, h.seq)
	}
	return seqs
}

// While the server hung (a frozen machine, a lost network) nobody's AckWait ran out, and
// the former owner's progress acks arrive with the end of it. The same when we hung.
func TestBarrierWaitsAnewAfterASilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := silent(t)
		time.Sleep(time.Minute)
		p.tick(time.Now())
		require.Empty(t, p.letOut(), "the server had no time to hand out what is pending")
		p.handle(heartbeat())
		for range 11 {
			time.Sleep(time.Second)
			p.tick(time.Now())
			p.handle(heartbeat())
		}
		require.Empty(t, p.letOut(), "the AckWait after the silence is not over")
		for seq := range uint64(4) {
			p.handle(delivered(seq+1, seq+6))
		}
		time.Sleep(time.Second)
		p.tick(time.Now())
		require.Equal(t, []uint64{1, 2, 3, 4, 5}, p.letOut())
	})
}

func TestBarrierGivesUpOnAServerThatTalks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := silent(t)
		for range 12 {
			require.Empty(t, p.letOut())
			time.Sleep(time.Second)
			p.tick(time.Now())
			p.handle(heartbeat())
		}
		require.Equal(t, []uint64{5}, p.letOut())
	})
}

// Who lost the pin behind its barrier would wait in vain for what is pending.
func TestBarrierOfAFormerOwnerLetsNothingOut(t *testing.T) {
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredConsumer: 4, deliveredStream: 4, pending: 4})
	require.Equal(t, wait, outcomeOf(b, at(5, 5, "mine"), t0))
	b.disown()
	out, lifted := b.expire(t0.Add(time.Hour))
	require.False(t, lifted)
	require.Empty(t, out)

	// It is pinned again, and gets it all from the server.
	now := t0.Add(time.Hour)
	for i, seq := range []uint64{6, 2, 1, 3, 4} {
		require.Equal(t, wait, outcomeOf(b, at(seq, uint64(11+i), "mine again"), now))
	}
	epoch, ask := b.asking()
	require.True(t, ask)
	all := position{deliveredConsumer: 16, deliveredStream: 6, pending: 6, pin: "mine again"}
	require.Empty(t, b.answer(epoch, all))
	require.Equal(t, wait, outcomeOf(b, at(5, 16, "mine again"), now))
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6}, seqs(b.answer(epoch, all)))
}

func TestBarrierDoesNotGiveUpWhenAnotherIsPinned(t *testing.T) {
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredConsumer: 4, deliveredStream: 4, pending: 4})
	require.Equal(t, wait, outcomeOf(b, at(5, 5, "mine"), t0))
	epoch, _ := b.asking()
	require.Empty(t, b.answer(epoch, position{deliveredConsumer: 5, deliveredStream: 5, pending: 5, pin: "other"}))
	_, lifted := b.expire(t0.Add(time.Hour))
	require.False(t, lifted)
}
