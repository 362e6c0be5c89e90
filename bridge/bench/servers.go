package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
)

// NATSSpec is a nats-server with JetStream, as it comes: it syncs its files
// every two minutes, unlike the one that downlink embeds.
type NATSSpec struct {
	StoreDir string `json:"store_dir"`
}

func (s *NATSSpec) run(ctx context.Context, ready func(Ready)) error {
	srv, err := server.NewServer(&server.Options{
		ServerName: "bench", Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: s.StoreDir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return fmt.Errorf("nats-server: %w", err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(10 * time.Second) {
		return errors.New("nats-server: not listening after 10s")
	}
	ready(Ready{URL: srv.ClientURL()})
	<-ctx.Done()
	return nil
}

func (s *NATSSpec) count() int { return 0 }

// HubSpec is an embedded hub.
type HubSpec struct {
	DataDir string `json:"data_dir"`
	// Devices are registered, and counted; AnyDevice takes all others too.
	Devices   []string `json:"devices,omitempty"`
	AnyDevice bool     `json:"any_device,omitempty"`
	// Virtual and Faults are as downlink hub's flags take them.
	Virtual []string `json:"virtual,omitempty"`
	Faults  []string `json:"faults,omitempty"`
	Credit  int      `json:"credit"`
	// Units of tier S3, 83.3 C2D messages a second each, that the hub is throttled to; 0: it is not.
	Units int `json:"units,omitempty"`
	// History is how many messages its log remembers; 0: as few as possible.
	History int `json:"history,omitempty"`
}

// open starts the hub.
func (s *HubSpec) open() (*emulator.Hub, Address, error) {
	o := emulator.Options{
		DataDir: s.DataDir, Devices: s.Devices, AnyDevice: s.AnyDevice, History: max(1, s.History),
		AMQP: amqpd.Behaviour{Credit: uint32(s.Credit)}, Faults: &fault.Injector{},
	}
	if s.Units > 0 {
		o.Throttle = throttle.Options{Tier: throttle.S3, Units: s.Units, Burst: 200 * time.Millisecond}
	}
	for _, text := range s.Virtual {
		r, err := virtual.Parse(text)
		if err != nil {
			return nil, Address{}, err
		}
		o.Virtual = append(o.Virtual, r)
	}
	for _, text := range s.Faults {
		r, err := fault.Parse(text)
		if err != nil {
			return nil, Address{}, err
		}
		o.Faults.Script(r)
	}
	hub, err := emulator.Start(o)
	if err != nil {
		return nil, Address{}, err
	}
	service, err := hub.ConnectionString("service")
	if err != nil {
		return nil, Address{}, errors.Join(err, hub.Close())
	}
	return hub, Address{AMQP: hub.AMQPAddr(), ConnectionString: service, CAFile: hub.CAFile()}, nil
}

// hubPart is a hub of its own process, which counts what it accepted.
type hubPart struct {
	HubSpec
	hub *emulator.Hub
}

func (h *hubPart) run(ctx context.Context, ready func(Ready)) error {
	hub, address, err := h.open()
	if err != nil {
		return err
	}
	h.hub = hub
	ready(Ready{Hub: address})
	<-ctx.Done()
	return hub.Close()
}

func (h *hubPart) count() int { return accepted(h.hub, h.Devices) }

// accepted is how many messages the hub has taken for these devices.
func accepted(hub *emulator.Hub, devices []string) int {
	n := 0
	for _, d := range devices {
		n += int(hub.Counts(d).Accepted)
	}
	return n
}
