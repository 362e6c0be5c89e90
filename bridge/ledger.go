package bridge

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"downlink/mapping"
)

const (
	clerks       = 64 // fates being made durable at once
	volatileLive = 5  // tries to store the dead letter or receipt of a message that nobody keeps (core NATS)
)

var (
	errExpired  = errors.New("expired before it could be sent")
	errOverflow = errors.New("too many messages from core NATS wait for this device")
)

// closing is a fate that has to be made durable: the dead letter first, then the
// receipt, and only then is the message settled where it came from.
type closing struct {
	of      *held  // the source's message; nil: none, or somebody else settles it
	entry   uint64 // of the mailbox; 0: none
	item    *item  // nil: it never got to a lane
	hub     *hub   // of item, entry and lane
	lane    *lane  // waits for it; nil: none does
	box     *Box   // where the entry is to be looked for first
	letter  *DeadLetter
	receipt Receipt
	told    *Correlation // whom the receipt goes to; nil: nobody asked for one

	lettered, receipted bool
	tries               int
}

// ledger makes fates durable off the lanes: a message without hope must not hold
// its device up, and storing waits while NATS is away. What is queued here is
// bounded by what the sources may hold and the hubs have in flight.
type ledger struct {
	letters  DeadLetters
	receipts Receipts
	mailbox  Mailbox
	metrics  *metrics
	find     func(context.Context, Box, *item) (uint64, error)
	log      *slog.Logger
	crew     *crew[*closing]
}

func newLedger(o Options, m *metrics, log *slog.Logger) *ledger {
	g := &ledger{letters: o.DeadLetters, receipts: o.Receipts, mailbox: o.Mailbox, metrics: m, log: log}
	g.crew = &crew[*closing]{news: make(chan struct{}, 1), workers: clerks, work: g.close, log: log, what: "what became of messages cannot be stored; they stay where they are"}
	return g
}

// conclude takes a fate on; it never blocks. What needs no storing is settled at once.
func (g *ledger) conclude(ctx context.Context, c closing) {
	if c.letter == nil && c.entry == 0 && c.told == nil {
		g.settled(&c)
		return
	}
	g.add(ctx, c)
}

func (g *ledger) add(ctx context.Context, c closing) { g.crew.add(ctx, &c) }

// close makes one fate durable. again: it is to be tried again.
func (g *ledger) close(ctx context.Context, c *closing) (again bool, err error) {
	err = g.store(ctx, c)
	if err == nil {
		g.settled(c)
		return false, nil
	}
	if ctx.Err() != nil {
		g.letGo(c)
		return false, nil
	}
	c.tries++
	if c.entry > 0 || c.of == nil || c.of.durable() || c.tries < volatileLive {
		return true, err
	}
	g.log.Error("lost: a message came from core NATS and what became of it cannot be stored", "route", c.receipt.Route, "subject", c.receipt.Subject, "err", err)
	g.settled(c)
	return false, nil
}

// store takes the steps that are not taken yet.
func (g *ledger) store(ctx context.Context, c *closing) error {
	if c.letter != nil && !c.lettered {
		if err := g.letters.Store(ctx, *c.letter); err != nil {
			return err
		}
		c.lettered = true
	}
	if c.told != nil && !c.receipted {
		if err := g.receipts.Store(ctx, c.receipt, *c.told); err != nil {
			return err
		}
		c.receipted = true
	}
	if c.box != nil && c.entry == 0 {
		entry, err := g.find(ctx, *c.box, c.item)
		if err != nil {
			return err
		}
		if entry == 0 {
			entry = c.hub.bridge.strays.missed(identityOf(c.item.message, c.item.envelope))
		}
		c.entry, c.box = entry, nil
		if entry > 0 {
			c.hub.mu.Lock()
			c.hub.ended.add(entry)
			c.hub.mu.Unlock()
		}
	}
	if c.entry > 0 {
		return g.mailbox.Delete(ctx, c.entry)
	}
	return nil
}

// settled is for a fate that is durable.
func (g *ledger) settled(c *closing) {
	if c.item != nil {
		c.item.settled.Store(true)
		c.hub.endTwin(c.item)
	}
	defer c.goOn()
	switch {
	case c.of != nil:
		c.of.resolve(c.receipt)
	case c.receipt.Status != "": // the mailbox had it
		g.metrics.fate(c.receipt)
	}
}

// goOn has the lane that waited for it go on.
func (c *closing) goOn() {
	if c.lane == nil {
		return
	}
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	c.lane.replaced--
	c.lane.due = time.Time{} // what was replaced is gone: another entry may be the first one now
	if c.lane.spills {
		c.hub.spill(c.lane)
	}
	c.hub.tidy(c.lane)
	c.hub.list(c.lane)
	c.hub.dispatch()
}

// letGo is for the end of the process: what is not durable comes again.
func (g *ledger) letGo(c *closing) {
	defer c.goOn()
	switch {
	case c.of != nil:
		c.of.letGo(c.receipt)
	case c.receipt.Status != "":
		g.metrics.returned(1)
	}
}

// receipt is what a dead letter's message gets.
func (l *DeadLetter) receipt() Receipt {
	return Receipt{
		ID: l.MessageID, Device: l.Device, Hub: l.Hub, Route: l.Route, Status: StatusDead, Reason: string(l.Reason),
		Condition: l.Condition, Text: l.Text, Subject: l.Message.Subject, Stream: l.Message.Stream,
		Sequence: l.Message.Sequence, Attempts: l.Attempts, At: l.At, Target: l.Target,
	}
}

// unmapped is the end of a message that never got to a lane.
func (m *held) unmapped(l DeadLetter) closing {
	l.Message, l.At = m.delivery.Message(), time.Now().UTC()
	return closing{of: m, letter: &l, receipt: l.receipt()}
}

// tells has the end of a message that never got to a lane told to whom it may concern.
func (c closing) tells(asked *mapping.Asked) closing {
	if asked == nil || c.of.bridge.ledger.receipts == nil {
		return c
	}
	in, r := c.of.delivery.Message(), c.receipt
	c.told = &Correlation{Device: r.Device, Route: r.Route, Subject: in.Subject, Stream: in.Stream, Sequence: in.Sequence, Trace: traceOf(in), SentAt: r.At}
	if !c.of.replies() { // else the delivery itself answers
		c.told.ReplyTo = asked.ReplyTo
	}
	return c
}

// explain takes an outcome apart for a dead letter.
func explain(err error) (condition, text string) {
	if err == nil {
		return "", ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Err != nil {
			return e.Condition, e.Err.Error()
		}
		return e.Condition, e.Error()
	}
	return "", err.Error()
}

// end gives an item its fate: a status, or a dead letter.
func (h *hub) end(it *item, status string, letter *DeadLetter) {
	h.conclude(it, status, letter, nil)
}

func (h *hub) conclude(it *item, status string, letter *DeadLetter, waits *lane) {
	c := closing{item: it, hub: h, letter: letter, lane: waits}
	if letter != nil {
		c.receipt = letter.receipt()
	} else {
		c.receipt = it.receipt(status, "", h.name)
	}
	if h.bridge.ledger.receipts != nil && it.envelope.Receipts {
		told := it.correlation(h.name)
		c.told = &told
	}
	if it.leave(leftEnded) {
		h.room.leave()
		c.of = it.of
		if it.storing.Load() || it.twin.Load() != 0 { // the parker sets these first, and then looks whether it has left
			h.bridge.strays.add(identityOf(it.message, it.envelope)) // whoever reads its entry must not send it again
		}
	} else if c.entry = it.entry.Load(); c.entry > 0 {
		h.bridge.recent.add(identityOf(it.message, it.envelope))
		h.mu.Lock()
		h.ended.add(c.entry)
		h.mu.Unlock()
	}
	h.bridge.ledger.conclude(h.bridge.sendCtx, c)
}

// endTwin deletes the entry of an item whose fate is durable, if there is one.
func (h *hub) endTwin(it *item) {
	if it.twin.Load() == 0 || !it.settled.Load() {
		return
	}
	switch entry := it.twin.Swap(0); entry {
	case 0:
	case unknownTwin:
		h.bridge.ledger.add(h.bridge.sendCtx, closing{item: it, hub: h, box: &Box{Hub: h.name, Device: it.envelope.Device, Stream: it.message.Stream}})
	default:
		h.bridge.ledger.add(h.bridge.sendCtx, closing{entry: entry, hub: h})
	}
}

// replace is the end of what a newer message with its coalescing key replaces. Its lane has counted it.
func (h *hub) replace(l *lane, it *item) { h.conclude(it, StatusReplaced, nil, l) }

// letGo lets go, at shutdown or when another process owns the source, of an item that has no fate.
func (it *item) letGo(h *hub) {
	if it.leave(leftLetGo) {
		h.room.leave()
		it.of.letGo(it.receipt("", "", h.name))
		return
	}
	h.bridge.metrics.returned(1)
}
