package dryrun

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
	"downlink/mapping"
)

const planFile = `version: 1
bridge:
  unmatched: dead
  hubs: [{name: main, connection_string_file: x}, {name: other, connection_string_file: y}]
  lookups: [{name: aliases, bucket: aliases}]
  routes:
    - {name: tests, subject: "test.>", drop: tests}
    - {name: all, subject: "cmd.*.all", stream: S, also: true, hub: other, device: recorder, order: none, priority: 3}
    - name: one
      subject: "cmd.{device}.{verb}"
      stream: S
      device: '{lookup("aliases", device) ?? device}'
      coalesce: "{verb}"
      message: {ttl: 1h, max_age: 10m, ack: full, correlation_id: '{header["C"]}'}
      properties: [{name: verb, value: "{verb}"}]
    - {name: ask, subject: "ask.{device}", source: core, device: "{device}"}
`

func newPlan(t *testing.T, lookups mapping.Lookups, fixed bool) *Plan {
	t.Helper()
	c, err := config.Parse("plan.yaml", []byte(planFile))
	require.NoError(t, err)
	p, err := New(c, lookups, fixed)
	require.NoError(t, err)
	return p
}

func TestMap(t *testing.T) {
	p := newPlan(t, mapping.StaticLookups{"aliases": {"p": "pump7"}}, true)
	in := &mapping.Input{Subject: "cmd.p.all", Stream: "S", Sequence: 1, Time: defaultTime, Payload: []byte("now"), Header: map[string][]string{"C": {"c1"}}}
	list := p.Map(in)
	require.Len(t, list, 2)
	require.Equal(t, Outcome{Route: "all", Device: "recorder", Fate: FateSent, Message: list[0].Message, envelope: list[0].envelope}, list[0])
	m := list[0].Message
	require.Equal(t, "other", m.Hub)
	require.Equal(t, "none", m.Order)
	require.Equal(t, 3, m.Priority)
	require.Nil(t, m.Expires)

	m = list[1].Message
	e := list[1].envelope
	require.Equal(t, "pump7", list[1].Device)
	require.Equal(t, []Property{{"verb", "all"}}, m.Properties)
	require.Equal(t, 3, m.BodyBytes)
	require.Equal(t, e.Size(), m.Size)
	require.Equal(t, mapping.MaxMessageSize, m.Size+m.BytesLeft)
	require.Equal(t, e.TopicSize(), m.TopicSize)
	require.Equal(t, mapping.MaxTopic, m.TopicSize+m.TopicBytesLeft)
	require.Equal(t, "2026-01-01 01:00:00 +0000 UTC", m.Expires.String())
	require.Equal(t, "2026-01-01 00:10:00 +0000 UTC", m.SendBy.String())
	require.True(t, m.Receipts)

	x, same := p.Explain(in)
	require.Equal(t, list, same)
	require.Len(t, x.Routes, 4)

	in.Subject = "test.x"
	require.Equal(t, []Outcome{{Route: "tests", Fate: FateDropped, Reason: "tests"}}, p.Map(in))
	in.Subject = "nobody"
	require.Equal(t, []Outcome{{Fate: FateDead, Reason: "no-route"}}, p.Map(in))
	in.Subject, in.Payload = "cmd.p.x", []byte(strings.Repeat("x", mapping.MaxMessageSize))
	dead := p.Map(in)[0]
	require.Equal(t, "too-large", dead.Reason)
	require.Contains(t, dead.Error, "message: has at least")

	ask := &mapping.Input{Subject: "ask.d"}
	require.Equal(t, strings.Repeat("0", 32), p.Map(ask)[0].Message.MessageID)
	require.NotEqual(t, strings.Repeat("0", 32), newPlan(t, nil, false).Map(ask)[0].Message.MessageID)
}

func TestSource(t *testing.T) {
	p := newPlan(t, nil, true)
	for subject, want := range map[string]string{"cmd.a.b": "S", "ask.a": "", "nobody": "S", "test.x": "S"} {
		stream, others := p.Source(&mapping.Input{Subject: subject})
		require.Equal(t, want, stream, subject)
		require.Empty(t, others)
	}
}
