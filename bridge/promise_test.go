package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// Many devices with full queues look like a used-up quota. A device that was not refused must not
// pay for that guess, however many others are full.
func TestFullDevicesDelayNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			if strings.HasPrefix(e.Device, "full") {
				return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
			}
			return nil
		}))
		for i := range 100 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.full%d", i), fmt.Sprintf("f%d", i))
		}
		time.Sleep(5 * time.Minute)
		for i := range 20 {
			begin := time.Now()
			name := fmt.Sprintf("w%d", i)
			r.source.publish("COMMANDS", "cmd.well", name)
			time.Sleep(10 * time.Second)
			require.Contains(t, r.source.acks(), name, "10 s after %v", begin)
		}
		r.stop()
		r.balance(t)
	})
}

// However many devices are full, their probes leave the hub to the others.
func TestFullDevicesDoNotFloodTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(_ int, e *mapping.Envelope) error {
			if e.Device == "well" {
				return nil
			}
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		}), func(o *Options) { o.Hubs[0].Pace = PaceOptions{Rate: 10} })
		for i := range 1000 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.full%d", i), fmt.Sprintf("f%d", i))
		}
		time.Sleep(time.Minute)
		r.source.publish("COMMANDS", "cmd.well", "w") // not the quota, then
		time.Sleep(time.Hour)
		n := len(r.sender.log())
		time.Sleep(2 * time.Hour)
		require.InDelta(t, 7200, len(r.sender.log())-n, 1500, "a tenth of what the hub takes")
		require.Equal(t, []string{"w"}, r.source.acks())
		require.NoError(t, r.Ready())
		r.stop()
	})
}

// What is refused without asking the hub says nothing about the hub.
func TestExpiredMessagesDoNotOpenTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error {
			return amqpErr(Paused, "com.microsoft:quota-exceeded")
		}), func(o *Options) { o.Mapper = bySubject{ttl: 90 * time.Second} })
		for i := range 50 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("a%d", i))
		}
		time.Sleep(100 * time.Second)
		for i := range 300 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.e%d", i), fmt.Sprintf("b%d", i))
		}
		n := len(r.sender.log())
		time.Sleep(60 * time.Second)
		require.LessOrEqual(t, len(r.sender.log())-n, 2, "one probe a minute")
		require.Len(t, r.source.terms(), 50)
		r.stop()
	})
}

// A message that the hub has answered meanwhile did not break the link.
func TestAnAnswerClearsTheSuspicionOfBreakingTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFakeSender(func(n int, e *mapping.Envelope) error {
			switch {
			case n%3 == 0 && n < 15:
				return amqpErr(LinkLost, "")
			case n < 15:
				return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
			}
			return nil
		}))
		r.source.publish("COMMANDS", "cmd.x", "m")
		time.Sleep(time.Hour)
		require.Empty(t, r.source.terms())
		require.Equal(t, []string{"m"}, r.source.acks())
		r.stop()
	})
}

// pickyDeadLetters never stores the letters of some devices.
type pickyDeadLetters struct{ fakeDeadLetters }

func (p *pickyDeadLetters) Store(ctx context.Context, d DeadLetter) error {
	if strings.HasPrefix(d.Device, "odd") {
		return errors.New("not this one")
	}
	return p.fakeDeadLetters.Store(ctx, d)
}

// Dead letters that cannot be stored hold up nobody else's.
func TestDeadLettersDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		picky := &pickyDeadLetters{}
		r := start(t, newFakeSender(func(int, *mapping.Envelope) error { return amqpErr(NoDevice, "amqp:not-found") }),
			func(o *Options) { o.DeadLetters = picky })
		for i := range 3 * clerks {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.odd%d", i), fmt.Sprintf("o%d", i))
		}
		time.Sleep(10 * time.Minute)
		for i := range 100 {
			r.source.publish("COMMANDS", fmt.Sprintf("cmd.d%d", i), fmt.Sprintf("m%d", i))
		}
		time.Sleep(3 * time.Minute)
		require.Len(t, r.source.terms(), 100)
		r.stop()
		r.balance(t)
		require.EqualValues(t, 3*clerks, r.Status().Returned)
	})
}

// A store that is away is not flooded, however much waits for it.
func TestDeadLettersDoNotFloodAStoreThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counting := &countingDeadLetters{}
		counting.setFail(errors.New("no stream"))
		r := start(t, newFakeSender(nil), func(o *Options) { o.DeadLetters = counting })
		for i := range 4000 {
			r.source.publish("COMMANDS", "bad.x", fmt.Sprintf("m%d", i))
		}
		time.Sleep(10 * time.Minute)
		n := counting.tries()
		time.Sleep(10 * time.Minute)
		require.Less(t, counting.tries()-n, 20*clerks*2+1, "two tries a minute and worker")
		require.Greater(t, counting.tries()-n, 20)
		counting.setFail(nil)
		time.Sleep(time.Minute)
		require.Len(t, r.source.terms(), 4000)
		r.stop()
	})
}

type countingDeadLetters struct {
	fakeDeadLetters
	n int
}

func (c *countingDeadLetters) Store(ctx context.Context, d DeadLetter) error {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.fakeDeadLetters.Store(ctx, d)
}

func (c *countingDeadLetters) tries() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// A request that cannot be finished before the end is answered all the same: nobody brings it again.
func TestRequestsAreAnsweredAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newFakeSender(nil)
		sender.takes = time.Hour
		r := start(t, sender)
		var requests []*requestDelivery
		for range 3 {
			d := &requestDelivery{fakeDelivery: fakeDelivery{source: r.source, in: mapping.Input{Subject: "cmd.a", Payload: []byte("m"), Time: time.Now()}}, replies: make(chan []Receipt, 1)}
			requests = append(requests, d)
			r.source.in <- d
		}
		time.Sleep(time.Second)
		r.stop()
		for i, d := range requests {
			select {
			case got := <-d.replies:
				require.Equal(t, "dropped", got[0].Status)
				require.Equal(t, "shutdown", got[0].Reason)
			default:
				t.Fatalf("request %d: no reply", i)
			}
		}
		s := r.Status()
		require.EqualValues(t, 3, s.Dropped)
		require.Zero(t, s.Returned, "core NATS does not bring them again")
		require.Zero(t, s.Waiting)
	})
}

// leftoverSource is a source whose messages nobody keeps, such as core NATS.
type leftoverSource struct {
	*fakeSource
	once sync.Once
}

func (s *leftoverSource) Finish(context.Context) (left []Delivery) {
	s.once.Do(func() {
		for {
			select {
			case d := <-s.in:
				left = append(left, d)
			default:
				return
			}
		}
	})
	return left
}

// What has reached the process from core NATS is sent before it ends, also what was not received yet.
func TestDrainTakesWhatCoreNATSHasDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &leftoverSource{fakeSource: newFakeSource()}
		r := start(t, newFakeSender(nil), func(o *Options) {
			o.Sources = []Source{source}
			o.MaxHeld = 10
			o.Hubs[0].Window = 1
		})
		for i := range 200 {
			source.publish("", "cmd.a", fmt.Sprintf("m%d", i))
		}
		time.Sleep(5 * time.Millisecond)
		r.stop()
		require.EqualValues(t, 200, r.Status().Accepted)
		for i, s := range r.sender.log() {
			require.Equal(t, fmt.Sprintf("m%d", i), s.name)
		}
	})
}

// Whatever the hub answers, and whenever the engine is stopped: each message has one fate, is
// settled at most once and only after that fate, and each device sees its messages in order.
func TestWhateverHappens(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rnd, answers := rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8))
			var mu sync.Mutex
			accepted := map[string]int{}
			order := map[string][]string{}
			sender := newFakeSender(func(_ int, e *mapping.Envelope) error {
				mu.Lock()
				defer mu.Unlock()
				switch p := answers.IntN(200); {
				case p < 8:
					return amqpErr(Class(answers.IntN(int(Unauthorized)+1)), "x")
				case p < 12:
					return amqpErr(Throttled, "x")
				case p < 14:
					return amqpErr(LinkLost, "")
				case p < 20:
					return amqpErr(QueueFull, "x")
				}
				accepted[string(e.Body)]++
				lane := e.Device + string(e.Body[:1]) // order is kept for each source stream
				order[lane] = append(order[lane], string(e.Body))
				return nil
			})
			r := start(t, sender, func(o *Options) { o.Hubs[0].Window = 8; o.MaxHeld = 100 })
			for i := range 1000 {
				stream := "COMMANDS"
				if rnd.IntN(4) == 0 {
					stream = ""
				}
				subject := fmt.Sprintf("cmd.d%d", rnd.IntN(10))
				switch rnd.IntN(20) {
				case 0:
					subject = "bad.x"
				case 1:
					subject = "other.x"
				}
				r.source.publish(stream, subject, fmt.Sprintf("%s%04d", map[string]string{"": "c", "COMMANDS": "s"}[stream], i))
			}
			time.Sleep(time.Duration(rnd.IntN(1000)) * 50 * time.Millisecond)
			r.stop()
			s := r.Status()
			require.Zero(t, s.Waiting)
			r.balance(t)
			require.False(t, sender.overlap)
			for d, names := range order {
				for i := 1; i < len(names); i++ {
					require.Less(t, names[i-1], names[i], "device %s", d)
				}
			}
			for name, n := range accepted {
				require.Equal(t, 1, n, name)
			}
			dead := map[string]bool{}
			for _, l := range r.dead.all() {
				require.False(t, dead[string(l.Message.Payload)])
				dead[string(l.Message.Payload)] = true
			}
			settled := map[string]bool{}
			for _, a := range r.source.acks() {
				require.False(t, settled[a], a)
				settled[a] = true
			}
			for name := range r.source.terms() {
				require.False(t, settled[name], name)
				require.True(t, dead[name], name)
			}
		})
	}
}
