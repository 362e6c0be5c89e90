package soak

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/journal"
)

const testSeed = 7

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is evidence of a run in which all went well, to be spoilt.
type world struct {
	e       *evidence
	devices []device
	edgeSeq uint64
	hubSeq  uint64
}

func newWorld() *world {
	return &world{devices: cast(minDevices), e: &evidence{source: map[string][]record{}, sourcePending: map[string]int{}}}
}

// publish is a message in its stream.
func (w *world) publish(name, verb string) *publication {
	k, _ := kindOf(verb)
	n := len(w.e.published)
	p := publication{Key: fmt.Sprintf("%s/%d", name, n), Device: name, Number: n, Verb: verb,
		Stored: Stored{Stream: k.stream, Sequence: uint64(len(w.e.source[k.stream]) + 1), At: testTime.Add(time.Duration(n) * time.Second), Tries: 1}}
	w.e.published = append(w.e.published, p)
	m := p.message(testSeed)
	w.e.source[k.stream] = append(w.e.source[k.stream], record{subject: m.Subject, sequence: p.Sequence, at: p.At, header: m.Header, data: m.Data})
	return &w.e.published[n]
}

func (w *world) device(name string) device {
	for _, d := range w.devices {
		if d.name == name {
			return d
		}
	}
	panic(name)
}

// accept is a copy at the hub.
func (w *world) accept(p *publication, to, outcome string) *hubCopy {
	w.hubSeq++
	m := p.message(testSeed)
	h := &hubCopy{device: w.device(to).id, sequence: w.hubSeq, messageID: fmt.Sprintf("%s:%d:x", p.Stream, p.Sequence), at: p.At.Add(time.Second), outcome: outcome,
		message: &journal.Message{Body: m.Data, Properties: []c2d.Property{{Name: "verb", Value: p.Verb}, {Name: keyHeader, Value: p.Key}}}}
	w.e.copies = append(w.e.copies, h)
	return h
}

// arrive is a message at the edge.
func (w *world) arrive(p *publication, to string) *record {
	w.edgeSeq++
	m := p.message(testSeed)
	id := w.device(to).id
	m.Header.Set("verb", p.Verb)
	for name, value := range map[string]string{"Downlink-Device": id, "Downlink-Message-Id": fmt.Sprintf("%s:%d:x", p.Stream, p.Sequence)} {
		m.Header.Set(name, value)
	}
	if p.Verb == "read" {
		m.Header.Set("Downlink-Correlation-Id", p.Key)
		m.Header.Set("Downlink-Content-Type", "application/octet-stream")
		m.Header.Set("Downlink-Subject", m.Subject)
		m.Header.Set("Downlink-Seq", strconv.FormatUint(p.Sequence, 10))
	}
	w.e.edge = append(w.e.edge, record{subject: "edge." + id + "." + p.Verb, sequence: w.edgeSeq, at: p.At.Add(2 * time.Second), header: m.Header, data: m.Data})
	return &w.e.edge[len(w.e.edge)-1]
}

// deliver is the whole way.
func (w *world) deliver(p *publication, to string) {
	w.accept(p, to, c2d.Success)
	w.arrive(p, to)
}

// keep is a dead letter or an entry of the mailbox.
func (w *world) keep(p *publication, to, reason string, attempts int, body []byte) record {
	h := nats.Header{}
	for name, value := range map[string]string{
		"Downlink-Format": "1", "Downlink-Stream": p.Stream, "Downlink-Seq": strconv.FormatUint(p.Sequence, 10), "Downlink-Device": w.device(to).id,
		"Downlink-Reason": reason, "Downlink-Attempts": strconv.Itoa(attempts),
	} {
		h.Set(name, value)
	}
	return record{subject: "x", sequence: 1, at: p.At.Add(time.Second), header: h, data: body}
}

func (w *world) receipt(p *publication, to, status string) {
	w.e.hasReceipts = true
	data, _ := json.Marshal(bridge.Receipt{ID: fmt.Sprintf("%s:%d:x", p.Stream, p.Sequence), Device: w.device(to).id, Status: status, Stream: p.Stream, Sequence: p.Sequence})
	w.e.receipts = append(w.e.receipts, record{sequence: uint64(len(w.e.receipts) + 1), data: data})
}

func (w *world) check() *checker { return check(testSeed, w.devices, w.e) }

// TestAllWell: one message of each kind, each where it belongs.
func TestAllWell(t *testing.T) {
	w := newWorld()
	w.deliver(w.publish("pump06", "set"), "pump06")
	w.deliver(w.publish("pump06", "read"), "pump06")
	w.publish("pump06", "note")
	alarm := w.publish("pump07", "alarm")
	w.deliver(alarm, "pump07")
	w.deliver(alarm, "monitor")
	w.accept(w.publish("taking", "set"), "taking", c2d.Success)
	w.accept(w.publish("refusing", "alert"), "refusing", c2d.Rejected)
	w.accept(w.publish("pump06", "soon"), "pump06", c2d.Expired)
	lost := w.publish("nobody", "set")
	w.e.dead = append(w.e.dead, w.keep(lost, "nobody", "device-not-found", 1, nil))
	c := w.check()
	require.Empty(t, c.violations)
	r := &Report{}
	r.fill(c, 8, nil)
	require.Equal(t, map[string]int{
		"at the edge": 4, "dropped by its route": 1, "completed by a device of the hub's": 1, "rejected by the device": 1, "expired at the hub": 1,
		"dead: device-not-found": 1,
	}, r.Fates)
	require.Equal(t, "no receipts stream", r.Unchecked)
	require.True(t, r.OK())
}

// TestViolations: each spoilt world breaks its rule, and the text says how.
func TestViolations(t *testing.T) {
	for name, test := range map[string]struct {
		spoil      func(w *world, p *publication) // p is a set for pump06, published and no more
		rule, text string
	}{
		"lost":         {func(w *world, p *publication) {}, ruleLost, "acked at its source"},
		"not settled":  {func(w *world, p *publication) { w.e.sourcePending[streamCommands] = 1 }, ruleSettle, "not settled"},
		"at the hub":   {func(w *world, p *publication) { w.accept(p, "pump06", "") }, ruleSettle, "hub's queue"},
		"after hub":    {func(w *world, p *publication) { w.accept(p, "pump06", c2d.Success) }, ruleLost, "not at the edge"},
		"never at hub": {func(w *world, p *publication) { w.arrive(p, "pump06") }, ruleFate, "the hub never had it"},
		"purged":       {func(w *world, p *publication) { w.accept(p, "pump06", c2d.Purged) }, ruleFate, "Purged:1"},
		"expired":      {func(w *world, p *publication) { w.accept(p, "pump06", c2d.Expired) }, ruleFate, "Expired:1"},
		"dead for no reason": {func(w *world, p *publication) {
			w.e.dead = append(w.e.dead, w.keep(p, "pump06", "device-not-found", 1, nil))
		}, ruleFate, "cannot have: device-not-found"},
		"two fates": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.dead = append(w.e.dead, w.keep(p, "pump06", "breaks-link", 0, nil))
		}, ruleFate, "two fates"},
		"two dead letters": {func(w *world, p *publication) {
			d := w.keep(p, "pump06", "breaks-link", 3, nil)
			w.e.dead = append(w.e.dead, d, d)
		}, ruleFate, "2 dead letters"},
		"dead and parked": {func(w *world, p *publication) {
			w.e.dead = append(w.e.dead, w.keep(p, "pump06", "breaks-link", 3, nil))
			w.e.mailbox = append(w.e.mailbox, w.keep(p, "pump06", "", 3, append([]byte("{}\n"), p.message(testSeed).Data...)))
		}, ruleFate, "still in the mailbox"},
		"parked": {func(w *world, p *publication) {
			w.e.mailbox = append(w.e.mailbox, w.keep(p, "pump06", "", 3, append([]byte("{}\n"), p.message(testSeed).Data...)))
		}, ruleSettle, "nothing holds it up"},
		"parked with another body": {func(w *world, p *publication) {
			w.e.mailbox = append(w.e.mailbox, w.keep(p, "pump06", "", 3, []byte("{}\nother")))
		}, ruleIntact, "another body"},
		"wrong device": {func(w *world, p *publication) { w.deliver(p, "pump06"); w.deliver(p, "pump07") }, ruleFate, "was to go"},
		"order": {func(w *world, p *publication) {
			w.deliver(w.publish("pump06", "set"), "pump06")
			w.deliver(p, "pump06")
		}, ruleOrder, "the hub accepted it after pump06/1"},
		"order at the edge": {func(w *world, p *publication) {
			second := w.publish("pump06", "set")
			w.accept(p, "pump06", c2d.Success)
			w.accept(second, "pump06", c2d.Success)
			w.arrive(second, "pump06")
			w.arrive(p, "pump06")
		}, ruleOrder, "it is at the edge after pump06/1"},
		"body": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.edge[0].data = []byte("other")
		}, ruleIntact, "a body of 5 bytes"},
		"header": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.edge[0].header.Del("X-Marks")
		}, ruleIntact, `header "X-Marks"`},
		"header that nobody set": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.edge[0].header.Set("X-More", "1")
		}, ruleIntact, "nobody set"},
		"body at the hub": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.copies[0].message.Body = []byte("other")
		}, ruleIntact, "what the hub accepted"},
		"unexplained repeat": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.accept(p, "pump06", c2d.Success)
		}, ruleRepeat, "2 times, and no disturbance"},
		"repeat long after": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.accept(p, "pump06", c2d.Success)
			w.e.disturbances = []disturbance{{Kind: "cut", Times: 1, Begin: testTime.Add(time.Minute), End: testTime.Add(time.Minute)}}
		}, ruleRepeat, "no disturbance that is left explains number 2"},
		"repeat under another ID": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.accept(p, "pump06", c2d.Success).messageID = "other"
		}, ruleRepeat, "another message ID, other"},
		"repeat with other bytes": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.accept(p, "pump06", c2d.Success).message.ContentType = "x"
		}, ruleRepeat, "other bytes"},
		"twice at the edge": {func(w *world, p *publication) { w.deliver(p, "pump06"); w.arrive(p, "pump06") }, ruleRepeat, "holds it twice"},
		"dropped and sent": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.deliver(w.publish("pump06", "note"), "pump06")
		}, ruleFate, "its route drops it"},
		"nobody's message": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.source[streamAlerts] = []record{{sequence: 9}}
		}, ruleSource, "no publisher was told so"},
		"gone from the source": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.source[streamCommands] = nil
		}, ruleSource, "is not there"},
		"a relay's dead letter": {func(w *world, p *publication) {
			w.deliver(p, "pump06")
			w.e.edgeDead = []record{{subject: "site.dead.x", header: nats.Header{}}}
		}, ruleFate, "a dead letter of a relay"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.e.published = make([]publication, 0, 9) // so that pointers into it stay good
			test.spoil(w, w.publish("pump06", "set"))
			c := w.check()
			require.NotEmpty(t, c.violations)
			require.Equal(t, test.rule, c.violations[0].Rule, "%+v", c.violations)
			require.Contains(t, c.violations[0].Text, test.text)
		})
	}
}

// TestExplainedRepeat: one for each disturbance that found the message in flight.
func TestExplainedRepeat(t *testing.T) {
	w := newWorld()
	p := w.publish("pump06", "set")
	w.deliver(p, "pump06")
	w.accept(p, "pump06", c2d.Success)
	at := w.e.copies[0].at
	w.e.disturbances = []disturbance{
		{Kind: "kill-bridge", Times: 1, Begin: at.Add(time.Second), End: at.Add(2 * time.Second)},
		{Kind: "kill-relay", Begin: at, End: at.Add(time.Second)},
		{Kind: "release", Times: 2, Device: "s1-pump07", Begin: at},
	}
	c := w.check()
	require.Empty(t, c.violations)
	require.Equal(t, Repeats{Hub: 1, HubBound: 1}, c.repeats)

	// The copy after a kill is in flight as the first one was.
	w.accept(p, "pump06", c2d.Success).at = at.Add(20 * time.Second)
	require.Contains(t, w.check().violations[0].Text, "number 3")
	w.e.copies[1].at = at.Add(15 * time.Second)
	w.e.disturbances = append(w.e.disturbances, disturbance{Kind: "cut", Times: 1, Begin: at.Add(16 * time.Second), End: at.Add(16 * time.Second)})
	require.Empty(t, w.check().violations)
}

// TestLateFate: a dead letter whose last answer was lost is one fate, though the hub has the message.
func TestLateFate(t *testing.T) {
	w := newWorld()
	p := w.publish("pump06", "set")
	w.deliver(p, "pump06")
	w.e.dead = append(w.e.dead, w.keep(p, "pump06", "breaks-link", 0, nil))
	w.e.disturbances = []disturbance{{Kind: "kill-bridge", Times: 1, Begin: w.e.copies[0].at, End: w.e.copies[0].at}}
	c := w.check()
	require.Empty(t, c.violations)
	require.Equal(t, "dead: breaks-link (and the hub has it)", c.targets[0].fate)
}

// TestReceipts: they say what happened, all of it and nothing else.
func TestReceipts(t *testing.T) {
	for name, test := range map[string]struct {
		outcome  string
		statuses []string
		want     string // part of the first violation; "": none
	}{
		"completed":       {c2d.Success, []string{"accepted", "completed"}, ""},
		"repeated":        {c2d.Success, []string{"accepted", "accepted", "completed"}, ""},
		"none":            {c2d.Success, []string{"unrelated"}, "says unrelated"},
		"no accepted":     {c2d.Success, []string{"completed"}, "no receipt says that the hub accepted it"},
		"no outcome":      {c2d.Success, []string{"accepted"}, "what became of it at its device: Success"},
		"another outcome": {c2d.Success, []string{"accepted", "completed", "rejected"}, "says rejected"},
		"dead":            {c2d.Success, []string{"accepted", "completed", "dead"}, "says dead"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			p := w.publish("pump06", "read")
			w.accept(p, "pump06", test.outcome)
			w.arrive(p, "pump06")
			for _, status := range test.statuses {
				w.receipt(p, "pump06", status)
			}
			c := w.check()
			if test.want == "" {
				require.Empty(t, c.violations)
				return
			}
			require.NotEmpty(t, c.violations)
			require.Equal(t, ruleReceipts, c.violations[0].Rule)
			require.Contains(t, c.violations[0].Text, test.want)
		})
	}

	twice := newWorld()
	soon := twice.publish("pump06", "alert")
	twice.e.disturbances = []disturbance{{Times: 1, Begin: testTime}}
	twice.accept(soon, "pump06", c2d.Success)
	twice.accept(soon, "pump06", c2d.Rejected)
	twice.arrive(soon, "pump06")
	twice.receipt(soon, "pump06", "accepted")
	twice.receipt(soon, "pump06", "rejected")
	texts := ""
	for _, v := range twice.check().violations {
		texts += v.Text + "\n"
	}
	require.Contains(t, texts, "no receipt says that its device completed it")
	twice.e.receipts[1].data = []byte(`{"id":"alerts:1:X","device":"s1-pump06","status":"completed"}`)
	c := twice.check()
	require.Contains(t, c.violations[len(c.violations)-2].Text, "is not tied to the message")
	require.Equal(t, soon.Key, c.violations[len(c.violations)-2].Message)

	w := newWorld()
	p := w.publish("nobody", "read")
	w.e.dead = append(w.e.dead, w.keep(p, "nobody", "device-not-found", 1, nil))
	w.e.hasReceipts = true
	c = w.check()
	require.Contains(t, c.violations[0].Text, "no receipt says that it is dead")
	w.receipt(p, "nobody", "dead")
	require.Empty(t, w.check().violations)
	w.receipt(p, "pump06", "accepted")
	require.Contains(t, w.check().violations[0].Text, "where it was not to go")
	w.e.receipts[1] = record{data: []byte("{}")}
	require.Contains(t, w.check().violations[0].Text, "it has no status")
}

// TestPlan: the seed decides; every kind's route is there.
func TestPlan(t *testing.T) {
	a := (&publication{Key: "pump01/5", Device: "pump01", Number: 5, Verb: "set"}).message(1)
	b := (&publication{Key: "pump01/5", Device: "pump01", Number: 5, Verb: "set"}).message(1)
	require.Equal(t, a, b)
	require.NotEqual(t, a.Data, (&publication{Key: "pump01/5", Device: "pump01", Number: 5, Verb: "set"}).message(2).Data)
	roles := map[role]int{}
	for _, d := range cast(MinDevices) {
		roles[d.role]++
	}
	require.Equal(t, map[role]int{away: 2, taking: 1, coming: 1, refusing: 1, unknown: 1, healthy: 3, watching: 1}, roles)
	for _, k := range kinds {
		require.Contains(t, routes, "- name: "+k.route+"\n")
	}
}
