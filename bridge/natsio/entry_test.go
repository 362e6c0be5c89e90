package natsio

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

func parcel() *bridge.Parcel {
	in := &mapping.Input{
		Subject: "cmd.berlin.pump7.reboot", Payload: []byte("{\"a\":1}\nmore"), Stream: "COMMANDS", Sequence: 7,
		Time:   time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Header: map[string][]string{"X-User": {"ann", "<b>"}, "Nats-Rollup": {"all"}, "bytes": {"\xff"}},
	}
	return &bridge.Parcel{
		Message: in, Attempts: 3, At: time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC),
		Envelope: &mapping.Envelope{
			Route: "commands", Hub: "main", Device: "berlin-pump7", MessageID: "COMMANDS:7:x", CorrelationID: "c1", UserID: "u", ContentType: "application/json",
			ContentEncoding: "utf-8", ExpiresAt: time.Date(2026, 1, 2, 4, 30, 0, 123e6, time.UTC), Ack: mapping.AckFull,
			Properties: []mapping.Property{{Name: "verb", Value: "reboot"}, {Name: "a", Value: ""}, {Name: "none", Null: true}},
			Body:       in.Payload, SendBy: time.Date(2026, 1, 2, 4, 10, 0, 0, time.UTC), Priority: -2, Unordered: true, Coalesce: "verb.reboot",
			Receipts: true, ReplyTo: "_INBOX.x", Wait: "completed",
		},
	}
}

// What is stored must be readable for later versions: these bytes never change.
func TestEntryVector(t *testing.T) {
	t.Parallel()
	h, body, err := encodeEntry(parcel())
	require.NoError(t, err)
	require.Equal(t, nats.Header{
		"Downlink-Format": {"1"}, "Downlink-Message-Id": {"COMMANDS:7:x"}, "Downlink-Device": {"berlin-pump7"}, "Downlink-Hub": {"main"},
		"Downlink-Route": {"commands"}, "Downlink-Stream": {"COMMANDS"}, "Downlink-Seq": {"7"}, "Downlink-Time": {"2026-01-02T03:04:05.000000006Z"},
		"Downlink-Subject": {"cmd.berlin.pump7.reboot"}, "Downlink-At": {"2026-01-02T04:00:00Z"}, "Downlink-Attempts": {"3"},
		"Downlink-Expires": {"2026-01-02T04:30:00.123Z"}, "Downlink-Priority": {"-2"},
	}, h)
	require.Equal(t, `{"correlation_id":"c1","user_id":"u","content_type":"application/json","content_encoding":"utf-8","ack":"full",`+
		`"properties":[{"name":"verb","value":"reboot"},{"name":"a"},{"name":"none","null":true}],"send_by":"2026-01-02T04:10:00Z",`+
		`"unordered":true,"coalesce":"verb.reboot","receipts":true,"reply_to":"_INBOX.x","wait":"completed",`+
		`"header":[{"name":"Nats-Rollup","values":["all"]},{"name":"X-User","values":["ann","<b>"]},{"name":"bytes","values":[{"b64":"/w=="}]}]}`+
		"\n{\"a\":1}\nmore", string(body))
	p, err := decodeEntry(h, body)
	require.NoError(t, err)
	require.Equal(t, parcel(), p)
}

func TestEntryOfNothing(t *testing.T) {
	t.Parallel()
	p := &bridge.Parcel{Envelope: &mapping.Envelope{Body: []byte{}}, Message: &mapping.Input{Payload: []byte{}}}
	h, body, err := encodeEntry(p)
	require.NoError(t, err)
	require.Equal(t, nats.Header{"Downlink-Format": {"1"}, "Downlink-Seq": {"0"}, "Downlink-Attempts": {"0"}, "Downlink-Priority": {"0"}}, h)
	require.Equal(t, "{}\n", string(body))
	got, err := decodeEntry(h, body)
	require.NoError(t, err)
	require.Equal(t, p, got)
}

func TestEntryThatCannotBeRead(t *testing.T) {
	t.Parallel()
	h, body, err := encodeEntry(parcel())
	require.NoError(t, err)
	with := func(name, value string) nats.Header {
		c := nats.Header(http.Header(h).Clone())
		c[name] = []string{value}
		return c
	}
	_, err = decodeEntry(with("Downlink-Format", "2"), body)
	require.ErrorIs(t, err, bridge.ErrFormat)
	require.EqualError(t, err, "format 2, this is format 1: stored by a newer version of downlink")
	for name, bad := range map[string]struct {
		header nats.Header
		body   string
	}{
		"header Downlink-Format is \"\"":    {nil, string(body)},
		"header Downlink-Format is \"0\"":   {with("Downlink-Format", "0"), string(body)},
		"no line of JSON":                   {h, "{}"},
		"the first line of its body":        {h, "[]\n"},
		"Downlink-Seq is \"-1\"":            {with("Downlink-Seq", "-1"), string(body)},
		"Downlink-Attempts is \"many\"":     {with("Downlink-Attempts", "many"), string(body)},
		"Downlink-Time is \"yesterday\"":    {with("Downlink-Time", "yesterday"), string(body)},
		"send_by is \"x\"":                  {h, "{\"send_by\":\"x\"}\n"},
		"Downlink-Priority is \"1.5\"":      {with("Downlink-Priority", "1.5"), string(body)},
		"Downlink-Expires is \"-\"":         {with("Downlink-Expires", "-"), string(body)},
		"cannot unmarshal number":           {h, "{\"ack\":1}\n"},
		"illegal base64 data at input byte": {h, "{\"ack\":{\"b64\":\"*\"}}\n"},
	} {
		_, err := decodeEntry(bad.header, []byte(bad.body))
		require.ErrorContains(t, err, name)
		require.NotErrorIs(t, err, bridge.ErrFormat)
		require.NotContains(t, err.Error(), "\n")
	}
}

// randomText draws from what NATS lets through: anything.
func randomText(r *rand.Rand) string {
	alphabet := []string{"a", "Z", "0", "-", "_", ".", " ", "%", "\t", "\r\n", "\n", "\x00", "\x7f", "é", "\u2028", "\uFFFD", "\xff", "\xc3", "\"", "\\", "<", ":", "😀"}
	var b []byte
	for range r.IntN(12) {
		b = append(b, alphabet[r.IntN(len(alphabet))]...)
	}
	if r.IntN(50) == 0 {
		b = append(b, bytes.Repeat([]byte("x"), 1500)...)
	}
	return string(b)
}

func randomTime(r *rand.Rand) time.Time {
	if r.IntN(3) == 0 {
		return time.Time{}
	}
	return time.Unix(r.Int64N(4e9), r.Int64N(1e9)).UTC()
}

func randomParcel(r *rand.Rand) *bridge.Parcel {
	body := []byte(randomText(r))
	in := &mapping.Input{Subject: randomText(r), Payload: body, Stream: randomText(r), Sequence: r.Uint64(), Time: randomTime(r), Reply: randomText(r)}
	for range r.IntN(4) {
		if in.Header == nil {
			in.Header = map[string][]string{}
		}
		values := []string{}
		for range r.IntN(3) {
			values = append(values, randomText(r))
		}
		in.Header[randomText(r)] = values
	}
	e := &mapping.Envelope{
		Route: randomText(r), Hub: randomText(r), Device: randomText(r), MessageID: randomText(r), CorrelationID: randomText(r), UserID: randomText(r),
		ContentType: randomText(r), ContentEncoding: randomText(r), ExpiresAt: randomTime(r), Ack: mapping.Ack(randomText(r)), Body: body,
		SendBy: randomTime(r), Priority: r.IntN(100) - 50, Unordered: r.IntN(2) == 0, Coalesce: randomText(r), Receipts: r.IntN(2) == 0,
		ReplyTo: randomText(r), Wait: randomText(r),
	}
	for range r.IntN(4) {
		e.Properties = append(e.Properties, mapping.Property{Name: randomText(r), Value: randomText(r), Null: r.IntN(3) == 0})
	}
	return &bridge.Parcel{Envelope: e, Message: in, Attempts: r.IntN(10), At: randomTime(r)}
}

// Through NATS's own encoding of headers, too.
func TestEntryRoundTrip(t *testing.T) {
	for seed := range uint64(5000) {
		p := randomParcel(rand.New(rand.NewPCG(seed, 3)))
		h, body, err := encodeEntry(p)
		require.NoError(t, err)
		h2, body2, err := encodeEntry(p)
		require.NoError(t, err)
		require.Equal(t, h, h2)
		require.Equal(t, body, body2, "deterministic")
		require.Less(t, headerSize(h), headersMax)
		got, err := decodeEntry(overTheWire(t, h), body)
		require.NoError(t, err, "seed %d", seed)
		require.Equal(t, p, got, "seed %d", seed)
	}
}

// overTheWire is what a reader gets of headers that a writer sent.
func overTheWire(t testing.TB, h nats.Header) nats.Header {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("NATS/1.0\r\n")
	require.NoError(t, http.Header(h).Write(&b)) // as nats.go does
	b.WriteString("\r\n")
	got, err := nats.DecodeHeadersMsg(b.Bytes())
	require.NoError(t, err)
	return got
}

// Whatever lies in the stream: the decoder does not panic, and what it reads it can write again.
func FuzzEntry(f *testing.F) {
	_, body, err := encodeEntry(parcel())
	require.NoError(f, err)
	f.Add("1", "7", "3", "cmd.x", "2026-01-02T04:00:00Z", body)
	f.Add("2", "", "", "", "", []byte("{}\n"))
	f.Add("1", "0", "0", "", "", []byte(`{"exact":[{"name":"Downlink-Seq","value":"9"}],"header":[{"name":{"b64":"/w=="},"values":[]}]}`+"\nx"))
	f.Add("1", "0", "0", "x", "0000-01-01T00:00:00+23:00", []byte("{}\n"))
	f.Fuzz(func(t *testing.T, format, seq, attempts, subject, at string, body []byte) {
		h := nats.Header{
			hdrFormat: {format}, hdrSeq: {seq}, hdrAttempts: {attempts}, hdrPriority: {attempts}, hdrSubject: {subject},
			hdrAt: {at}, hdrTime: {at}, hdrExpires: {at}, hdrDevice: {subject},
		}
		p, err := decodeEntry(h, body)
		if err != nil {
			return
		}
		h, body, err = encodeEntry(p)
		require.NoError(t, err)
		again, err := decodeEntry(h, body)
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

func TestTokens(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"main", "a.b *>%ü", "-", "\xff\x00", "a_b-c", "%2D", strconv.Quote("x")} {
		got, ok := untoken(mapping.SubjectToken(s))
		require.True(t, ok, s)
		require.Equal(t, s, got)
	}
	for _, s := range []string{"a.b", "%", "%2", "%zz", "%2d", "%2D", "%41", "ü", "%_abc"} {
		_, ok := untoken(s)
		require.False(t, ok, s)
	}
	require.Equal(t, "a=2Eb=20=3Dx", kvKey("a.b =x"))
	require.Equal(t, "-", coalesceToken(""))
	require.Equal(t, "%2D", coalesceToken("-"), "never the one of no key")
	long := coalesceToken(string(bytes.Repeat([]byte("."), 100)))
	require.Len(t, long, 2+32)
	require.NotEqual(t, long, coalesceToken(string(bytes.Repeat([]byte("."), 101))))
}

func FuzzTokens(f *testing.F) {
	f.Add("a.b *>%ü")
	f.Add("%2D")
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := untoken(mapping.SubjectToken(s))
		require.True(t, ok)
		require.Equal(t, s, got)
		if text, ok := untoken(s); ok {
			require.Equal(t, s, mapping.SubjectToken(text))
		}
		key := coalesceToken(s)
		require.Equal(t, s == "", key == "-")
		require.False(t, slices.ContainsFunc([]byte(key), func(b byte) bool { return b <= ' ' || b >= 0x7f || b == '.' || b == '*' || b == '>' }))
	})
}

// Whoever adds a field to an envelope, a message or a parcel adds it to the entry.
func TestEntryHasEveryField(t *testing.T) {
	t.Parallel()
	p := &bridge.Parcel{Envelope: &mapping.Envelope{}, Message: &mapping.Input{}}
	n := 0
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		n++
		switch x := v.Addr().Interface().(type) {
		case *time.Time:
			*x = time.Unix(int64(n), 0).UTC()
			return
		case *[]byte:
			*x = []byte("body")
			return
		case *map[string][]string:
			*x = map[string][]string{"X": {"y"}}
			return
		}
		switch v.Kind() {
		case reflect.Pointer:
			fill(v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0))
		case reflect.String:
			v.SetString("text " + strconv.Itoa(n))
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int:
			v.SetInt(int64(n))
		case reflect.Uint64:
			v.SetUint(uint64(n))
		default:
			require.Fail(t, "how to fill it?", "%s", v.Type())
		}
	}
	fill(reflect.ValueOf(p).Elem())
	p.Message.BadHeader = false // such a message never gets an envelope
	p.Entry = 0                 // where it is stored, not what
	h, body, err := encodeEntry(p)
	require.NoError(t, err)
	got, err := decodeEntry(h, body)
	require.NoError(t, err)
	require.Equal(t, p, got)
}
