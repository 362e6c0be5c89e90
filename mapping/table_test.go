package mapping

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var stored = time.Date(2025, 3, 4, 5, 6, 7, 891234567, time.UTC)

// newTable compiles routes; a route without a source takes stream S.
func newTable(t testing.TB, routes ...Route) *Table {
	t.Helper()
	for i := range routes {
		if routes[i].Stream == "" && routes[i].Source == "" && routes[i].Drop == "" {
			routes[i].Stream = "S"
		}
	}
	table, err := Compile(routes, TableOptions{Name: "prod", Hubs: []HubOptions{{Name: "main"}, {Name: "old", DocumentedCharset: true}}})
	require.NoError(t, err)
	return table
}

func input(subject string, header ...string) *Input {
	in := &Input{Subject: subject, Stream: "S", Sequence: 7, Time: stored, Payload: []byte("go")}
	for i := 0; i < len(header); i += 2 {
		if in.Header == nil {
			in.Header = map[string][]string{}
		}
		in.Header[header[i]] = append(in.Header[header[i]], header[i+1])
	}
	return in
}

// envelope maps with one route and requires an envelope.
func envelope(t testing.TB, r Route, in *Input) *Envelope {
	t.Helper()
	res := newTable(t, r).Map(in)
	require.Len(t, res, 1)
	require.Nil(t, res[0].Err, "%v", res[0].Err)
	require.NotNil(t, res[0].Envelope)
	return res[0].Envelope
}

func routeError(t testing.TB, r Route, in *Input) *RouteError {
	t.Helper()
	res := newTable(t, r).Map(in)
	require.Len(t, res, 1)
	require.NotNil(t, res[0].Err)
	require.Nil(t, res[0].Envelope)
	return res[0].Err
}

func TestMapTypicalRoute(t *testing.T) {
	e := envelope(t, Route{
		Name: "device-commands", Subject: "cmd.{site}.{device}.{verb...}", Device: "{site}-{device}",
		Message: MessageRule{
			CorrelationID: `{header["Correlation-Id"]}`, ContentType: "application/json", TTL: time.Hour, Ack: "full",
		},
		Properties: []PropertyRule{{Name: "verb", Value: "{verb}"}, {Headers: "X-*", Strip: "X-"}},
	}, input("cmd.berlin.pump7.motor.start", "Correlation-Id", "c1", "X-User", "ann", "X-B", "1", "X-B", "2", "Nats-Msg-Id", "m", "Other", "no"))
	require.Equal(t, &Envelope{
		Route: "device-commands", Hub: "main", Device: "berlin-pump7",
		MessageID: "S:7:d877y8j69q87", CorrelationID: "c1", ContentType: "application/json",
		ExpiresAt: time.Date(2025, 3, 4, 6, 6, 7, 891e6, time.UTC), Ack: AckFull,
		Properties: []Property{{Name: "verb", Value: "motor.start"}, {Name: "B", Value: "1, 2"}, {Name: "User", Value: "ann"}},
		Body:       []byte("go"), Receipts: true,
	}, e)
}

func TestRoutesInOrder(t *testing.T) {
	table := newTable(t,
		Route{Name: "tests", Subject: "cmd.test.>", Drop: "test traffic"},
		Route{Name: "audit", Subject: "cmd.>", Device: "audit", Also: true},
		Route{Name: "core", Subject: "cmd.>", Device: "core", Source: "core"},
		Route{Name: "first", Subject: "cmd.{d}.go", Device: "{d}"},
		Route{Name: "second", Subject: "cmd.*.go", Device: "never", Stream: "S"},
	)
	res := table.Map(input("cmd.test.x"))
	require.Equal(t, []Result{{Route: "tests", Drop: "test traffic"}}, res)

	res = table.Map(input("cmd.p1.go"))
	require.Len(t, res, 2)
	require.Equal(t, "audit", res[0].Envelope.Device)
	require.True(t, strings.HasSuffix(res[0].Envelope.MessageID, ":audit"))
	require.Equal(t, "p1", res[1].Envelope.Device)
	require.Equal(t, res[0].Envelope.MessageID, res[1].Envelope.MessageID+":audit")

	in := input("cmd.p1.go")
	in.Stream, in.Sequence = "", 0
	res = table.Map(in)
	require.Len(t, res, 1)
	require.Equal(t, "core", res[0].Route)

	in.Stream = "OTHER"
	require.Empty(t, table.Map(in))
	in.Subject = "cmd.test.x"
	require.Equal(t, "tests", table.Map(in)[0].Route)
	require.Empty(t, table.Map(input("orders.new")))

	require.Equal(t, []string{"cmd.>", "cmd.*.go", "cmd.test.>"}, table.Subjects("S"))
	require.Equal(t, []string{"cmd.>", "cmd.test.>"}, table.Subjects(""))
	require.Empty(t, table.Subjects("OTHER"))
}

func TestWildcardsLeaveReservedSubjectsAlone(t *testing.T) {
	table := newTable(t, Route{Subject: ">", Device: "d", Source: "core"})
	for _, s := range []string{"$SYS.x", "$JS.API.INFO", "_INBOX.a.b", "prod.dead.absent.r", "prod.receipt.main.d.accepted", "prod.mailbox.m.d"} {
		in := input(s)
		in.Stream = ""
		require.Empty(t, table.Map(in), s)
	}
	for _, s := range []string{"prod.cmd", "prod", "prod.deadline.x", "_INBOXES.x", "x.$SYS"} {
		in := input(s)
		in.Stream = ""
		require.Len(t, table.Map(in), 1, s)
	}
}

func TestAbsence(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Properties: []PropertyRule{{Name: "a", Value: `{header["A"]}`}}}
	require.Empty(t, envelope(t, r, input("c.x")).Properties)
	require.Equal(t, []Property{{Name: "a"}}, envelope(t, r, input("c.x", "A", "")).Properties)

	r.Properties[0].Value = `v={header["A"]}`
	err := routeError(t, r, input("c.x"))
	require.Equal(t, ReasonAbsent, err.Reason)
	require.Equal(t, `route route-1: properties[0].value: {header["A"]} is absent; give it a default, such as {header["A"] ?? "none"}`, err.Error())

	r.Properties[0].Value = `v={header["A"] ?? header["B"] ?? "none"}`
	require.Equal(t, "v=none", envelope(t, r, input("c.x")).Properties[0].Value)
	require.Equal(t, "v=b", envelope(t, r, input("c.x", "B", "b")).Properties[0].Value)
	require.Equal(t, "v=", envelope(t, r, input("c.x", "A", "", "B", "b")).Properties[0].Value)

	r = Route{Subject: "c.>", Device: `{header["D"]}`, Allow: []string{"*"}}
	err = routeError(t, r, input("c.x"))
	require.Equal(t, "device", err.Field)
	require.Equal(t, ReasonAbsent, err.Reason)
	err = routeError(t, r, input("c.x", "D", ""))
	require.Equal(t, ReasonBadDevice, err.Reason)
}

func TestDeviceAndAllow(t *testing.T) {
	r := Route{Subject: "c.>", Device: `{header["D"]}`, Allow: []string{"berlin-*", "a*z"}}
	for id, want := range map[string]Reason{
		"berlin-p1": "", "berlin-": "", "abcz": "", "abc": ReasonNotAllowed, "xberlin-p": ReasonNotAllowed,
		"berlin-a b": ReasonBadDevice, "berlin-ü": ReasonBadDevice, "berlin-a/b": ReasonBadDevice,
		"berlin-" + strings.Repeat("x", 122): ReasonBadDevice, "berlin-" + strings.Repeat("x", 121): "",
		"berlin-+#*?!(),=@;$'%": "",
	} {
		res := newTable(t, r).Map(input("c.x", "D", id))[0]
		if want == "" {
			require.Nil(t, res.Err, id)
			require.Equal(t, id, res.Envelope.Device)
		} else {
			require.Equal(t, want, res.Err.Reason, id)
		}
	}
}

func TestIllegalValues(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Properties: []PropertyRule{{Name: "v", Value: `{header["V"]}`}}}
	for _, v := range []string{"a\tb", "a\x00", " a", "a ", "a\xff", "a\u0085b", "\x7f", "a\r\nb"} {
		r.IllegalValues = ""
		err := routeError(t, r, input("c.x", "V", v))
		require.Equal(t, ReasonBadProperty, err.Reason, "%q", v)
		require.Contains(t, err.Error(), `properties[0].value: property "v" has`)
		r.IllegalValues = "omit"
		require.Empty(t, envelope(t, r, input("c.x", "V", v)).Properties)
		r.IllegalValues = "encode"
		props := envelope(t, r, input("c.x", "V", v)).Properties
		require.Equal(t, Property{Name: "downlink-enc", Value: "v"}, props[1])
		got, ok := percentDecode(props[0].Value)
		require.True(t, ok)
		require.Equal(t, v, got)
	}
	r.IllegalValues = ""
	for _, v := range []string{"", "a b", "ü", "100%", "a%20b", "😀", "\u00a0", "a&b=c"} {
		require.Equal(t, []Property{{Name: "v", Value: v}}, envelope(t, r, input("c.x", "V", v)).Properties)
	}
	r.Hub = "old" // the documented set only
	require.Equal(t, ReasonBadProperty, routeError(t, r, input("c.x", "V", "a b")).Reason)
	r.IllegalValues = "encode"
	require.Equal(t, []Property{{Name: "v", Value: "%C3%BC%20x%25"}, {Name: "downlink-enc", Value: "v"}},
		envelope(t, r, input("c.x", "V", "ü x%")).Properties)
}

// The format of downlink-enc, pinned.
func TestCopiesAlwaysEncode(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Properties: []PropertyRule{{Name: "User", Value: "me"}, {Headers: "*"}}}
	e := envelope(t, r, input("c.x", "tab", "a\tb%", "a b", "v", "a\x01", "v", "iothub-ack", "full", "$.mid", "m", "50%", "p",
		"user", "them", "Ünder", "1", "nats-rollup", "all", "DOWNLINK-X", "y", "x", "1", "X", "2"))
	require.Equal(t, []Property{
		{Name: "User", Value: "me"},
		{Name: "%24.mid", Value: "m"},
		{Name: "50%25", Value: "p"},
		{Name: "X", Value: "2"},
		{Name: "a%01", Value: "v"},
		{Name: "a b", Value: "v"},
		{Name: "%69othub-ack", Value: "full"},
		{Name: "tab", Value: "a%09b%25"},
		{Name: "x", Value: "1"},
		{Name: "Ünder", Value: "1"},
		{Name: "downlink-enc", Value: "!%2524.mid|!50%2525|!a%2501|!%2569othub-ack|tab"},
	}, e.Properties)
}

func TestCopyRules(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Properties: []PropertyRule{
		{Headers: "X-*", Strip: "X-"}, {Headers: "*B"}, {Name: "gone", Value: `{header["none"]}`},
	}}
	e := envelope(t, r, input("c.x", "X-A", "1", "X-", "dash", "B", "own", "X-B", "copied", "X-Nats-Rollup", "all", "X-downlink-enc", "A", "X-GONE", "no"))
	require.Equal(t, []Property{{Name: "X-", Value: "dash"}, {Name: "A", Value: "1"}, {Name: "B", Value: "copied"}, {Name: "X-B", Value: "copied"}}, e.Properties)
}

func TestTraceContextPasses(t *testing.T) {
	const tp = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	r := Route{Subject: "c.{d}", Device: "{d}"}
	require.Equal(t, []Property{{Name: "traceparent", Value: tp}, {Name: "tracestate", Value: "a=1, b=2"}},
		envelope(t, r, input("c.x", "traceparent", tp, "tracestate", "a=1", "tracestate", "b=2")).Properties)
	r.Properties = []PropertyRule{{Name: "traceparent", Value: "mine"}, {Headers: "Trace*"}}
	require.Equal(t, []Property{{Name: "traceparent", Value: "mine"}},
		envelope(t, r, input("c.x", "Traceparent", tp)).Properties)
}

func TestMessageID(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Message: MessageRule{MessageID: `{header["Id"]}`}}
	long := strings.Repeat("ä", 50)
	for id, want := range map[string]string{
		"plain-1:%20": "plain-1:%20", "a b%": "a%20b%25", strings.Repeat("x", 128): strings.Repeat("x", 128),
		"": "S:7:d877y8j69q87",
	} {
		e := envelope(t, r, input("c.x", "Id", id))
		require.Equal(t, want, e.MessageID)
		require.Empty(t, e.Properties)
	}
	require.Equal(t, "S:7:d877y8j69q87", envelope(t, r, input("c.x")).MessageID)
	e := envelope(t, r, input("c.x", "Id", long))
	require.Equal(t, "sha256-878351d354f30e801462db20c710aeac04477bb60cc9e9eb4d217d81a58c81d3", e.MessageID)
	require.Equal(t, []Property{{Name: "Downlink-Original-Message-Id", Value: long}}, e.Properties)
	require.Equal(t, e.MessageID, envelope(t, r, input("c.x", "Id", long)).MessageID)

	r.Stream = strings.Repeat("N", 200)
	in := input("c.x")
	in.Stream = r.Stream
	e = envelope(t, r, in)
	require.LessOrEqual(t, len(e.MessageID), 128)
}

func TestRandomMessageIDFromCore(t *testing.T) {
	table, err := Compile([]Route{{Subject: "c.{d}", Source: "core", Device: "{d}"}},
		TableOptions{Rand: bytes.NewReader(bytes.Repeat([]byte{0xab}, 16))})
	require.NoError(t, err)
	in := &Input{Subject: "c.x", Time: stored}
	require.Equal(t, strings.Repeat("ab", 16), table.Map(in)[0].Envelope.MessageID)
	again := table.Map(in)[0].Envelope.MessageID // the source is used up
	require.Len(t, again, 32)
	require.NotEqual(t, again, table.Map(in)[0].Envelope.MessageID)
}

func TestSystemProperties(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Message: MessageRule{
		CorrelationID: `{header["C"]}`, UserID: `{header["U"]}`, ContentType: `{header["T"]}`, ContentEncoding: `{header["E"]}`, Ack: "none"}}
	e := envelope(t, r, input("c.x", "C", "ü 1", "U", " u ", "T", "text/plain", "E", "utf-8"))
	require.Equal(t, []string{"ü 1", " u ", "text/plain", "utf-8"}, []string{e.CorrelationID, e.UserID, e.ContentType, e.ContentEncoding})
	require.Equal(t, AckNone, e.Ack)
	require.True(t, e.ExpiresAt.IsZero())
	for _, h := range [][2]string{{"C", "a\x01"}, {"C", " a\xff"}, {"U", "\tu"}, {"T", "ü"}, {"E", "a\nb"}} {
		err := routeError(t, r, input("c.x", h[0], h[1]))
		require.Equal(t, ReasonBadMessageID, err.Reason, h)
	}
}

func TestTooLarge(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Message: MessageRule{MessageID: "i"}, Properties: []PropertyRule{{Name: "p", Value: `{header["P"]}`}}}
	in := input("c.x", "P", "v")
	e := envelope(t, r, in)
	// body + to + message-id + name + value
	require.Equal(t, 2+len("/devices/x/messages/devicebound")+1+1+1, e.Size())
	in.Payload = make([]byte, MaxMessageSize-e.Size()+2)
	require.Equal(t, MaxMessageSize, envelope(t, r, in).Size())
	in.Header["P"] = []string{"vv"}
	require.Equal(t, ReasonTooLarge, routeError(t, r, in).Reason)
	in.Payload = make([]byte, 1<<20)
	require.Equal(t, ReasonTooLarge, routeError(t, r, in).Reason)
}

// A body that is too large to look into still has its device, unless that is in it.
func TestTooLargeForWhom(t *testing.T) {
	for device, want := range map[string]string{
		"{d}": "x", "fixed": "fixed", `{header["To"]}`: "y", "{json.to}": "", "{payload}": "", `{header["To"] ?? json.to}`: "", `{header["None"]}`: "",
	} {
		in := input("c.x", "To", "y")
		in.Payload = append([]byte(`{"to":"z"}`), bytes.Repeat([]byte(" "), MaxMessageSize)...)
		res := newTable(t, Route{Subject: "c.{d}", Device: device, Allow: []string{"*"}}).Map(in)
		require.Len(t, res, 1)
		require.Equal(t, ReasonTooLarge, res[0].Err.Reason, device)
		require.Equal(t, want, res[0].Device, device)
	}
}

func TestRelayEnvelopeAndLoop(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Envelope: "relay"}
	e := envelope(t, r, input("c.x", "Downlink-Via", "edge-1, other", "Downlink-Via", "third, <no name>"))
	require.Equal(t, []Property{{Name: "Downlink-Subject", Value: "c.x"}, {Name: "Downlink-Seq", Value: "7"},
		{Name: "Downlink-Via", Value: "edge-1, other, third, prod"}}, e.Properties)
	res := newTable(t, r).Map(input("c.x", "Downlink-Via", "edge-1, prod"))
	require.Equal(t, []Result{{Route: "route-1", Drop: "loop"}}, res)
}

func TestMapConcurrently(t *testing.T) {
	table := newTable(t, Route{Subject: "c.{d}.>", Device: "{d}", Properties: []PropertyRule{{Name: "n", Value: `{json.n + 1}`}, {Headers: "*"}}})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 200 {
				in := input("c."+string(rune('a'+g))+".x", "A", string(rune('a'+g)))
				in.Payload = []byte(`{"n":41}`)
				e := table.Map(in)[0].Envelope
				if e.Device != e.Properties[1].Value || e.Properties[0].Value != "42" {
					t.Errorf("mixed up: %+v", e)
				}
			}
		})
	}
	wg.Wait()
}

func TestTopicsThatMQTTCannotCarry(t *testing.T) {
	r := Route{Subject: "c", Device: "d", Properties: []PropertyRule{{Name: "p", Value: `{header["P"]}`}}}
	e := envelope(t, r, input("c", "P", strings.Repeat("ü", 10_000)))
	require.Less(t, e.Size(), MaxMessageSize)
	require.LessOrEqual(t, e.TopicSize(), MaxTopic)
	err := routeError(t, r, input("c", "P", strings.Repeat("ü", 11_000)))
	require.Equal(t, ReasonTooLarge, err.Reason)
	require.ErrorContains(t, err, "MQTT topic of 66")

	// The estimate that saves the count never lets too long a topic through.
	in := input("c")
	in.Header = map[string][]string{}
	r.Properties = []PropertyRule{{Headers: "*"}}
	for i := range 13_200 {
		in.Header[string([]byte{'!' + byte(i%90), '!' + byte(i/90)})] = []string{""}
	}
	require.Equal(t, ReasonTooLarge, routeError(t, r, in).Reason)
}
