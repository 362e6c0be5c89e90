package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge/app"
)

// demo publishes on the cloud side, watches the edge and the dead letters, and
// tells what became of each message.
type demo struct {
	flags       *demoFlags
	plan        demoPlan
	show        demoShow
	cloud, edge *nats.Conn
	js          jetstream.JetStream

	arrived chan *nats.Msg // from the edge
	dead    chan *nats.Msg
	room    chan struct{} // one token for each message that is under way

	mu     sync.Mutex
	sent   map[string]*demoSent // by stream and sequence, as in the message ID
	buried map[string]bool      // by the same, what has a dead letter
}

// demoSent is one message of the cloud side.
type demoSent struct {
	subject   string
	at        time.Time
	delivered bool
	ours      bool
}

// demoWindow is how many messages are under way at once: a device's queue holds 50.
const demoWindow = 40

func openDemo(s streams, f *demoFlags, plan demoPlan, a *app.App, hub *embeddedHub) (_ *demo, err error) {
	d := &demo{
		flags: f, plan: plan,
		arrived: make(chan *nats.Msg, 1024), dead: make(chan *nats.Msg, 1024),
		room: make(chan struct{}, demoWindow), sent: make(map[string]*demoSent), buried: make(map[string]bool),
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.cloud, err = nats.Connect(a.BridgeNATSURL(), nats.Name("downlink demo"), nats.Timeout(10*time.Second)); err != nil {
		return nil, fmt.Errorf("cloud NATS: %w", err)
	}
	if d.edge, err = nats.Connect(a.RelayNATSURL(), nats.Name("downlink demo"), nats.Timeout(10*time.Second)); err != nil {
		return nil, fmt.Errorf("edge NATS: %w", err)
	}
	if d.js, err = jetstream.New(d.cloud); err != nil {
		return nil, err
	}
	for _, w := range []struct {
		conn    *nats.Conn
		subject string
		to      chan *nats.Msg
	}{{d.edge, plan.edge, d.arrived}, {d.cloud, plan.dead, d.dead}} {
		if _, err := w.conn.ChanSubscribe(w.subject, w.to); err != nil {
			return nil, fmt.Errorf("subscribe %s: %w", w.subject, err)
		}
		if err := w.conn.Flush(); err != nil {
			return nil, fmt.Errorf("subscribe %s: %w", w.subject, err)
		}
	}
	d.show = newDemoShow(s, f.asJSON, plan)
	return d, d.show.ready(newDemoReady(a, hub))
}

func (d *demo) close() {
	for _, c := range []*nats.Conn{d.cloud, d.edge} {
		if c != nil {
			c.Close()
		}
	}
}

// run ends when --count messages reached the edge, when ctx ends, or when the
// app ends by itself, which done tells.
func (d *demo) run(ctx context.Context, deadline time.Time, done <-chan struct{}) error {
	begin := time.Now()
	var timeout <-chan time.Time
	if d.flags.count > 0 {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	failed := make(chan error, 1)
	stop, _ := background(ctx, func(ctx context.Context) error {
		if err := d.publishAll(ctx); err != nil && ctx.Err() == nil {
			failed <- err
		}
		return nil
	})
	defer stop()

	delivered, dead := 0, 0
	finish := func(err error) error {
		return errors.Join(err, d.show.done(demoDone{
			OK: err == nil, Delivered: delivered, Dead: dead, ElapsedMS: milliseconds(time.Since(begin)),
		}))
	}
	// The unknown device's dead letter belongs to the show: wait for it a little, which a busy machine may need.
	var grace <-chan time.Time
	hint := time.NewTimer(10 * time.Second) // a slow start shall not withhold the commands
	defer hint.Stop()
	hints := d.flags.count == 0
	for {
		enough := d.flags.count > 0 && delivered >= d.flags.count
		if enough && dead > 0 {
			return finish(nil)
		}
		if enough && grace == nil {
			timer := time.NewTimer(10 * time.Second)
			defer timer.Stop()
			grace = timer.C
		}
		if hints && delivered >= len(d.plan.commands) && dead > 0 {
			hint.Reset(0)
		}
		select {
		case <-hint.C:
			if hints {
				hints = false
				if err := d.show.hints(); err != nil {
					return err
				}
			}
		case m := <-d.arrived:
			counted, err := d.delivery(ctx, m)
			if err != nil {
				return err
			}
			if counted {
				delivered++
			}
		case m := <-d.dead:
			counted, err := d.deadLetter(m)
			if err != nil {
				return err
			}
			if counted {
				dead++
			}
		case err := <-failed:
			return finish(err)
		case <-grace:
			return finish(nil)
		case <-timeout:
			if enough {
				return finish(nil)
			}
			return finish(fmt.Errorf("%d of %d messages reached the edge within %s", delivered, d.flags.count, d.flags.timeout))
		case <-done:
			return finish(errors.New("the bridge or the relay ended"))
		case <-ctx.Done():
			return finish(d.flags.interrupted())
		}
	}
}

// publishAll publishes the plan once, or with --count as many commands as are
// to reach the edge, and the one for the unknown device.
func (d *demo) publishAll(ctx context.Context) error {
	n := d.flags.count
	if n == 0 {
		n = len(d.plan.commands)
	}
	for i := range n {
		if i == min(2, n-1) {
			if err := d.publish(ctx, d.plan.unknown); err != nil {
				return err
			}
		}
		select {
		case d.room <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.publish(ctx, d.plan.commands[i%len(d.plan.commands)]); err != nil {
			return err
		}
	}
	return nil
}

// publish holds the lock until the message is known: its delivery may be
// faster than the publish ack.
func (d *demo) publish(ctx context.Context, c demoCommand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	msg := &nats.Msg{Subject: c.subject, Header: nats.Header{"X-User": {c.user}}, Data: []byte(c.data)}
	at := time.Now()
	ack, err := d.js.PublishMsg(ctx, msg)
	if err != nil {
		return fmt.Errorf("publish %s: %w", c.subject, err)
	}
	d.sent[messageKey(ack.Stream, ack.Sequence)] = &demoSent{subject: c.subject, at: at, ours: true}
	return d.show.published(demoPublished{
		Subject: c.subject, Stream: ack.Stream, Sequence: ack.Sequence, Headers: msg.Header, Payload: c.data,
	})
}

// delivery tells of a message at the edge; it counts if it came from the cloud
// side of this demo, and once.
func (d *demo) delivery(ctx context.Context, m *nats.Msg) (counted bool, err error) {
	at := time.Now()
	e := demoDelivered{
		EdgeSubject: m.Subject, Device: m.Header.Get("Downlink-Device"), MessageID: m.Header.Get("Downlink-Message-Id"), Headers: m.Header,
	}
	e.Payload, e.PayloadBase64 = jsonPayload(m.Data)
	if sent := d.lookup(ctx, e.MessageID); sent != nil {
		e.Subject = sent.subject
		e.LatencyMS = milliseconds(at.Sub(sent.at))
		e.Repeat = sent.delivered
		if counted = !sent.delivered; counted && sent.ours {
			<-d.room
		}
		sent.delivered = true
	}
	return counted, d.show.delivered(e)
}

// deadLetter tells of a dead letter; it counts once for each message.
func (d *demo) deadLetter(m *nats.Msg) (counted bool, err error) {
	e := demoDead{
		DeadSubject: m.Subject, Headers: m.Header,
		Subject: m.Header.Get("Downlink-Subject"), Device: m.Header.Get("Downlink-Device"), Route: m.Header.Get("Downlink-Route"),
		Reason: m.Header.Get("Downlink-Reason"), Condition: m.Header.Get("Downlink-Condition"), Text: m.Header.Get("Downlink-Text"),
	}
	e.Payload, e.PayloadBase64 = jsonPayload(m.Data)
	d.mu.Lock()
	key := m.Header.Get("Downlink-Stream") + ":" + m.Header.Get("Downlink-Seq")
	counted = !d.buried[key]
	d.buried[key] = true
	d.mu.Unlock()
	return counted, d.show.dead(e)
}

// lookup finds the cloud side's message by the ID that the bridge gave it,
// <stream>:<sequence>:<stored time>; nil if it is none of this demo's. What a
// second shell published is read from the stream.
func (d *demo) lookup(ctx context.Context, id string) *demoSent {
	parts := strings.Split(id, ":")
	if len(parts) < 3 {
		return nil
	}
	sequence, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return nil
	}
	key := messageKey(parts[0], sequence)
	d.mu.Lock()
	defer d.mu.Unlock()
	if sent := d.sent[key]; sent != nil {
		return sent
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	stream, err := d.js.Stream(ctx, parts[0])
	if err != nil {
		return nil
	}
	msg, err := stream.GetMsg(ctx, sequence)
	// A real hub may still hold messages of an earlier run, whose stream counted from 1 too.
	if err != nil || strconv.FormatInt(msg.Time.UnixNano(), 36) != parts[2] {
		return nil
	}
	sent := &demoSent{subject: msg.Subject, at: msg.Time}
	d.sent[key] = sent
	return sent
}

func messageKey(stream string, sequence uint64) string {
	return stream + ":" + strconv.FormatUint(sequence, 10)
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// properties are the headers of an edge message that are the application's own.
func properties(h nats.Header) []string {
	var list []string
	for name, values := range h {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "downlink-") || strings.HasPrefix(lower, "nats-") {
			continue
		}
		for _, v := range values {
			list = append(list, name+"="+visible(v))
		}
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return list
}
