package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
)

const (
	pullBatch = 256
	pinHeader = "Nats-Pin-Id"
)

// puller is the pull loop of a JetStreamSource. nats.go's own one takes a message without payload that
// has a Status header for the server's word, ends when the consumer is deleted, and hides which pin a
// message came under; here the reply subject, which only the server sets, tells messages from
// statuses. All of it runs on one goroutine.
type puller struct {
	s    *JetStreamSource
	at   attachment
	inbx string
	sub  *nats.Subscription
	msgs chan *nats.Msg

	ctx        context.Context // of run
	tenure     *tenure         // the one that is pulled for; always nil without a lease
	pulling    bool
	draining   bool
	pin        string
	generation int // of requests; statuses of an older one are stale
	remaining  int // messages asked for and not yet delivered
	activity   time.Time
	heard      time.Time // the server's latest word of any kind
	arrival    time.Time // of the latest message
	asked      time.Time // for the position
	asking     bool

	retry    *backoff.ExponentialBackOff
	attaches chan attachResult
	answers  chan answer
	warned   string // the failure logged last
}

type attachResult struct {
	attached
	tenure *tenure
	err    error
}

type answer struct {
	epoch    uint64
	position position
	err      error
}

func newPuller(s *JetStreamSource) (*puller, error) {
	p := &puller{
		s: s, at: attachment{o: &s.o, start: s.start, time: s.time},
		retry:    newBackOff(),
		attaches: make(chan attachResult, 1), answers: make(chan answer, 1),
	}
	if s.o.Lease != nil {
		return p, nil // when a term begins
	}
	return p, p.subscribe()
}

// subscribe makes room for deliveries that nothing pulled before can get into.
func (p *puller) subscribe() (err error) {
	p.inbx = p.s.o.Conn.nc.NewInbox()
	// Never full: the server has at most MaxAckPending messages under way, redeliveries of
	// what is held aside.
	p.msgs = make(chan *nats.Msg, 2*p.s.o.MaxAckPending+4*pullBatch)
	p.sub, err = p.s.o.Conn.nc.ChanSubscribe(p.inbx+".*", p.msgs)
	return err
}

// unsubscribe ends all deliveries. Without interest the server gives nothing more.
func (p *puller) unsubscribe() {
	if p.sub != nil {
		_ = p.sub.Unsubscribe()
	}
}

// begin starts to pull for a new owner, if there is one.
func (p *puller) begin() (lost <-chan struct{}) {
	p.s.mu.Lock()
	t := p.s.tenure
	p.s.mu.Unlock()
	p.end()
	if t == nil || p.draining {
		return nil
	}
	if err := p.subscribe(); err != nil { // the connection is closed
		p.detach(err)
		return nil
	}
	p.tenure = t
	return t.lost
}

// end stops to pull and forgets what came of it.
func (p *puller) end() {
	p.unsubscribe()
	p.tenure, p.sub, p.msgs, p.pin, p.pulling = nil, nil, nil, "", false
	p.reset()
}

// collect takes what is still on its way to us, so that it can be given back: what the server sends
// to nobody waits for the end of its AckWait.
func (p *puller) collect() {
	if p.s.o.Lease == nil || p.sub == nil || !p.s.o.Conn.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), releaseTimeout)
	defer cancel()
	p.at.unpin(ctx) // no request of ours gets anything more
	for ctx.Err() == nil {
		p.takeArrived()
		pos, err := p.at.position(ctx)
		if err != nil || pos.pending <= p.s.heldNow() || sleep(ctx, collectPoll) != nil {
			break
		}
	}
	if p.sub.Drain() == nil && p.s.o.Conn.nc.FlushWithContext(ctx) == nil {
		p.takeArrived()
	}
}

const collectPoll = 20 * time.Millisecond

func (p *puller) takeArrived() {
	for {
		select {
		case m := <-p.msgs:
			if _, err := m.Metadata(); err == nil { // and no status: that we are not pinned any more is our own doing
				p.handle(m)
			}
		default:
			return
		}
	}
}

func (p *puller) run(ctx context.Context) {
	p.ctx = ctx
	reconnected, stop := p.s.o.Conn.notify()
	defer stop()
	defer p.unsubscribe()
	tick := time.NewTicker(p.s.time.ask)
	defer tick.Stop()
	again := time.NewTimer(0) // attach now
	defer again.Stop()
	var lost <-chan struct{}

	drained := p.s.drained
	attaching, anew := false, false
	for {
		select {
		case <-ctx.Done():
			if attaching {
				<-p.attaches // ctx ends it
			}
			if p.asking {
				<-p.answers
			}
			p.collect()
			return
		case <-p.s.own:
			if lost = p.begin(); lost != nil {
				again.Reset(0)
			}
		case <-lost:
			lost = nil
			p.s.mu.Lock()
			p.s.disown(p.tenure)
			p.s.mu.Unlock()
			p.end()
		case <-drained:
			drained = nil
			p.pulling, p.draining = false, true
			if p.s.o.Lease == nil {
				p.unsubscribe()
			}
		case m := <-p.msgs:
			if p.handle(m) {
				again.Reset(p.retry.NextBackOff())
			}
		case <-reconnected:
			// The stream behind the same name may be another one now; look before acking anything.
			p.detach(nil)
			again.Reset(0)
		case <-again.C:
			if p.s.o.Lease != nil && p.tenure == nil {
				continue
			}
			if attaching {
				anew = true
				continue
			}
			attaching, anew = true, false
			go p.attach(ctx, p.tenure)
		case r := <-p.attaches:
			attaching = false
			if wait, ok := p.attached(r); !ok {
				again.Reset(wait)
			}
			if anew {
				again.Reset(0)
			}
		case a := <-p.answers:
			p.asking = false
			p.answered(a)
		case now := <-tick.C:
			p.tick(now)
		}
		if p.pulling {
			p.pull()
		}
	}
}

func (p *puller) attach(ctx context.Context, t *tenure) {
	p.s.mu.Lock()
	first := p.s.barrier.next == 0 // in this tenure
	resume := p.s.barrier.resume()
	if first {
		resume = max(resume, p.s.resume)
	}
	p.s.mu.Unlock()
	got, err := p.at.attach(ctx, resume)
	if err == nil && t != nil && first && got.position.pin != "" {
		// Whoever is pinned has lost the lease, or does not know of it. Its pin need not run out.
		p.at.unpin(ctx)
		got.position, err = p.at.position(ctx)
	}
	p.attaches <- attachResult{got, t, err}
}

// attached starts pulling, or says how long to wait before the next try.
func (p *puller) attached(r attachResult) (time.Duration, bool) {
	s := p.s
	if r.tenure != p.tenure {
		return 0, false // for an earlier tenure
	}
	if r.err != nil {
		p.detach(r.err)
		return p.retry.NextBackOff(), false
	}
	type ack struct{ reply, text string }
	var acks []ack
	s.mu.Lock()
	if s.tenure != p.tenure {
		s.mu.Unlock()
		return time.Second, false // it is over, and we are about to be told
	}
	if r.anew {
		s.barrier.abandon(r.created)
		s.resume, s.seen = 0, 0
	}
	s.seen = max(s.seen, s.barrier.lastSeen, r.position.deliveredStream)
	s.barrier.attach(r.position)
	for h, text := range s.unsent {
		if h.stored >= r.created.UnixNano() || !r.anew {
			acks = append(acks, ack{h.reply, text})
		}
	}
	clear(s.unsent)
	s.attached, s.err = true, nil
	s.mu.Unlock()
	for _, a := range acks {
		_ = s.o.Conn.nc.Publish(a.reply, []byte(a.text))
	}
	if p.warned != "" || r.anew {
		p.warned = ""
		s.log.Info("consuming again", "anew", r.anew)
	}
	p.pulling = !p.draining
	p.reset()
	return 0, true
}

// detach stops pulling. A nil error leaves what Ready says.
func (p *puller) detach(err error) {
	p.pulling = false
	p.s.mu.Lock()
	p.s.attached = false
	if err != nil && p.s.tenure == p.tenure {
		p.s.err = err
	}
	p.s.mu.Unlock()
	if err != nil && err.Error() != p.warned && !errors.Is(err, context.Canceled) {
		p.warned = err.Error()
		p.s.log.Warn("cannot consume, trying again", "err", err)
	}
}

// reset forgets the requests that are out.
func (p *puller) reset() {
	p.generation++
	p.remaining = 0
}

type pullRequest struct {
	Batch     int           `json:"batch"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
	Group     string        `json:"group"`
	Pin       string        `json:"id,omitempty"`
}

// pull keeps between a half and a whole batch asked for.
func (p *puller) pull() {
	if p.remaining > pullBatch/2 || !p.s.o.Conn.nc.IsConnected() {
		return
	}
	if p.remaining == 0 {
		p.activity = time.Now()
	}
	n := pullBatch - p.remaining
	body, err := json.Marshal(pullRequest{Batch: n, Expires: p.s.time.expires, Heartbeat: p.s.time.heartbeat, Group: pinnedGroup, Pin: p.pin})
	if err != nil {
		panic(err) // plain fields
	}
	if err := p.s.o.Conn.nc.PublishRequest(p.nextSubject(), p.inbx+"."+strconv.Itoa(p.generation), body); err != nil {
		return // tried again at the next tick
	}
	p.remaining += n
}

func (p *puller) nextSubject() string {
	return p.s.o.Conn.api + "CONSUMER.MSG.NEXT." + p.s.o.Stream + "." + p.s.o.Consumer
}

// tick finds lost requests and asks for the consumer's position when that is needed.
func (p *puller) tick(now time.Time) {
	if p.pulling && p.remaining > 0 && now.Sub(p.activity) > p.s.time.silence {
		p.reset()
	}
	s := p.s
	var out []*held
	late := false
	s.mu.Lock()
	if now.Sub(p.heard) <= s.time.silence { // or it cannot have handed out anything
		out, late = s.barrier.expire(now)
	}
	s.release(out)
	epoch, behind := s.barrier.asking()
	s.mu.Unlock()
	if late {
		s.log.Warn("took over without all pending messages: the server did not hand them out in time; those that still come may be out of order")
	}
	switch {
	case behind:
		p.ask(epoch)
	case p.pulling && now.Sub(p.arrival) > s.time.refresh && now.Sub(p.asked) > s.time.refresh:
		// A standby must not start an age ago if the consumer is deleted under it.
		p.ask(epoch)
	}
}

// ask gets the consumer's position without blocking; answered has the rest.
func (p *puller) ask(epoch uint64) {
	if p.asking || !p.pulling || !p.s.o.Conn.nc.IsConnected() {
		return
	}
	p.asking, p.asked = true, time.Now()
	go func() {
		pos, err := p.at.position(p.ctx)
		p.answers <- answer{epoch, pos, err}
	}()
}

func (p *puller) answered(a answer) {
	if a.err != nil {
		return // asked again at the next tick
	}
	p.hear(time.Now())
	s := p.s
	s.mu.Lock()
	s.release(s.barrier.answer(a.epoch, a.position))
	epoch, behind := s.barrier.asking()
	s.mu.Unlock()
	if behind && epoch != a.epoch {
		p.ask(epoch)
	}
}

// hear notes a word from the server.
func (p *puller) hear(now time.Time) {
	silent := now.Sub(p.heard) > p.s.time.silence
	p.heard = now
	if silent {
		p.s.mu.Lock()
		p.s.barrier.postpone(now)
		p.s.mu.Unlock()
	}
}

// handle takes a message or a status. True: attach again.
func (p *puller) handle(m *nats.Msg) bool {
	p.activity = time.Now()
	p.hear(p.activity)
	if meta, err := m.Metadata(); err == nil {
		p.arrival = p.activity
		p.retry.Reset()
		p.remaining = max(p.remaining-1, 0)
		if pins := m.Header[pinHeader]; len(pins) > 0 {
			p.pin = pins[len(pins)-1]
		}
		started, epoch := p.s.take(arrival{
			pin: p.pin, consumer: meta.Sequence.Consumer, seq: meta.Sequence.Stream,
			stored: meta.Timestamp.UnixNano(), reply: m.Reply, again: meta.NumDelivered > 1, in: newInput(m, meta),
		}, p.arrival)
		if started {
			p.ask(epoch)
		}
		return false
	}
	return p.status(m)
}

func (p *puller) status(m *nats.Msg) bool {
	status, text := m.Header.Get("Status"), m.Header.Get("Description")
	stale := !strings.HasSuffix(m.Subject, "."+strconv.Itoa(p.generation))
	switch status {
	case "100":
		p.retry.Reset()
		return false
	case "408", "404": // expired
		if !stale {
			p.expired(m)
		}
		return false
	case "423": // the pin is not valid any more; someone else may have it
		if !stale {
			p.pin = ""
			p.reset()
			p.s.mu.Lock()
			p.s.barrier.disown()
			p.s.mu.Unlock()
		}
		return false
	case "409":
		switch lower := strings.ToLower(text); {
		case strings.Contains(lower, "consumer deleted"):
		case strings.Contains(lower, "leadership change"), strings.Contains(lower, "server shutdown"):
			if !stale {
				p.reset()
			}
			return false
		case strings.Contains(lower, "maxbytes"), strings.Contains(lower, "batch completed"):
			if !stale {
				p.expired(m)
			}
			return false
		}
	}
	if stale && status != "409" {
		return false
	}
	// Deleted, or changed by someone so that it does not take our requests: make it right.
	if text == "" {
		text = "status " + status
	}
	p.detach(fmt.Errorf("stream %s: consumer %s: %s", p.s.o.Stream, p.s.o.Consumer, strings.ToLower(text)))
	return true
}

// expired takes back what a request that ended did not get.
func (p *puller) expired(m *nats.Msg) {
	left, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
	if err != nil {
		p.reset()
		return
	}
	p.remaining = max(p.remaining-left, 0)
}
