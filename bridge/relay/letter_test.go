package relay

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

func TestLetter(t *testing.T) {
	c := &mapping.C2D{
		Device: "plant/1.x", Topic: "devices/plant/messages/devicebound/a=1&n", MessageID: "m 1", CorrelationID: "c", UserID: "u",
		ContentType: "application/json", ContentEncoding: "utf-8", Expires: "2021-02-10T15:31:08.1234567Z", Body: []byte("body"),
		Properties: []mapping.Property{
			{Name: "plain", Value: "100%"}, {Name: "plain", Value: "two"}, {Name: "Nats-Rollup", Value: "all"}, {Name: "n", Null: true}, {Name: "empty"},
			{Name: "lines", Value: "a\r\nb%"}, {Name: "outer", Value: " x "}, {Name: "bytes", Value: "\xffö"}, {Name: "köln:", Value: "ö"}, {Name: "", Value: "nameless"},
		},
	}
	l := newLetter("plant", c, &mapping.RouteError{Route: "relay", Field: "publish.subject", Reason: mapping.ReasonAbsent, Err: errors.New("nil")})
	p := l.publication(whole)
	require.Equal(t, "plant.dead.absent.plant%2F1%2Ex", p.Subject)
	require.Equal(t, "body", string(p.Data))
	require.Equal(t, map[string][]string{
		"Downlink-Format":            {"1"},
		"Downlink-Reason":            {"absent"},
		"Downlink-Text":              {"route relay: publish.subject: nil"},
		"Downlink-Device":            {"plant/1.x"},
		"Downlink-Message-Id":        {"m 1"},
		"Downlink-Correlation-Id":    {"c"},
		"Downlink-User-Id":           {"u"},
		"Downlink-Content-Type":      {"application/json"},
		"Downlink-Content-Encoding":  {"utf-8"},
		"Downlink-Expires":           {"2021-02-10T15:31:08.1234567Z"},
		"Downlink-Topic":             {"devices/plant/messages/devicebound/a=1&n"},
		"Downlink-Orig-plain":        {"100%", "two"},
		"Downlink-Orig-Nats-Rollup":  {"all"},
		"Downlink-Orig-empty":        {""},
		"Downlink-Orig-lines":        {"a%0D%0Ab%25"},
		"Downlink-Orig-outer":        {"%20x%20"},
		"Downlink-Orig-bytes":        {"%FF%C3%B6"},
		"Downlink-Orig-k%C3%B6ln%3A": {"ö"},
		"Downlink-Orig-":             {"nameless"},
		"Downlink-Enc":               {"Downlink-Orig-bytes|!Downlink-Orig-k%25C3%25B6ln%253A|Downlink-Orig-lines|Downlink-Orig-outer"},
	}, p.Header)

	require.True(t, strings.HasPrefix(p.ID, "dead-"))
	require.Equal(t, p.ID, l.publication(bare).ID)
	other := *c
	other.Body = []byte("bodY")
	require.NotEqual(t, p.ID, newLetter("plant", &other, errors.New("x")).id())
	other.MessageID = ""
	require.Empty(t, newLetter("plant", &other, errors.New("x")).id())
}

func TestLetterReason(t *testing.T) {
	c := &mapping.C2D{Device: "d"}
	for _, test := range []struct {
		cause error
		want  string
	}{
		{errors.New("x"), "n.dead.refused.d"},
		{&bridge.Error{Class: bridge.Refused}, "n.dead.refused.d"},
		{&bridge.Error{Class: bridge.Refused, Reason: mapping.ReasonTooLarge}, "n.dead.too-large.d"},
		{&mapping.RouteError{Reason: "odd.reason >", Err: errors.New("x")}, "n.dead.odd%2Ereason%20%3E.d"},
	} {
		require.Equal(t, test.want, newLetter("n", c, test.cause).subject)
	}
}

func TestLetterTextIsOneBoundedLine(t *testing.T) {
	l := newLetter("n", &mapping.C2D{Device: "d"}, errors.New("a\nb"+strings.Repeat("ö", 400)+"\xff"))
	text := l.publication(whole).Header["Downlink-Text"][0]
	require.NotContains(t, text, "\n")
	require.Less(t, len(text), 600)
	require.True(t, strings.HasPrefix(text, "a%0Ab"))
}

func FuzzLetter(f *testing.F) {
	f.Add("name", "value", "id")
	f.Add("Nats-Rollup", "a\r\nNats-Rollup: all", "\xff")
	f.Add("k%C3%B6", " % ", "")
	f.Fuzz(func(t *testing.T, name, value, id string) {
		p := newLetter("n", &mapping.C2D{Device: "d" + id, MessageID: id, Topic: value, Properties: []mapping.Property{{Name: name, Value: value}}}, errors.New(value)).publication(whole)
		require.Equal(t, 2, strings.Count(p.Subject[:strings.LastIndexByte(p.Subject, '.')], "."))
		found := false
		for header, values := range p.Header {
			require.True(t, strings.HasPrefix(header, "Downlink-"))
			require.Equal(t, -1, strings.IndexFunc(header, func(r rune) bool { return r <= ' ' || r == ':' || r >= 0x7f }))
			for _, v := range values {
				require.False(t, illegal(v), "%q", v)
			}
			found = found || strings.HasPrefix(header, "Downlink-Orig-") && unescape(t, header, p.Header["Downlink-Enc"]) == "Downlink-Orig-"+name
		}
		require.True(t, found, "the property is there under its name")
	})
}

// unescape undoes a name that the list says is encoded.
func unescape(t *testing.T, wire string, list []string) string {
	if len(list) == 0 {
		return wire
	}
	for _, item := range strings.Split(list[0], "|") {
		if item, named := strings.CutPrefix(item, "!"); named && decode(t, item) == wire {
			return decode(t, wire)
		}
	}
	return wire
}

func decode(t *testing.T, s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		require.Less(t, i+2, len(s))
		b.WriteByte(byte(strings.IndexByte("0123456789ABCDEF", s[i+1])<<4 | strings.IndexByte("0123456789ABCDEF", s[i+2])))
		i += 2
	}
	return b.String()
}
