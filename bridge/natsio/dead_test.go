package natsio

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	d, err := NewDeadLetters(DeadLettersOptions{Conn: c, Create: true, MaxAge: time.Hour})
	require.NoError(t, err)
	require.Error(t, d.Ready())
	run(t, d.Run)
	becomesReady(t, d.Ready)
	require.NoError(t, d.Store(t.Context(), letter()))
	l := letter()
	l.Attempts++
	require.NoError(t, d.Store(t.Context(), l), "the same one after a crash")
	other := letter()
	other.Device = "berlin-pump8"
	require.NoError(t, d.Store(t.Context(), other), "another target of the same message")
	require.Equal(t, "dead-2d26da89e2d1ed25b462a1bc004a3522", letterID(letter()), "a version before knows it by this one")
	for _, entry := range []string{"devices[0]", "devices[2]", "devices[0]"} {
		nobody := letter()
		nobody.Device, nobody.Target = "", entry
		require.NoError(t, d.Store(t.Context(), nobody), "an entry that names no device, and the first one again")
	}

	js := n.JetStream(t)
	s, err := js.Stream(t.Context(), "DOWNLINK_DEAD")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	require.Equal(t, []string{"downlink.dead.>"}, cfg.Subjects)
	require.Equal(t, time.Hour, cfg.MaxAge)
	require.EqualValues(t, 1<<30, cfg.MaxBytes)
	require.Equal(t, jetstream.DiscardNew, cfg.Discard)
	require.EqualValues(t, 4, s.CachedInfo().State.Msgs)
	m, err := s.GetMsg(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "downlink.dead.expired.commands", m.Subject)
	require.Equal(t, "now", string(m.Data))
	id := m.Header.Get("Nats-Msg-Id")
	require.Contains(t, id, "dead-")
	require.Equal(t, nats.Header{
		"X-User": {"ann"}, "Downlink-Orig-Nats-Msg-Id": {"m1"}, "Downlink-Orig-nats-rollup": {"all"}, "Downlink-Orig-DOWNLINK-Via": {"other"},
		"Downlink-Format": {"1"}, "Downlink-Reason": {"expired"}, "Downlink-Condition": {"amqp:not-found"},
		"Downlink-Text": {"expired Nats-Rollup: all"}, "Downlink-Device": {"berlin-pump7"}, "Downlink-Hub": {"main"},
		"Downlink-Route": {"commands"}, "Downlink-Message-Id": {"COMMANDS:7:x"}, "Downlink-Attempts": {"3"},
		"Downlink-At": {"2026-01-02T04:00:00Z"}, "Downlink-Subject": {"cmd.berlin.pump7.reboot"}, "Downlink-Stream": {"COMMANDS"},
		"Downlink-Seq": {"7"}, "Downlink-Time": {"2026-01-02T03:04:05.000000006Z"}, "Nats-Msg-Id": {id},
	}, m.Header)
}

func TestDeadLettersOfAnyMessage(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	_, err := NewDeadLetters(DeadLettersOptions{Conn: c, Name: "prod-eu.x", Create: true})
	require.Error(t, err)
	d, err := NewDeadLetters(DeadLettersOptions{Conn: c, Name: "prod-eu", Create: true})
	require.NoError(t, err)
	require.Equal(t, "PROD_EU_DEAD", d.Stream())
	l := letter()
	l.Route = "a.b *>é"
	l.Message = &mapping.Input{Subject: "core.x", Payload: make([]byte, 1<<20), Header: map[string][]string{
		"a(b": {"x"}, "Big": {strings.Repeat("y", 70_000)}, "Small": {"z"},
	}}
	// Without Run: the first Store makes the stream.
	require.NoError(t, d.Store(t.Context(), l))
	require.NoError(t, d.Ready())
	l.Message.Stream, l.Message.Sequence = "COMMANDS", 9
	require.NoError(t, d.Store(t.Context(), l))
	js := n.JetStream(t)
	s, err := js.Stream(t.Context(), d.Stream())
	require.NoError(t, err)
	m, err := s.GetMsg(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "prod-eu.dead.expired.a%2Eb%20%2A%3E%C3%A9", m.Subject)
	require.Equal(t, "core", m.Header.Get("Downlink-Truncated"))
	require.Empty(t, m.Header.Get("Downlink-Seq"))
	require.Empty(t, m.Header.Get("Big"))
	require.Equal(t, "z", m.Header.Get("Small"))
	require.Equal(t, []string{"x"}, m.Header["a%28b"])
	require.Less(t, len(m.Data), 1<<20)
	require.Greater(t, len(m.Data), 1<<20-4096)
	m, err = s.GetMsg(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, "COMMANDS:9", m.Header.Get("Downlink-Truncated"))
}

func TestDeadLettersFitAStreamOfSmallMessages(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "DOWNLINK_DEAD", Subjects: []string{"downlink.dead.>"}, MaxMsgSize: 2000})
	d, err := NewDeadLetters(DeadLettersOptions{Conn: connectTo(t, n.URL())})
	require.NoError(t, err)
	l := letter()
	l.Message.Payload = make([]byte, 5000)
	require.NoError(t, d.Store(t.Context(), l))
}

func TestDeadLettersCannotBeStored(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	c := connectTo(t, n.URL())
	d, err := NewDeadLetters(DeadLettersOptions{Conn: c})
	require.NoError(t, err)
	run(t, d.Run)
	becomes(t, d.Ready, "stream DOWNLINK_DEAD for dead letters does not exist: `nats stream add DOWNLINK_DEAD --subjects 'downlink.dead.>'` or set storage.create: true")
	require.ErrorContains(t, d.Store(t.Context(), letter()), "does not exist")
	s := n.CreateStreamFrom(t, jetstream.StreamConfig{Name: "DOWNLINK_DEAD", Subjects: []string{"downlink.dead.>"}, MaxMsgs: 1, Discard: jetstream.DiscardNew})
	becomesReady(t, d.Ready)
	require.NoError(t, d.Store(t.Context(), letter()))
	other := letter()
	other.Device = "x"
	require.ErrorContains(t, d.Store(t.Context(), other), "maximum messages exceeded")
	require.ErrorContains(t, d.Ready(), "maximum messages exceeded")
	require.NoError(t, s.Purge(t.Context()))
	require.NoError(t, d.Store(t.Context(), other))
	require.NoError(t, d.Ready())
}
