package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
	"downlink/bridge/emulator/journal"
)

// record is a stored message.
type record struct {
	subject  string
	sequence uint64
	at       time.Time
	header   nats.Header
	data     []byte
}

// hubCopy is one acceptance of a message by the hub, and what became of it.
type hubCopy struct {
	device    string
	sequence  uint64
	messageID string
	at        time.Time
	message   *journal.Message
	delivered []time.Time
	outcome   string // "": pending
	ended     time.Time
}

// evidence is everything durable that a run has left.
type evidence struct {
	published     []publication
	source        map[string][]record // by stream
	dead          []record            // the bridge's
	mailbox       []record
	receipts      []record
	hasReceipts   bool
	edge          []record
	edgeDead      []record
	copies        []*hubCopy // in the order in which the hub accepted them
	disturbances  []disturbance
	sourcePending map[string]int // what the consumer has not settled, by stream
}

// gather reads it all. The NATS servers must be up; the hub need not.
func (s *stage) gather(ctx context.Context) (*evidence, error) {
	e := &evidence{source: make(map[string][]record), sourcePending: make(map[string]int)}
	cloud, done, err := connect(s.url(actorNATS))
	if err != nil {
		return nil, err
	}
	defer done()
	for _, stream := range []string{streamCommands, streamAlerts} {
		if e.source[stream], _, err = read(ctx, cloud, stream); err != nil {
			return nil, err
		}
		p, err := progressOf(ctx, cloud, stream)
		if err != nil {
			return nil, err
		}
		e.sourcePending[stream] = p
	}
	if e.dead, _, err = read(ctx, cloud, streamDead); err != nil {
		return nil, err
	}
	if e.mailbox, _, err = read(ctx, cloud, streamMailbox); err != nil {
		return nil, err
	}
	if e.receipts, e.hasReceipts, err = read(ctx, cloud, streamReceipts); err != nil {
		return nil, err
	}
	edge, done, err := connect(s.url(actorEdge))
	if err != nil {
		return nil, err
	}
	defer done()
	if e.edge, _, err = read(ctx, edge, streamEdge); err != nil {
		return nil, err
	}
	for _, name := range []string{"SITE_DEAD", "SITE_AWAY_DEAD"} {
		list, _, err := read(ctx, edge, name)
		if err != nil {
			return nil, err
		}
		e.edgeDead = append(e.edgeDead, list...)
	}
	e.copies, err = readJournal(s.journal())
	return e, err
}

func connect(url string) (jetstream.JetStream, func(), error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.Timeout(askLimit))
	if err != nil {
		return nil, nil, fmt.Errorf("checker: %s: %w", url, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return js, nc.Close, nil
}

// read reads a whole stream; there is false if it does not exist.
func read(ctx context.Context, js jetstream.JetStream, name string) (all []record, there bool, err error) {
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("stream %s: %w", name, err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil, true, nil
	}
	consumer, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, true, fmt.Errorf("stream %s: %w", name, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, true, fmt.Errorf("stream %s: %w", name, err)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, true, fmt.Errorf("stream %s: %w", name, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, true, fmt.Errorf("stream %s: %w", name, err)
		}
		all = append(all, record{subject: m.Subject(), sequence: meta.Sequence.Stream, at: meta.Timestamp, header: m.Headers(), data: m.Data()})
		if meta.NumPending == 0 {
			return all, true, nil
		}
	}
}

// progressOf is how many messages of a stream the bridge has not settled.
func progressOf(ctx context.Context, js jetstream.JetStream, stream string) (int, error) {
	c, err := js.Consumer(ctx, stream, consumerName)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return 0, err
		}
		return int(s.CachedInfo().State.Msgs), nil
	}
	if err != nil {
		return 0, fmt.Errorf("consumer of %s: %w", stream, err)
	}
	info := c.CachedInfo()
	return int(info.NumPending) + info.NumAckPending, nil
}

// stored is how many messages a stream holds and has ever held; 0 if there is no such stream.
func stored(ctx context.Context, js jetstream.JetStream, name string) (now, ever uint64, err error) {
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("stream %s: %w", name, err)
	}
	return s.CachedInfo().State.Msgs, s.CachedInfo().State.LastSeq, nil
}

// readJournal reads the hub's own account.
func readJournal(path string) ([]*hubCopy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	type place struct {
		device   string
		sequence uint64
	}
	byPlace := make(map[place]*hubCopy)
	var all []*hubCopy
	for e, err := range journal.Read(f) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		at := place{e.Device, e.Sequence}
		c := byPlace[at]
		switch {
		case e.Kind == journal.Accepted && e.Message != nil:
			c = &hubCopy{device: e.Device, sequence: e.Sequence, messageID: e.Message.MessageID, at: e.At, message: e.Message}
			byPlace[at] = c
			all = append(all, c)
		case c == nil:
		case e.Kind == journal.Delivered:
			c.delivered = append(c.delivered, e.At)
		case e.Kind == journal.Ended:
			c.outcome, c.ended = e.Outcome, e.At
		}
	}
	return all, nil
}

// property is an application property of a message at the hub.
func (c *hubCopy) property(name string) string {
	for _, p := range c.message.Properties {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// origin is the source message that a stored message of the bridge is about.
type origin struct {
	stream   string
	sequence uint64
}

// originOf reads the headers that dead letters and the mailbox's entries share.
func originOf(h nats.Header) origin {
	n, _ := strconv.ParseUint(h.Get("Downlink-Seq"), 10, 64)
	return origin{h.Get("Downlink-Stream"), n}
}

// rawPayload is the body of a mailbox's entry without the line of JSON before it.
func rawPayload(data []byte) []byte {
	_, raw, _ := bytes.Cut(data, []byte{'\n'})
	return raw
}

// receiptOf reads a receipt; an error for what is none.
func receiptOf(r record) (bridge.Receipt, error) {
	var receipt bridge.Receipt
	err := json.Unmarshal(r.data, &receipt)
	if err == nil && receipt.Status == "" {
		err = errors.New("it has no status")
	}
	return receipt, err
}
