package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

// world is what outlives a process: a stream with its acks, the mailbox, dead
// letters, receipts, and what the hub accepted. A process is one engine on it,
// which can be killed before or after any of its durable steps.
type world struct {
	mu       sync.Mutex
	log      []mapping.Input // the stream; its sequence is the index plus 1
	acked    map[uint64]bool
	entries  map[uint64]*Parcel // the mailbox
	last     uint64
	ids      map[identity]bool // the mailbox's duplicate window; never over here
	limit    int               // of entries; 0: none
	letters  []DeadLetter
	receipts []Receipt
	hub      []sent
	full     map[string]bool               // devices without room
	hubDown  error                         // what the hub answers to everything
	flaky    func() bool                   // an append that is stored is answered with an error
	slow     func() time.Duration          // what an append, a deletion or a receipt takes besides; nil: nothing
	huge     func(*Parcel) bool            // the mailbox can never hold it; nil: it holds everything
	unread   map[uint64]error              // entries of the mailbox that cannot be read, and why
	answer   func(*mapping.Envelope) error // what the hub says besides; nil, or nil: as below
	steps    int                           // durable steps of all processes
	kill     func(step int, name string, after bool) bool
	killed   []string
	note     string   // about the step under way
	trail    []string // what was done, for a test that failed
}

func newWorld() *world {
	return &world{acked: map[uint64]bool{}, entries: map[uint64]*Parcel{}, ids: map[identity]bool{}, full: map[string]bool{}}
}

// publish stores a message in the stream.
func (w *world) publish(subject, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, mapping.Input{Subject: subject, Payload: []byte(name), Stream: "COMMANDS", Sequence: uint64(len(w.log) + 1), Time: time.Now()})
}

// set changes the world.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) names(device string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.hub {
		if s.device == device {
			out = append(out, s.name)
		}
	}
	return out
}

func (w *world) boxed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries)
}

// leftovers is what was done for the devices of the mailbox's entries.
func (w *world) leftovers() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for n, q := range w.entries {
		out = append(out, fmt.Sprintf("entry %d of %s: %s (%s, from %s %d)", n, q.Envelope.Device, q.Message.Payload, q.Message.Subject, q.Message.Stream, q.Message.Sequence))
		for _, line := range w.trail {
			about := strings.Contains(line, " "+q.Envelope.Device+" ") || strings.HasSuffix(line, "KILLED") || strings.HasSuffix(line, "LOST")
			if about || strings.Contains(line, fmt.Sprintf("#%d ", n)) {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "\n")
}

func (w *world) unacked() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.log) - len(w.acked)
}

// process is one engine in the world.
type process struct {
	*Bridge
	w      *world
	cancel context.CancelFunc
	done   chan error
	dead   bool   // nothing it does has an effect any more
	next   uint64 // the next message to deliver
	held   bool
	told   bool // the source was lost for a moment: Receive says so
}

// lose takes the source from the process, and gives it back at once.
func (p *process) lose() {
	p.told, p.next = true, 1
	p.w.trail = append(p.w.trail, time.Now().Format("05.000 ")+"LOST")
}

var errKilled = errors.New("killed")

// step runs one durable step unless the process is dead, and may kill it there.
func (p *process) step(name string, effect func() error) error {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return errKilled
	}
	w.steps++
	if w.kill != nil && w.kill(w.steps, name, false) {
		w.killed = append(w.killed, "before "+name)
		p.die()
		return errKilled
	}
	err := effect()
	if w.note != "" {
		w.trail = append(w.trail, fmt.Sprint(time.Now().Format("05.000 "), name, " ", w.note, " ", err))
		w.note = ""
	}
	if w.kill != nil && w.kill(w.steps, name, true) {
		w.killed = append(w.killed, "after "+name)
		p.die()
		return errKilled
	}
	return err
}

// linger takes as long as the store does.
func (p *process) linger(ctx context.Context) bool {
	d := 100 * time.Microsecond
	p.w.mu.Lock()
	if p.w.slow != nil {
		d += p.w.slow()
	}
	p.w.mu.Unlock()
	return sleep(ctx, d)
}

func (p *process) die() {
	p.dead = true
	p.w.trail = append(p.w.trail, time.Now().Format("05.000 ")+"KILLED")
	p.cancel()
}

// run starts a process. The next one starts when the one before is over.
func (w *world) run(t *testing.T, change ...func(*Options)) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &process{w: w, cancel: cancel, done: make(chan error, 1), held: true, next: uint64(1)}
	w.mu.Lock()
	for _, in := range w.log {
		if !w.acked[in.Sequence] {
			p.next = in.Sequence
			break
		}
		p.next = in.Sequence + 1
	}
	w.mu.Unlock()
	o := Options{
		Sources: []Source{p}, Mapper: bySubject{}, DeadLetters: worldLetters{p}, Mailbox: worldMailbox{p}, Receipts: worldReceipts{p},
		Hubs: []HubOptions{{Name: "main", Sender: worldHub{p}, Window: 64}}, MaxHeld: 400, ShutdownGrace: time.Second,
	}
	for _, c := range change {
		c(&o)
	}
	b, err := New(o)
	require.NoError(t, err)
	p.Bridge = b
	go func() { p.done <- b.Run(ctx) }()
	return p
}

func (p *process) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	require.NoError(t, <-p.done)
	s := p.Status()
	require.Zero(t, s.Waiting)
	require.Equal(t, s.Received+s.Expanded+s.Restored, s.Accepted+s.Dead+s.Dropped+s.Replaced+s.Parked+s.Returned, "%+v", s)
}

func (p *process) Name() string { return "COMMANDS" }

func (p *process) Own(ctx context.Context) error {
	for {
		p.w.mu.Lock()
		held := p.held
		if held {
			p.told = false
		}
		p.w.mu.Unlock()
		if held {
			return ctx.Err()
		}
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

func (p *process) Held() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.held && !p.dead && !p.told
}

func (p *process) Receive(ctx context.Context) (Delivery, error) {
	for {
		p.w.mu.Lock()
		if !p.held || p.told {
			p.told = true // until Own
			p.w.mu.Unlock()
			return nil, ErrDisowned
		}
		for p.next <= uint64(len(p.w.log)) && p.w.acked[p.next] {
			p.next++
		}
		if p.next <= uint64(len(p.w.log)) {
			d := &worldDelivery{p: p, in: p.w.log[p.next-1]}
			p.next++
			p.w.mu.Unlock()
			return d, nil
		}
		p.w.mu.Unlock()
		if !sleep(ctx, 10*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

type worldDelivery struct {
	p  *process
	in mapping.Input
}

func (d *worldDelivery) Message() *mapping.Input { return &d.in }

func (d *worldDelivery) Redelivered() bool { return true } // it may have been: the engine must look

func (d *worldDelivery) Ack(context.Context) error {
	return d.p.step("ack", func() error { d.p.w.note = string(d.in.Payload); d.p.w.acked[d.in.Sequence] = true; return nil })
}

func (d *worldDelivery) Term(ctx context.Context, _ string) error { return d.Ack(ctx) }

type worldLetters struct{ p *process }

func (l worldLetters) Store(_ context.Context, d DeadLetter) error {
	return l.p.step("dead letter", func() error { l.p.w.letters = append(l.p.w.letters, d); return nil })
}

type worldReceipts struct{ p *process }

func (r worldReceipts) Record(context.Context, Correlation) error {
	return r.p.step("record", func() error { return nil })
}

func (r worldReceipts) Store(ctx context.Context, x Receipt, _ Correlation) error {
	if !r.p.linger(ctx) {
		return ctx.Err()
	}
	return r.p.step("receipt", func() error { r.p.w.receipts = append(r.p.w.receipts, x); return nil })
}

type worldHub struct{ p *process }

func (h worldHub) Send(ctx context.Context, e *mapping.Envelope) error {
	if !sleep(ctx, time.Millisecond) {
		return ctx.Err()
	}
	w := h.p.w
	return h.p.step("send", func() error {
		if w.answer != nil {
			if err := w.answer(e); err != nil {
				return err
			}
		}
		switch {
		case w.hubDown != nil:
			return w.hubDown
		case w.full[e.Device]:
			return amqpErr(QueueFull, "amqp:resource-limit-exceeded")
		case e.Device == "unknown":
			return amqpErr(NoDevice, "amqp:not-found")
		}
		w.note = e.Device + " " + string(e.Body)
		w.hub = append(w.hub, sent{e.Device, string(e.Body), time.Now()})
		return nil
	})
}

type worldMailbox struct{ p *process }

func (m worldMailbox) Boxes(_ context.Context, stream string) (out []Box, err error) {
	err = m.p.step("list", func() error {
		count := map[Box]uint64{}
		for _, q := range m.p.w.entries {
			count[Box{Hub: q.Envelope.Hub, Device: q.Envelope.Device, Stream: stream}]++
		}
		for b, n := range count {
			b.Entries = n
			m.p.w.trail = append(m.p.w.trail, time.Now().Format("05.000 ")+fmt.Sprint("list ", b))
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

func (m worldMailbox) Append(ctx context.Context, q *Parcel) (repeat bool, err error) {
	if !m.p.linger(ctx) {
		return false, ctx.Err()
	}
	err = m.p.step("append", func() error {
		w := m.p.w
		if w.huge != nil && w.huge(q) {
			return ErrUnstorable
		}
		if strings.HasPrefix(q.Envelope.Device, "refused") {
			return errors.New("maximum messages per subject exceeded")
		}
		if w.limit > 0 && len(w.entries) >= w.limit {
			return errors.New("maximum messages exceeded")
		}
		id := identity{q.Message.Stream, q.Envelope.Route, q.Envelope.Device, q.Message.Sequence, q.Message.Time.UTC()}
		if w.ids[id] {
			repeat = true
			return nil
		}
		w.ids[id] = true
		w.last++
		w.note = fmt.Sprint(q.Envelope.Device, " ", string(q.Message.Payload), " #", w.last)
		copied := *q
		copied.Entry, q.Entry = w.last, w.last
		w.entries[w.last] = &copied
		if w.flaky != nil && w.flaky() {
			q.Entry = 0
			return errors.New("no answer from JetStream")
		}
		return nil
	})
	return repeat, err
}

func (m worldMailbox) in(b Box, q *Parcel) bool {
	return q.Envelope.Device == b.Device && q.Envelope.Hub == b.Hub
}

func (m worldMailbox) Next(ctx context.Context, b Box, above uint64) (out *Parcel, err error) {
	if !sleep(ctx, 100*time.Microsecond) {
		return nil, ctx.Err()
	}
	err = m.p.step("next", func() error {
		for _, n := range slices.Sorted(maps.Keys(m.p.w.entries)) {
			if q := m.p.w.entries[n]; n > above && m.in(b, q) {
				if err := m.p.w.unread[n]; err != nil {
					out = &Parcel{Entry: n, At: q.At, Message: &mapping.Input{Subject: "box", Stream: "MAILBOX", Sequence: n, Time: q.At, Payload: q.Message.Payload}}
					return err
				}
				copied := *q
				out = &copied
				return nil
			}
		}
		return nil
	})
	return out, err
}

func (m worldMailbox) Waiting(_ context.Context, b Box, key string, below uint64) (out []*Parcel, err error) {
	err = m.p.step("waiting", func() error {
		for n, q := range m.p.w.entries {
			if n < below && m.in(b, q) && q.Envelope.Coalesce == key {
				out = append(out, q)
			}
		}
		return nil
	})
	return out, err
}

func (m worldMailbox) Delete(ctx context.Context, entry uint64) error {
	if !m.p.linger(ctx) {
		return ctx.Err()
	}
	return m.p.step("delete", func() error { m.p.w.note = fmt.Sprint("#", entry); delete(m.p.w.entries, entry); return nil })
}

// inOrder checks that all of the names came, in order once repeats are removed.
func inOrder(t *testing.T, want, got []string, context string) (repeats int) {
	t.Helper()
	seen := map[string]bool{}
	var first []string
	for _, name := range got {
		if !seen[name] {
			seen[name] = true
			first = append(first, name)
		}
	}
	require.Equal(t, want, first, context)
	return len(got) - len(first)
}

func numbered(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%04d", i))
	}
	return out
}
