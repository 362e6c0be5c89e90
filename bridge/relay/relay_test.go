package relay_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/relay"
	"downlink/mapping"
)

func TestPipelinedInOrder(t *testing.T) {
	inBubble(t, 10, 100*time.Millisecond, nil, func(t *testing.T, b *bed) {
		start := time.Now()
		b.device.sendN(100)
		for len(b.device.pubacks()) < 100 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait() // the last PUBACK comes at such an instant, and is counted after it
		}
		require.Equal(t, numbers(100), b.server.ids())
		require.Equal(t, numbers(100), b.device.pubacks())
		require.Equal(t, 10, b.server.counts().most)
		require.InDelta(t, time.Second, time.Since(start), float64(50*time.Millisecond), "10 at a time, not one")
		s := b.Stats()
		require.Equal(t, relay.Stats{Received: 100, Published: 100, Acked: 100, LastActivity: s.LastActivity}, s)
		require.False(t, s.LastActivity.IsZero())
	})
}

func TestNoPubackBeforeTheServerHasIt(t *testing.T) {
	inBubble(t, 10, time.Second, nil, func(t *testing.T, b *bed) {
		b.device.sendN(3)
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		require.Empty(t, b.device.pubacks())
		require.Equal(t, 3, b.Stats().InFlight)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, numbers(3), b.device.pubacks())
	})
}

func TestUnmappable(t *testing.T) {
	inBubble(t, 10, time.Millisecond, nil, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "a"})
		b.device.send(&mapping.C2D{MessageID: "unmappable", Topic: "devices/d1/messages/devicebound/x=1", Body: []byte("whole"), Properties: []mapping.Property{{Name: "x", Value: "1"}}})
		b.device.send(&mapping.C2D{MessageID: "b"})
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a", "unmappable", "b"}, b.device.pubacks())
		var dead *mapping.Publication
		for _, p := range b.server.publications() {
			if strings.HasPrefix(p.Subject, "downlink.dead.") {
				require.Nil(t, dead)
				dead = p
			}
		}
		require.NotNil(t, dead)
		require.Equal(t, "downlink.dead.bad-subject.d1", dead.Subject)
		require.Equal(t, "whole", string(dead.Data))
		require.Equal(t, []string{"1"}, dead.Header["Downlink-Orig-x"])
		require.Equal(t, []string{"route relay: publish.subject: token 2 is empty"}, dead.Header["Downlink-Text"])
		s := b.Stats()
		require.EqualValues(t, 3, s.Received)
		require.EqualValues(t, 2, s.Published)
		require.EqualValues(t, 1, s.Dead)
		require.EqualValues(t, 3, s.Acked)
		require.NoError(t, b.Ready())
	})
}

func TestRefusedByTheServer(t *testing.T) {
	inBubble(t, 4, 10*time.Millisecond, func(b *bed, o *relay.Options) {
		o.Name = "plant"
		b.server.verdict = func(p *mapping.Publication) error {
			if p.Subject == "edge.d1" && p.ID == "1" {
				return refused(mapping.ReasonTooLarge)
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.sendN(5)
		time.Sleep(15 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, []string{"0"}, b.device.pubacks(), "the others wait behind the dead letter")
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, numbers(5), b.device.pubacks())
		require.Len(t, b.server.publications(), 5)
		var subjects []string
		for _, p := range b.server.publications() {
			subjects = append(subjects, p.Subject)
		}
		require.Contains(t, subjects, "plant.dead.too-large.d1")
	})
}

// A dead letter that is itself too large loses first most of its body, then everything but the reason.
func TestDeadLetterIsCut(t *testing.T) {
	body := []byte(strings.Repeat("x", 5000))
	for _, test := range []struct {
		name      string
		limit     int
		wantBody  int
		truncated []string
		topic     bool
	}{
		{"whole", 8000, 5000, nil, true},
		{"cut", 2000, 1024, []string{"true"}, true},
		{"bare", 400, 0, []string{"true"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, 4, time.Millisecond, func(b *bed, o *relay.Options) {
				b.server.verdict = func(p *mapping.Publication) error {
					size := len(p.Data)
					for name, values := range p.Header {
						size += len(name) + len(values[0]) + 4
					}
					if p.Subject == "edge.d1" || size > test.limit {
						return refused(mapping.ReasonTooLarge)
					}
					return nil
				}
			}, func(t *testing.T, b *bed) {
				topic := "devices/d1/messages/devicebound/" + strings.Repeat("y", 300)
				b.device.send(&mapping.C2D{MessageID: "m", Topic: topic, Body: body})
				time.Sleep(time.Second)
				synctest.Wait()
				require.Len(t, b.server.publications(), 1)
				dead := b.server.publications()[0]
				require.Len(t, dead.Data, test.wantBody)
				require.Equal(t, test.truncated, dead.Header["Downlink-Truncated"])
				require.Equal(t, test.topic, dead.Header["Downlink-Topic"] != nil)
				require.Equal(t, []string{"m"}, dead.Header["Downlink-Message-Id"])
				require.Equal(t, []string{"m"}, b.device.pubacks())
			})
		})
	}
}

func TestDeadLetterCannotBeStored(t *testing.T) {
	var blocked atomic.Bool
	blocked.Store(true)
	inBubble(t, 4, time.Millisecond, func(b *bed, o *relay.Options) {
		b.server.verdict = func(p *mapping.Publication) error {
			if strings.HasPrefix(p.Subject, "downlink.dead.") && blocked.Load() {
				return &bridge.Error{Class: bridge.Refused, Op: "publish", Reason: "no-permission", Err: errors.New("not permitted")}
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "unmappable", Body: []byte("body")})
		b.device.send(&mapping.C2D{MessageID: "b"})
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.ErrorContains(t, b.Ready(), "dead letters cannot be stored on downlink.dead.>")
		require.ErrorContains(t, b.Ready(), "not permitted")
		require.Equal(t, []string{"b"}, b.server.ids(), "later messages are published")
		require.Empty(t, b.device.pubacks(), "but nothing is completed before the first has its fate")
		require.Less(t, b.server.counts().tries, 100, "no hot loop")
		blocked.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.NoError(t, b.Ready())
		require.Equal(t, []string{"unmappable", "b"}, b.device.pubacks())
		dead := b.server.publications()[1]
		require.Equal(t, "body", string(dead.Data), "whole: size was not the reason")
	})
}

func TestDeadLetterGivenUp(t *testing.T) {
	inBubble(t, 4, time.Millisecond, func(b *bed, o *relay.Options) {
		b.server.verdict = func(p *mapping.Publication) error {
			if strings.HasPrefix(p.Subject, "downlink.dead.") {
				return refused("")
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "unmappable"})
		b.device.send(&mapping.C2D{MessageID: "b"})
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		require.Empty(t, b.device.pubacks())
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"unmappable", "b"}, b.device.pubacks())
		require.EqualValues(t, 1, b.Stats().Lost)
	})
}

func TestDeadLettersElsewhere(t *testing.T) {
	inBubble(t, 4, time.Millisecond, func(b *bed, o *relay.Options) {
		o.DeadLetters = o.Publisher
		o.Publisher = &server{refuse: func(int) error { return errors.New("not for dead letters") }}
		o.Map = failing{}
	}, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "a"})
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, "downlink.dead.refused.d1", b.server.publications()[0].Subject)
	})
}

type failing struct{}

func (failing) Map(*mapping.C2D) (mapping.Publication, error) {
	return mapping.Publication{}, errors.New("no reason given")
}

func TestDrain(t *testing.T) {
	inBubble(t, 2, time.Second, nil, func(t *testing.T, b *bed) {
		b.device.sendN(10)
		time.Sleep(500 * time.Millisecond) // two in flight, the third waits for the window
		synctest.Wait()
		start := time.Now()
		b.stop(t)
		require.Equal(t, numbers(3), b.device.pubacks(), "what was received is finished, no more is received")
		require.Equal(t, 1500*time.Millisecond, time.Since(start))
		require.Len(t, b.device.messages, 7)
		require.Zero(t, b.Stats().InFlight)
	})
}

func TestDrainWithinGrace(t *testing.T) {
	inBubble(t, 2, time.Hour, func(_ *bed, o *relay.Options) { o.Grace = 3 * time.Second }, func(t *testing.T, b *bed) {
		b.device.sendN(10)
		synctest.Wait()
		start := time.Now()
		b.stop(t)
		require.Equal(t, 3*time.Second, time.Since(start))
		require.Empty(t, b.device.pubacks())
	})
}

func TestDrainOfABurial(t *testing.T) {
	inBubble(t, 2, time.Millisecond, func(b *bed, o *relay.Options) {
		o.Grace = time.Second
		b.server.verdict = func(*mapping.Publication) error { return refused("") }
	}, func(t *testing.T, b *bed) {
		b.device.sendN(1)
		time.Sleep(time.Minute)
		start := time.Now()
		b.stop(t)
		require.Equal(t, time.Second, time.Since(start))
		require.Empty(t, b.device.pubacks(), "the hub sends it again")
	})
}

func TestIdleRelayStopsAtOnce(t *testing.T) {
	inBubble(t, 2, time.Millisecond, nil, func(t *testing.T, b *bed) {
		synctest.Wait()
		start := time.Now()
		b.stop(t)
		require.Zero(t, time.Since(start))
	})
}

func TestRepeats(t *testing.T) {
	inBubble(t, 10, time.Second, nil, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "a"})
		b.device.send(&mapping.C2D{MessageID: "b"})
		again := b.device.send(&mapping.C2D{MessageID: "a"}) // while the first is in flight
		synctest.Wait()
		require.False(t, again.done(), "shares the first one's fate")
		time.Sleep(time.Second)
		synctest.Wait()
		require.True(t, again.done())
		later := b.device.send(&mapping.C2D{MessageID: "b"}) // after it
		b.device.send(&mapping.C2D{MessageID: ""})           // without an ID nothing is a repeat
		b.device.send(&mapping.C2D{MessageID: ""})
		synctest.Wait()
		require.True(t, later.done())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "", ""}, b.server.ids())
		require.Equal(t, []string{"a", "b", "a", "b", "", ""}, b.device.pubacks())
		s := b.Stats()
		require.EqualValues(t, 6, s.Received)
		require.EqualValues(t, 4, s.Published)
		require.EqualValues(t, 2, s.Repeats)
		require.EqualValues(t, 6, s.Acked)

		time.Sleep(49 * time.Hour) // an ID does not stand for ever
		b.device.send(&mapping.C2D{MessageID: "a"})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 5, b.Stats().Published)
	})
}

func TestRepeatOfADeadLetter(t *testing.T) {
	inBubble(t, 10, time.Second, nil, func(t *testing.T, b *bed) {
		for range 2 {
			b.device.send(&mapping.C2D{MessageID: "unmappable"})
			time.Sleep(3 * time.Second)
		}
		synctest.Wait()
		require.Len(t, b.server.publications(), 1)
		require.Len(t, b.device.pubacks(), 2)
	})
}

func TestGivenUpIsPublishedAgain(t *testing.T) {
	given := 0
	inBubble(t, 10, time.Millisecond, func(b *bed, _ *relay.Options) {
		b.server.verdict = func(p *mapping.Publication) error {
			if p.ID == "1" && given < 3 {
				given++
				return errors.New("connection closed")
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.sendN(3)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.ElementsMatch(t, numbers(3), b.server.ids())
		require.Equal(t, numbers(3), b.device.pubacks())
	})
}

func TestPublishFailsForAWhile(t *testing.T) {
	inBubble(t, 10, time.Millisecond, func(b *bed, _ *relay.Options) {
		b.server.refuse = func(try int) error {
			switch {
			case try <= 3:
				return errors.New("not now")
			case try == 6: // the message with ID 2
				return refused(mapping.ReasonTooLarge)
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.sendN(4)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, numbers(4), b.device.pubacks())
		require.EqualValues(t, 1, b.Stats().Dead)
		var edge []string
		for _, p := range b.server.publications() {
			if p.Subject == "edge.d1" {
				edge = append(edge, p.ID)
			}
		}
		require.Equal(t, []string{"0", "1", "3"}, edge, "a failure before acceptance keeps the order")
	})
}

func TestReceiverFails(t *testing.T) {
	r, err := relay.New(relay.Options{Device: "d1", Receiver: broken{}, Publisher: &server{}, Map: plain{}})
	require.NoError(t, err)
	require.ErrorContains(t, r.Run(t.Context()), "relay: receive: out of order")
	require.ErrorContains(t, r.Run(t.Context()), "called before")
}

type broken struct{}

func (broken) Receive(context.Context) (relay.Message, error) {
	return nil, errors.New("out of order")
}

func TestNewRefuses(t *testing.T) {
	good := relay.Options{Device: "d1", Receiver: broken{}, Publisher: &server{}, Map: plain{}}
	for _, test := range []struct {
		want   string
		change func(*relay.Options)
	}{
		{"device is empty", func(o *relay.Options) { o.Device = "" }},
		{"required", func(o *relay.Options) { o.Receiver = nil }},
		{"required", func(o *relay.Options) { o.Publisher = nil }},
		{"required", func(o *relay.Options) { o.Map = nil }},
		{"grace -1s is negative", func(o *relay.Options) { o.Grace = -time.Second }},
	} {
		o := good
		test.change(&o)
		_, err := relay.New(o)
		require.ErrorContains(t, err, test.want)
	}
}

func TestMetricsAreShared(t *testing.T) {
	registry := prometheus.NewRegistry()
	use := func(_ *bed, o *relay.Options) { o.Registerer = registry }
	for range 2 {
		inBubble(t, 10, time.Millisecond, use, func(t *testing.T, b *bed) {
			b.device.sendN(3)
			time.Sleep(time.Second)
			synctest.Wait()
		})
	}
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 1)
	require.Equal(t, "downlink_relay_messages_total", families[0].GetName())
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	require.Equal(t, map[string]float64{"received": 6, "published": 6, "acked": 6, "dead": 0, "repeat": 0, "lost": 0}, got)

	taken := prometheus.NewRegistry()
	taken.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "downlink_relay_messages_total", Help: "Another."}))
	_, err = relay.New(relay.Options{Device: "d1", Receiver: broken{}, Publisher: &server{}, Map: plain{}, Registerer: taken})
	require.ErrorContains(t, err, "relay: metrics")
}

// The hour counts from the first refusal, not from the beginning of an outage before it.
func TestDeadLetterIsNotGivenUpForAnOutage(t *testing.T) {
	var refusals atomic.Int32
	inBubble(t, 4, 2*time.Hour, func(b *bed, o *relay.Options) {
		b.server.verdict = func(p *mapping.Publication) error {
			if refusals.Add(1) == 1 {
				return &bridge.Error{Class: bridge.Refused, Op: "publish", Reason: "no-permission", Err: errors.New("not permitted")}
			}
			return nil
		}
	}, func(t *testing.T, b *bed) {
		b.device.send(&mapping.C2D{MessageID: "unmappable"})
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.EqualValues(t, 1, refusals.Load())
		require.Empty(t, b.device.pubacks())
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"unmappable"}, b.device.pubacks())
		require.Zero(t, b.Stats().Lost)
		require.Len(t, b.server.publications(), 1)
	})
}
