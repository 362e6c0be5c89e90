package natsio

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

func mailbox(t testing.TB, c *Conn, change func(*MailboxOptions)) *Mailbox {
	t.Helper()
	o := MailboxOptions{Conn: c, Create: true, Logger: testLog(t)}
	if change != nil {
		change(&o)
	}
	m, err := NewMailbox(o)
	require.NoError(t, err)
	return m
}

// waits is a parcel of a device, told apart by its number in the source stream.
func waits(device string, seq int) *bridge.Parcel {
	body := []byte("body " + strconv.Itoa(seq))
	return &bridge.Parcel{
		At:       time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC),
		Message:  &mapping.Input{Subject: "cmd.x", Payload: body, Stream: "COMMANDS", Sequence: uint64(seq), Time: time.Date(2026, 1, 2, 3, 4, 5, seq, time.UTC)},
		Envelope: &mapping.Envelope{Route: "commands", Hub: "main", Device: device, MessageID: "COMMANDS:" + strconv.Itoa(seq), Body: body},
	}
}

func keyed(p *bridge.Parcel, key string) *bridge.Parcel {
	p.Envelope.Coalesce = key
	return p
}

func boxOf(device string) bridge.Box {
	return bridge.Box{Hub: "main", Device: device, Stream: "COMMANDS"}
}

func appendTo(t testing.TB, m *Mailbox, p *bridge.Parcel) uint64 {
	t.Helper()
	repeat, err := m.Append(t.Context(), p)
	require.NoError(t, err)
	require.False(t, repeat)
	require.NotZero(t, p.Entry)
	return p.Entry
}

func TestMailbox(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil)
	require.EqualError(t, m.Ready(), "stream DOWNLINK_MAILBOX: not checked yet")
	run(t, m.Run)
	becomesReady(t, m.Ready)
	s, err := n.JetStream(t).Stream(t.Context(), "DOWNLINK_MAILBOX")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	require.Equal(t, []string{"downlink.mailbox.>"}, cfg.Subjects)
	require.Equal(t, jetstream.DiscardNew, cfg.Discard)
	require.Equal(t, jetstream.LimitsPolicy, cfg.Retention)
	require.Equal(t, jetstream.FileStorage, cfg.Storage)
	require.True(t, cfg.AllowDirect)
	require.Equal(t, 2*time.Minute, cfg.Duplicates)
	require.Zero(t, cfg.MaxAge)
	require.EqualValues(t, -1, cfg.MaxBytes)

	p := parcel()
	entry := appendTo(t, m, p)
	raw, err := s.GetMsg(t.Context(), entry)
	require.NoError(t, err)
	require.Equal(t, "downlink.mailbox.main.berlin-pump7.COMMANDS.verb%2Ereboot", raw.Subject)
	require.Contains(t, raw.Header.Get("Nats-Msg-Id"), "box-")

	again := parcel()
	repeat, err := m.Append(t.Context(), again)
	require.NoError(t, err)
	require.True(t, repeat)
	require.Zero(t, again.Entry)
	other := parcel()
	other.Envelope.Device = "berlin-pump8"
	second := appendTo(t, m, other)

	box := bridge.Box{Hub: "main", Device: "berlin-pump7", Stream: "COMMANDS"}
	got, err := m.Next(t.Context(), box, 0)
	require.NoError(t, err)
	require.Equal(t, p, got)
	got, err = m.Next(t.Context(), box, entry)
	require.NoError(t, err)
	require.Nil(t, got)

	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Equal(t, []bridge.Box{{Hub: "main", Device: "berlin-pump7", Stream: "COMMANDS", Entries: 1}, {Hub: "main", Device: "berlin-pump8", Stream: "COMMANDS", Entries: 1}}, boxes)

	require.NoError(t, m.Delete(t.Context(), entry))
	require.NoError(t, m.Delete(t.Context(), entry), "gone already")
	require.NoError(t, m.Delete(t.Context(), 99), "never there")
	require.NoError(t, m.Delete(t.Context(), 0))
	require.NoError(t, m.Delete(t.Context(), second))
	boxes, err = m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Empty(t, boxes)
	repeat, err = m.Append(t.Context(), parcel())
	require.NoError(t, err)
	require.True(t, repeat, "it had its fate")
	require.NoError(t, m.Ready())
}

// Names of any bytes that a hub and NATS allow, and boxes that begin alike.
func TestMailboxKeepsBoxesApart(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil) // without Run: the first Append makes the stream
	var want []bridge.Box
	devices := []string{"a", "a.b", "a-b", "a:b+%_#*?!(),=@;$'", "-", strings.Repeat("#", 128)}
	for _, hub := range []string{"main", "second"} {
		for i, device := range devices {
			p := waits(device, i+1)
			p.Envelope.Hub = hub
			appendTo(t, m, p)
			q := keyed(waits(device, i+100), strings.Repeat("ü", 300))
			q.Envelope.Hub = hub
			q.Message.Stream = "Ümläute"
			appendTo(t, m, q)
			want = append(want, bridge.Box{Hub: hub, Device: device, Stream: "COMMANDS", Entries: 1})
		}
	}
	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.ElementsMatch(t, want, boxes)
	for i := range want {
		want[i].Stream = "Ümläute"
	}
	boxes, err = m.Boxes(t.Context(), "Ümläute")
	require.NoError(t, err)
	require.ElementsMatch(t, want, boxes)
	for _, b := range boxes {
		p, err := m.Next(t.Context(), b, 0)
		require.NoError(t, err)
		require.Equal(t, b.Device, p.Envelope.Device)
		require.Equal(t, b.Hub, p.Envelope.Hub)
		q, err := m.Next(t.Context(), b, p.Entry)
		require.NoError(t, err)
		require.Nil(t, q)
	}
	boxes, err = m.Boxes(t.Context(), "COMMAND")
	require.NoError(t, err)
	require.Empty(t, boxes)
}

func TestMailboxWaiting(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil)
	e1 := appendTo(t, m, keyed(waits("d", 1), "set"))
	appendTo(t, m, keyed(waits("d", 2), "-"))
	appendTo(t, m, waits("d", 3))
	e4 := appendTo(t, m, keyed(waits("d", 4), "set"))
	appendTo(t, m, keyed(waits("e", 5), "set"))
	e6 := appendTo(t, m, keyed(waits("d", 6), "set"))
	sequences := func(key string, below uint64) (list []uint64) {
		found, err := m.Waiting(t.Context(), boxOf("d"), key, below)
		require.NoError(t, err)
		for _, p := range found {
			require.Equal(t, key, p.Envelope.Coalesce)
			list = append(list, p.Entry)
		}
		return list
	}
	require.Equal(t, []uint64{e1, e4}, sequences("set", e6))
	require.Equal(t, []uint64{e1, e4, e6}, sequences("set", e6+1))
	require.Equal(t, []uint64{e1}, sequences("set", e4))
	require.Empty(t, sequences("set", e1))
	require.Empty(t, sequences("set", 0))
	require.Equal(t, []uint64{2}, sequences("-", 99))
	require.Equal(t, []uint64{3}, sequences("", 99))
	require.Empty(t, sequences("other", 99))
}

func TestMailboxEntriesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil)
	good := appendTo(t, m, waits("d", 1))
	js := n.JetStream(t)
	put := func(subject, format, body string) uint64 {
		msg := nats.NewMsg(subject)
		if format != "" {
			msg.Header.Set("Downlink-Format", format)
		}
		msg.Data = []byte(body)
		ack, err := js.PublishMsg(t.Context(), msg)
		require.NoError(t, err)
		return ack.Sequence
	}
	subject := m.subject(boxOf("d"), "")
	newer := put(subject, "2", "?")
	foreign := put(subject, "", "hello")
	raw, err := m.get(t.Context(), subject, good)
	require.NoError(t, err)
	copied, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: m.subject(boxOf("e"), ""), Data: raw.Data, Header: nats.Header{
		"Downlink-Format": {"1"}, "Downlink-Device": {"d"}, "Downlink-Hub": {"main"}, "Downlink-Stream": {"COMMANDS"}, "Downlink-Seq": {"1"}, "Downlink-Attempts": {"0"}, "Downlink-Priority": {"0"}}})
	require.NoError(t, err)
	put("downlink.mailbox.main.x", "1", "{}\n")

	p, err := m.Next(t.Context(), boxOf("d"), good)
	require.ErrorIs(t, err, bridge.ErrFormat)
	require.EqualError(t, err, "mailbox: stream DOWNLINK_MAILBOX: entry 2: format 2, this is format 1: stored by a newer version of downlink")
	require.Equal(t, newer, p.Entry)
	require.Nil(t, p.Envelope)

	p, err = m.Next(t.Context(), boxOf("d"), newer)
	require.NotErrorIs(t, err, bridge.ErrFormat)
	require.EqualError(t, err, `mailbox: stream DOWNLINK_MAILBOX: entry 3: not an entry of a mailbox: header Downlink-Format is ""`)
	var about *EntryError
	require.ErrorAs(t, err, &about)
	require.Equal(t, foreign, about.Entry)
	require.Equal(t, foreign, p.Entry)
	require.Equal(t, "hello", string(p.Message.Payload))
	require.Equal(t, "DOWNLINK_MAILBOX", p.Message.Stream)
	require.Equal(t, foreign, p.Message.Sequence)

	_, err = m.Next(t.Context(), boxOf("e"), 0)
	require.ErrorContains(t, err, fmt.Sprintf("entry %d: its subject is downlink.mailbox.main.e.COMMANDS.-, but its headers say downlink.mailbox.main.d.COMMANDS.-", copied.Sequence))

	found, err := m.Waiting(t.Context(), boxOf("d"), "", 99)
	require.NoError(t, err)
	require.Len(t, found, 1)
	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Len(t, boxes, 2)
}

// What nobody drains since its hub or its stream is not configured any more shows, until it is purged.
func TestMailboxStrays(t *testing.T) {
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	configured := func(o *MailboxOptions) { o.Sources, o.Hubs = []string{"COMMANDS"}, []string{"main"} }
	m := mailbox(t, c, configured)
	appendTo(t, m, waits("d", 1))
	of := func(stream, hub string, seq int) uint64 {
		p := waits("d", seq)
		p.Message.Stream, p.Envelope.Hub = stream, hub
		return appendTo(t, m, p)
	}
	strays := []uint64{of("OLD", "main", 1), of("OLD", "main", 2), of("COMMANDS", "gone.eu", 3)}
	m = mailbox(t, c, configured)
	require.Error(t, m.Ready())
	stop := run(t, m.Run)
	const want = "the mailbox holds 1 messages of stream COMMANDS for hub gone.eu, which is not configured: configure it, or purge them: downlink mailbox purge --hub gone.eu --stream COMMANDS; " +
		"2 messages of stream OLD for hub main, and no route takes from that stream any more: configure one, or purge them: downlink mailbox purge --hub main --stream OLD"
	require.Eventually(t, func() bool { err := m.Ready(); return err != nil && err.Error() == want }, 30*time.Second, 5*time.Millisecond, "%v", m.Ready())
	stop()
	for _, entry := range strays {
		require.NoError(t, m.Delete(t.Context(), entry))
	}
	require.NoError(t, m.findStrays(t.Context()))
	require.NoError(t, m.Ready())
}

// A stream that somebody made without direct gets: the leader answers.
func TestMailboxWithoutDirectGet(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "DOWNLINK_MAILBOX", Subjects: []string{"downlink.mailbox.>"}})
	m := mailbox(t, connectTo(t, n.URL()), func(o *MailboxOptions) { o.Create = false })
	run(t, m.Run)
	becomesReady(t, m.Ready)
	want := parcel()
	appendTo(t, m, want)
	box := bridge.Box{Hub: "main", Device: "berlin-pump7", Stream: "COMMANDS"}
	p, err := m.Next(t.Context(), box, 0)
	require.NoError(t, err)
	require.Equal(t, want, p)
	p, err = m.Next(t.Context(), box, p.Entry)
	require.NoError(t, err)
	require.Nil(t, p)
}

// A replica that lags behind says that there is nothing.
func TestMailboxDoesNotBelieveOneReplica(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), nil)
	entry := appendTo(t, m, waits("d", 1))
	s, err := n.JetStream(t).Stream(t.Context(), "DOWNLINK_MAILBOX")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	cfg.AllowDirect = false
	_, err = n.JetStream(t).UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	nc := n.Conn(t)
	_, err = nc.Subscribe("$JS.API.DIRECT.GET.DOWNLINK_MAILBOX", func(r *nats.Msg) {
		_ = r.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"404"}, "Description": {"Message Not Found"}}})
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	p, err := m.Next(t.Context(), boxOf("d"), 0)
	require.NoError(t, err)
	require.Equal(t, entry, p.Entry)
}

func TestMailboxFull(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	m := mailbox(t, connectTo(t, n.URL()), func(o *MailboxOptions) { o.MaxBytes = 2000 })
	run(t, m.Run)
	becomesReady(t, m.Ready)
	var entries []uint64
	var err error
	i := 1
	for ; err == nil && i < 50; i++ {
		p := waits("d", i)
		if _, err = m.Append(t.Context(), p); err == nil {
			entries = append(entries, p.Entry)
		}
	}
	require.EqualError(t, err, "mailbox: stream DOWNLINK_MAILBOX: maximum bytes exceeded")
	require.NotErrorIs(t, err, bridge.ErrUnstorable)
	require.EqualError(t, m.Ready(), err.Error())
	require.NotEmpty(t, entries)
	p, err := m.Next(t.Context(), boxOf("d"), 0)
	require.NoError(t, err)
	require.Equal(t, entries[0], p.Entry, "reading goes on")
	require.NoError(t, m.Delete(t.Context(), p.Entry))
	appendTo(t, m, waits("d", i-1)) // the refused one, again: it counts as new
	require.NoError(t, m.Ready())
}

func TestMailboxCannotHold(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) { o.MaxPayload = 8192 })
	m := mailbox(t, connectTo(t, n.URL()), nil)
	run(t, m.Run)
	becomesReady(t, m.Ready)
	large := waits("d", 1)
	large.Envelope.Body = make([]byte, 9000)
	_, err := m.Append(t.Context(), large)
	require.ErrorIs(t, err, bridge.ErrUnstorable)
	require.ErrorContains(t, err, "bytes are more than the server or stream DOWNLINK_MAILBOX takes")
	s, err := n.JetStream(t).Stream(t.Context(), "DOWNLINK_MAILBOX")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	cfg.MaxMsgSize = 1000
	_, err = n.JetStream(t).UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	large.Envelope.Body = make([]byte, 2000)
	_, err = m.Append(t.Context(), large)
	require.ErrorIs(t, err, bridge.ErrUnstorable)
	nameless := waits("", 1)
	_, err = m.Append(t.Context(), nameless)
	require.ErrorIs(t, err, bridge.ErrUnstorable)
	long := waits("d", 1)
	long.Envelope.Hub = strings.Repeat("h", 5000)
	_, err = m.Append(t.Context(), long)
	require.ErrorIs(t, err, bridge.ErrUnstorable, "or the server would end the connection")
	require.NoError(t, m.Ready(), "it is the message's fault")
	appendTo(t, m, waits("d", 2))
}

func TestMailboxMissing(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	_, err := NewMailbox(MailboxOptions{Conn: c, Name: "a.b"})
	require.Error(t, err)
	m := mailbox(t, c, func(o *MailboxOptions) { o.Create = false })
	run(t, m.Run)
	const missing = "stream DOWNLINK_MAILBOX for the mailbox does not exist: `nats stream add DOWNLINK_MAILBOX --subjects 'downlink.mailbox.>'` or set storage.create: true"
	becomes(t, m.Ready, missing)
	_, err = m.Append(t.Context(), waits("d", 1))
	require.EqualError(t, err, missing)
	_, err = m.Boxes(t.Context(), "COMMANDS")
	require.ErrorContains(t, err, missing)
	_, err = m.Next(t.Context(), boxOf("d"), 0)
	require.ErrorContains(t, err, missing)
	require.ErrorContains(t, m.Delete(t.Context(), 1), missing)

	// Where it may be made it is, by whatever comes first.
	m = mailbox(t, c, nil)
	boxes, err := m.Boxes(t.Context(), "COMMANDS")
	require.NoError(t, err)
	require.Empty(t, boxes)
	n.DeleteStream(t, m.Stream())
	p, err := m.Next(t.Context(), boxOf("d"), 0)
	require.NoError(t, err)
	require.Nil(t, p)
	n.DeleteStream(t, m.Stream())
	appendTo(t, m, waits("d", 1))
}

// A stream that would drop what waits, or that is not ours, is refused, not used.
func TestMailboxUnfit(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]jetstream.StreamConfig{
		"its max age of 1h0m0s would delete what waits: `nats stream edit DOWNLINK_MAILBOX --max-age 0`":                     {MaxAge: time.Hour},
		"it makes room by deleting what waits: `nats stream edit DOWNLINK_MAILBOX --discard new`":                            {MaxBytes: 1 << 20},
		"it deletes what waits beyond 5 messages per subject: `nats stream edit DOWNLINK_MAILBOX --max-msgs-per-subject -1`": {MaxMsgsPerSubject: 5, Discard: jetstream.DiscardNew},
		"its retention is workqueue, not limits: delete it, and it is made anew":                                             {Retention: jetstream.WorkQueuePolicy},
		"it forbids to delete messages: delete it, and it is made anew":                                                      {DenyDelete: true},
		"it stores downlink.other.>: `nats stream edit DOWNLINK_MAILBOX --subjects 'downlink.mailbox.>'`":                    {Subjects: []string{"downlink.other.>"}},
	} {
		t.Run(want, func(t *testing.T) {
			n := bridgetest.RunNATS(t)
			cfg.Name = "DOWNLINK_MAILBOX"
			if cfg.Subjects == nil {
				cfg.Subjects = []string{"downlink.mailbox.>"}
			}
			n.CreateStreamFrom(t, cfg)
			m := mailbox(t, connectTo(t, n.URL()), nil)
			run(t, m.Run)
			becomes(t, m.Ready, "stream DOWNLINK_MAILBOX for the mailbox: "+want)
			_, err := m.Append(t.Context(), waits("d", 1))
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, m.Ready(), want)
		})
	}
}

func TestMailboxPermission(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"downlink.mailbox.>"}},
		}}}
	})
	c := connect(t, Options{URLs: []string{n.URL()}, User: "u", PasswordFile: write(t, t.TempDir(), "password", "p")})
	m := mailbox(t, c, nil)
	run(t, m.Run)
	becomesReady(t, m.Ready)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	appended := make(chan error, 1)
	go func() { _, err := m.Append(ctx, waits("d", 1)); appended <- err }()
	const denied = `missing NATS permission: publish to "downlink.mailbox.main.d.COMMANDS.-" (the mailbox)`
	becomes(t, m.Ready, denied)
	cancel() // there will be no answer
	require.Error(t, <-appended)
	require.EqualError(t, m.Ready(), denied)
}
