package hubdevice

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/mapping"
)

func TestDecodeTopic(t *testing.T) {
	const prefix = "devices/d1/messages/devicebound/"
	tests := []struct {
		name, bag string
		want      mapping.C2D
	}{
		// Published captures.
		{"azure cli", "%24.mid=7d9d1ab1-0c8b-4ff5-b3b8-67bfbe2c6d42&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&%24.ce=utf-8&iothub-ack=none",
			mapping.C2D{MessageID: "7d9d1ab1-0c8b-4ff5-b3b8-67bfbe2c6d42", To: "/devices/d1/messages/devicebound", ContentEncoding: "utf-8", Ack: "none"}},
		{"portal", "%24.mid=b0ff42b1-91d8-4e6e-9b8f-2f7b2ec9b9a0&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&iothub-ack=full",
			mapping.C2D{MessageID: "b0ff42b1-91d8-4e6e-9b8f-2f7b2ec9b9a0", To: "/devices/d1/messages/deviceBound", Ack: "full"}},
		{"central command", "%24.exp=2021-02-10T15%3A31%3A08.1234567Z&%24.mid=x&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&iothub-ack=none&method-name=reboot",
			mapping.C2D{Expires: "2021-02-10T15:31:08.1234567Z", MessageID: "x", To: "/devices/d1/messages/deviceBound", Ack: "none",
				Properties: []mapping.Property{{Name: "method-name", Value: "reboot"}}}},
		{"no properties", "%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound", mapping.C2D{To: "/devices/d1/messages/devicebound"}},

		{"all system properties", "%24.mid=m&%24.cid=c&%24.uid=u&%24.ct=application%2Fjson&%24.ce=utf-8&%24.to=t&%24.exp=e&iothub-ack=positive",
			mapping.C2D{MessageID: "m", CorrelationID: "c", UserID: "u", ContentType: "application/json", ContentEncoding: "utf-8", To: "t", Expires: "e", Ack: "positive"}},
		{"raw dollar", "$.mid=m&$.cid=c", mapping.C2D{MessageID: "m", CorrelationID: "c"}},
		{"unknown system names stay", "%24.ctime=2021-02-10T15%3A31%3A08.1234567Z&%24.MID=m",
			mapping.C2D{Properties: []mapping.Property{{Name: "$.ctime", Value: "2021-02-10T15:31:08.1234567Z"}, {Name: "$.MID", Value: "m"}}}},
		{"system name without value", "%24.mid&%24.cid=", mapping.C2D{}},
		{"second system value stays visible", "%24.mid=a&%24.mid=b", mapping.C2D{MessageID: "a", Properties: []mapping.Property{{Name: "$.mid", Value: "b"}}}},

		// Split first, decode once.
		{"escaped separators", "a=1%262&b=1%3D2&c%26d=x&e%3Df=y", mapping.C2D{Properties: []mapping.Property{
			{Name: "a", Value: "1&2"}, {Name: "b", Value: "1=2"}, {Name: "c&d", Value: "x"}, {Name: "e=f", Value: "y"}}}},
		{"escaped percent once", "a=%2525&b=100%25&c=%2526", mapping.C2D{Properties: []mapping.Property{
			{Name: "a", Value: "%25"}, {Name: "b", Value: "100%"}, {Name: "c", Value: "%26"}}}},
		{"raw equals in value", "a=1=2", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "1=2"}}}},
		{"plus and spaces", "a=1+2&b=1%2B2&c=1%202", mapping.C2D{Properties: []mapping.Property{
			{Name: "a", Value: "1+2"}, {Name: "b", Value: "1+2"}, {Name: "c", Value: "1 2"}}}},
		{"slash and hash", "a=x%2Fy%23z", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "x/y#z"}}}},
		{"non-ASCII", "stra%C3%9Fe=K%C3%B6ln%E2%82%AC%F0%9F%98%80&raw=Köln", mapping.C2D{Properties: []mapping.Property{
			{Name: "straße", Value: "Köln€😀"}, {Name: "raw", Value: "Köln"}}}},
		{"lower-case hex", "a=%c3%b6", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "ö"}}}},
		{"control and invalid UTF-8", "a=%0D%0A%00&b=%FF", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "\r\n\x00"}, {Name: "b", Value: "\xff"}}}},
		{"null and empty", "a&b=&c=x", mapping.C2D{Properties: []mapping.Property{{Name: "a", Null: true}, {Name: "b"}, {Name: "c", Value: "x"}}}},
		{"broken percent sequences", "a=%&b=%4&c=%zz1&d=%%41&e=5%25%", mapping.C2D{Properties: []mapping.Property{
			{Name: "a", Value: "%"}, {Name: "b", Value: "%4"}, {Name: "c", Value: "%zz1"}, {Name: "d", Value: "%A"}, {Name: "e", Value: "5%%"}}}},
		{"repeated names keep order", "a=1&a=2", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}}},
		{"empty name", "=x", mapping.C2D{Properties: []mapping.Property{{Value: "x"}}}},

		// Lenient.
		{"leading question mark", "?a=1&%24.mid=m", mapping.C2D{MessageID: "m", Properties: []mapping.Property{{Name: "a", Value: "1"}}}},
		{"encoded question mark stays", "%3Fa=1", mapping.C2D{Properties: []mapping.Property{{Name: "?a", Value: "1"}}}},
		{"trailing slash", "a=1&%24.mid=m/", mapping.C2D{MessageID: "m", Properties: []mapping.Property{{Name: "a", Value: "1"}}}},
		{"empty pairs", "&&a=1&", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "1"}}}},
		{"empty bag", "", mapping.C2D{}},
		{"devicebound again in a value", "a=/messages/devicebound/b", mapping.C2D{Properties: []mapping.Property{{Name: "a", Value: "/messages/devicebound/b"}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := decodeTopic("d1", prefix+test.bag, []byte("body"))
			require.True(t, ok)
			want := test.want
			want.Device, want.Topic, want.Body = "d1", prefix+test.bag, []byte("body")
			require.Equal(t, &want, got)
		})
	}
}

func TestDecodeTopicForm(t *testing.T) {
	got, ok := decodeTopic("d1", "devices/d1/messages/devicebound", nil)
	require.True(t, ok, "no bag and no slash")
	require.Empty(t, got.Properties)

	for _, topic := range []string{"", "/", "$iothub/methods/POST/x/?$rid=1", "devices/d1/messages/events/a=1", "devices/d1/messages/deviceboundary/a=1"} {
		_, ok := decodeTopic("d1", topic, nil)
		require.False(t, ok, topic)
	}
}

func FuzzDecodeTopic(f *testing.F) {
	for _, bag := range []string{"%24.mid=m&a=1%262&b&c=", "?%24.to=%2Fdevices%2Fd1&x=%zz/", "%", "a=%C3%B6", "=&=", "$.mid=1&$.mid=2"} {
		f.Add(bag)
	}
	f.Fuzz(func(t *testing.T, bag string) {
		m, ok := decodeTopic("d1", "devices/d1/messages/devicebound/"+bag, nil)
		if !ok {
			t.Fatal("a devicebound topic was not recognised")
		}
		pairs := strings.Count(bag, "&") + 1
		if len(m.Properties) > pairs {
			t.Fatalf("%d properties out of %d pairs", len(m.Properties), pairs)
		}
		for _, p := range m.Properties {
			if p.Null && p.Value != "" {
				t.Fatalf("null property %q with a value", p.Name)
			}
		}
		// What was decoded once and encoded again must decode to the same.
		var again []string
		for _, p := range m.Properties {
			pair := escape(p.Name)
			if !p.Null {
				pair += "=" + escape(p.Value)
			}
			again = append(again, pair)
		}
		second, _ := decodeTopic("d1", "devices/d1/messages/devicebound/"+strings.Join(again, "&"), nil)
		// Names of system properties are told apart after decoding: those that
		// stayed properties here (seconds of their kind) move to their field there.
		var kept, keptAgain []mapping.Property
		for _, p := range m.Properties {
			if systemField(&mapping.C2D{}, p.Name) == nil && (p.Name != "" || !p.Null) {
				kept = append(kept, p)
			}
		}
		for _, p := range second.Properties {
			if systemField(&mapping.C2D{}, p.Name) == nil {
				keptAgain = append(keptAgain, p)
			}
		}
		require.Equal(t, kept, keptAgain)
	})
}

func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		b.WriteByte('%')
		b.WriteByte(hex[s[i]>>4])
		b.WriteByte(hex[s[i]&15])
	}
	return b.String()
}
