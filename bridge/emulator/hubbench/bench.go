// Package hubbench measures how fast the embedded hub takes messages, beside a
// sink that accepts everything, in one process and one run: the sender, TLS and
// the loopback cost the same on both sides, so that the ratio says what the hub
// costs and the rates alone say little.
package hubbench

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/amqpsink"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/spread"
)

// Options say what to measure. Zero values have defaults.
type Options struct {
	Messages int // of one leg; default 50,000
	Pairs    int // legs to the sink and to the hub; default 11
	Senders  int // connections that send at once; default 1
	Window   int // sends of one connection that wait for their answer; default 512
	Size     int // bytes of a body; default 256
	Devices  int // devices that the messages go to in turn; default 1000
	// Credit is what the hub and the sink grant a sender, both topped up at half; default 1000. Less than
	// Window narrows that, and the hub's own default is 100.
	Credit int
	// Progress is told after each pair; nil is fine.
	Progress func(Pair)
}

// Pair is one leg to each, in messages a second.
type Pair struct {
	Hub   float64 `json:"hub_per_second"`
	Sink  float64 `json:"sink_per_second"`
	Ratio float64 `json:"ratio"`
}

// Result is what was measured.
type Result struct {
	Messages int    `json:"messages"`
	Senders  int    `json:"senders"`
	Window   int    `json:"window"`
	Size     int    `json:"body_bytes"`
	Devices  int    `json:"devices"`
	Credit   int    `json:"credit"`
	Pairs    []Pair `json:"pairs"`
	// Ratio is the median of the pairs' ratios, Lowest and Highest their spread.
	Ratio   float64 `json:"ratio"`
	Lowest  float64 `json:"ratio_lowest"`
	Highest float64 `json:"ratio_highest"`
	Hub     float64 `json:"hub_per_second"`  // median
	Sink    float64 `json:"sink_per_second"` // median
}

// Check fills in defaults, and names the first option that is out of range.
func (o *Options) Check() error {
	for _, f := range []struct {
		name   string
		value  *int
		normal int
		most   int
	}{
		{"messages", &o.Messages, 50_000, 100_000_000}, {"pairs", &o.Pairs, 11, 1000}, {"senders", &o.Senders, 1, 256},
		{"window", &o.Window, 512, 65536}, {"size", &o.Size, 256, 60_000}, {"devices", &o.Devices, 1000, 1_000_000}, {"credit", &o.Credit, 1000, 1 << 20},
	} {
		if *f.value == 0 {
			*f.value = f.normal
		}
		if *f.value < 1 || *f.value > f.most {
			return fmt.Errorf("%s: %d is not from 1 to %d", f.name, *f.value, f.most)
		}
	}
	// A device's queue takes 50 messages, and while virtual devices complete at once, they are not ahead of time.
	if room := o.Devices * 25; o.Senders*o.Window > room {
		return fmt.Errorf("devices: %d are too few for %d messages in flight: take %d", o.Devices, o.Senders*o.Window, o.Senders*o.Window/25+1)
	}
	return nil
}

// Run measures. Every message must be accepted, and completed by a virtual
// device of the hub; anything else is an error. It returns early with ctx's error.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	devices := make([]string, o.Devices)
	for i := range devices {
		devices[i] = fmt.Sprintf("d%d", i)
	}
	hub, err := emulator.Start(emulator.Options{Devices: devices, Virtual: []virtual.Rule{{Pattern: "*"}}, History: 1, AMQP: amqpd.Behaviour{Credit: uint32(o.Credit)}})
	if err != nil {
		return nil, err
	}
	defer hub.Close()
	sink, sinkAddr, err := startSink(hub, uint32(o.Credit))
	if err != nil {
		return nil, err
	}
	defer sink.Close()
	policy, err := hub.ConnectionString("service")
	if err != nil {
		return nil, err
	}
	target, err := NewTarget(hub.AMQPAddr(), policy, hub.RootCAs())
	if err != nil {
		return nil, err
	}
	toHub := leg{Options: o, target: target, devices: devices}
	toSink := toHub
	toSink.target.address = sinkAddr

	r := &Result{Messages: o.Messages, Senders: o.Senders, Window: o.Window, Size: o.Size, Devices: o.Devices, Credit: o.Credit}
	warm := min(o.Messages, 20_000) // what is slow the first time is not what is measured
	for i := range o.Pairs + 1 {
		legs := []leg{toSink, toHub}
		if i == 0 {
			legs[0].Messages, legs[1].Messages = warm, warm
		}
		rates := make([]float64, 2)
		for k := range legs {
			which := (k + i) % 2 // each goes first in turn
			if rates[which], err = legs[which].run(ctx); err != nil {
				return nil, fmt.Errorf("sending to the %s: %w", []string{"sink", "hub"}[which], err)
			}
		}
		if i == 0 {
			continue
		}
		p := Pair{Hub: rates[1], Sink: rates[0], Ratio: rates[1] / rates[0]}
		r.Pairs = append(r.Pairs, p)
		if o.Progress != nil {
			o.Progress(p)
		}
	}
	if err := completed(ctx, hub, devices, warm+o.Pairs*o.Messages); err != nil {
		return nil, err
	}
	r.summarize()
	return r, nil
}

func (r *Result) summarize() {
	ratio := spread.Each(r.Pairs, func(p Pair) float64 { return p.Ratio })
	r.Ratio, r.Lowest, r.Highest = ratio.Median, ratio.Lowest, ratio.Highest
	r.Hub = spread.Each(r.Pairs, func(p Pair) float64 { return p.Hub }).Median
	r.Sink = spread.Each(r.Pairs, func(p Pair) float64 { return p.Sink }).Median
}

// completed waits until the virtual devices have taken all messages.
func completed(ctx context.Context, hub *emulator.Hub, devices []string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for {
		n := 0
		for _, d := range devices {
			n += int(hub.Counts(d).Completed)
		}
		if n == want {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("the hub's devices completed %d of %d messages", n, want)
		}
	}
}

// startSink starts the sink behind TLS with a certificate of the hub's.
func startSink(hub *emulator.Hub, credit uint32) (*amqpsink.Sink, string, error) {
	id, err := identity.Open(filepath.Dir(hub.CAFile()))
	if err != nil {
		return nil, "", err
	}
	certificate, err := id.Certificate([]string{hub.Hostname()})
	if err != nil {
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	s := &amqpsink.Sink{Credit: credit}
	secured := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	go func() { _ = s.Serve(secured) }()
	return s, l.Addr().String(), nil
}
