package bridge

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// quiet waits until nothing is left to do, an hour of the bubble's clock at most. What the last ack
// or deletion brings with it, such as a count, has happened as well then.
func (w *world) quiet(t *testing.T, why string) {
	t.Helper()
	for range 3600 {
		synctest.Wait()
		if w.unacked() == 0 && w.boxed() == 0 {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("%s: %d unacked, %d in the mailbox", why, w.unacked(), w.boxed())
}

func TestFullDeviceIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["full"] = true
		for i := range 1000 {
			w.publish("cmd.full", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(10 * time.Second)
		require.Zero(t, w.unacked(), "the stream is read on")
		require.Equal(t, 1000, w.boxed())
		s := p.Status()
		require.LessOrEqual(t, s.Waiting, uint64(1), "what is in the mailbox is not in memory")
		for i := range 200 {
			w.publish("cmd.well", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Second)
		require.Equal(t, numbered(200), w.names("well"))
		w.set(func() { w.full["full"] = false })
		p.Freed("main", "full")
		w.quiet(t, "after there is room")
		require.Equal(t, numbered(1000), w.names("full"))
		p.stop(t)
	})
}

// A process is killed before or after each of its durable steps in turn, and another one
// takes over: nothing is lost, the order is kept, and few messages are repeated.
func TestKilledAtEachStep(t *testing.T) {
	const messages = 80 // more than a lane holds
	scenario := func(t *testing.T, step int, after bool) (steps int, killed []string) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.full["d"] = true
			w.kill = func(n int, _ string, a bool) bool { return n == step && a == after }
			for i := range messages {
				w.publish("cmd.d", fmt.Sprintf("%04d", i))
				if i%10 == 0 {
					w.publish("cmd.e", fmt.Sprintf("%04d", i))
					w.publish("cmd.unknown", fmt.Sprintf("%04d", i))
					w.publish("both.x", fmt.Sprintf("g%03d", i))
				}
			}
			p := w.run(t)
			time.Sleep(3 * time.Second)
			w.set(func() { w.full["d"] = false })
			for w.unacked() > 0 || w.boxed() > 0 {
				time.Sleep(10 * time.Millisecond)
				w.mu.Lock()
				dead := p.dead
				w.mu.Unlock()
				if dead {
					<-p.done
					p = w.run(t)
				}
			}
			p.stop(t)
			why := fmt.Sprintf("step %d: %v", step, w.killed)
			repeats := inOrder(t, numbered(messages), w.names("d"), why)
			require.LessOrEqual(t, repeats, 1, "%s: what was in flight alone may come twice", why)
			var tens []string
			for i := 0; i < messages; i += 10 {
				tens = append(tens, fmt.Sprintf("%04d", i))
			}
			require.LessOrEqual(t, inOrder(t, tens, w.names("e"), why), 1, why)
			for _, device := range []string{"a", "b"} {
				got := w.names(device)
				n := map[string]int{}
				for _, g := range got {
					n[g]++
				}
				require.Len(t, n, messages/10, why)
				require.LessOrEqual(t, len(got), messages/10+1, why)
			}
			dead := map[string]bool{}
			for _, l := range w.letters {
				dead[string(l.Message.Payload)] = true
			}
			require.Len(t, dead, messages/10, why)
			steps, killed = w.steps, w.killed
		})
		return steps, killed
	}
	total, _ := scenario(t, 0, false)
	require.Greater(t, total, 300)
	seen := map[string]int{}
	for step := 1; step <= total; step++ {
		for _, after := range []bool{false, true} {
			_, killed := scenario(t, step, after)
			for _, k := range killed {
				seen[k]++
			}
		}
	}
	for _, name := range []string{"append", "ack", "next", "send", "delete", "dead letter", "list"} {
		require.NotZero(t, seen["before "+name], name)
		require.NotZero(t, seen["after "+name], name)
	}
}

// Processes are killed at random, again and again, lose their source for a moment, and get errors for
// what was stored; and each successor comes so late that the mailbox
// recognises no repeated append by its ID.
func TestKilledAtRandom(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			w, rnd := newWorld(), rand.New(rand.NewPCG(seed, 1))
			kills := 0
			w.kill = func(int, string, bool) bool {
				if kills < 15 && rnd.IntN(150) == 0 {
					kills++
					return true
				}
				return false
			}
			want := map[string][]string{}
			for i := range 400 {
				d := fmt.Sprintf("d%d", rnd.IntN(4))
				want[d] = append(want[d], fmt.Sprintf("%04d", i))
				w.publish("cmd."+d, fmt.Sprintf("%04d", i))
			}
			w.full["d0"], w.full["d1"] = true, true
			w.flaky = func() bool { return seed%2 == 1 && rnd.IntN(30) == 0 }
			p := w.run(t)
			for tick := 0; w.unacked() > 0 || w.boxed() > 0; tick++ {
				if tick%50 == 0 {
					w.set(func() { w.full[fmt.Sprintf("d%d", rnd.IntN(4))] = rnd.IntN(3) == 0 })
				}
				time.Sleep(20 * time.Millisecond)
				w.mu.Lock()
				dead := p.dead
				if dead {
					clear(w.ids)
				} else if seed%3 == 2 && tick%500 == 499 {
					p.lose()
				}
				w.mu.Unlock()
				if dead {
					<-p.done
					p = w.run(t)
				}
				require.Less(t, tick, 1_000_000, "seed %d", seed)
			}
			p.stop(t)
			repeats := 0
			for d, names := range want {
				repeats += inOrder(t, names, w.names(d), fmt.Sprintf("seed %d: %s: %v", seed, d, w.killed))
			}
			require.LessOrEqual(t, repeats, 64*kills, "seed %d", seed)
		})
	}
}

// For every reason to wait: what exceeds the bounds is parked, survives a kill, and comes in order.
func TestEveryReasonToWait(t *testing.T) {
	reasons := map[string]*Error{
		"throttled":    {Class: Throttled, Op: "send", Condition: "com.microsoft:device-container-throttled"},
		"quota":        {Class: Paused, Op: "send", Condition: "com.microsoft:quota-exceeded"},
		"unauthorized": {Class: Unauthorized, Op: "send", Condition: "amqp:unauthorized-access"},
		"released":     {Class: Resend, Op: "send"},
	}
	for name, why := range reasons {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.hubDown = why
				p := w.run(t)
				for i := range 2000 {
					w.publish(fmt.Sprintf("cmd.d%d", i%20), fmt.Sprintf("%04d", i))
				}
				time.Sleep(30 * time.Second)
				require.LessOrEqual(t, w.unacked(), 300, "the hub's share of what is held")
				w.set(func() { p.die() })
				<-p.done
				p = w.run(t)
				time.Sleep(30 * time.Second)
				w.set(func() { w.hubDown = nil })
				w.quiet(t, name)
				for d := range 20 {
					var want []string
					for i := d; i < 2000; i += 20 {
						want = append(want, fmt.Sprintf("%04d", i))
					}
					inOrder(t, want, w.names(fmt.Sprintf("d%d", d)), name)
				}
				p.stop(t)
			})
		})
	}
}

// A mailbox that takes nothing more leaves messages at their source, and nobody waits for it whose device has room.
func TestMailboxRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["full"], w.limit = true, 100
		for i := range 250 {
			w.publish("cmd.full", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(time.Minute)
		require.Equal(t, 100, w.boxed())
		require.ErrorContains(t, p.Ready(), "mailbox cannot be written")
		for i := range 50 {
			w.publish("cmd.well", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Second)
		require.Len(t, w.names("well"), 50)
		w.set(func() { w.full["full"] = false })
		w.quiet(t, "room again")
		require.Equal(t, numbered(250), w.names("full"))
		time.Sleep(time.Minute) // the parker notices at its next try
		require.NoError(t, p.Ready())
		p.stop(t)
	})
}

func TestExpiresInTheMailbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.hubDown = &Error{Class: Paused, Op: "send", Condition: "com.microsoft:quota-exceeded"}
		for i := range 500 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t, func(o *Options) { o.Mapper = bySubject{ttl: time.Minute} })
		time.Sleep(30 * time.Second)
		require.Greater(t, w.boxed(), 400)
		time.Sleep(2 * time.Minute)
		require.Zero(t, w.boxed())
		require.Zero(t, w.unacked())
		require.Len(t, w.letters, 500)
		for _, l := range w.letters {
			require.Equal(t, ReasonExpired, l.Reason)
		}
		p.stop(t)
	})
}

// What was behind an entry that a newer message replaced is the first one now, and expires in time.
func TestExpiresBehindWhatIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.hubDown = &Error{Class: Unauthorized, Op: "send"}
		p := w.run(t, func(o *Options) {
			o.Mapper = by(func(in *mapping.Input, e *mapping.Envelope) {
				switch string(in.Payload) {
				case "key":
					e.Coalesce = "setpoint"
				case "short":
					e.ExpiresAt = in.Time.Add(2 * time.Minute)
				}
			})
		})
		for i := range 600 {
			w.publish(fmt.Sprintf("cmd.d%d", i), "other") // beyond the share: what follows is parked at once
		}
		time.Sleep(10 * time.Second)
		w.publish("cmd.d", "key")
		w.publish("cmd.d", "short")
		time.Sleep(time.Minute)
		w.publish("cmd.d", "key")
		time.Sleep(50 * time.Second)
		require.EqualValues(t, 1, p.Status().Replaced)
		letters := func() (list []string) {
			w.set(func() {
				for _, l := range w.letters {
					list = append(list, string(l.Message.Payload))
				}
			})
			return list
		}
		require.Empty(t, letters())
		time.Sleep(20 * time.Second)
		require.Equal(t, []string{"short"}, letters())
		p.stop(t)
	})
}

// coalescing gives every message of bySubject its device's name as key.
type coalescing struct{ bySubject }

func (c coalescing) Map(in *mapping.Input) []mapping.Result {
	results := c.bySubject.Map(in)
	for _, r := range results {
		if r.Envelope != nil {
			r.Envelope.Coalesce = "setpoint"
			r.Envelope.Receipts = true
		}
	}
	return results
}

func TestNewerReplacesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		p := w.run(t, func(o *Options) { o.Mapper = coalescing{} })
		for i := range 50 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, w.unacked(), "in memory the newest waits alone")
		w.set(func() { w.full["d"] = false })
		w.quiet(t, "room")
		require.Equal(t, []string{"0049"}, w.names("d"))
		require.EqualValues(t, 49, p.Status().Replaced)
		var replaced int
		for _, r := range w.receipts {
			if r.Status == StatusReplaced {
				replaced++
			}
		}
		require.Equal(t, 49, replaced)
		p.stop(t)
	})
}

func TestNewerReplacesWhatIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.hubDown = &Error{Class: Unauthorized, Op: "send"}
		p := w.run(t, func(o *Options) { o.Mapper = coalescing{} })
		for i := range 600 {
			w.publish(fmt.Sprintf("cmd.d%d", i%590), fmt.Sprintf("%04d", i)) // beyond the share: the later ones are parked
		}
		time.Sleep(10 * time.Second)
		for i := range 590 {
			w.publish(fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("n%03d", i))
		}
		time.Sleep(10 * time.Second)
		require.Greater(t, w.boxed(), 200)
		w.set(func() { w.hubDown = nil })
		w.quiet(t, "served")
		for i := range 590 {
			got := w.names(fmt.Sprintf("d%d", i))
			require.Equal(t, fmt.Sprintf("n%03d", i), got[len(got)-1])
			require.Len(t, got, 1)
		}
		require.EqualValues(t, 600, p.Status().Replaced)
		p.stop(t)
	})
}

// What core NATS brings beyond a lane's bound has a stated fate and holds up nobody.
func TestCoreOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["full"] = true
		core := newFakeSource()
		p := w.run(t, func(o *Options) { o.Sources = append(o.Sources, core) })
		for i := range 1000 {
			core.publish("", "cmd.full", fmt.Sprintf("%04d", i))
		}
		for i := range 10 {
			core.publish("", "cmd.well", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Second)
		require.Equal(t, numbered(10), w.names("well"))
		require.Len(t, w.letters, 1000-laneItems)
		require.Equal(t, ReasonOverflow, w.letters[0].Reason)
		p.stop(t)
	})
}

// Another owner has the source: nothing of it is sent any more, and when it is ours again nothing is lost.
func TestDisowned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.full["d"] = true
		for i := range 150 {
			w.publish("cmd.d", fmt.Sprintf("%04d", i))
		}
		p := w.run(t)
		time.Sleep(5 * time.Second)
		w.set(func() { p.held = false })
		w.set(func() { w.full["d"] = false })
		p.Freed("main", "d")
		for i := range 20 {
			w.publish("cmd.e", fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Minute)
		require.Empty(t, w.names("d"))
		require.Empty(t, w.names("e"))
		w.set(func() {
			p.held = true
			p.next = 1
		})
		w.quiet(t, "ours again")
		require.Equal(t, numbered(150), w.names("d"))
		require.Equal(t, numbered(20), w.names("e"))
		p.stop(t)
	})
}

// prioritized gives messages of subjects with "urgent" a high priority.
type prioritized struct{ bySubject }

func (c prioritized) Map(in *mapping.Input) []mapping.Result {
	results := c.bySubject.Map(in)
	for _, r := range results {
		if r.Envelope != nil && strings.Contains(in.Subject, "urgent") {
			r.Envelope.Priority = 5
		}
	}
	return results
}

func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for i := range 400 {
			w.publish(fmt.Sprintf("cmd.a%d", i%100), "low")
			w.publish(fmt.Sprintf("cmd.b%d.urgent", i%100), "high")
		}
		p := w.run(t, func(o *Options) { o.Mapper = prioritized{}; o.Hubs[0].Window = 1; o.MaxHeld = 4000 })
		w.quiet(t, "all")
		first := 0
		for _, s := range w.hub[:400] {
			if s.name == "high" {
				first++
			}
		}
		require.InDelta(t, 350, first, 10, "seven turns of eight")
		p.stop(t)
	})
}

// unordered maps as bySubject, without order.
type unordered struct{ bySubject }

func (c unordered) Map(in *mapping.Input) []mapping.Result {
	results := c.bySubject.Map(in)
	for _, r := range results {
		if r.Envelope != nil {
			r.Envelope.Unordered = true
		}
	}
	return results
}

func TestWithoutOrderSeveralAreInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newFakeSender(nil)
		sender.takes = 100 * time.Millisecond
		r := start(t, sender, func(o *Options) { o.Mapper = unordered{} })
		for i := range 800 {
			r.source.publish("COMMANDS", "cmd.d", fmt.Sprintf("%04d", i))
		}
		time.Sleep(11 * time.Second)
		require.Len(t, r.source.acks(), 800)
		require.Equal(t, parallel, sender.maxAll)
		r.balance(t)
		r.stop()
	})
}
