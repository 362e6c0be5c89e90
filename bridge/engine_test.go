package bridge

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

func TestOrderPerDeviceOneInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Every third first try is handed back: order must survive the retries.
		r := start(t, newFakeSender(func(n int, e *mapping.Envelope) error {
			if n == 1 && strings.HasSuffix(string(e.Body), "3") {
				return amqpErr(Resend, "")
			}
			return nil
		}))
		for i := range 500 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i%20), fmt.Sprintf("%04d", i))
		}
		time.Sleep(time.Minute) // the bubble's clock: until all is quiet
		require.Len(t, r.source.acks(), 500)
		require.False(t, r.sender.overlap, "one in flight a device")
		require.LessOrEqual(t, r.sender.maxAll, 64)
		last := map[string]string{}
		for _, s := range r.sender.log() {
			require.GreaterOrEqual(t, s.name, last[s.device], "device %s", s.device)
			last[s.device] = s.name
		}
		r.balance(t)
		r.stop()
	})
}

func TestOneDeviceNeverDelaysAnother(t *testing.T) {
	classes := map[string]error{
		"queue full": amqpErr(QueueFull, "amqp:resource-limit-exceeded"),
		"resend":     amqpErr(Resend, ""),
		"unknown":    amqpErr(Unknown, "x:odd"),
		"no device":  amqpErr(NoDevice, "amqp:not-found"),
		"refused":    amqpErr(Refused, "amqp:not-allowed"),
	}
	for name, outcome := range classes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
					if e.Device == "sick" {
						return outcome
					}
					return nil
				}))
				for i := range 100 {
					r.source.publish("COMMANDS", "cmd.sick", fmt.Sprintf("s%d", i))
					r.source.publish("COMMANDS", "cmd.well", fmt.Sprintf("w%d", i))
				}
				time.Sleep(150 * time.Millisecond)
				var well int
				for _, s := range r.sender.log() {
					if s.device == "well" {
						well++
						require.Less(t, s.at.Sub(begin), 110*time.Millisecond)
					}
				}
				require.Equal(t, 100, well)
				r.balance(t)
				r.stop()
				r.balance(t)
			})
		})
	}
}

func TestFates(t *testing.T) {
	t.Run("unknown device is a dead letter, or waits if the route says so", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			gone := newFakeSender(func(int, *mapping.Envelope) error { return amqpErr(NoDevice, "amqp:not-found") })
			r := start(t, gone)
			r.source.publish("COMMANDS", "cmd.x", "m1")
			synctest.Wait()
			time.Sleep(time.Second)
			letters := r.dead.all()
			require.Len(t, letters, 1)
			require.Equal(t, ReasonDeviceNotFound, letters[0].Reason)
			require.Equal(t, "amqp:not-found", letters[0].Condition)
			require.Equal(t, "said the hub", letters[0].Text)
			require.Equal(t, 1, letters[0].Attempts)
			require.Equal(t, map[string]string{"m1": "device-not-found"}, r.source.terms())
			r.stop()

			born := newFakeSender(func(n int, _ *mapping.Envelope) error {
				if n < 4 {
					return amqpErr(NoDevice, "amqp:not-found")
				}
				return nil
			})
			r = start(t, born, func(o *Options) { o.RetryNoDevice = []string{"r"} })
			r.source.publish("COMMANDS", "cmd.x", "m1")
			time.Sleep(time.Minute)
			require.Empty(t, r.dead.all())
			require.Equal(t, []string{"m1"}, r.source.acks())
			r.stop()
		})
	})
	t.Run("a full queue is probed with back-off, never given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
				return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
			}))
			r.source.publish("COMMANDS", "cmd.x", "m1")
			time.Sleep(time.Hour)
			n := len(r.sender.log())
			require.Greater(t, n, 60, "still probing")
			require.Less(t, n, 300, "not spinning")
			require.Empty(t, r.source.acks())
			require.Empty(t, r.dead.all())
			r.stop()
			require.EqualValues(t, 1, r.Status().Returned)
		})
	})
	t.Run("an unknown condition is tried a bounded number of times", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
				if string(e.Body) == "m1" {
					return amqpErr(Unknown, "x:odd")
				}
				return nil
			}))
			r.source.publish("COMMANDS", "cmd.x", "m1")
			r.source.publish("COMMANDS", "cmd.x", "m2")
			time.Sleep(10 * time.Minute)
			letters := r.dead.all()
			require.Len(t, letters, 1)
			require.Equal(t, ReasonUnknownCondition, letters[0].Reason)
			require.Equal(t, unknownTries, letters[0].Attempts)
			require.Equal(t, []string{"m2"}, r.source.acks(), "the lane goes on")
			r.stop()
		})
	})
	t.Run("what breaks the link is sent alone, then is dead", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var sender *fakeSender
			var alone atomic.Bool
			sender = newFakeSender(func(n int, e *mapping.Envelope) error {
				if string(e.Body) != "poison" {
					return nil
				}
				if n == 3 {
					sender.mu.Lock()
					alone.Store(sender.all == 1)
					sender.mu.Unlock()
				}
				return amqpErr(LinkLost, "")
			})
			r := start(t, sender)
			r.source.publish("COMMANDS", "cmd.p", "poison")
			for i := range 300 {
				r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
			}
			time.Sleep(time.Minute)
			require.True(t, alone.Load())
			require.Len(t, r.source.acks(), 300)
			require.Equal(t, map[string]string{"poison": "breaks-link"}, r.source.terms())
			r.stop()
		})
	})
	t.Run("expired before it could be sent never reaches the wire", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
				return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
			}), func(o *Options) { o.Mapper = bySubject{ttl: 10 * time.Second} })
			r.source.publish("COMMANDS", "cmd.x", "m1")
			time.Sleep(time.Minute)
			require.Equal(t, map[string]string{"m1": "expired"}, r.source.terms())
			for _, s := range r.sender.log() {
				require.Less(t, s.at.Sub(r.dead.all()[0].Message.Time), 10*time.Second)
			}
			r.stop()
		})
	})
	t.Run("no route, drop and a mapping error are counted fates", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(nil))
			r.source.publish("COMMANDS", "other.x", "m1")
			r.source.publish("COMMANDS", "drop.x", "m2")
			r.source.publish("COMMANDS", "bad.x", "m3")
			r.source.publish("COMMANDS", "both.x", "m4")
			time.Sleep(time.Second)
			s := r.Status()
			require.EqualValues(t, 2, s.Dropped)
			require.EqualValues(t, 1, s.Dead)
			require.EqualValues(t, 2, s.Accepted)
			require.EqualValues(t, 1, s.Expanded)
			require.Equal(t, []string{"m1", "m2", "m4"}, r.source.acks(), "two targets, one ack")
			require.Equal(t, map[string]string{"m3": "absent"}, r.source.terms())
			r.balance(t)
			r.stop()

			r = start(t, newFakeSender(nil), func(o *Options) { o.DeadUnmatched = true })
			r.source.publish("COMMANDS", "other.x", "m1")
			time.Sleep(time.Second)
			require.Equal(t, map[string]string{"m1": "no-route"}, r.source.terms())
			r.stop()
		})
	})
}

func TestHubGate(t *testing.T) {
	t.Run("throttled: sent ever slower, and faster again when the hub serves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var throttled = true
			var mu sync.Mutex
			r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
				mu.Lock()
				defer mu.Unlock()
				if throttled {
					return amqpErr(Throttled, "com.microsoft:device-container-throttled")
				}
				return nil
			}))
			for i := range 200 {
				r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
			}
			time.Sleep(10 * time.Second)
			require.LessOrEqual(t, len(r.sender.log()), 64+10, "the first window, then probes")
			require.ErrorContains(t, r.Ready(), "hub main: throttled")
			require.ErrorContains(t, r.Ready(), "device-container-throttled")
			require.Equal(t, "learned", r.Status().Hubs[0].Pace.Source)
			mu.Lock()
			throttled = false
			mu.Unlock()
			time.Sleep(10 * time.Minute)
			require.Len(t, r.source.acks(), 200)
			require.NoError(t, r.Ready())
			r.stop()
		})
	})
	t.Run("resource limit from many devices in a row is the quota: one probe a minute", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
				return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
			}))
			for i := range 20 {
				r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
			}
			time.Sleep(30 * time.Second)
			n := len(r.sender.log())
			time.Sleep(10 * time.Minute)
			require.InDelta(t, n+10, len(r.sender.log()), 1)
			require.ErrorContains(t, r.Ready(), "quota")
			r.stop()
		})
	})
	t.Run("two full devices are not the quota", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
				if strings.HasPrefix(e.Device, "full") {
					return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
				}
				return nil
			}))
			r.source.publish("COMMANDS", "cmd.full1", "f1")
			r.source.publish("COMMANDS", "cmd.full2", "f2")
			time.Sleep(10 * time.Minute)
			require.NoError(t, r.Ready())
			r.stop()
		})
	})
}

func TestDrain(t *testing.T) {
	t.Run("in flight finishes, the rest is given back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sender := newFakeSender(nil)
			sender.takes = 2 * time.Second
			r := start(t, sender)
			for i := range 10 {
				r.source.publish("COMMANDS", "cmd.a", fmt.Sprintf("a%d", i))
			}
			time.Sleep(time.Second)
			begin := time.Now()
			r.stop()
			require.Equal(t, time.Second, time.Since(begin))
			require.Equal(t, []string{"a0"}, r.source.acks())
			require.EqualValues(t, 9, r.Status().Returned)
			require.Zero(t, r.Status().Waiting)
			r.balance(t)
		})
	})
	t.Run("a send that never ends is cut off after the grace period", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sender := newFakeSender(nil)
			sender.takes = time.Hour
			r := start(t, sender)
			r.source.publish("COMMANDS", "cmd.a", "a0")
			time.Sleep(time.Second)
			begin := time.Now()
			r.stop()
			require.Equal(t, defaultGrace, time.Since(begin))
			require.Empty(t, r.source.acks())
		})
	})
	t.Run("core NATS messages are sent: nobody keeps them for us", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sender := newFakeSender(nil)
			sender.takes = time.Second
			r := start(t, sender)
			for i := range 5 {
				r.source.publish("", "cmd.a", fmt.Sprintf("a%d", i))
			}
			time.Sleep(time.Millisecond)
			r.stop()
			require.EqualValues(t, 5, r.Status().Accepted)
		})
	})
}

func TestDeadLetterStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(nil))
		r.dead.setFail(errors.New("no stream"))
		r.source.publish("COMMANDS", "bad.x", "m1")
		time.Sleep(time.Minute)
		require.Empty(t, r.source.terms(), "not settled before its dead letter is durable")
		require.ErrorContains(t, r.Ready(), "no stream")
		r.dead.setFail(nil)
		time.Sleep(time.Minute)
		require.Equal(t, map[string]string{"m1": "absent"}, r.source.terms())
		require.NoError(t, r.Ready())
		r.stop()
	})
}

func TestRequestGetsTheOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			if e.Device == "gone" {
				return amqpErr(NoDevice, "amqp:not-found")
			}
			return nil
		}))
		request := func(subject string) []Receipt {
			d := &requestDelivery{fakeDelivery: fakeDelivery{source: r.source, in: mapping.Input{Subject: subject, Payload: []byte("m"), Time: time.Now()}}, replies: make(chan []Receipt, 1)}
			r.source.in <- d
			return <-d.replies
		}
		got := request("cmd.a")
		require.Len(t, got, 1)
		require.Equal(t, "accepted", got[0].Status)
		require.Equal(t, "a", got[0].Device)
		got = request("cmd.gone")
		require.Equal(t, "dead", got[0].Status)
		require.Equal(t, "device-not-found", got[0].Reason)
		require.Equal(t, "amqp:not-found", got[0].Condition)
		require.Len(t, request("both.x"), 2)
		require.Equal(t, "no-route", request("nowhere")[0].Reason)
		r.stop()
	})
}

func TestFairAmongDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(nil), func(o *Options) { o.Hubs[0].Window = 1 })
		for i := range 1000 {
			r.source.publish("COMMANDS", "cmd.greedy", fmt.Sprintf("g%d", i))
		}
		time.Sleep(10 * time.Millisecond)
		begin := time.Now()
		r.source.publish("COMMANDS", "cmd.modest", "m")
		time.Sleep(2 * time.Second)
		for _, s := range r.sender.log() {
			if s.device == "modest" {
				require.LessOrEqual(t, s.at.Sub(begin), 2*time.Millisecond)
			}
		}
		r.stop()
	})
}

// Two entries of a list that name no device are two targets: each has its own dead letter and receipt.
func TestEntriesThatAreNoDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, err := mapping.Compile([]mapping.Route{
			{Name: "list", Subject: "cmd", Stream: "COMMANDS", Devices: "{json.to}", Allow: []string{"*"}, Receipts: true},
		}, mapping.TableOptions{Hubs: []mapping.HubOptions{{Name: "main"}}})
		require.NoError(t, err)
		w := newWorld()
		p := w.run(t, func(o *Options) { o.Mapper = table })
		w.publish("cmd", `{"to":["a b","good","a b",null]}`)
		w.quiet(t, "all have their fate")
		var targets, told []string
		for _, l := range w.letters {
			require.Empty(t, l.Device)
			targets = append(targets, l.Target)
		}
		for _, r := range w.receipts {
			if r.Status == StatusDead {
				told = append(told, r.Target)
			}
		}
		require.ElementsMatch(t, []string{"devices[0]", "devices[2]", "devices[3]"}, targets)
		require.ElementsMatch(t, targets, told)
		p.stop(t)
	})
}
