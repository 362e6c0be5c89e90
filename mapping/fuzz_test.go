package mapping

import (
	"bytes"
	"net/textproto"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// overNATS is what nats.go makes of headers between two clients: refused names
// fail the publish, values are trimmed and lose their line ends; the decoder is the real one.
func overNATS(t testing.TB, h map[string][]string) map[string][]string {
	t.Helper()
	b := bytes.NewBufferString("NATS/1.0\r\n")
	for k, vs := range h {
		require.True(t, k != "" && inClass(k, classHeader), "nats.go refuses the header name %q", k)
		for _, v := range vs {
			v = strings.NewReplacer("\r", " ", "\n", " ").Replace(textproto.TrimString(v))
			b.WriteString(k + ": " + v + "\r\n")
		}
	}
	b.WriteString("\r\n")
	out, err := nats.DecodeHeadersMsg(b.Bytes())
	require.NoError(t, err)
	return out
}

// overHub is the hub: it hands on what it was given, if that is legal there.
func overHub(t testing.TB, e *Envelope, documented bool) *C2D {
	t.Helper()
	require.NoError(t, checkDeviceID(e.Device))
	require.True(t, e.MessageID != "" && len(e.MessageID) <= 128 && inClass(e.MessageID, classID), e.MessageID)
	require.LessOrEqual(t, e.Size(), MaxMessageSize)
	names := map[string]bool{}
	for _, p := range e.Properties {
		require.False(t, names[p.Name], "%q twice", p.Name)
		names[p.Name] = true
		for _, s := range []string{p.Name, p.Value} {
			require.True(t, utf8.ValidString(s), "%q", s)
			what, _ := illegalText(s, documented)
			require.Empty(t, what, "%q", s)
		}
		require.False(t, hubsOwn(p.Name), "%q", p.Name)
	}
	return &C2D{Device: e.Device, Topic: "t", MessageID: e.MessageID, CorrelationID: e.CorrelationID, UserID: e.UserID,
		ContentType: e.ContentType, ContentEncoding: e.ContentEncoding, Properties: e.Properties, Body: e.Body}
}

// atEdge undoes Downlink-Enc, as a careful reader does.
func atEdge(t testing.TB, h map[string][]string) map[string][]string {
	t.Helper()
	var list map[string]bool
	if v := h["Downlink-Enc"]; len(v) == 1 {
		list = parseEncList(v[0])
	}
	out := map[string][]string{}
	for k, vs := range h {
		name, ok := list[k]
		if !ok {
			out[k] = append(out[k], vs...)
			continue
		}
		for _, v := range vs {
			p := undo(Property{Name: k, Value: v}, name)
			out[p.Name] = append(out[p.Name], p.Value)
		}
	}
	return out
}

// roundTrip sends one message with one header both ways and requires it to arrive as it left.
func roundTrip(t testing.TB, name, value string, body []byte, documented bool) {
	t.Helper()
	hub := "main"
	if documented {
		hub = "old"
	}
	table := newTable(t, Route{Subject: "c.{d}", Device: "{d}", Hub: hub, Properties: []PropertyRule{{Headers: "*"}, {Name: "fixed", Value: "1"}}})
	in := input("c.x", name, value, "Nats-Rollup", "all", "nats-msg-id", "1", "Downlink-Device", "evil")
	in.Payload = body
	res := table.Map(in)[0]
	if res.Err != nil {
		require.Equal(t, ReasonTooLarge, res.Err.Reason, res.Err)
		return
	}
	p, err := relayMap(t, RelayOptions{}).Map(overHub(t, res.Envelope, documented))
	require.NoError(t, err)
	wire := overNATS(t, p.Header)
	for k := range wire {
		require.False(t, hasPrefixFold(k, "Nats-"), k)
	}
	require.Equal(t, []string{"x"}, wire["Downlink-Device"])
	got := atEdge(t, wire)
	switch {
	case inert(name) || name == "" || strings.EqualFold(name, "fixed"):
		require.NotContains(t, got, name+"x")
	case name == "Status" && len(body) == 0:
		require.Equal(t, []string{value}, got["Downlink-Prop-Status"])
	default:
		require.Equal(t, []string{value}, got[name], "%q: %q", name, value)
		// And without undoing anything, if NATS can carry the header at all.
		if inClass(name, classHeader) && !notForNATS(value) {
			require.Equal(t, []string{value}, wire[name], "%q: %q", name, value)
		}
	}
	require.Equal(t, body, p.Data)
}

func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"X", "a%20b", "$.mid", "iothub-ack", "ü", "a b", "50%", "downlink", "Status", "FIXED", "traceparent", "\x00", "%", "a|!b", "x\xff", "nats-x", "Downlink-Subject", " "} {
		for _, v := range []string{"", "v", "50%", "%41", "a b", " a", "a\t", "\tx", "a\tb", "ü", "\xff\xfe", "\u0085", "a|b!", "\x00", "😀", strings.Repeat("z", 70000), "="} {
			roundTrip(t, name, v, []byte("b"), false)
			roundTrip(t, name, v, nil, true)
		}
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("X-User", "ann", []byte("go"), false)
	f.Add("a b%", " \t\xff\u0085%41", []byte(nil), true)
	f.Add("$.mid", "%", []byte{0}, false)
	f.Add("iothub-ack", "full", []byte("x"), true)
	f.Fuzz(func(t *testing.T, name, value string, body []byte, documented bool) {
		if strings.ContainsAny(name, ":\r\n") || strings.ContainsAny(value, "\r\n") {
			return // not possible on NATS
		}
		roundTrip(t, name, value, body, documented)
	})
}

func FuzzCompileAndMap(f *testing.F) {
	f.Add("cmd.{site}.{verb...}", "{site}", `{header["X"] ?? json.a}`, "X-*", "cmd.a.b.c", "X-A", "v", []byte(`{"a":1}`))
	f.Add("{a}.*.>", "{a}{{}}", "{", "*", "a.b.c", "", "\xff", []byte(nil))
	f.Add(">", `{upper(header["X"])}`, `{map(json, # + 1)[0]}`, "", "x", "X", "d", []byte(`[1,2]`))
	f.Fuzz(func(t *testing.T, subject, device, value, headers, got, name, hv string, payload []byte) {
		props := []PropertyRule{{Name: "p", Value: value}}
		if headers != "" {
			props = append(props, PropertyRule{Headers: headers, Strip: "X-"})
		}
		table, err := Compile([]Route{{Subject: subject, Source: "core", Device: device, Allow: []string{"*"}, Envelope: "relay", IllegalValues: "encode",
			Message: MessageRule{MessageID: value, CorrelationID: value, TTL: time.Minute}, Properties: props}}, TableOptions{})
		if err != nil {
			require.NotContains(t, strings.ReplaceAll(err.Error(), "\nroutes[0].", ""), "\n")
			return
		}
		in := &Input{Subject: got, Header: map[string][]string{name: {hv}}, Payload: payload, Time: stored}
		for _, r := range table.Map(in) {
			require.Equal(t, 1, count(r.Envelope != nil, r.Drop != "", r.Err != nil))
			if r.Envelope != nil {
				overHub(t, r.Envelope, false)
			}
		}
	})
}

func count(bs ...bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}

func FuzzScanTemplate(f *testing.F) {
	for _, s := range []string{"a{b}c", "{{x}}", `{"}"}`, "{`}`}", "{ {a:1} }", "{/*}*/x}", "{x//}\n}", "{a...}", "{", "}", "{'\\'}'}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		pieces, err := scanTemplate(s)
		if err != nil {
			return
		}
		for _, p := range pieces {
			require.NotEmpty(t, p.text)
		}
		if !strings.ContainsAny(s, "{}") && s != "" {
			require.Equal(t, []piece{{text: s}}, pieces)
		}
	})
}

func FuzzEncoding(f *testing.F) {
	f.Add("a b%", false)
	f.Add("\xff\x00 ü", true)
	f.Fuzz(func(t *testing.T, s string, documented bool) {
		e := encodeText(s, documented)
		what, _ := illegalText(e, documented)
		require.Empty(t, what, "%q", e)
		got, ok := percentDecode(e)
		require.True(t, ok)
		require.Equal(t, s, got)

		got, ok = percentDecode(SubjectToken(s))
		require.True(t, ok)
		require.Equal(t, s, got)

		require.False(t, notForNATS(encodeValue(s)))
		got, ok = percentDecode(encodeValue(s))
		require.True(t, ok)
		require.Equal(t, s, got)

		if s != "" {
			wire, name := encodeName(s, documented)
			if name {
				got, ok = percentDecode(wire)
				require.True(t, ok)
			} else {
				got = wire
			}
			require.Equal(t, s, got)
			var l encList
			l.add(s, true)
			l.add(s+"x", false)
			require.Equal(t, map[string]bool{s: true, s + "x": false}, parseEncList(l.String()))
		}
		id, _ := legalMessageID(s)
		require.True(t, len(id) <= 128 && inClass(id, classID))
	})
}

func FuzzRelayMap(f *testing.F) {
	f.Add(`edge.{device}.{property["verb"] ?? "x"}`, "d1", "verb", "a.b", "x y", "\r\n", "verb")
	f.Add("{property.a...}", "d", "a", "$SYS.x", "Nats-Rollup", "all", "|!%4e")
	f.Add("{message.id}.{subject...}", "d", "Downlink-Subject", "a.b", "Downlink-Via", "x", "")
	f.Fuzz(func(t *testing.T, tmpl, device, n1, v1, n2, v2, enc string) {
		m, err := CompileRelay(RelayOptions{Subject: tmpl, AllowSubjects: []string{"cmd.>", "*"}})
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		p, err := m.Map(&C2D{Device: device, MessageID: v2, Properties: []Property{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: "downlink-enc", Value: enc}}})
		if err != nil {
			var re *RouteError
			require.ErrorAs(t, err, &re)
			return
		}
		require.NoError(t, m.checkSubject(p.Subject))
		for k := range overNATS(t, p.Header) {
			require.False(t, hasPrefixFold(k, "Nats-"), k)
		}
	})
}
