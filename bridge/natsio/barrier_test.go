package natsio

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func at(seq, consumer uint64, pin string) arrival {
	return arrival{pin: pin, consumer: consumer, seq: seq, stored: int64(seq), reply: "r"}
}

func seqs(hs []*held) (out []uint64) {
	for _, h := range hs {
		out = append(out, h.seq)
	}
	return out
}

func outcomeOf(b *barrier, a arrival, now time.Time) outcome {
	_, o := b.arrive(a, now)
	return o
}

const ackWait = 10 * time.Second

var t0 = time.Unix(1_700_000_000, 0)

func TestBarrierLetsNewMessagesThrough(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	for i := uint64(1); i <= 5; i++ {
		require.Equal(t, emit, outcomeOf(b, at(i, i, "p"), t0))
	}
}

func TestBarrierWaitsForThePendingOfADeadOwner(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	// The former owner got 1 to 4 and acked 1.
	b.attach(position{deliveredConsumer: 4, deliveredStream: 4, ackFloorStream: 1, pending: 3})
	_, ask := b.asking()
	require.False(t, ask, "a standby does not ask all the time")
	require.Equal(t, wait, outcomeOf(b, at(5, 5, "p"), t0))
	require.Equal(t, wait, outcomeOf(b, at(6, 6, "p"), t0))
	epoch, ask := b.asking()
	require.True(t, ask)
	require.Empty(t, b.answer(epoch, position{deliveredStream: 6, ackFloorStream: 1, pending: 5}))
	for i, seq := range []uint64{3, 2, 4} {
		require.Equal(t, wait, outcomeOf(b, at(seq, uint64(7+i), "p"), t0))
	}
	require.Equal(t, []uint64{2, 3, 4, 5, 6}, seqs(b.answer(epoch, position{deliveredStream: 6, ackFloorStream: 1, pending: 5})))
	require.Equal(t, emit, outcomeOf(b, at(7, 10, "p"), t0))
}

// A server that lost its notes uses numbers twice: there is no gap, only the pin is new. And a standby that
// joined long before the owner died sees none either.
func TestBarrierStartsWithANewPin(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredConsumer: 4, deliveredStream: 4, pending: 4})
	require.Equal(t, wait, outcomeOf(b, at(5, 5, "mine"), t0))
	epoch, _ := b.asking()
	require.Len(t, b.answer(epoch, position{deliveredStream: 5, ackFloorStream: 4, pending: 1}), 1)
	require.Equal(t, wait, outcomeOf(b, at(6, 6, "mine again"), t0))
}

func TestBarrierStartsAtAGap(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	require.Equal(t, emit, outcomeOf(b, at(1, 1, "p"), t0))
	require.Equal(t, wait, outcomeOf(b, at(3, 3, "p"), t0), "2 was lost on the way")
	epoch, _ := b.asking()
	require.Empty(t, b.answer(epoch, position{deliveredStream: 3, pending: 3}))
	require.Equal(t, wait, outcomeOf(b, at(4, 4, "p"), t0))
	require.Empty(t, b.answer(epoch, position{deliveredStream: 3, pending: 3}), "4 came after the server counted")
	require.Equal(t, wait, outcomeOf(b, at(2, 5, "p"), t0))
	require.Empty(t, b.answer(epoch, position{deliveredStream: 4, pending: 4}), "the stream may have dropped 1, and 4 be another's")
	require.Equal(t, repeat, outcomeOf(b, at(1, 6, "p"), t0), "its progress acks stopped, so it comes again")
	require.Equal(t, []uint64{2, 3, 4}, seqs(b.answer(epoch, position{deliveredStream: 4, pending: 4})))
}

func TestBarrierStartsWhenNumbersGoBack(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredConsumer: 9, deliveredStream: 9})
	require.Equal(t, emit, outcomeOf(b, at(10, 10, "p"), t0))
	require.Equal(t, wait, outcomeOf(b, at(11, 1, "p"), t0))
}

func TestBarrierIgnoresThePositionOfAnotherOwner(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	require.Equal(t, wait, outcomeOf(b, at(2, 2, "p"), t0))
	epoch, _ := b.asking()
	require.Empty(t, b.answer(epoch, position{deliveredStream: 2, pending: 1, pin: "q"}))
	require.Len(t, b.answer(epoch, position{deliveredStream: 2, pending: 1, pin: "p"}), 1)
}

func TestBarrierIgnoresAnOldAnswer(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	require.Equal(t, wait, outcomeOf(b, at(2, 2, "p"), t0))
	old, _ := b.asking()
	require.Equal(t, wait, outcomeOf(b, at(5, 5, "p"), t0)) // another gap
	require.Empty(t, b.answer(old, position{deliveredStream: 2, pending: 1}))
	require.True(t, b.on)
}

func TestBarrierRecognisesWhatItHoldsAndWhatIsSettled(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	h, _ := b.arrive(at(1, 1, "p"), t0)
	a := at(1, 2, "p")
	a.reply = "newer"
	again1, what := b.arrive(a, t0)
	require.Equal(t, repeat, what)
	require.Same(t, h, again1)
	require.Equal(t, "newer", h.reply)

	require.True(t, b.settle(h))
	require.False(t, b.settle(h))
	_, what = b.arrive(at(1, 3, "p"), t0)
	require.Equal(t, again, what)
	anew := at(1, 4, "p")
	anew.stored = 99 // the same number in a stream that was made anew
	_, what = b.arrive(anew, t0)
	require.Equal(t, emit, what)
}

func TestBarrierDoesNotSettleForAStreamThatIsGone(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	h, _ := b.arrive(at(1, 1, "p"), t0)
	b.abandon(t0)
	require.False(t, b.settle(h), "the same subject would ack another message")
	require.Empty(t, b.held)
}

func TestBarrierGivesUpWaiting(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	require.Equal(t, wait, outcomeOf(b, at(3, 3, "p"), t0))
	require.Equal(t, wait, outcomeOf(b, at(2, 4, "p"), t0))
	_, lifted := b.expire(t0.Add(ackWait))
	require.False(t, lifted)
	out, lifted := b.expire(t0.Add(ackWait + 2*time.Second))
	require.True(t, lifted)
	require.Equal(t, []uint64{2, 3}, seqs(out))

	b = newBarrier(realTiming(), 16)
	b.attach(position{})
	b.arrive(at(3, 3, "p"), t0)
	epoch, _ := b.asking()
	b.answer(epoch, position{deliveredStream: 3, pending: 3})
	_, lifted = b.expire(t0.Add(ackWait + 2*time.Second))
	require.False(t, lifted, "the server still counts something that we do not have")
	_, lifted = b.expire(t0.Add(2*ackWait + 2*time.Second))
	require.True(t, lifted)
}

// After a pause in which someone else may have been pinned, what we hold may be settled by them
// and must not make up for what is missing.
func TestBarrierCountsOnlyWhatIsOurs(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	for i := uint64(1); i <= 3; i++ {
		b.arrive(at(i, i, "a"), t0)
	}
	// Someone else acked 1 and 3, got 4 and 5, and died.
	later := t0.Add(time.Minute)
	require.Equal(t, wait, outcomeOf(b, at(6, 9, "c"), later))
	epoch, _ := b.asking()
	pos := position{deliveredStream: 6, ackFloorStream: 1, pending: 4} // 2, 4, 5, 6
	require.Empty(t, b.answer(epoch, pos))
	require.Equal(t, []string{"r"}, b.progress(), "what may not be ours is not kept from its owner")
	require.False(t, b.settle(b.held[3]), "nor settled")
	require.Equal(t, repeat, outcomeOf(b, at(2, 10, "c"), later))
	require.Equal(t, wait, outcomeOf(b, at(4, 11, "c"), later))
	require.Empty(t, b.answer(epoch, pos))
	require.Equal(t, wait, outcomeOf(b, at(5, 12, "c"), later))
	require.Equal(t, []uint64{4, 5, 6}, seqs(b.answer(epoch, pos)))
}

func TestBarrierResumesADeletedConsumer(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredStream: 40, deliveredConsumer: 40})
	require.EqualValues(t, 41, b.resume())
	b.attach(position{deliveredStream: 50, deliveredConsumer: 50, ackFloorStream: 44, pending: 2})
	require.EqualValues(t, 45, b.resume(), "a standby: something is pending elsewhere")

	b = newBarrier(realTiming(), 16)
	b.attach(position{})
	h, _ := b.arrive(at(7, 1, "p"), t0)
	b.arrive(at(8, 2, "p"), t0)
	require.EqualValues(t, 7, b.resume())
	b.settle(h)
	require.EqualValues(t, 8, b.resume())
	b.arrive(at(12, 9, "p"), t0) // a gap: something below may be missing
	require.EqualValues(t, 1, b.resume())
}

func TestSettledSetForgetsTheOldest(t *testing.T) {
	t.Parallel()
	s := newSettledSet(3)
	for i := uint64(1); i <= 4; i++ {
		s.add(i, int64(i))
	}
	require.False(t, s.has(1, 1))
	for i := uint64(2); i <= 4; i++ {
		require.True(t, s.has(i, int64(i)))
		require.False(t, s.has(i, 99))
	}
	require.Len(t, s.at, 3)
}

// consumerModel is a JetStream consumer with pinned clients as the server runs it (consumer.go), without
// time: a redelivery happens when the test says that an AckWait is over.
type consumerModel struct {
	last      uint64 // in the stream
	next      uint64 // stream sequence to deliver next
	delivered uint64 // Sequence.Consumer
	pending   map[uint64]bool
	redeliver []uint64
	pin       string
}

func (m *consumerModel) deliver() (arrival, bool) {
	var seq uint64
	for len(m.redeliver) > 0 && seq == 0 {
		seq, m.redeliver = m.redeliver[0], m.redeliver[1:]
		if !m.pending[seq] {
			seq = 0
		}
	}
	if seq == 0 {
		if m.next > m.last {
			return arrival{}, false
		}
		seq = m.next
		m.next++
	}
	m.delivered++
	m.pending[seq] = true
	return at(seq, m.delivered, m.pin), true
}

func (m *consumerModel) expire(seq uint64) {
	if m.pending[seq] && !slices.Contains(m.redeliver, seq) {
		m.redeliver = append(m.redeliver, seq)
	}
}

func (m *consumerModel) position() position {
	floor := m.next - 1
	for seq := range m.pending {
		floor = min(floor, seq-1)
	}
	return position{deliveredConsumer: m.delivered, deliveredStream: m.next - 1, ackFloorStream: floor, pending: len(m.pending), pin: m.pin}
}

// event is what the server sends to an owner.
type event struct {
	arrival
	notYours bool // status 423: another pin is valid
}

// ownerModel is a process that consumes: a barrier and what is on its way to it.
type ownerModel struct {
	barrier *barrier
	coming  []event
	answers []func() []*held // the server's answers to questions, on their way
	out     []*held          // let out and not settled
	stalled bool             // does nothing but read what has come
}

func newOwnerModel(m *consumerModel) *ownerModel {
	o := &ownerModel{barrier: newBarrier(realTiming(), 256)}
	o.barrier.attach(m.position())
	return o
}

// Two owners. Whatever is lost, acked late, redelivered, answered late or taken over, whichever of them
// stalls, crashes or comes back: what comes out, repeats removed, is in stream order and complete.
func TestBarrierModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		const total = 60
		r := rand.New(rand.NewPCG(seed, 1))
		m := &consumerModel{last: total, next: 1, pending: map[uint64]bool{}, pin: "0"}
		owners := []*ownerModel{newOwnerModel(m), newOwnerModel(m)}
		pinned, pins := 0, 0
		now := t0
		var seen []uint64
		var acks []uint64 // on their way to the server
		land := func() {
			for _, seq := range acks {
				delete(m.pending, seq)
			}
			acks = nil
		}
		newPin := func(to int, after time.Duration) {
			land() // long before a pin or an AckWait is over
			pinned, now = to, now.Add(after)
			pins++
			m.pin = strconv.Itoa(pins)
		}
		for step := 0; step < 20000 && (len(seen) < total || len(m.pending) > 0); step++ {
			lossy := step < 1500
			i := r.IntN(2)
			o := owners[i]
			take := func(hs ...*held) {
				for _, h := range hs {
					o.out = append(o.out, h)
					if !slices.Contains(seen, h.seq) {
						seen = append(seen, h.seq)
					}
				}
			}
			switch p := r.IntN(100); {
			case p < 25: // the server delivers
				if a, ok := m.deliver(); ok && (!lossy || r.IntN(10) > 0) {
					owners[pinned].coming = append(owners[pinned].coming, event{arrival: a})
				}
			case p < 50: // a delivery arrives
				if len(o.coming) > 0 {
					a := o.coming[0]
					o.coming = o.coming[1:]
					if a.notYours {
						o.barrier.disown()
						o.stalled = false
						continue
					}
					switch h, what := o.barrier.arrive(a.arrival, now); what {
					case emit:
						take(h)
					case again:
						acks = append(acks, h.seq)
					}
				}
			case p < 60: // something is settled
				if len(o.out) > 0 && !o.stalled {
					k := r.IntN(len(o.out))
					if h := o.out[k]; o.barrier.settle(h) && (!lossy || r.IntN(10) > 0) {
						acks = append(acks, h.seq)
					}
					o.out = slices.Delete(o.out, k, k+1)
				}
			case p < 67: // acks reach the server
				land()
			case p < 75: // an AckWait is over of what nobody keeps alive
				var keys []uint64
				for _, seq := range slices.Sorted(maps.Keys(m.pending)) {
					kept := slices.ContainsFunc(owners, func(o *ownerModel) bool { h := o.barrier.held[seq]; return h != nil && h.ours })
					if !kept || r.IntN(30) == 0 {
						keys = append(keys, seq)
					}
				}
				for _, seq := range keys {
					m.expire(seq)
				}
			case p < 84: // the server is asked
				if epoch, ok := o.barrier.asking(); ok {
					pos := m.position()
					o.answers = append(o.answers, func() []*held { return o.barrier.answer(epoch, pos) })
				}
			case p < 93: // and its answer arrives
				if len(o.answers) > 0 {
					answer := o.answers[0]
					o.answers = o.answers[1:]
					take(answer()...)
				}
			case p < 95 && lossy: // the server restarts, and the same one is first again
				owners[pinned].coming = append(owners[pinned].coming, event{notYours: true})
				newPin(pinned, time.Second)
				m.redeliver = nil
			case p < 96 && lossy: // the pinned one stalls, and the other one takes over
				owners[pinned].stalled = true
				owners[pinned].coming = append(owners[pinned].coming, event{notYours: true})
				newPin(1-pinned, 11*time.Second)
			case p < 97 && lossy: // the pinned one crashes and comes back as a standby
				owners[pinned] = newOwnerModel(m)
				newPin(1-pinned, 11*time.Second)
			case p < 98 && lossy: // a standby crashes and comes back
				land()
				owners[1-pinned] = newOwnerModel(m)
			}
		}
		require.Len(t, seen, total, "seed %d: all of them", seed)
		require.True(t, slices.IsSorted(seen), "seed %d: %v", seed, seen)
	}
}

// The server forgets pending messages that its limits remove (max_msgs_per_subject, max_msgs, max_age, a
// purge by subject). What we hold of them must not make up for a delivery that got lost.
func TestBarrierDoesNotCountWhatTheStreamRemoved(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{})
	for i := uint64(1); i <= 5; i++ {
		require.Equal(t, emit, outcomeOf(b, at(i, i, "p"), t0))
	}
	// 2, 3 and 4 are superseded. 6 is delivered and lost on the way.
	require.Equal(t, wait, outcomeOf(b, at(7, 7, "p"), t0))
	epoch, _ := b.asking()
	require.Empty(t, b.answer(epoch, position{deliveredConsumer: 7, deliveredStream: 7, ackFloorStream: 0, pending: 4}), // 1, 5, 6, 7
		"7 must not come out before 6")
}

// tick asks a standby's position every few seconds, so that a consumer deleted under it starts where its owner was.
func TestBarrierStandbyKeepsUp(t *testing.T) {
	t.Parallel()
	b := newBarrier(realTiming(), 16)
	b.attach(position{deliveredStream: 40, deliveredConsumer: 40, ackFloorStream: 40})
	epoch, _ := b.asking()
	b.answer(epoch, position{deliveredStream: 4000, deliveredConsumer: 4000, ackFloorStream: 4000})
	require.EqualValues(t, 4001, b.resume())
}
