package amqpwire

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(s))
	require.NoError(t, err)
	return b
}

// Every encoding of §1.6, bytes written down from the specification's tables.
var valueVectors = []struct {
	name  string
	bytes string
	value any
	other bool // not the encoding that we choose
}{
	{"null", "40", nil, false},
	{"boolean 0x56 true", "56 01", true, true},
	{"boolean 0x56 false", "56 00", false, true},
	{"true", "41", true, false},
	{"false", "42", false, false},
	{"ubyte", "50 ff", uint8(255), false},
	{"ushort", "60 01 02", uint16(0x0102), false},
	{"uint", "70 01 02 03 04", uint32(0x01020304), false},
	{"smalluint", "52 80", uint32(128), false},
	{"uint0", "43", uint32(0), false},
	{"uint in full", "70 00 00 00 05", uint32(5), true},
	{"ulong", "80 01 02 03 04 05 06 07 08", uint64(0x0102030405060708), false},
	{"smallulong", "53 10", uint64(16), false},
	{"ulong0", "44", uint64(0), false},
	{"byte", "51 ff", int8(-1), false},
	{"short", "61 ff fe", int16(-2), false},
	{"int", "71 ff ff ff 00", int32(-256), false},
	{"smallint", "54 ff", int32(-1), false},
	{"long", "81 ff ff ff ff ff ff ff 00", int64(-256), false},
	{"smalllong", "55 80", int64(-128), false},
	{"float", "72 3f 80 00 00", float32(1), false},
	{"double", "82 3f f0 00 00 00 00 00 00", float64(1), false},
	{"decimal32", "74 01 02 03 04", Decimal32{1, 2, 3, 4}, false},
	{"decimal64", "84 01 02 03 04 05 06 07 08", Decimal64{1, 2, 3, 4, 5, 6, 7, 8}, false},
	{"decimal128", "94 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f", Decimal128{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, false},
	{"char", "73 00 01 f6 00", Char('😀'), false},
	{"timestamp", "83 00 00 01 8d 00 00 00 00", Timestamp(0x018d00000000), false},
	{"timestamp before the epoch", "83 ff ff ff ff ff ff ff ff", Timestamp(-1), false},
	{"uuid", "98 00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff", UUID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, false},
	{"vbin8", "a0 03 00 01 ff", []byte{0, 1, 0xff}, false},
	{"vbin32", "b0 00 00 00 01 7f", []byte{0x7f}, true},
	{"empty vbin8", "a0 00", []byte{}, false},
	{"str8-utf8", "a1 04 c3 a9 c3 a8", "éè", false},
	{"str32-utf8", "b1 00 00 00 02 68 69", "hi", true},
	{"sym8", "a3 03 66 6f 6f", Symbol("foo"), false},
	{"sym32", "b3 00 00 00 03 66 6f 6f", Symbol("foo"), true},
	{"list0", "45", List{}, false},
	{"list8", "c0 04 02 41 50 07", List{true, uint8(7)}, false},
	{"list32", "d0 00 00 00 05 00 00 00 01 40", List{nil}, true},
	{"map8", "c1 06 02 a1 01 6b 52 05", Map{{"k", uint32(5)}}, false},
	{"map32", "d1 00 00 00 08 00 00 00 02 a3 01 6b 40", Map{{Symbol("k"), nil}}, true},
	{"array8", "e0 06 02 a3 01 61 01 62", Array{Code: 0xa3, Items: []any{Symbol("a"), Symbol("b")}}, false},
	{"array32", "f0 00 00 00 07 00 00 00 02 50 01 02", Array{Code: 0x50, Items: []any{uint8(1), uint8(2)}}, true},
	{"empty array", "e0 02 00 a3", Array{Code: 0xa3}, false},
	{"array of true", "e0 02 03 41", Array{Code: 0x41, Items: []any{true, true, true}}, false},
	{"array of lists", "e0 08 02 c0 03 01 50 07 01 00", Array{Code: 0xc0, Items: []any{List{uint8(7)}, List{}}}, false},
	{"array of described", "e0 05 01 00 53 24 45", Array{Code: 0x45, Descriptor: uint64(0x24), Items: []any{List{}}}, true},
	// §1.2, figure 1.3: a described string.
	{"URL", "00 a1 03 55 52 4c a1 1e 68 74 74 70 3a 2f 2f 65 78 61 6d 70 6c 65 2e 6f 72 67 2f 68 65 6c 6c 6f 2d 77 6f 72 6c 64",
		Described{"URL", "http://example.org/hello-world"}, false},
	// §1.4, figure 1.10: a composite value, "example:book:list".
	{"book", "00 a3 11 65 78 61 6d 70 6c 65 3a 62 6f 6f 6b 3a 6c 69 73 74 c0 40 03 a1 15 " +
		"41 4d 51 50 20 66 6f 72 20 26 20 62 79 20 44 75 6d 6d 69 65 73 e0 25 02 a1 0e " +
		"52 6f 62 20 4a 2e 20 47 6f 64 66 72 65 79 13 52 61 66 61 65 6c 20 48 2e 20 53 63 68 6c 6f 6d 69 6e 67 40",
		Described{Symbol("example:book:list"), List{"AMQP for & by Dummies",
			Array{Code: 0xa1, Items: []any{"Rob J. Godfrey", "Rafael H. Schloming"}}, nil}}, false},
}

func TestValueVectors(t *testing.T) {
	for _, v := range valueVectors {
		t.Run(v.name, func(t *testing.T) {
			b := unhex(t, v.bytes)
			got, err := DecodeValue(b)
			require.NoError(t, err)
			require.Equal(t, v.value, got)

			var d Decoder
			d.Reset(b)
			d.Skip()
			require.NoError(t, d.Err())
			require.Empty(t, d.Rest())

			again, err := AppendValue(nil, v.value)
			require.NoError(t, err)
			if !v.other {
				require.Equal(t, b, again)
			}
			got, err = DecodeValue(again)
			require.NoError(t, err)
			require.Equal(t, v.value, got)
		})
	}
}

func TestEveryPrefixOfAVectorIsAnError(t *testing.T) {
	for _, v := range valueVectors {
		b := unhex(t, v.bytes)
		for n := range b {
			_, err := DecodeValue(b[:n])
			require.Error(t, err, "%s cut to %d bytes", v.name, n)
		}
	}
}

func TestBadValues(t *testing.T) {
	for name, s := range map[string]string{
		"unknown type":               "46",
		"reserved class":             "20",
		"boolean 2":                  "56 02",
		"not UTF-8":                  "a1 02 c3 28",
		"not ASCII":                  "a3 01 e9",
		"binary longer than input":   "b0 ff ff ff ff 00",
		"list longer than input":     "d0 ff ff ff ff 00 00 00 01",
		"more items than bytes":      "d0 00 00 00 05 ff ff ff ff 40",
		"odd map":                    "c1 03 01 a1 00",
		"bytes left in a list":       "c0 03 01 40 40",
		"item beyond its list":       "c0 02 01 50",
		"array item beyond":          "e0 03 02 50 01",
		"bytes left in an array":     "e0 04 01 50 01 02",
		"array of doubly described":  "e0 05 01 00 53 00 00",
		"array of a billion nulls":   "f0 00 00 00 05 3f ff ff ff 40",
		"described without a value":  "00 53 24",
		"described descriptor chain": strings.Repeat("00 ", 100),
		"lists 40 deep":              nested(40),
	} {
		_, err := DecodeValue(unhex(t, s))
		require.Error(t, err, name)
	}
	_, err := DecodeValue(unhex(t, nested(30)))
	require.NoError(t, err)
	_, err = DecodeValue(unhex(t, "f0 00 00 00 05 3f ff ff ff 40"))
	require.ErrorIs(t, err, ErrTooMany)
	_, err = DecodeValue(unhex(t, nested(40)))
	require.ErrorIs(t, err, ErrTooDeep)
	var d Decoder
	d.Reset(unhex(t, strings.Repeat("00", 10000)))
	d.Skip()
	require.ErrorIs(t, d.Err(), ErrTooDeep)
}

func nested(n int) string {
	s := "45"
	for i := range n {
		s = hex.EncodeToString([]byte{0xc0, byte(2 + 3*i), 1}) + s
	}
	return s
}

func TestLongForms(t *testing.T) {
	big := List{}
	for range 300 {
		big = append(big, true)
	}
	long := strings.Repeat("x", 300)
	for _, v := range []any{
		big, long, []byte(long), Symbol(long), Map{{"k", long}},
		Array{Code: 0xb1, Items: []any{long, "a"}},
		Array{Code: 0xd0, Items: []any{big, List{uint8(1)}, List{}}},
		Array{Code: 0xf0, Items: []any{Array{Code: 0x50, Items: []any{uint8(1)}}}},
		Array{Code: 0x70, Items: []any{uint32(1)}}, Array{Code: 0x54, Items: []any{int32(-1)}},
		Array{Code: 0x81, Items: []any{int64(-1)}}, Array{Code: 0x80, Items: []any{uint64(9)}},
		Array{Code: 0x56, Items: []any{true, false}}, Array{Code: 0xb0, Items: []any{[]byte("x")}},
	} {
		b, err := AppendValue([]byte("before"), v)
		require.NoError(t, err)
		got, err := DecodeValue(b[len("before"):])
		require.NoError(t, err)
		require.Equal(t, v, got)
	}
}

func TestUnencodableValues(t *testing.T) {
	for _, v := range []any{
		struct{}{}, 5, List{make(chan int)}, Map{{"k", 5}}, Map{{5, "k"}},
		Array{Code: 0x50, Items: []any{"text"}}, Array{Code: 0xa3, Items: []any{Symbol(strings.Repeat("x", 300))}},
		Array{Code: 0xc0, Items: []any{Map{}}}, Array{Descriptor: 5}, Described{5, nil}, Described{nil, 5},
	} {
		b, err := AppendValue([]byte{1}, v)
		require.Error(t, err)
		require.Equal(t, []byte{1}, b)
	}
	deep := List{}
	for range 50 {
		deep = List{deep}
	}
	_, err := AppendValue(nil, deep)
	require.ErrorIs(t, err, ErrTooDeep)
}

func TestMapGet(t *testing.T) {
	m := Map{{Symbol("A"), 1}, {"operation", "put-token"}, {uint32(1), 2}}
	require.Equal(t, "put-token", m.Get("Operation"))
	require.Equal(t, 1, m.Get("a"))
	require.Nil(t, m.Get("other"))
}

func TestUUIDText(t *testing.T) {
	u := UUID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	require.Equal(t, "00112233-4455-6677-8899-aabbccddeeff", u.String())
}

func TestTypedReadsRefuseOtherTypes(t *testing.T) {
	for name, read := range map[string]func(*Decoder){
		"bool": func(d *Decoder) { d.Bool() }, "ubyte": func(d *Decoder) { d.Ubyte() },
		"ushort": func(d *Decoder) { d.Ushort() }, "uint": func(d *Decoder) { d.Uint() },
		"ulong": func(d *Decoder) { d.Ulong() }, "timestamp": func(d *Decoder) { d.Timestamp() },
		"binary": func(d *Decoder) { d.Binary() }, "string": func(d *Decoder) { d.Text() },
		"symbol": func(d *Decoder) { d.Symbol() }, "symbols": func(d *Decoder) { d.Symbols() },
		"list": func(d *Decoder) { d.List() }, "map": func(d *Decoder) { d.Map() },
		"array of strings": func(d *Decoder) { d.Symbols() },
	} {
		var d Decoder
		d.Reset(unhex(t, "e0 04 01 a1 01 61"))
		read(&d)
		require.Error(t, d.Err(), name)
		require.False(t, d.More(), name)
	}
	require.Equal(t, Timestamp(math.MaxInt64), func() Timestamp {
		var d Decoder
		d.Reset(AppendTimestamp(nil, math.MaxInt64))
		return d.Timestamp()
	}())
}
