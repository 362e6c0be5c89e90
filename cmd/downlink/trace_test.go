package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// keeps stores receipts and mailbox entries as the bridge does.
type keeps struct {
	t       *testing.T
	js      jetstream.JetStream
	mailbox *natsio.Mailbox
}

func runKeeps(t *testing.T) (*bridgetest.NATS, *keeps) {
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "DOWNLINK_RECEIPTS", "downlink.receipt.>")
	n.CreateStream(t, "COMMANDS", "cmd.>")
	conn, err := natsio.Connect(natsio.Options{URLs: []string{n.URL()}})
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	box, err := natsio.NewMailbox(natsio.MailboxOptions{Conn: conn, Create: true})
	require.NoError(t, err)
	return n, &keeps{t, n.JetStream(t), box}
}

func (k *keeps) receipt(r bridge.Receipt) {
	k.t.Helper()
	b, err := json.Marshal(r)
	require.NoError(k.t, err)
	_, err = k.js.PublishMsg(k.t.Context(), &nats.Msg{Subject: natsio.ReceiptSubject("downlink", r.Hub, r.Device, r.Status), Data: b, Header: nats.Header{"Downlink-Format": {"1"}}})
	require.NoError(k.t, err)
}

// park stores an entry as the bridge does; the mailbox makes its stream.
func (k *keeps) park(seq uint64, device, id string) {
	k.t.Helper()
	k.parkAs(seq, device, id, func(*mapping.Envelope) {})
}

func (k *keeps) parkAs(seq uint64, device, id string, change func(*mapping.Envelope)) {
	k.t.Helper()
	e := &mapping.Envelope{Route: "r", Hub: "main", Device: device, MessageID: id, Body: []byte("x")}
	change(e)
	repeat, err := k.mailbox.Append(k.t.Context(), &bridge.Parcel{
		Envelope: e,
		Message:  &mapping.Input{Subject: "cmd.x", Payload: []byte("x"), Stream: "COMMANDS", Sequence: seq},
		Attempts: 3, At: time.Now(),
	})
	require.NoError(k.t, err)
	require.False(k.t, repeat)
}

func (k *keeps) publish(n int) {
	k.t.Helper()
	for range n {
		_, err := k.js.Publish(k.t.Context(), "cmd.x", nil)
		require.NoError(k.t, err)
	}
}

// told is the last line of a trace.
func told(r result) string {
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	return lines[len(lines)-1]
}

// TestTraceStates: the sentence for each place where a message may be.
func TestTraceStates(t *testing.T) {
	n, k := runKeeps(t)
	k.publish(12)
	now := time.Now().UTC()
	seq := uint64(0)
	for _, c := range []struct{ status, want string }{
		{"completed", "for d: delivered: the device completed it at "}, {"rejected", "not delivered: the device rejected it at "},
		{"expired", "not delivered: it expired in the hub's queue"}, {"delivery-count-exceeded", "the hub gave up"},
		{"purged", "somebody purged"}, {"unknown", "nobody knows"}, {"replaced", "replaced at "}, {"dropped", "dropped at "},
		{"something-new", "status something-new since"}, {"dead", "which is not there any more: redriven, purged, or too old"},
	} {
		seq++
		skew := time.Microsecond
		if slices.Contains(outcomes, c.status) {
			skew = -time.Second // the hub's clock
		}
		for i, status := range []string{"accepted", c.status} {
			k.receipt(bridge.Receipt{ID: fmt.Sprint("id-", seq), Device: "d", Hub: "main", Route: "r", Status: status, Subject: "cmd.x", Stream: "COMMANDS", Sequence: seq, Attempts: 1, At: now.Add(skew * time.Duration(i))})
		}
		for _, query := range []string{fmt.Sprint("COMMANDS:", seq), fmt.Sprint("id-", seq)} {
			got := cli(t, "trace", query, "-s", n.URL())
			require.Equal(t, exitOK, got.code, got.stderr)
			require.Contains(t, told(got), c.want, query)
		}
	}
	seq++
	k.receipt(bridge.Receipt{ID: "id-11", Device: "d", Hub: "main", Status: "accepted", Subject: "cmd.x", Stream: "COMMANDS", Sequence: seq, Attempts: 2, At: now})
	got := cli(t, "trace", "COMMANDS:11", "-s", n.URL())
	require.Contains(t, told(got), "accepted by the hub at "+at(now)+", outcome at the device not known yet")
	require.Regexp(t, `\n\S+Z +accepted +d +- +\(2 attempts\)\n`, got.stdout)

	for i, device := range []string{"d", "other", "d"} {
		k.park(uint64(8+2*i), device, fmt.Sprint("parked-", i))
	}
	_, err := k.js.PublishMsg(t.Context(), &nats.Msg{Subject: "downlink.mailbox.main.d.COMMANDS.-", Header: nats.Header{"Downlink-Format": {"2"}, "Downlink-Message-Id": {"parked-9"}}})
	require.NoError(t, err)
	require.Contains(t, told(cli(t, "trace", "COMMANDS:12", "-s", n.URL())), "for d: waits in the mailbox as entry 3 (number 2 of 2 for the device) since ")
	require.Contains(t, told(cli(t, "trace", "parked-1", "--device", "other", "-s", n.URL())), "entry 2 (number 1 of 1 for the device)")

	for i, bound := range []func(*mapping.Envelope){
		func(e *mapping.Envelope) { e.ExpiresAt = now.Add(-time.Hour) },
		func(e *mapping.Envelope) { e.SendBy = now.Add(-time.Hour) },
		func(e *mapping.Envelope) { e.ExpiresAt, e.SendBy = now.Add(time.Hour), now.Add(time.Hour) },
	} {
		id := fmt.Sprint("timed-", i)
		k.parkAs(13, "late", id, bound)
		want := "; it goes out by itself, "
		if i < 2 {
			want = "; it has expired (at " + at(now.Add(-time.Hour)) + "), and becomes a dead letter when it is its turn"
		}
		require.Contains(t, told(cli(t, "trace", id, "-s", n.URL())), want)
	}

	byDevice := cli(t, "trace", "--device", "d", "--since", "1h", "-s", n.URL())
	require.Equal(t, exitOK, byDevice.code, byDevice.stderr)
	require.Regexp(t, `^FIRST SEEN +MESSAGE +ROUTE +SUBJECT +STORY\n`, byDevice.stdout)
	require.Regexp(t, `COMMANDS:1 +r +cmd.x +accepted, completed at `, byDevice.stdout)
	require.Contains(t, told(byDevice), "13 in all, now 1 accepted, 1 completed, 1 dead, ")
	j := objects(t, cli(t, "trace", "--device", "d", "--limit", "2", "--json", "-s", n.URL()).stdout)[0]
	require.Len(t, j["messages"], 2)
	require.EqualValues(t, 11, j["cut"])

	none := cli(t, "trace", "--device", "nobody", "-s", n.URL())
	require.Equal(t, exitFailed, none.code)
	require.True(t, strings.HasPrefix(none.stdout, "no trace of a message for device nobody since "), "no table without a row: %s", none.stdout)
	require.Contains(t, none.stdout, "receipts: true")
	none = cli(t, "trace", "nothing", "-s", n.URL())
	require.True(t, strings.HasPrefix(none.stdout, `no trace of "nothing" since `), none.stdout)
	require.Contains(t, none.stdout, "Either it waits and has no fate yet; or no receipt was asked for; ")
	none = cli(t, "trace", "nothing", "--json", "-s", n.URL())
	require.Equal(t, exitFailed, none.code)
	require.Equal(t, "downlink: no trace of \"nothing\"\n", none.stderr)
	require.Equal(t, false, objects(t, none.stdout)[0]["found"])
}

// TestTraceStream: what the position of the bridge's consumer tells of a message that nothing else tells of.
func TestTraceStream(t *testing.T) {
	n, k := runKeeps(t)
	k.publish(2)
	ask := func(query string) string { return told(cli(t, "trace", query, "-s", n.URL())) }
	require.Contains(t, ask("COMMANDS:1"), "waits in its stream: no bridge named downlink has ever read stream COMMANDS")
	s, err := k.js.Stream(t.Context(), "COMMANDS")
	require.NoError(t, err)
	c, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "downlink", DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "cmd.x"})
	require.NoError(t, err)
	_, err = k.js.Publish(t.Context(), "cmd.y", nil)
	require.NoError(t, err)
	k.publish(4) // 4 to 7
	for range 2 {
		m, err := c.Next()
		require.NoError(t, err)
		if meta, _ := m.Metadata(); meta.Sequence.Stream == 4 {
			require.NoError(t, m.DoubleAck(t.Context()))
		}
	}
	require.Contains(t, ask("COMMANDS:1"), "it was in the stream before the bridge first read that")
	require.Contains(t, ask("COMMANDS:3"), "no route takes subject cmd.y (it reads cmd.x)")
	require.Contains(t, ask("COMMANDS:4"), "COMMANDS:4 was read and settled by the bridge")
	require.Contains(t, ask("COMMANDS:4"), "give the route receipts: true")
	require.Contains(t, ask("COMMANDS:5"), "was read by the bridge, which holds 1 messages without a fate")
	require.NotContains(t, ask("COMMANDS:5"), "receipts: true", "it may only be waiting, on a route that has that")
	require.Contains(t, ask("COMMANDS:7"), "waits in its stream, not read yet: the bridge has read up to 5, at most 1 messages are ahead of it")
	require.Contains(t, ask("COMMANDS:99"), "stream COMMANDS has never had it, its last message is 7")
	require.NoError(t, s.DeleteMsg(t.Context(), 6))
	require.Contains(t, ask("COMMANDS:6"), "it is not in stream COMMANDS any more")
	unknown := cli(t, "trace", "NOWHERE:1", "-s", n.URL())
	require.Equal(t, exitFailed, unknown.code)
	require.Contains(t, unknown.stdout, `there is no stream NOWHERE on this NATS, so "NOWHERE:1" was looked for as a message ID`)

	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "WORK", Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy})
	_, err = k.js.Publish(t.Context(), "work.x", nil)
	require.NoError(t, err)
	w, err := k.js.Stream(t.Context(), "WORK")
	require.NoError(t, err)
	require.NoError(t, w.DeleteMsg(t.Context(), 1))
	require.Contains(t, ask("WORK:1"), "stream WORK removes a message once it is settled")

	// A default ID names its message, unless the stream was made anew.
	m, err := s.GetMsg(t.Context(), 7)
	require.NoError(t, err)
	require.Contains(t, ask(fmt.Sprintf("COMMANDS:7:%s", base36(m.Time))), "COMMANDS:7 waits in its stream")
	other := cli(t, "trace", fmt.Sprintf("COMMANDS:7:%s", base36(m.Time.Add(-time.Hour))), "-s", n.URL())
	require.Contains(t, other.stdout, "COMMANDS:7 is another message now: the stream was made anew")
}

func base36(t time.Time) string {
	return strconv.FormatInt(t.UnixNano(), 36)
}

// TestTraceDeviceOpen: what is in the source streams without a fate may be for the device that was asked for.
func TestTraceDeviceOpen(t *testing.T) {
	n, k := runKeeps(t)
	ask := func() result { return cli(t, "trace", "--device", "d", "-s", n.URL()) }
	k.publish(3)
	s, err := k.js.Stream(t.Context(), "COMMANDS")
	require.NoError(t, err)
	c, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "downlink", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "cmd.x"})
	require.NoError(t, err)
	const line = "stream COMMANDS: messages that are read and have no fate yet: %d, not read yet: %d; some may be for d (downlink trace COMMANDS:SEQ tells of one)"
	require.Equal(t, fmt.Sprintf(line, 0, 3), told(ask()))
	for range 2 {
		m, err := c.Next()
		require.NoError(t, err)
		if meta, _ := m.Metadata(); meta.Sequence.Stream == 1 {
			require.NoError(t, m.DoubleAck(t.Context()))
		}
	}
	none := ask()
	require.Equal(t, exitFailed, none.code)
	require.Contains(t, none.stdout, "no trace of a message for device d")
	require.Equal(t, fmt.Sprintf(line, 1, 1), told(none))
	k.park(1, "d", "parked")
	found := ask()
	require.Equal(t, exitOK, found.code, found.stderr)
	require.Contains(t, found.stdout, ": 1 in all, now 1 mailbox\n")
	require.Equal(t, fmt.Sprintf(line, 1, 1), told(found))
	j := objects(t, cli(t, "trace", "--device", "d", "--json", "-s", n.URL()).stdout)[0]
	require.Equal(t, []any{map[string]any{"stream": "COMMANDS", "held": 1.0, "unread": 1.0}}, j["open"])

	file := filepath.Join(t.TempDir(), "bridge.yaml")
	writeTo(t, file, fmt.Sprintf(traceFile, n.URL()))
	require.Equal(t, "stream ORDERS: how many messages have no fate yet cannot be told: stream ORDERS does not exist", told(cli(t, "trace", "--device", "d", "-c", file)))
	n.CreateStream(t, "ORDERS", "order.>")
	require.Equal(t, "stream ORDERS: how many messages have no fate yet cannot be told: no bridge named downlink has read it yet", told(cli(t, "trace", "--device", "d", "-c", file)))
}

// traceFile is a configuration of two streams.
const traceFile = `version: 1
bridge:
  nats: {url: %q}
  hubs:
    - {name: main, connection_string_file: hub-service}
  routes:
    - {name: commands, subject: "cmd.{device}", stream: COMMANDS, device: "{device}"}
    - {name: orders, subject: "order.{device}", stream: ORDERS, device: "{device}"}
`

// TestTraceDeviceWaits: with the configuration the device's messages that have no fate yet are listed.
func TestTraceDeviceWaits(t *testing.T) {
	n, k := runKeeps(t)
	n.CreateStream(t, "ORDERS", "order.>")
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "WORK", Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy})
	publish := func(subjects ...string) {
		for _, subject := range subjects {
			_, err := k.js.Publish(t.Context(), subject, nil)
			require.NoError(t, err)
		}
	}
	publish("cmd.d", "cmd.d", "cmd.other", "cmd.d", "cmd.d", "cmd.no.route", "cmd.d", "cmd.other", "work.d", "order.d")
	read := func(stream, filter string, acked ...uint64) {
		s, err := k.js.Stream(t.Context(), stream)
		require.NoError(t, err)
		c, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "downlink", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: filter})
		require.NoError(t, err)
		if len(acked) == 0 {
			return
		}
		for range 5 {
			m, err := c.Next()
			require.NoError(t, err)
			if meta, _ := m.Metadata(); slices.Contains(acked, meta.Sequence.Stream) {
				require.NoError(t, m.DoubleAck(t.Context()))
			}
		}
	}
	read("COMMANDS", "cmd.*", 1, 4)
	read("WORK", "work.*")
	k.park(4, "d", "parked") // settled out of turn
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	writeTo(t, file, fmt.Sprintf(traceFile, n.URL())+`    - {name: work, subject: "work.{device}", stream: WORK, device: "{device}", receipts: true}
`)
	got := cli(t, "trace", "--device", "d", "-c", file)
	require.Equal(t, exitOK, got.code, got.stderr)
	row := func(seq int, story string) string {
		return fmt.Sprintf(`\n\S+Z +COMMANDS:%d +commands +cmd\.d +%s`, seq, story)
	}
	require.Regexp(t, row(2, `published at \S+Z, read, no fate yet\n`), got.stdout)
	require.Regexp(t, `\n\S+Z +COMMANDS:4 +r +cmd\.x +mailbox entry 1 at`, got.stdout)
	require.Regexp(t, row(5, `published at \S+Z, read, no fate yet\n`), got.stdout)
	require.Regexp(t, row(7, `published at \S+Z, not read yet\n`), got.stdout)
	require.NotContains(t, got.stdout, "cmd.other")
	require.Contains(t, got.stdout, ": 4 in all, now 2 held, 1 mailbox, 1 unread\n")
	require.Regexp(t, `\nstream COMMANDS: messages that are read and have no fate yet: 3, not read yet: 2; those for d since \S+Z are listed\n`, got.stdout)
	require.Contains(t, got.stdout, "\nstream ORDERS: how many messages have no fate yet cannot be told: no bridge named downlink has read it yet\n")
	require.Contains(t, got.stdout, "\nstream WORK: messages that are read and have no fate yet: 0, not read yet: 1; some may be for d (downlink trace WORK:SEQ tells of one)\n")

	messages := objects(t, cli(t, "trace", "--device", "d", "-c", file, "--json").stdout)[0]["messages"].([]any)
	require.Len(t, messages, 4)
	held := messages[0].(map[string]any)
	require.Equal(t, "held", held["state"])
	require.EqualValues(t, 2, held["seq"])
	require.Equal(t, "was read by the bridge: it waits for its device or is on its way to the hub, or, as it has no receipts, was settled out of turn", held["now"])
	require.Equal(t, "no trace of messages for device nobody", strings.TrimPrefix(strings.TrimSpace(cli(t, "trace", "--device", "nobody", "-c", file).stderr), "downlink: "))
}

// TestTraceDeviceWaitsBound: only the last messages of a long stream are mapped, and that is said; so is a lookup that cannot be read.
func TestTraceDeviceWaitsBound(t *testing.T) {
	n, k := runKeeps(t)
	for i := range waitsBound + 2 {
		subject := "cmd.other"
		if i == 1 || i == waitsBound+1 {
			subject = "cmd.d"
		}
		_, err := k.js.PublishAsync(subject, nil, jetstream.WithStallWait(patience))
		require.NoError(t, err)
	}
	<-k.js.PublishAsyncComplete()
	s, err := k.js.Stream(t.Context(), "COMMANDS")
	require.NoError(t, err)
	_, err = s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "downlink", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "cmd.*"})
	require.NoError(t, err)
	n.CreateStream(t, "ORDERS", "order.>")
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	writeTo(t, file, strings.Replace(fmt.Sprintf(traceFile, n.URL()), "  routes:\n", "  lookups:\n    - {name: aliases, bucket: aliases}\n  routes:\n", 1))
	got := cliWithin(t, "--connect-timeout", time.Second, "bucket aliases does not exist", "trace", "--device", "d", "-c", file)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, ": 1 in all, now 1 unread\nlookup aliases was not read, so messages that wait and need it are not listed: bucket aliases does not exist: ")
	require.Regexp(t, `not read yet: 10002; those for d since \S+Z are listed from COMMANDS:3 on, ones before that are not\n`, got.stdout)

	writeTo(t, file, strings.Replace(fmt.Sprintf(traceFile, n.URL()), "  routes:\n", "  lookups:\n    - {name: aliases, file: elsewhere.yaml}\n  routes:\n", 1))
	got = cli(t, "trace", "--device", "d", "-c", file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "\nnot all messages that wait for the device can be listed: lookup aliases: open ")
	require.Contains(t, got.stdout, "not read yet: 10002; some may be for d ")
}

// TestTraceBridge: a real message that died, came back, and was accepted.
func TestTraceBridge(t *testing.T) {
	p := runPlant(t, "ok")
	p.start(t)
	p.publish(t, "ok", "x", nil)
	p.publish(t, "late", "y", nil)
	p.bodies(t, "ok", 1)
	p.has(t, "PLANT_DEAD", 1)
	require.Eventually(t, func() bool {
		return strings.Contains(cli(t, "trace", "COMMANDS:1", "-c", p.file).stdout, "was read and settled by the bridge")
	}, patience, 50*time.Millisecond)
	got := cli(t, "trace", "COMMANDS:2", "-c", p.file)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Regexp(t, `\n\S+Z +published +- +- +cmd\.late\.reboot as COMMANDS:2 \(1 bytes\)\n`, got.stdout)
	require.Regexp(t, `\n\S+Z +dead letter 1 +late +commands +device-not-found: amqp:not-found: `, got.stdout)
	require.Contains(t, told(got), "for late: dead letter 1: device-not-found: amqp:not-found: no device late (404001); register device late at hub main, then downlink dead redrive 1")
	id := objects(t, cli(t, "dead", "ls", "-c", p.file, "--json").stdout)[0]["message_id"].(string)
	require.Equal(t, told(got), told(cli(t, "trace", id, "-c", p.file)))

	require.NoError(t, p.hub.CreateDevice("late"))
	require.Equal(t, exitOK, cli(t, "dead", "redrive", "1", "-c", p.file).code)
	p.bodies(t, "late", 1)
	require.Equal(t, "COMMANDS:2 was brought back from the dead letters as COMMANDS:3 (downlink trace COMMANDS:3)", told(cli(t, "trace", "COMMANDS:2", "-c", p.file)))
	j := objects(t, cli(t, "trace", "COMMANDS:3", "--json", "-c", p.file).stdout)[0]
	require.Equal(t, "COMMANDS:2", j["source"].(map[string]any)["redriven"])
}

// TestTraceDelivered: a real device's outcome, from the real hub's feedback.
func TestTraceDelivered(t *testing.T) {
	p := runPlant(t)
	dir := t.TempDir()
	_, hub := startHub(t, dir, "--device", "good", "--device", "bad", "--device", "away", "--virtual", "good=complete", "--virtual", "bad=reject", "--feedback-every", "50ms", "--http", "off")
	writeTo(t, filepath.Join(filepath.Dir(p.file), "hub-service"), hub.ServiceConnectionString+"\n")
	text := fmt.Sprintf(toolsFile, p.pages, p.nats.URL(), hub.AMQPS, hub.CAFile)
	writeTo(t, p.file, strings.Replace(text, "      create: true\n", "      create: true\n      message: {ack: full}\n", 1))
	p.start(t)
	for _, device := range []string{"good", "bad", "away", "nobody"} {
		p.publish(t, device, "x", nil)
	}
	for place, want := range map[string]string{
		"COMMANDS:1": "for good: delivered: the device completed it at ",
		"COMMANDS:2": "for bad: not delivered: the device rejected it at ",
		"COMMANDS:3": "for away: accepted by the hub at ",
		"COMMANDS:4": "for nobody: dead letter 1: device-not-found",
	} {
		require.Eventually(t, func() bool { return strings.Contains(told(cli(t, "trace", place, "-c", p.file)), want) }, patience, 100*time.Millisecond, "%s: %s", place, want)
	}
	require.Regexp(t, `\n\S+Z +published .*\n\S+Z +accepted +good +commands .*\n\S+Z +completed +good +commands `, cli(t, "trace", "COMMANDS:1", "-c", p.file).stdout)
	require.Contains(t, cli(t, "trace", "--device", "good", "-c", p.file).stdout, ": 1 in all, now 1 completed")
	require.Equal(t, exitOK, cli(t, "dead", "purge", "--all", "--yes", "-c", p.file).code)
	require.Contains(t, told(cli(t, "trace", "COMMANDS:4", "-c", p.file)), "which is not there any more: redriven, purged, or too old")
}
