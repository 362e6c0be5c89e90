package soak

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"downlink/bridge"
	"downlink/bridge/emulator/c2d"
)

// target is one place where one message must arrive, or what else became of it there.
type target struct {
	pub   *publication
	kind  kind
	to    device
	route string

	copies   []*hubCopy
	edge     []record
	dead     []record
	parked   []record
	receipts []bridge.Receipt
	fate     string
}

// Violation is a promise that was not kept.
type Violation struct {
	Rule    string   `json:"rule"`
	Message string   `json:"message,omitempty"` // the publisher's name of it: DEVICE/NUMBER
	Device  string   `json:"device,omitempty"`
	Text    string   `json:"text"`
	Trail   []string `json:"trail,omitempty"` // every place where it was seen

	target *target
}

// The rules.
const (
	ruleSource   = "source"   // what was published is in its stream
	ruleLost     = "lost"     // every message has a fate
	ruleFate     = "fate"     // exactly one, and one that it may have
	ruleOrder    = "order"    // per device and stream, repeats removed
	ruleIntact   = "intact"   // payload and properties
	ruleRepeat   = "repeat"   // recognisable, and no more than the disturbances explain
	ruleReceipts = "receipts" // as the fates
	ruleSettle   = "settle"   // nothing is left on the way
	ruleProcess  = "process"  // no process ends by itself
)

// checker finds out what became of each message.
type checker struct {
	seed    uint64
	devices []device
	e       *evidence

	targets    []*target
	byKey      map[string]*target // DEVICE/NUMBER and device ID
	byOrigin   map[origin]*publication
	settled    map[*publication]time.Time
	violations []Violation
	repeats    Repeats
	checked    int // receipts
}

// check goes through all of the evidence.
func check(seed uint64, devices []device, e *evidence) *checker {
	c := &checker{seed: seed, devices: devices, e: e, byKey: make(map[string]*target), byOrigin: make(map[origin]*publication),
		settled: make(map[*publication]time.Time)}
	c.expect()
	c.source()
	c.collect()
	c.settle()
	for _, t := range c.targets {
		c.judge(t)
	}
	c.hubOrder()
	c.edgeOrder()
	c.repeated()
	c.matchReceipts()
	return c
}

func (c *checker) violate(rule string, t *target, format string, args ...any) {
	v := Violation{Rule: rule, Text: fmt.Sprintf(format, args...), target: t}
	if t != nil {
		v.Message, v.Device = t.pub.Key, t.to.id
	}
	c.violations = append(c.violations, v)
}

// expect says where each message must go, from the routes as they are meant, not from the product's mapping.
func (c *checker) expect() {
	byName := make(map[string]device)
	for _, d := range c.devices {
		byName[d.name] = d
	}
	for i := range c.e.published {
		p := &c.e.published[i]
		c.byOrigin[origin{p.Stream, p.Sequence}] = p
		k, ok := kindOf(p.Verb)
		if !ok {
			c.violate(ruleSource, nil, "%s: there is no kind %q of messages", p.Key, p.Verb)
			continue
		}
		c.add(&target{pub: p, kind: k, to: byName[p.Device], route: k.route})
		if k.copied {
			c.add(&target{pub: p, kind: k, to: byName["monitor"], route: "monitor"})
		}
	}
}

func (c *checker) add(t *target) {
	c.targets = append(c.targets, t)
	c.byKey[t.pub.Key+" "+t.to.id] = t
}

// source: what JetStream acknowledged is there, and nothing else.
func (c *checker) source() {
	seen := make(map[string]bool)
	for stream, records := range c.e.source {
		for _, r := range records {
			p := c.byOrigin[origin{stream, r.sequence}]
			if p == nil {
				c.violate(ruleSource, nil, "%s:%d (%s) is stored, and no publisher was told so", stream, r.sequence, r.header.Get(keyHeader))
				continue
			}
			want := p.message(c.seed)
			if r.header.Get(keyHeader) != p.Key || r.subject != want.Subject || !slices.Equal(r.data, want.Data) {
				c.violate(ruleSource, nil, "%s:%d is not the message that was published as %s", stream, r.sequence, p.Key)
			}
			seen[p.Key] = true
		}
	}
	for i := range c.e.published {
		if p := &c.e.published[i]; !seen[p.Key] {
			c.violate(ruleSource, nil, "%s was acknowledged as %s:%d and is not there", p.Key, p.Stream, p.Sequence)
		}
	}
}

// collect puts each trace of a message to its target.
func (c *checker) collect() {
	for _, h := range c.e.copies {
		key := h.property(keyHeader)
		if t := c.byKey[key+" "+h.device]; t != nil {
			t.copies = append(t.copies, h)
		} else {
			c.violate(ruleFate, nil, "the hub accepted %q for %s (message ID %s), where nothing of that name was to go", key, h.device, h.messageID)
		}
	}
	for _, r := range c.e.edge {
		key, id := r.header.Get(keyHeader), r.header.Get("Downlink-Device")
		if t := c.byKey[key+" "+id]; t != nil {
			t.edge = append(t.edge, r)
		} else {
			c.violate(ruleFate, nil, "%s:%d is %q for %s, where nothing of that name was to go", streamEdge, r.sequence, key, id)
		}
	}
	for _, r := range c.e.dead {
		if t := c.ofStored(r); t != nil {
			t.dead = append(t.dead, r)
		} else {
			c.violate(ruleFate, nil, "%s:%d (%s) is about no message that was published", streamDead, r.sequence, r.subject)
		}
	}
	for _, r := range c.e.mailbox {
		t := c.ofStored(r)
		if t == nil {
			c.violate(ruleFate, nil, "%s:%d (%s) is about no message that was published", streamMailbox, r.sequence, r.subject)
			continue
		}
		t.parked = append(t.parked, r)
		if !slices.Equal(rawPayload(r.data), t.pub.message(c.seed).Data) {
			c.violate(ruleIntact, t, "its entry %s:%d has another body", streamMailbox, r.sequence)
		}
	}
	for _, r := range c.e.edgeDead {
		c.violate(ruleFate, c.byKey[r.header.Get(keyHeader)+" "+r.header.Get("Downlink-Device")],
			"a dead letter of a relay: %s: %s", r.subject, r.header.Get("Downlink-Text"))
	}
}

// ofStored is the target that a dead letter or an entry of the mailbox is about.
func (c *checker) ofStored(r record) *target {
	p := c.byOrigin[originOf(r.header)]
	if p == nil {
		return nil
	}
	if t := c.byKey[p.Key+" "+r.header.Get("Downlink-Device")]; t != nil {
		return t
	}
	for _, t := range c.targets { // one that names no device
		if t.pub == p && t.route == r.header.Get("Downlink-Route") {
			return t
		}
	}
	return nil
}

// mayHaveBeenTaken are the reasons of dead letters for messages whose last answer of the hub may have been lost.
var mayHaveBeenTaken = []string{string(bridge.ReasonExpired), string(bridge.ReasonBreaksLink), string(bridge.ReasonUnknownCondition)}

// judge finds a target's one fate.
func (c *checker) judge(t *target) {
	if t.kind.dropped {
		t.fate = "dropped by its route"
		if len(t.copies)+len(t.dead)+len(t.parked)+len(t.edge) > 0 {
			c.violate(ruleFate, t, "its route drops it, and it was delivered or kept all the same")
		}
		return
	}
	if len(t.dead) > 1 {
		c.violate(ruleFate, t, "%d dead letters", len(t.dead))
	}
	switch {
	case len(t.dead) > 0 && len(t.parked) > 0:
		t.fate = "dead, and in the mailbox"
		c.violate(ruleFate, t, "it is dead (%s), and still in the mailbox", t.reason())
	case len(t.dead) > 0:
		c.judgeDead(t)
	case len(t.parked) > 0:
		t.fate = "in the mailbox"
		c.violate(ruleSettle, t, "it is still in the mailbox, and nothing holds it up")
	case len(t.copies) > 0:
		c.judgeAccepted(t)
	case len(t.edge) > 0:
		t.fate = "at the edge from nowhere"
		c.violate(ruleFate, t, "it is at the edge, and the hub never had it")
	case c.e.sourcePending[t.pub.Stream] > 0:
		t.fate = "at the source"
		c.violate(ruleSettle, t, "it was not delivered, and its stream is not settled")
	default:
		t.fate = "lost"
		c.violate(ruleLost, t, "it was acked at its source, and is neither at the hub nor in the mailbox nor a dead letter")
	}
	for _, r := range t.edge {
		if err := intact(t, c.seed, r); err != nil {
			c.violate(ruleIntact, t, "%s:%d: %v", streamEdge, r.sequence, err)
		}
	}
	c.judgeCopies(t)
}

func (t *target) reason() string { return t.dead[0].header.Get("Downlink-Reason") }

func (c *checker) judgeDead(t *target) {
	reason := t.reason()
	t.fate = "dead: " + reason
	switch {
	case reason == string(bridge.ReasonDeviceNotFound) && t.to.role == unknown:
	case reason == string(bridge.ReasonExpired) && t.kind.ttl:
	case reason == string(bridge.ReasonBreaksLink), reason == string(bridge.ReasonUnknownCondition):
	default:
		c.violate(ruleFate, t, "a dead letter for a reason that it cannot have: %s (%s %s)", reason, t.dead[0].header.Get("Downlink-Condition"), t.dead[0].header.Get("Downlink-Text"))
	}
	if len(t.copies) == 0 {
		return
	}
	t.fate += " (and the hub has it)"
	// The process that sent it may not be the one that buried it, so that its attempts do not tell.
	last := t.copies[len(t.copies)-1]
	lost := slices.ContainsFunc(c.e.disturbances, func(d disturbance) bool { return c.inFlight(t, last, &d) })
	if !lost || !slices.Contains(mayHaveBeenTaken, reason) {
		c.violate(ruleFate, t, "two fates: the hub accepted it, and it is dead as %s, although no answer of the hub's can have been lost", reason)
	}
}

// judgeAccepted says what became of a message at its device.
func (c *checker) judgeAccepted(t *target) {
	outcomes := make(map[string]int)
	for _, h := range t.copies {
		outcomes[h.outcome]++
	}
	taken, expired, left := outcomes[c2d.Success], outcomes[c2d.Expired], outcomes[""]
	others := len(t.copies) - taken - expired - left
	switch {
	case t.to.role == unknown:
		t.fate = "accepted for nobody"
		c.violate(ruleFate, t, "the hub accepted it for a device that it does not know")
	case left > 0:
		t.fate = "at the hub"
		c.violate(ruleSettle, t, "it is still in the hub's queue")
	case t.to.role == refusing:
		t.fate = "rejected by the device"
		if outcomes[c2d.Rejected]+expired < len(t.copies) || expired > 0 && !t.kind.ttl {
			c.violate(ruleFate, t, "outcomes at the hub: %v", outcomes)
		}
	case others > 0 || expired > 0 && !t.kind.ttl:
		t.fate = "another outcome"
		c.violate(ruleFate, t, "outcomes at the hub: %v", outcomes)
	case !t.to.atEdge() && taken > 0:
		t.fate = "completed by a device of the hub's"
	case len(t.edge) > 0:
		t.fate = "at the edge"
	case taken == 0:
		t.fate = "expired at the hub"
	default:
		t.fate = "lost after the hub"
		c.violate(ruleLost, t, "its device completed it, and it is not at the edge")
	}
}

// judgeCopies: what was sent again is the same, byte for byte, under the same ID.
func (c *checker) judgeCopies(t *target) {
	for i, h := range t.copies {
		if h.property("verb") != t.kind.verb || !slices.Equal(h.message.Body, t.pub.message(c.seed).Data) {
			c.violate(ruleIntact, t, "what the hub accepted as number %d of %s is not what was published", h.sequence, h.device)
		}
		if i == 0 {
			continue
		}
		switch first := t.copies[0]; {
		case h.messageID != first.messageID:
			c.violate(ruleRepeat, t, "sent again under another message ID, %s after %s: nobody can tell that it is a repeat", h.messageID, first.messageID)
		case !reflect.DeepEqual(h.message, first.message):
			c.violate(ruleRepeat, t, "sent again with other bytes")
		}
	}
	for _, r := range t.edge[min(1, len(t.edge)):] {
		// The stream remembers IDs for longer than a run: what it holds twice it could not recognise.
		c.violate(ruleRepeat, t, "%s holds it twice: as %d (message ID %s) and as %d (%s)", streamEdge,
			t.edge[0].sequence, t.edge[0].header.Get("Downlink-Message-Id"), r.sequence, r.header.Get("Downlink-Message-Id"))
		c.repeats.Edge++
	}
}

// lane is what order is kept in.
type lane struct{ device, stream string }

// hubOrder: the hub accepted each device's messages in their order, repeats aside.
func (c *checker) hubOrder() {
	seen := make(map[*target]bool)
	last := make(map[lane]*target)
	for _, h := range c.e.copies {
		if t := c.byKey[h.property(keyHeader)+" "+h.device]; t != nil && !seen[t] {
			seen[t] = true
			c.inOrder(last, t, "the hub accepted it")
		}
	}
}

// edgeOrder: the same at the edge.
func (c *checker) edgeOrder() {
	seen := make(map[*target]bool)
	last := make(map[lane]*target)
	for _, r := range c.e.edge {
		if t := c.byKey[r.header.Get(keyHeader)+" "+r.header.Get("Downlink-Device")]; t != nil && !seen[t] {
			seen[t] = true
			c.inOrder(last, t, "it is at the edge")
		}
	}
}

func (c *checker) inOrder(last map[lane]*target, t *target, where string) {
	l := lane{t.to.id, t.pub.Stream}
	if before := last[l]; before != nil && before.pub.Sequence > t.pub.Sequence {
		c.violate(ruleOrder, t, "%s after %s, which is behind it in %s (%d, %d)", where, before.pub.Key, l.stream, before.pub.Sequence, t.pub.Sequence)
		return
	}
	last[l] = t
}

// Repeats are messages that came more than once.
type Repeats struct {
	Hub      int `json:"hub"`       // acceptances by the hub beyond the first
	HubBound int `json:"hub_bound"` // what the disturbances explain at most
	Edge     int `json:"edge"`
	// EdgeBound is 0: the stream at the edge drops what it knows.
	EdgeBound int `json:"edge_bound"`
}

// ackMargin is how long an ack is on its way at most before it is durable.
const ackMargin = 3 * time.Second

// repeated: a message comes again at most once for each disturbance that found it in flight: the copy
// before accepted by the hub by when the disturbance showed no more, and not settled ackMargin before it began.
func (c *checker) repeated() {
	for _, t := range c.targets {
		if len(t.copies) == 0 {
			continue
		}
		left := make(map[int]int) // of what each disturbance explains, less what was used
		found := func(d *disturbance, copy *hubCopy) bool { return c.inFlight(t, copy, d) }
		for i := range c.e.disturbances {
			d := &c.e.disturbances[i]
			if slices.ContainsFunc(t.copies, func(h *hubCopy) bool { return found(d, h) }) {
				left[i] = d.Times
				c.repeats.HubBound += d.Times
			}
		}
		for n, copy := range t.copies[:len(t.copies)-1] {
			c.repeats.Hub++
			i := slices.IndexFunc(c.e.disturbances, func(d disturbance) bool { return found(&d, copy) })
			for i >= 0 && i < len(c.e.disturbances) && (left[i] == 0 || !found(&c.e.disturbances[i], copy)) {
				i++ // the earliest one that is left
			}
			if i < 0 || i == len(c.e.disturbances) {
				c.violate(ruleRepeat, t, "the hub accepted it %d times, and no disturbance that is left explains number %d", len(t.copies), n+2)
				break
			}
			left[i]--
		}
	}
}

// inFlight reports whether a disturbance can have found a copy that the hub accepted in flight: its answer, or
// the ack that follows it, may be lost.
func (c *checker) inFlight(t *target, copy *hubCopy, d *disturbance) bool {
	until := copy.at
	if s := c.settled[t.pub]; s.After(until) {
		until = s
	}
	return d.Times > 0 && (d.Device == "" || d.Device == t.to.id) && !d.Begin.After(until.Add(ackMargin)) &&
		(d.End.IsZero() || !d.End.Add(d.shows).Before(copy.at))
}

// settle notes when each message's last target had its first fate.
func (c *checker) settle() {
	for _, t := range c.targets {
		if at := t.firstFate(); at.After(c.settled[t.pub]) {
			c.settled[t.pub] = at
		}
	}
}

// firstFate is when a target had a fate; zero: never.
func (t *target) firstFate() (at time.Time) {
	if len(t.copies) > 0 {
		at = t.copies[0].at
	}
	if len(t.dead) > 0 && (at.IsZero() || t.dead[0].at.Before(at)) {
		at = t.dead[0].at
	}
	return at
}
