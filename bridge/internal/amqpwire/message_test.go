package amqpwire

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// One message with every section (§3.2), written down byte by byte.
const wholeMessage = `
00 53 70 c0 09 05 41 50 09 52 3c 41 52 02
00 53 71 c1 06 02 a3 01 61 52 01
00 53 72 c1 06 02 a3 01 62 52 02
00 53 73 c0 2c 0d 98 00112233445566778899aabbccddeeff a0 01 75 a1 01 74 40 40 44 a3 01 6a 40 83 00000000000003e8 40 40 40 40
00 53 74 c1 07 02 a1 01 6b a1 01 76
00 53 75 a0 02 0102
00 53 75 b0 00000001 03
00 53 78 c1 01 00`

func TestMessageSections(t *testing.T) {
	var s Sections
	require.NoError(t, s.Split(unhex(t, wholeMessage)))
	require.Equal(t, BodyData, s.Body)
	require.Equal(t, [][]byte{{1, 2}, {3}}, s.Data)

	var h Header
	require.NoError(t, h.Decode(s.Header))
	require.Equal(t, Header{Durable: true, Priority: 9, TTL: Some[uint32](60), FirstAcquirer: true, DeliveryCount: 2}, h)
	require.Equal(t, unhex(t, "00 53 70 c0 09 05 41 50 09 52 3c 41 52 02"), h.Append(nil))

	for want, section := range map[Symbol][]byte{"a": s.DeliveryAnnotations, "b": s.MessageAnnotations} {
		m, err := DecodeMap(section)
		require.NoError(t, err)
		require.Equal(t, want, m[0].Key)
	}
	m, err := DecodeMap(s.ApplicationProperties)
	require.NoError(t, err)
	require.Equal(t, Map{{"k", "v"}}, m)
	m, err = DecodeMap(s.Footer)
	require.NoError(t, err)
	require.Empty(t, m)

	var p Properties
	require.NoError(t, p.Decode(s.Properties))
	want := Properties{MessageID: UUID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
		UserID: []byte("u"), To: "t", CorrelationID: uint64(0), ContentType: "j", AbsoluteExpiryTime: Some(Timestamp(1000))}
	require.Equal(t, want, p)
	require.NoError(t, p.Decode(want.Append(nil)[3:]))
	require.Equal(t, want, p)
}

func TestAppendedSections(t *testing.T) {
	all := Properties{MessageID: "m", UserID: []byte{}, To: "t", Subject: "s", ReplyTo: "r", CorrelationID: []byte("c"), ContentType: "x", ContentEncoding: "y",
		AbsoluteExpiryTime: Some(Timestamp(1)), CreationTime: Some(Timestamp(2)), GroupID: "g", GroupSequence: Some[uint32](0), ReplyToGroupID: "q"}
	b := (&Header{Priority: 4}).Append(nil)
	b, err := AppendMessageAnnotations(b, Map{{Symbol("x-opt-lock-token"), "l"}})
	require.NoError(t, err)
	b = all.Append(b)
	b, err = AppendApplicationProperties(b, Map{{"status-code", int32(200)}})
	require.NoError(t, err)
	withValue, err := AppendBodyValue(b, "token")
	require.NoError(t, err)
	var s Sections
	require.NoError(t, s.Split(withValue))
	require.Equal(t, []byte{codeList0}, s.Header)
	var p Properties
	require.NoError(t, p.Decode(s.Properties))
	require.Equal(t, all, p)
	v, err := DecodeValue(s.Value)
	require.NoError(t, err)
	require.Equal(t, "token", v)
	require.NoError(t, s.Split(AppendBodyData(b, []byte("x"))))
	require.Equal(t, [][]byte{[]byte("x")}, s.Data)
	// status-code is an int in its shortest form that holds 200
	require.True(t, bytes.Contains(b, unhex(t, "a1 0b 7374617475732d636f6465 71 000000c8")))
	for _, f := range []func([]byte) ([]byte, error){
		func(b []byte) ([]byte, error) { return AppendBodyValue(b, 5) },
		func(b []byte) ([]byte, error) { return AppendApplicationProperties(b, Map{{"k", 5}}) },
	} {
		got, err := f([]byte{1})
		require.Error(t, err)
		require.Equal(t, []byte{1}, got)
	}
}

func TestBodies(t *testing.T) {
	var s Sections
	for _, c := range []struct {
		bytes string
		kind  BodyKind
	}{
		{"", BodyNone}, {"00 53 70 45", BodyNone}, {"00 53 77 40", BodyValue}, {"00 53 76 45 00 53 76 45", BodySequence}, {"00 53 75 a0 00", BodyData},
		{"00 80 0000000000000075 a0 00", BodyData}, {"00 a3 10 616d71703a646174613a62696e617279 a0 00", BodyData},
	} {
		require.NoError(t, s.Split(unhex(t, c.bytes)), c.bytes)
		require.Equal(t, c.kind, s.Body, c.bytes)
	}
	require.Len(t, s.Data, 1)
}

func TestBadMessages(t *testing.T) {
	for name, b := range map[string]string{
		"two value sections":     "00 53 77 40 00 53 77 40",
		"value and data":         "00 53 77 40 00 53 75 a0 00",
		"data and value":         "00 53 75 a0 00 00 53 77 40",
		"properties repeated":    "00 53 73 45 00 53 73 45",
		"out of order":           "00 53 74 c1 01 00 00 53 73 45",
		"body before header":     "00 53 75 a0 00 00 53 70 45",
		"footer twice":           "00 53 78 c1 01 00 00 53 78 c1 01 00",
		"not a section":          "00 53 24 45",
		"not described":          "a1 01 61",
		"cut":                    "00 53 75 a0 05 61",
		"data is a string":       "00 53 75 a1 01 61",
		"unknown type":           "00 53 77 00",
		"symbol of no section":   "00 a3 01 78 45",
		"text after the message": "00 53 75 a0 00 68 65",
	} {
		require.Error(t, new(Sections).Split(unhex(t, b)), name)
	}
	for name, b := range map[string]string{
		"not a list": "c1 01 00", "bool as id": "c0 02 01 41", "user id a string": "c0 04 02 40 a1 00", "to a symbol": "c0 05 03 40 40 a3 00",
		"14 fields": "c0 0f 0e 40 40 40 40 40 40 40 40 40 40 40 40 40 40", "bytes after it": "45 45",
	} {
		require.Error(t, new(Properties).Decode(unhex(t, b)), name)
	}
	require.Error(t, new(Header).Decode(unhex(t, "c0 02 01 43")))
	_, err := DecodeMap(unhex(t, "45"))
	require.Error(t, err)
	_, err = DecodeMap(unhex(t, "c1 01 00 40"))
	require.Error(t, err)
	_, err = DecodeValue(unhex(t, "40 40"))
	require.Error(t, err)
}
