package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// by maps as bySubject does and then changes each envelope.
type by func(in *mapping.Input, e *mapping.Envelope)

func (b by) Map(in *mapping.Input) []mapping.Result {
	results := bySubject{}.Map(in)
	for _, r := range results {
		if r.Envelope != nil {
			b(in, r.Envelope)
		}
	}
	return results
}

// A lane that is listed by its old priority is put back by its new one when the budget has no token for it.
func TestPriorityChangesWhileALaneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for range 20 {
			w.publish("cmd.d.urgent", "high")
		}
		p := w.run(t, func(o *Options) { o.Mapper = prioritized{}; o.Hubs[0].Pace.Rate = 5 })
		time.Sleep(time.Second)
		for range 20 {
			w.publish("cmd.d", "low")
		}
		w.quiet(t, "all")
		require.Len(t, w.names("d"), 40)
		p.stop(t)
	})
}

// The levels between the highest and the lowest have turns, too.
func TestEveryPriorityHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 400 {
			for priority := range 4 {
				w.publish(fmt.Sprintf("cmd.p%dx%d", priority, i%100), fmt.Sprint(priority))
			}
		}
		p := w.run(t, func(o *Options) {
			o.Mapper = by(func(in *mapping.Input, e *mapping.Envelope) { e.Priority = int(in.Payload[0] - '0') })
			o.Hubs[0].Window, o.MaxHeld = 1, 4000
		})
		w.quiet(t, "all")
		turns := map[string]int{}
		for _, s := range w.hub[:400] {
			turns[s.name]++
		}
		require.InDelta(t, 350, turns["3"], 10)
		for _, lower := range []string{"0", "1", "2"} {
			require.Greater(t, turns[lower], 10, "%v", turns)
		}
		p.stop(t)
	})
}

// A message for several targets is sent from the mailbox alone, and waits for the one before it that the mailbox cannot hold.
func TestGroupBehindWhatCannotBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["a"] = true
		w.huge = func(q *Parcel) bool { return string(q.Message.Payload) == "huge" }
		w.publish("both.x", "huge")
		p := w.run(t)
		time.Sleep(time.Second)
		w.publish("both.x", "next")
		time.Sleep(time.Second)
		w.set(func() { w.full["a"] = false })
		p.Freed("main", "a")
		w.quiet(t, "there is room")
		require.Equal(t, []string{"huge", "next"}, w.names("a"))
		p.stop(t)
	})
}

// What was on its way into the mailbox when its source got lost is not deleted from there
// when the source is ours again and has the message settled because it is there.
func TestLostWhileParking(t *testing.T) {
	for after := range 60 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.full["d"] = true
			for i := range 100 {
				w.publish("cmd.d", fmt.Sprintf("%04d", i))
			}
			w.slow = func() time.Duration { return 5 * time.Millisecond }
			p := w.run(t)
			time.Sleep(30*time.Millisecond + time.Duration(after)*time.Millisecond)
			w.set(func() {
				w.slow = func() time.Duration { return 200 * time.Millisecond } // a deletion comes late
				p.lose()
			})
			time.Sleep(time.Second)
			w.set(func() { w.slow = nil; w.full["d"] = false })
			w.quiet(t, "room")
			require.Equal(t, numbered(100), w.names("d"), "after %d ms", after)
			p.stop(t)
		})
	}
}

// An append that was stored, although it seemed to fail, leaves nothing behind that nobody knows of when its
// message was sent meanwhile, and a later message does not overtake what is behind it in the mailbox.
func TestAppendThatSeemedToFail(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			w, rnd, faults := newWorld(), rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8)) // faults: with the world's mutex held
			w.full["d"] = true
			w.flaky = func() bool { return faults.IntN(4) == 0 }
			w.slow = func() time.Duration { return time.Duration(faults.IntN(20)) * time.Millisecond }
			p := w.run(t)
			for i := range 300 {
				w.publish("cmd.d", fmt.Sprintf("%04d", i))
				if rnd.IntN(40) == 0 {
					w.set(func() { w.full["d"] = !w.full["d"] })
					p.Freed("main", "d")
				}
				time.Sleep(time.Duration(rnd.IntN(4)) * time.Millisecond)
			}
			w.set(func() { w.full["d"] = false })
			w.quiet(t, fmt.Sprint("seed ", seed))
			inOrder(t, numbered(300), w.names("d"), fmt.Sprint("seed ", seed))
			p.stop(t)
		})
	}
}

// Many devices whose messages the mailbox refuses do not keep it from taking those of another one.
func TestRefusedBoxesHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["well"] = true
		for i := range 70 * (parkers + 8) {
			w.publish(fmt.Sprintf("cmd.refused%d", i%(parkers+8)), "x")
		}
		w.answer = func(e *mapping.Envelope) error {
			if e.Device == "well" {
				return nil
			}
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}
		p := w.run(t, func(o *Options) { o.MaxHeld = 10_000 })
		time.Sleep(5 * time.Minute)
		for i := range 100 {
			w.publish("cmd.well", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Second)
		require.GreaterOrEqual(t, w.boxed(), 99)
		p.cancel()
		<-p.done
	})
}

// What became of drained entries cannot be stored: no more of them are sent than can be remembered.
func TestLedgerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for i := range 3000 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t, func(o *Options) {
			o.Mapper = by(func(_ *mapping.Input, e *mapping.Envelope) { e.Receipts = true })
			o.Receipts = failingReceipts{}
		})
		time.Sleep(10 * time.Second)
		require.Equal(t, 3000, w.boxed())
		w.set(func() { w.full["d"] = false })
		p.Freed("main", "d")
		time.Sleep(5 * time.Minute)
		require.LessOrEqual(t, len(w.names("d")), 1000, "sent without a fate")
		p.cancel()
		<-p.done
	})
}

type failingReceipts struct{ worldReceipts }

func (failingReceipts) Store(ctx context.Context, _ Receipt, _ Correlation) error { return errKilled }

// Entries that have expired cost the others nothing: no token, no probe of a closed gate.
func TestExpiredEntriesCostNoTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.hubDown = &Error{Class: Paused, Op: "send", Condition: "com.microsoft:quota-exceeded"}
		for i := range 3000 {
			w.publish(fmt.Sprintf("cmd.d%d", i), "old")
		}
		p := w.run(t, func(o *Options) {
			o.Mapper = by(func(in *mapping.Input, e *mapping.Envelope) {
				if string(in.Payload) == "old" {
					e.ExpiresAt = in.Time.Add(time.Minute)
				}
			})
		})
		time.Sleep(58 * time.Second)
		w.publish("cmd.new", "new")
		time.Sleep(4 * time.Second)
		w.set(func() { w.hubDown = nil })
		time.Sleep(90 * time.Second)
		require.Equal(t, []string{"new"}, w.names("new"))
		p.stop(t)
	})
}

// A message that must be alone on the link and has expired meanwhile does not keep the others from going.
func TestSoloThatExpired(t *testing.T) {
	h := newHub(HubOptions{Name: "main"}, &Bridge{log: slog.New(slog.DiscardHandler), options: Options{Hubs: make([]HubOptions, 1), MaxHeld: 100}})
	lane := func(device string, breaks int) *lane {
		it := &item{envelope: &mapping.Envelope{Device: device}, message: &mapping.Input{Stream: "S"}, tries: tries{linkBreaks: breaks}}
		l := h.lane(keyOf(it))
		l.heads = []*item{it}
		h.list(l)
		return l
	}
	suspect, well := lane("suspect", soloAfter), lane("well", 0)
	h.remove(suspect, suspect.heads[0])
	require.Same(t, well, h.pick(time.Now()))
}

// Several messages of a device are in flight when the link breaks again and again: each is tried alone before it is taken for the cause.
func TestSoloWithoutOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newFakeSender(nil)
		var alone sync.Map
		sender.answer = func(n int, e *mapping.Envelope) error {
			time.Sleep(5 * time.Millisecond)
			sender.mu.Lock()
			all := sender.all
			sender.mu.Unlock()
			if all == 1 {
				alone.Store(string(e.Body), true)
				return nil
			}
			return amqpErr(LinkLost, "")
		}
		r := start(t, sender, func(o *Options) { o.Mapper = unordered{}; o.Hubs[0].Window = 5 })
		for i := range 40 {
			r.source.publish("COMMANDS", "cmd.d", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Minute)
		require.Empty(t, r.dead.all())
		require.Len(t, r.source.acks(), 40)
		r.stop()
	})
}

// All that users can ask for, all that may fail, and kills, at random: every target has its fate, in order.
func TestAnythingAtRandom(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) { anything(t, seed) })
	}
}

func anything(t *testing.T, seed uint64) {
	w, fault := newWorld(), rand.New(rand.NewPCG(seed, 3)) // used with the world's mutex held
	faults, kills := true, 0
	w.kill = func(int, string, bool) bool {
		if faults && kills < 6 && fault.IntN(400) == 0 {
			kills++
			return true
		}
		return false
	}
	w.flaky = func() bool { return faults && seed%2 == 0 && fault.IntN(30) == 0 }
	w.slow = func() time.Duration {
		if faults && fault.IntN(5) == 0 {
			return time.Duration(fault.IntN(100)) * time.Millisecond
		}
		return 0
	}
	w.huge = func(q *Parcel) bool { return strings.HasSuffix(q.Message.Subject, "huge") }
	w.answer = func(e *mapping.Envelope) error {
		if !faults {
			return nil
		}
		switch fault.IntN(400) {
		case 0:
			return amqpErr(LinkLost, "")
		case 1, 2:
			return amqpErr(Resend, "")
		case 3:
			return amqpErr(Throttled, "com.microsoft:throttled")
		case 4:
			return amqpErr(Unauthorized, "amqp:unauthorized-access")
		case 5:
			return amqpErr(Unknown, "x:odd")
		}
		return nil
	}
	mapper := by(func(in *mapping.Input, e *mapping.Envelope) {
		e.Receipts = true
		for _, flag := range strings.Split(in.Subject, ".")[2:] {
			switch flag {
			case "coalesce":
				e.Coalesce = "key"
			case "unordered":
				e.Unordered = true
			case "urgent":
				e.Priority = 5
			case "lazy":
				e.Priority = -3
			case "ttl":
				e.ExpiresAt = in.Time.Add(20 * time.Second)
			}
		}
	})
	rnd := rand.New(rand.NewPCG(seed, 4))
	chance := func(n int) bool { return rnd.IntN(n) == 0 }
	flags := []string{"plain", "plain", "plain", "coalesce", "unordered", "urgent", "lazy", "ttl", "huge"}
	run := func() *process {
		return w.run(t, func(o *Options) { o.Mapper = mapper; o.MaxHeld = 120 })
	}
	p := run()
	want := map[string]string{} // device/name: flag
	tick := func(n int) {
		if faults {
			if n%20 == 0 {
				d := fmt.Sprintf("d%d", rnd.IntN(4))
				w.set(func() { w.full[d] = chance(2) })
				p.Freed("main", d)
			}
			if n%50 == 0 {
				w.set(func() { w.full["a"] = chance(3) })
			}
			if chance(150) {
				w.set(p.lose)
			}
		}
		time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
		w.mu.Lock()
		dead := p.dead
		w.mu.Unlock()
		if dead {
			<-p.done
			p = run()
		}
	}
	for i := range 600 {
		name, flag := fmt.Sprintf("%04d", i), flags[rnd.IntN(len(flags))]
		if chance(12) {
			w.publish("both.x."+flag, name)
			want["a/"+name], want["b/"+name] = flag, flag
		} else {
			d := fmt.Sprintf("d%d", rnd.IntN(4))
			w.publish("cmd."+d+"."+flag, name)
			want[d+"/"+name] = flag
		}
		if chance(3) {
			tick(i)
		}
	}
	for i := range 1500 {
		tick(i)
	}
	w.set(func() {
		faults = false
		clear(w.full)
	})
	for n := 0; w.unacked() > 0 || w.boxed() > 0; n++ {
		if n > 2000 {
			t.Fatalf("seed %d: %d unacked, %d in the mailbox; %+v\n%s", seed, w.unacked(), w.boxed(), p.Status(), w.leftovers())
		}
		time.Sleep(time.Second)
	}
	time.Sleep(time.Minute)
	p.stop(t)
	why := fmt.Sprintf("seed %d: %v", seed, w.killed)
	fates := map[string][]string{}
	last, seen := map[string]string{}, map[string]bool{}
	for _, s := range w.hub {
		key := s.device + "/" + s.name
		if !seen[key] && want[key] != "unordered" {
			if s.name < last[s.device] {
				var trail []string
				for _, x := range w.hub {
					if x.device == s.device {
						trail = append(trail, fmt.Sprintf("%s %s %s", x.at.Format("05.000"), x.name, want[x.device+"/"+x.name]))
					}
				}
				t.Fatalf("%s: order at %s:\n%s\n%s", why, s.device, strings.Join(trail, "\n"), strings.Join(w.trail, "\n"))
			}
			last[s.device] = s.name
		}
		if !seen[key] {
			fates[key] = append(fates[key], "accepted")
		}
		seen[key] = true
	}
	for _, r := range w.receipts {
		key := r.Device + "/" + r.ID
		if r.Status != StatusAccepted && !slices.Contains(fates[key], r.Status+" "+r.Reason) {
			fates[key] = append(fates[key], r.Status+" "+r.Reason)
		}
	}
	for key, flag := range want {
		got := fates[key]
		require.NotEmpty(t, got, "%s: %s %s has no fate", why, key, flag)
		if kills == 0 && seed%2 == 1 {
			require.Len(t, got, 1, "%s: %s %s", why, key, flag)
		}
		for _, f := range got {
			switch f {
			case "accepted":
			case "replaced ":
				require.Equal(t, "coalesce", flag, why)
			case "dead expired":
				require.Equal(t, "ttl", flag, why)
			default:
				t.Fatalf("%s: %s %s: %v", why, key, flag, got)
			}
		}
	}
}
