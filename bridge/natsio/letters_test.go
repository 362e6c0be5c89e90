package natsio

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
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

// Reading is the inverse of storing.
func TestParseLetter(t *testing.T) {
	t.Parallel()
	d, err := NewDeadLetters(DeadLettersOptions{})
	require.NoError(t, err)
	l := letter()
	l.Message.Header["a(b"] = []string{"x", "y"}
	l.Message.Header["Downlink-Orig-Nats-TTL"] = []string{"1s"} // of one that came back once
	m := d.message(l)
	got := ParseLetter(m.Header, m.Data)
	require.NoError(t, got.Err)
	want := l
	want.Text = "expired Nats-Rollup: all"
	delete(want.Message.Header, "a(b")
	want.Message.Header["a%28b"] = []string{"x", "y"} // which nats.go can send
	require.Equal(t, want, got.DeadLetter)
	require.Equal(t, letterID(l), got.ID)
	require.Equal(t, 3, got.Size)
	require.False(t, got.OfRelay())

	for name, c := range map[string]struct {
		h    nats.Header
		want error
		text string
	}{
		"newer":     {nats.Header{"Downlink-Format": {"2"}, "Downlink-Reason": {"x"}}, bridge.ErrFormat, `Downlink-Format "2"`},
		"foreign":   {nats.Header{"X": {"y"}}, ErrNoLetter, "no Downlink-Format"},
		"no header": {nil, ErrNoLetter, "no Downlink-Format"},
		"no reason": {nats.Header{"Downlink-Format": {"1"}}, ErrNoLetter, "no Downlink-Reason"},
		"numbers":   {nats.Header{"Downlink-Format": {"1"}, "Downlink-Reason": {"x"}, "Downlink-Seq": {"-1"}, "Downlink-At": {"now"}}, ErrNoLetter, `Downlink-Seq is "-1"; Downlink-At is "now"`},
	} {
		got := ParseLetter(c.h, nil)
		require.ErrorIs(t, got.Err, c.want, name)
		require.ErrorContains(t, got.Err, c.text, name)
		require.NotNil(t, got.Message, name)
	}
}

func FuzzLetter(f *testing.F) {
	f.Add("cmd.a", "X-User", "ann", []byte("body"), "COMMANDS", uint64(7), int64(1), "expired", "text", 3)
	f.Add("cmd.a", "Downlink-Orig-Nats-Rollup", "all", []byte{0xff}, "", uint64(0), int64(0), "no-route", "a\r\nb", 0)
	f.Add("cmd.a", "nats-expected-stream", "", []byte(nil), "S", uint64(1), int64(-1), "x", "", -1)
	f.Add("cmd.a", "Downlink-Format", "2", []byte(nil), "S", uint64(1), int64(-1), "x", "", -1)
	f.Fuzz(func(t *testing.T, subject, name, value string, body []byte, stream string, seq uint64, ns int64, reason, text string, attempts int) {
		if ParseLetter(nats.Header{formatHeader: {"1"}, "Downlink-Reason": {reason}, name: {value}, "Downlink-Seq": {text}, "Downlink-At": {value}}, body) == nil {
			t.Fatal("nil")
		}
		if oneText(subject) != subject || subject == "" || oneText(stream) != stream || oneText(reason) != reason || reason == "" || name == "" {
			return // no wire brings these
		}
		d, err := NewDeadLetters(DeadLettersOptions{})
		require.NoError(t, err)
		l := bridge.DeadLetter{
			Message: &mapping.Input{Subject: subject, Header: map[string][]string{headerName(name): {value, "second"}}, Payload: body, Stream: stream, Time: time.Unix(0, ns).UTC()},
			Route:   "r", Device: "d", Reason: mapping.Reason(reason), Text: oneText(text), Attempts: attempts, At: time.Unix(0, ns+1).UTC(),
		}
		if stream != "" {
			l.Message.Sequence = seq
		}
		m := d.message(l)
		got := ParseLetter(m.Header, m.Data)
		require.NoError(t, got.Err)
		require.Equal(t, l, got.DeadLetter)
		// And again: what is read is stored as it was.
		require.Equal(t, m, d.message(got.DeadLetter))
		for name := range redriveHeaders(got.Message.Header, true) {
			require.False(t, hasPrefixFold(name, "Nats-"), "live: %s", name)
		}
	})
}

func storeLetters(t *testing.T, c *Conn, letters ...bridge.DeadLetter) {
	t.Helper()
	d, err := NewDeadLetters(DeadLettersOptions{Conn: c, Create: true})
	require.NoError(t, err)
	for _, l := range letters {
		require.NoError(t, d.Store(t.Context(), l))
	}
}

func readerOf(t *testing.T, c *Conn) *Letters {
	t.Helper()
	r, err := NewLetters(c, "downlink")
	require.NoError(t, err)
	return r
}

// chosen lists the entries that a filter leaves.
func chosen(t *testing.T, r *Letters, f LetterFilter) (entries []uint64) {
	t.Helper()
	require.NoError(t, r.Each(t.Context(), f, func(l *Letter) (bool, error) {
		entries = append(entries, l.Entry)
		return true, nil
	}))
	return entries
}

func TestLetters(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	r := readerOf(t, c)
	require.EqualError(t, r.Each(t.Context(), LetterFilter{}, nil), "stream DOWNLINK_DEAD does not exist")
	other := letter()
	other.Reason, other.Route, other.Device, other.Hub = "not-allowed", "a.b", "valve", "west"
	storeLetters(t, c, letter(), other)
	_, err := c.js.Publish(t.Context(), "downlink.dead.x.y", []byte("foreign"))
	require.NoError(t, err)
	newer := &nats.Msg{Subject: "downlink.dead.expired.commands", Header: nats.Header{"Downlink-Format": {"2"}, "Downlink-Reason": {"expired"}}}
	_, err = c.js.PublishMsg(t.Context(), newer)
	require.NoError(t, err)

	require.Equal(t, []uint64{1, 2, 3, 4}, chosen(t, r, LetterFilter{}))
	for _, f := range []LetterFilter{{Reason: "not-allowed"}, {Route: "a.b"}, {Device: "valve"}, {Hub: "west"}, {Reason: "not-allowed", Device: "valve"}} {
		require.Equal(t, []uint64{2}, chosen(t, r, f), f)
	}
	require.Empty(t, chosen(t, r, LetterFilter{Reason: "not-allowed", Device: "x"}))
	third, err := r.Get(t.Context(), 3)
	require.NoError(t, err)
	require.ErrorIs(t, third.Err, ErrNoLetter)
	require.Equal(t, []uint64{3, 4}, chosen(t, r, LetterFilter{Since: third.Stored}))
	require.Equal(t, []uint64{1, 2, 3}, chosen(t, r, LetterFilter{Until: third.Stored}))
	require.NoError(t, r.Each(t.Context(), LetterFilter{}, func(l *Letter) (bool, error) {
		require.Nil(t, l.Message.Payload, "lists have no bodies")
		if l.Entry == 3 {
			require.Equal(t, len("foreign"), l.Size)
		}
		return l.Entry < 3, nil
	}))
	first, err := r.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "now", string(first.Message.Payload))
	require.Equal(t, letter().Message.Header, first.Message.Header)
	counts, err := r.Counts(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[mapping.Reason]uint64{"expired": 2, "not-allowed": 1, "x": 1}, counts)

	require.NoError(t, r.Delete(t.Context(), 1))
	require.NoError(t, r.Delete(t.Context(), 1), "gone already")
	none, err := r.Get(t.Context(), 1)
	require.NoError(t, err)
	require.Nil(t, none)
	require.Equal(t, []uint64{2, 3, 4}, chosen(t, r, LetterFilter{}))
}

// Many letters come page by page, each once and in order, also while they are deleted.
func TestLettersInPages(t *testing.T) {
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	const count = 3*scanBatch + 17
	storeLetters(t, c, letter())
	m := (&DeadLetters{o: DeadLettersOptions{Name: "downlink"}}).message(letter())
	for i := range count - 1 {
		m.Header[nats.MsgIdHdr] = []string{fmt.Sprint(i)}
		publishAsync(t, c.js, m)
		m = &nats.Msg{Subject: m.Subject, Header: nats.Header(cloneHeader(m.Header)), Data: m.Data}
	}
	allStored(t, c.js)
	r := readerOf(t, c)
	require.Len(t, chosen(t, r, LetterFilter{}), count)
	want := uint64(1)
	require.NoError(t, r.Each(t.Context(), LetterFilter{}, func(l *Letter) (bool, error) {
		require.Equal(t, want, l.Entry)
		want++
		return true, r.Delete(t.Context(), l.Entry)
	}))
	require.EqualValues(t, count+1, want)
	require.Empty(t, chosen(t, r, LetterFilter{}))
	// A reader waits for that a second at most.
	require.Eventually(t, func() bool {
		s, err := c.js.Stream(t.Context(), r.Stream())
		return err == nil && s.CachedInfo().State.Consumers == 0
	}, 30*time.Second, 10*time.Millisecond, "nothing stays behind")
}

func cloneHeader(h nats.Header) map[string][]string {
	out := make(map[string][]string, len(h))
	for k, v := range h {
		out[k] = v
	}
	return out
}

func TestLettersWithoutPermission(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.CREATE.>", "$JS.API.STREAM.MSG.DELETE.>"}}}}, {Username: "root", Password: "p"}}
	})
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("p"), 0o600))
	root := connect(t, Options{URLs: []string{n.URL()}, User: "root", PasswordFile: password})
	storeLetters(t, root, letter())
	r := readerOf(t, connect(t, Options{URLs: []string{n.URL()}, User: "u", PasswordFile: password}))
	require.ErrorContains(t, r.Each(t.Context(), LetterFilter{}, nil), `missing NATS permission: publish to "$JS.API.CONSUMER.CREATE.DOWNLINK_DEAD`)
	require.ErrorContains(t, r.Delete(t.Context(), 1), `missing NATS permission: publish to "$JS.API.STREAM.MSG.DELETE.DOWNLINK_DEAD`)
}

// redriver is one over a NATS with a stream COMMANDS.
func redriver(t *testing.T, subjects ...string) (*bridgetest.NATS, *Conn, *Letters, *Redriver, jetstream.Stream) {
	t.Helper()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	s := n.CreateStream(t, "COMMANDS", subjects...)
	l := readerOf(t, c)
	return n, c, l, NewRedriver(RedriveOptions{Conn: c, Letters: l, Answer: 20 * time.Second}), s
}

// What JetStream obeys stays inert when a message comes back; all else is as it was.
func TestRedriveHeaders(t *testing.T) {
	t.Parallel()
	_, c, letters, r, s := redriver(t, "cmd.>")
	l := letter()
	l.Message.Header["Nats-Expected-Last-Sequence"] = []string{"99"}
	l.Message.Header["Nats-TTL"] = []string{"1s"}
	l.Message.Header["Downlink-TTL"] = []string{"1h"}
	storeLetters(t, c, l)
	for range 3 {
		_, err := c.js.Publish(t.Context(), "cmd.keep", nil)
		require.NoError(t, err)
	}
	done, err := r.Redrive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "COMMANDS:4", done.To)
	require.False(t, done.Repeat)
	m, err := s.GetMsg(t.Context(), 4)
	require.NoError(t, err, "and nothing was rolled up")
	id := m.Header.Get(nats.MsgIdHdr)
	require.Contains(t, id, "redrive-")
	require.Equal(t, nats.Header{
		"X-User": {"ann"}, "DOWNLINK-Via": {"other"}, "Downlink-TTL": {"1h"}, "Downlink-Redriven": {"COMMANDS:7"}, "Nats-Msg-Id": {id},
		"Downlink-Orig-Nats-Msg-Id": {"m1"}, "Downlink-Orig-nats-rollup": {"all"},
		"Downlink-Orig-Nats-Expected-Last-Sequence": {"99"}, "Downlink-Orig-Nats-TTL": {"1s"},
	}, m.Header)
	require.Equal(t, "now", string(m.Data))
	require.Equal(t, "cmd.berlin.pump7.reboot", m.Subject)
	require.Empty(t, chosen(t, letters, LetterFilter{}))

	// Dead again and back again: the names do not grow.
	again := l
	again.Message = &mapping.Input{Subject: m.Subject, Header: m.Header, Payload: m.Data, Stream: "COMMANDS", Sequence: 4, Time: m.Time}
	storeLetters(t, c, again)
	done, err = r.Redrive(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, "COMMANDS:5", done.To)
	m, err = s.GetMsg(t.Context(), 5)
	require.NoError(t, err)
	require.Equal(t, []string{"all"}, m.Header["Downlink-Orig-nats-rollup"])
	require.Equal(t, []string{"COMMANDS:4"}, m.Header["Downlink-Redriven"])
	require.NotEqual(t, id, m.Header.Get(nats.MsgIdHdr))
	require.NotContains(t, fmt.Sprint(m.Header), "Downlink-Orig-Downlink-Orig")
}

// A redrive that was killed after the publish and before the delete does not bring a second copy;
// nor do two letters of one message.
func TestRedriveTwice(t *testing.T) {
	t.Parallel()
	_, c, letters, r, s := redriver(t, "cmd.>")
	second := letter()
	second.Device = "other"
	storeLetters(t, c, letter(), second)
	done, m, err := r.prepare(t.Context(), 1)
	require.NoError(t, err)
	_, _, err = r.publish(t.Context(), done.Letter, m) // and killed here
	require.NoError(t, err)
	for _, entry := range []uint64{1, 2} {
		done, err = r.Redrive(t.Context(), entry)
		require.NoError(t, err)
		require.True(t, done.Repeat)
		require.Equal(t, "COMMANDS:1", done.To)
	}
	info, err := s.Info(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, info.State.Msgs)
	require.Empty(t, chosen(t, letters, LetterFilter{}))
	require.Equal(t, 2*time.Minute, r.Window("COMMANDS"))
	_, err = r.Redrive(t.Context(), 1)
	var refused *RefusedError
	require.ErrorAs(t, err, &refused)
	require.EqualError(t, err, "dead letter 1: stream DOWNLINK_DEAD has none of this number")
}

// Several workers store letters, so that their order is not that of the messages.
func TestRedriveOrder(t *testing.T) {
	t.Parallel()
	_, c, _, r, _ := redriver(t, "cmd.>")
	var all []bridge.DeadLetter
	for _, seq := range []uint64{3, 1, 4, 2} {
		l := letter()
		l.Message.Sequence, l.Message.Time = seq, l.Message.Time.Add(time.Duration(seq)*time.Millisecond)
		all = append(all, l)
	}
	all[3].Message.Time = all[1].Message.Time // stored within one tick of the clock
	storeLetters(t, c, all...)
	order, err := r.Order(t.Context(), LetterFilter{}, 0)
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 4, 1, 3}, order)
	order, err = r.Order(t.Context(), LetterFilter{}, 2)
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 1}, order)
}

func TestRedriveRefused(t *testing.T) {
	t.Parallel()
	n, c, letters, r, _ := redriver(t, "cmd.>")
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "TURNED", Subjects: []string{"turn.>"},
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "turn.>", Destination: "turn.x.>"}})
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"small.>"}, MaxMsgSize: 100})
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "COPY", Mirror: &jetstream.StreamSource{Name: "COMMANDS"}})
	change := func(f func(*bridge.DeadLetter)) bridge.DeadLetter {
		l := letter()
		l.MessageID = fmt.Sprintf("%p", &l)
		f(&l)
		return l
	}
	storeLetters(t, c,
		change(func(l *bridge.DeadLetter) { l.Message.Subject = "other.x" }),
		change(func(l *bridge.DeadLetter) { l.Message.Stream = "GONE" }),
		change(func(l *bridge.DeadLetter) { l.Message.Stream, l.Message.Subject = "TURNED", "turn.x.y" }),
		change(func(l *bridge.DeadLetter) { l.Message.Stream, l.Message.Subject = "SMALL", "small.x" }),
		change(func(l *bridge.DeadLetter) { l.Message.Stream = "COPY" }),
		change(func(l *bridge.DeadLetter) {
			l.Message.Stream, l.Message.Sequence, l.Message.Subject = "", 0, "nobody.listens"
		}),
	)
	for _, h := range []nats.Header{
		{"Downlink-Format": {"2"}, "Downlink-Reason": {"expired"}},
		{"Downlink-Format": {"1"}, "Downlink-Reason": {"bad-subject"}, "Downlink-Device": {"d"}, "Downlink-Topic": {"devices/d"}},
	} {
		_, err := c.js.PublishMsg(t.Context(), &nats.Msg{Subject: "downlink.dead.x.d", Header: h})
		require.NoError(t, err)
	}
	storeLetters(t, c, change(func(l *bridge.DeadLetter) { l.Reason = bridge.ReasonUnreadable }))
	for i, want := range []string{
		"stream COMMANDS does not store subject other.x (it stores cmd.>): add the subject",
		"its source stream GONE does not exist any more",
		"stream TURNED transforms subjects",
		"stream SMALL does not take messages of its size",
		"its source stream COPY is a mirror of COMMANDS",
		`nobody listens on nobody.listens: does a bridge with a "source: core" route for it run?`,
		"stored by a newer version of downlink",
		"a relay stored it",
		"it is an entry of the mailbox as it was stored, which could not be read",
	} {
		_, err := r.Redrive(t.Context(), uint64(i+1))
		var refused *RefusedError
		require.ErrorAs(t, err, &refused, want)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
	}
	require.Len(t, chosen(t, letters, LetterFilter{}), 9, "all of them stay")
}

// A letter that was cut is brought back whole while its stream has it, and else not at all.
func TestRedriveTruncated(t *testing.T) {
	t.Parallel()
	n, c, letters, r, s := redriver(t, "cmd.>")
	body := strings.Repeat("x", 5000)
	for range 2 {
		_, err := c.js.PublishMsg(t.Context(), &nats.Msg{Subject: "cmd.a", Header: nats.Header{"X": {"y"}}, Data: []byte(body)})
		require.NoError(t, err)
	}
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "DOWNLINK_DEAD", Subjects: []string{"downlink.dead.>"}, MaxMsgSize: 1000})
	for seq := range uint64(4) {
		l := letter()
		in, err := Find(t.Context(), c, "COMMANDS", min(seq+1, 2))
		require.NoError(t, err)
		switch l.Message = in; seq {
		case 2:
			in.Time = in.Time.Add(-time.Hour) // of a stream that was made anew
		case 3:
			in.Stream, in.Sequence = "", 0
		}
		storeLetters(t, c, l)
	}
	done, err := r.Redrive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "COMMANDS:1", done.Letter.Truncated)
	require.Equal(t, "COMMANDS:3", done.To)
	back, err := Find(t.Context(), c, "COMMANDS", 3)
	require.NoError(t, err)
	require.Equal(t, body, string(back.Payload))
	require.Equal(t, []string{"y"}, back.Header["X"])
	require.NoError(t, s.DeleteMsg(t.Context(), 2))
	for entry, want := range map[uint64]string{2: "COMMANDS:2 is gone from its stream", 4: "nobody keeps the rest"} {
		_, err = r.Redrive(t.Context(), entry)
		require.ErrorContains(t, err, want)
	}
	require.Len(t, chosen(t, letters, LetterFilter{}), 3)
}

// What came from core NATS goes to a bridge that answers; its letter stays until one did.
func TestRedriveCore(t *testing.T) {
	t.Parallel()
	n, c, letters, r, _ := redriver(t, "cmd.>")
	r.o.Answer = 300 * time.Millisecond
	core := letter()
	core.Message.Stream, core.Message.Sequence, core.Message.Subject = "", 0, "core.x"
	core.Message.Header["Downlink-Wait"] = []string{"completed"}
	storeLetters(t, c, core)
	nc := n.Conn(t)
	got := make(chan *nats.Msg, 8)
	var answer atomic.Pointer[string] // nil: none
	say := func(status string) { answer.Store(&status) }
	sub, err := nc.Subscribe("core.>", func(m *nats.Msg) {
		got <- m
		if status := answer.Load(); status != nil {
			_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Downlink-Status": {*status}, "Downlink-Reason": {"why"}}})
		}
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Unsubscribe()) }()
	require.NoError(t, nc.Flush())
	_, err = r.Redrive(t.Context(), 1)
	require.ErrorContains(t, err, "no bridge answered on core.x within 300ms")
	m := <-got
	require.Equal(t, []string{"completed"}, m.Header["Downlink-Orig-Downlink-Wait"])
	require.Equal(t, []string{"core"}, m.Header["Downlink-Redriven"])
	require.Len(t, chosen(t, letters, LetterFilter{}), 1)
	r.o.Answer = 20 * time.Second
	say(bridge.StatusDropped)
	_, err = r.Redrive(t.Context(), 1)
	require.ErrorContains(t, err, "the bridge dropped its message (why); the letter stays")
	say(bridge.StatusAccepted)
	done, err := r.Redrive(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, bridge.StatusAccepted, done.Status)
	require.Empty(t, chosen(t, letters, LetterFilter{}))
}
