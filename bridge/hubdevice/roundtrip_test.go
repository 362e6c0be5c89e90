package hubdevice

import (
	"bytes"
	"math/rand/v2"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/mqttd"
	"downlink/mapping"
)

// pieces are what values and names are put together from: all that some layer on the
// way gives a meaning to.
var pieces = []string{"a", "B", "7", " ", "  ", "\t", "%", "%41", "%2", "&", "=", "?", "/", "+", "#", "|", "!", "~", ".", "-", ",", ", ", ":", ";", "\"", "\\",
	"ü", "日本", "😀", "\u0085", "\u00a0", "\u2028", "\xff", "\xc3", "\x00", "\x7f", "$.mid", "$.", "iothub-ack", "downlink-enc", "Nats-", "Downlink-", "{x}", "verb"}

func text(r *rand.Rand, most int) string {
	var b strings.Builder
	for range r.IntN(most + 1) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

// onWire is what a receiver has of headers that were published: nats.go trims values, and the
// decoder is the real one. Names are as a publisher in any language may write them.
func onWire(t testing.TB, h map[string][]string) map[string][]string {
	t.Helper()
	b := bytes.NewBufferString("NATS/1.0\r\n")
	for k, vs := range h {
		for _, v := range vs {
			b.WriteString(k + ": " + strings.NewReplacer("\r", " ", "\n", " ").Replace(textproto.TrimString(v)) + "\r\n")
		}
	}
	b.WriteString("\r\n")
	out, err := nats.DecodeHeadersMsg(b.Bytes())
	require.NoError(t, err)
	return out
}

// decoded undoes Downlink-Enc as mapping's documentation tells a reader to.
func decoded(t testing.TB, h map[string][]string) map[string][]string {
	t.Helper()
	names, values := map[string]bool{}, map[string]bool{}
	for _, list := range h["Downlink-Enc"] {
		for item := range strings.SplitSeq(list, "|") {
			item, both := strings.CutPrefix(item, "!")
			wire, err := url.PathUnescape(item)
			require.NoError(t, err)
			values[wire], names[wire] = true, both
		}
	}
	out := map[string][]string{}
	for k, vs := range h {
		name := k
		if names[k] {
			name, _ = url.PathUnescape(k)
		}
		for _, v := range vs {
			if values[k] {
				v, _ = url.PathUnescape(v)
			}
			out[name] = append(out[name], v)
		}
	}
	return out
}

// Any message that NATS can carry goes through the mapping, the hub's own encoder of topics and
// our decoder, and is at the edge what it was in the cloud.
func TestRoundTripByTopic(t *testing.T) {
	compile := func(documented bool) *mapping.Table {
		table, err := mapping.Compile([]mapping.Route{{
			Subject: "c.{d...}", Stream: "S", Device: "dev-1", Envelope: "relay", Properties: []mapping.PropertyRule{{Name: "set", Value: "{d}"}, {Headers: "*"}},
			IllegalValues: "encode", Message: mapping.MessageRule{Ack: "full", TTL: time.Hour},
		}}, mapping.TableOptions{Hubs: []mapping.HubOptions{{Name: "main", DocumentedCharset: documented}}})
		require.NoError(t, err)
		return table
	}
	relay, err := mapping.CompileRelay(mapping.RelayOptions{})
	require.NoError(t, err)
	tables := []*mapping.Table{compile(false), compile(true)}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 7))
		in := &mapping.Input{Subject: "c." + strings.NewReplacer(" ", "", "\t", "").Replace("x"+text(r, 3)), Stream: "S", Sequence: seed + 1, Time: time.Unix(1, int64(seed)), Header: map[string][]string{}}
		if r.IntN(3) > 0 {
			in.Payload = []byte(text(r, 20))
		}
		for range r.IntN(6) {
			name := strings.NewReplacer(":", "", "\r", "", "\n", "").Replace(text(r, 3))
			for range 1 + r.IntN(3)/2 {
				in.Header[name] = append(in.Header[name], text(r, 4))
			}
		}
		in.Header = onWire(t, in.Header)

		res := tables[seed%2].Map(in)[0]
		require.Nil(t, res.Err, "seed %d: %v", seed, res.Err)
		e := res.Envelope
		m := &c2d.Message{To: "/devices/dev-1/messages/devicebound", MessageID: e.MessageID, CorrelationID: e.CorrelationID, UserID: e.UserID,
			ContentType: e.ContentType, ContentEncoding: e.ContentEncoding, ExpiresAt: e.ExpiresAt, Ack: string(e.Ack), Body: e.Body}
		for _, p := range e.Properties {
			m.Properties = append(m.Properties, c2d.Property{Name: p.Name, Value: p.Value})
		}
		topic := mqttd.Topic("dev-1", m)
		require.Equal(t, len(topic), e.TopicSize(), "seed %d: what mapping counts is what the hub makes", seed)
		c, ok := decodeTopic("dev-1", topic, e.Body)
		require.True(t, ok)
		p, err := relay.Map(c)
		require.NoError(t, err)

		got := decoded(t, onWire(t, p.Header))
		require.Equal(t, in.Payload, p.Data)
		require.Equal(t, []string{in.Subject}, got["Downlink-Subject"], "seed %d", seed)
		require.Equal(t, []string{e.MessageID}, got["Downlink-Message-Id"])
		require.Equal(t, []string{in.Subject[2:]}, got["set"], "seed %d", seed)
		for name, values := range in.Header {
			lower := strings.ToLower(name)
			switch {
			case strings.HasPrefix(lower, "nats-"), strings.HasPrefix(lower, "downlink-"), lower == "set", name == "":
				if !slices.Contains([]string{"downlink-subject", "downlink-message-id"}, lower) {
					require.NotContains(t, got, name, "seed %d", seed)
				}
			default:
				require.Equal(t, []string{strings.Join(values, ", ")}, got[name], "seed %d: %q", seed, name)
			}
		}
		// And nothing came from nowhere.
		for name := range got {
			if _, ours := in.Header[name]; !ours && name != "set" {
				require.True(t, strings.HasPrefix(name, "Downlink-"), "seed %d: %q", seed, name)
			}
		}
	}
}

// Absent, empty and null stay three things on the way.
func TestAbsentEmptyAndNull(t *testing.T) {
	relay, err := mapping.CompileRelay(mapping.RelayOptions{})
	require.NoError(t, err)
	c, ok := decodeTopic("d", mqttd.Topic("d", &c2d.Message{Properties: []c2d.Property{{Name: "empty"}, {Name: "null", Null: true}, {Name: "value", Value: "v"}}}), nil)
	require.True(t, ok)
	p, err := relay.Map(c)
	require.NoError(t, err)
	require.Equal(t, []string{""}, p.Header["empty"])
	require.Equal(t, []string{"v"}, p.Header["value"])
	require.NotContains(t, p.Header, "null")
	require.NotContains(t, p.Header, "absent")
	require.Equal(t, []string{"null"}, p.Header["Downlink-Null"])
}
