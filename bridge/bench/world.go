package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	bridgeName     = "bench"
	bridgeConsumer = "downlink-bench" // what app calls the durable of a bridge of that name
	trace          = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

func deviceID(i int) string { return "berlin-d" + strconv.Itoa(i) }

func deviceIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = deviceID(i)
	}
	return ids
}

// world is a NATS server in a process of its own, and this process's connection to it.
type world struct {
	command Command
	dir     string
	nats    *process
	nc      *nats.Conn
	js      jetstream.JetStream
	streams int
}

// connectLimit is how long a NATS server may take to answer a client, on a busy machine.
const connectLimit = 30 * time.Second

func newWorld(ctx context.Context, command Command) (_ *world, err error) {
	w := &world{command: command}
	if w.dir, err = os.MkdirTemp("", "downlink-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.nats, err = command.start(ctx, Spec{Part: "nats", NATS: &NATSSpec{StoreDir: filepath.Join(w.dir, "nats")}}); err != nil {
		return nil, err
	}
	if w.nc, err = nats.Connect(w.nats.ready.URL, nats.MaxReconnects(0), nats.Timeout(connectLimit)); err != nil {
		return nil, err
	}
	w.js, err = jetstream.New(w.nc, jetstream.WithPublishAsyncMaxPending(4096))
	return w, err
}

func (w *world) close() {
	if w.nc != nil {
		w.nc.Close()
	}
	if w.nats != nil {
		_ = w.nats.stop()
	}
	_ = os.RemoveAll(w.dir)
}

// stream makes an empty one of its own for one run.
func (w *world) stream(ctx context.Context, storage jetstream.StorageType) (string, error) {
	w.streams++
	name := "BENCH" + strconv.Itoa(w.streams)
	_, err := w.js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{strings.ToLower(name) + ".>"}, Storage: storage})
	return name, err
}

// command is one message of a stream for a device, such as d7.
func newCommand(stream, device string, body []byte) *nats.Msg {
	return &nats.Msg{Subject: strings.ToLower(stream) + ".berlin." + device + ".reboot", Data: body, Header: nats.Header{
		"X-User": {"ann"}, "X-Trace": {trace}, "Correlation-Id": {"c-1"},
	}}
}

// fill publishes n messages, to the devices in turn, and waits until the stream has them all.
func (w *world) fill(ctx context.Context, stream string, n int, size int, device func(int) string) error {
	body := bytes.Repeat([]byte("x"), size)
	for i := range n {
		if _, err := w.js.PublishMsgAsync(newCommand(stream, device(i), body), jetstream.WithStallWait(time.Minute), jetstream.WithRetryAttempts(10)); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if i%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	select {
	case <-w.js.PublishAsyncComplete():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s, err := w.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	if have := s.CachedInfo().State.LastSeq; have < uint64(n) {
		return fmt.Errorf("stream %s has %d of %d messages", stream, have, n)
	}
	return nil
}

func inTurn(devices int) func(int) string {
	return func(i int) string { return "d" + strconv.Itoa(i%devices) }
}

// settled waits until a consumer has nothing left to deliver and nothing unacked.
func (w *world) settled(ctx context.Context, stream, consumer string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the last messages were not acked"))
	defer cancel()
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		c, err := w.js.Consumer(ctx, stream, consumer)
		if err != nil {
			return false, err
		}
		i := c.CachedInfo()
		return i.NumPending == 0 && i.NumAckPending == 0, nil
	})
}

// poll asks again and again until done or an error; ctx's cause when that ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := done()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// bridgeConfig is the configuration of the bridge that is measured: three headers
// mapped, as the minimal loop does it by hand. rate is the hub's; 0: learned,
// which is as fast as it goes unless the hub throttles.
func bridgeConfig(nats string, hub Address, window, rate int, stream, messageID string) string {
	pace := ""
	if rate > 0 {
		pace = fmt.Sprintf(", rate: %d", rate)
	}
	if messageID != "" {
		messageID = fmt.Sprintf(", message_id: '{header[%q]}'", messageID)
	}
	return fmt.Sprintf(`
version: 1
http: "off"
bridge:
  name: %s
  nats: {url: [%q]}
  hubs:
    - {name: main, connection_string: %q, amqp_address: %q, ca_file: %q, window: %d%s}
  routes:
    - name: commands
      subject: "%s.{site}.{device}.{verb}"
      stream: %s
      start: all
      device: "{site}-{device}"
      message: {correlation_id: '{header["Correlation-Id"]}'%s}
      properties:
        - {name: verb, value: "{verb}"}
        - {headers: "X-*"}
`, bridgeName, nats, hub.ConnectionString, hub.AMQP, hub.CAFile, window, pace, strings.ToLower(stream), stream, messageID)
}
