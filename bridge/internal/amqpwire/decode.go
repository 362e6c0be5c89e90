package amqpwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

const (
	maxDepth  = 32      // nested values
	maxValues = 1 << 16 // values of one decoding
)

// ErrTooDeep and ErrTooMany are limits of this package, not of AMQP.
var (
	ErrTooDeep = errors.New("amqp: values nested more than 32 deep")
	ErrTooMany = errors.New("amqp: more than 65536 values in one frame or section")
)

// Decoder reads values from one frame or section. After the first error every read gives
// the zero value; Err tells it. The zero Decoder is empty; Reset gives it input.
// Not safe for concurrent use.
type Decoder struct {
	buf   []byte
	off   int
	text  string // a copy of buf that strings are cut from, if set
	depth int
	count int
	err   error
}

// Reset starts over with b, which []byte results alias.
func (d *Decoder) Reset(b []byte) { *d = Decoder{buf: b} }

// ShareText makes one copy of the input that all strings are cut from: one allocation instead of
// one for each, at the price that any one of them keeps the whole alive.
func (d *Decoder) ShareText() { d.text = string(d.buf) }

// Err is the first error met.
func (d *Decoder) Err() error { return d.err }

// Rest is what has not been read yet; it aliases the input.
func (d *Decoder) Rest() []byte { return d.buf[d.off:] }

// More says whether input is left and no error was met.
func (d *Decoder) More() bool { return d.err == nil && d.off < len(d.buf) }

func (d *Decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *Decoder) failf(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("amqp: "+format, args...)
	}
}

func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.buf)-d.off {
		d.failf("value ends after its frame: %d bytes wanted, %d left", n, len(d.buf)-d.off)
		return nil
	}
	b := d.buf[d.off : d.off+n : d.off+n]
	d.off += n
	return b
}

func (d *Decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *Decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (d *Decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *Decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// size reads a 32-bit length. One beyond the input is an error here, so that callers
// can use it as an int.
func (d *Decoder) size() int {
	n := d.u32()
	if d.err == nil && uint64(n) > uint64(len(d.buf)-d.off) {
		d.failf("length %d is more than the %d bytes left", n, len(d.buf)-d.off)
		return 0
	}
	return int(n)
}

func (d *Decoder) peek() byte {
	if d.err == nil && d.off < len(d.buf) {
		return d.buf[d.off]
	}
	if d.err == nil {
		d.failf("value missing at the end")
	}
	return codeNull
}

// Null consumes the next value if it is null and says whether it was.
func (d *Decoder) Null() bool {
	if d.err == nil && d.off < len(d.buf) && d.buf[d.off] == codeNull {
		d.off++
		return true
	}
	return false
}

func (d *Decoder) unexpected(want string, code byte) {
	d.failf("%s wanted, got type 0x%02x", want, code)
}

// Bool reads a boolean.
func (d *Decoder) Bool() bool {
	switch c := d.u8(); c {
	case codeTrue:
		return true
	case codeFalse:
	case codeBoolean:
		return d.boolean()
	default:
		d.unexpected("boolean", c)
	}
	return false
}

func (d *Decoder) boolean() bool {
	v := d.u8()
	if v > 1 {
		d.failf("boolean with value 0x%02x", v)
	}
	return v == 1
}

// Ubyte reads a ubyte.
func (d *Decoder) Ubyte() uint8 {
	if c := d.u8(); c != codeUbyte {
		d.unexpected("ubyte", c)
	}
	return d.u8()
}

// Ushort reads a ushort.
func (d *Decoder) Ushort() uint16 {
	if c := d.u8(); c != codeUshort {
		d.unexpected("ushort", c)
	}
	return d.u16()
}

// Uint reads a uint.
func (d *Decoder) Uint() uint32 {
	switch c := d.u8(); c {
	case codeUint0:
	case codeSmallUint:
		return uint32(d.u8())
	case codeUint:
		return d.u32()
	default:
		d.unexpected("uint", c)
	}
	return 0
}

// Ulong reads a ulong.
func (d *Decoder) Ulong() uint64 {
	switch c := d.u8(); c {
	case codeUlong0:
	case codeSmallUlong:
		return uint64(d.u8())
	case codeUlong:
		return d.u64()
	default:
		d.unexpected("ulong", c)
	}
	return 0
}

// Timestamp reads a timestamp.
func (d *Decoder) Timestamp() Timestamp {
	if c := d.u8(); c != codeTimestamp {
		d.unexpected("timestamp", c)
	}
	return Timestamp(d.u64())
}

// Binary reads a binary; the result aliases the input.
func (d *Decoder) Binary() []byte {
	switch c := d.u8(); c {
	case codeBinary8:
		return d.take(int(d.u8()))
	case codeBinary32:
		return d.take(d.size())
	default:
		d.unexpected("binary", c)
	}
	return nil
}

// Text reads a string.
func (d *Decoder) Text() string {
	switch c := d.u8(); c {
	case codeString8:
		return d.utf8(int(d.u8()))
	case codeString32:
		return d.utf8(d.size())
	default:
		d.unexpected("string", c)
	}
	return ""
}

// Symbol reads a symbol.
func (d *Decoder) Symbol() Symbol {
	switch c := d.u8(); c {
	case codeSymbol8:
		return d.ascii(int(d.u8()))
	case codeSymbol32:
		return d.ascii(d.size())
	default:
		d.unexpected("symbol", c)
	}
	return ""
}

func (d *Decoder) cut(n int) string {
	start := d.off
	b := d.take(n)
	if d.text != "" && b != nil {
		return d.text[start : start+n]
	}
	return string(b)
}

func (d *Decoder) utf8(n int) string {
	s := d.cut(n)
	if !utf8.ValidString(s) {
		d.failf("string is not UTF-8")
		return ""
	}
	return s
}

func (d *Decoder) ascii(n int) Symbol {
	s := d.cut(n)
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			d.failf("symbol is not ASCII")
			return ""
		}
	}
	return Symbol(s)
}

// Symbols reads a field with multiple="true": an array of symbols, or one symbol (§1.4).
func (d *Decoder) Symbols() []Symbol {
	if c := d.peek(); c == codeSymbol8 || c == codeSymbol32 {
		return []Symbol{d.Symbol()}
	}
	v := d.Value()
	a, ok := v.(Array)
	if !ok {
		d.failf("array of symbols wanted, got %T", v)
		return nil
	}
	out := make([]Symbol, 0, len(a.Items))
	for _, item := range a.Items {
		s, ok := item.(Symbol)
		if !ok {
			d.failf("array of symbols wanted, got one of %T", item)
			return nil
		}
		out = append(out, s)
	}
	return out
}

// descriptor reads 0x00 and a descriptor. One that this package does not know is descUnknown.
func (d *Decoder) descriptor() uint64 {
	if c := d.u8(); c != codeDescribed {
		d.unexpected("described type", c)
		return descUnknown
	}
	switch d.peek() {
	case codeUlong0, codeSmallUlong, codeUlong:
		return d.Ulong()
	case codeSymbol8, codeSymbol32:
		if code, ok := symbolic[d.Symbol()]; ok {
			return code
		}
	default:
		d.Skip()
	}
	return descUnknown
}

// Fields walks the fields of one list, or the keys and values of one map.
type Fields struct {
	d       *Decoder
	left    int
	outer   []byte // the input around the list
	bounded bool   // the input ends with the list now
}

// List enters a list. Read each field after More or Next said yes; call Done at the end.
func (d *Decoder) List() Fields {
	switch c := d.u8(); c {
	case codeList0:
		return Fields{d: d, outer: d.buf}
	case codeList8, codeList32:
		return d.enter(c)
	default:
		d.unexpected("list", c)
	}
	return Fields{d: d, outer: d.buf}
}

// Map enters a map, as List does; its fields are key, value, key, value …
func (d *Decoder) Map() Fields {
	c := d.u8()
	if c != codeMap8 && c != codeMap32 {
		d.unexpected("map", c)
		return Fields{d: d, outer: d.buf}
	}
	f := d.enter(c)
	if f.left%2 != 0 {
		d.failf("map with a key without a value")
	}
	return f
}

func (d *Decoder) enter(c byte) Fields {
	f := Fields{d: d, outer: d.buf}
	var size, n int
	if c&0xf0 == 0xc0 {
		size = int(d.u8())
		if size > len(d.buf)-d.off {
			d.failf("length %d is more than the %d bytes left", size, len(d.buf)-d.off)
		}
	} else {
		size = d.size()
	}
	if d.err != nil {
		return f
	}
	d.buf, f.bounded = d.buf[:d.off+size], true
	if c&0xf0 == 0xc0 {
		n = int(d.u8())
	} else {
		n = int(d.u32())
	}
	// Each item has a constructor of at least one byte.
	if d.err == nil && n > len(d.buf)-d.off {
		d.failf("%d items in %d bytes", n, len(d.buf)-d.off)
	}
	if d.err == nil {
		f.left = n
	}
	return f
}

// Len is how many fields have not been walked yet.
func (f *Fields) Len() int { return f.left }

// More goes on to the next field and says whether there is one.
func (f *Fields) More() bool {
	if f.left == 0 || f.d.err != nil {
		return false
	}
	f.left--
	return true
}

// Next goes on to the next field and says whether it is there and not null.
func (f *Fields) Next() bool { return f.More() && !f.d.Null() }

// Done leaves the list. Fields or bytes that were not read are an error: the sizes
// of list and fields disagree, or the peer speaks of fields that do not exist.
func (f *Fields) Done() {
	d := f.d
	if d.err == nil && f.bounded && (f.left != 0 || d.off != len(d.buf)) {
		d.failf("%d fields and %d bytes too many", f.left, len(d.buf)-d.off)
	}
	d.buf = f.outer
}

// Skip passes over one value of whatever type without looking into it.
func (d *Decoder) Skip() {
	for depth := 0; d.err == nil; depth++ {
		c := d.u8()
		if c != codeDescribed {
			d.skipBody(c)
			return
		}
		if depth >= maxDepth {
			d.fail(ErrTooDeep)
			return
		}
		// A descriptor is a value of its own, described ones included.
		d.depth++
		if d.depth > maxDepth {
			d.fail(ErrTooDeep)
			return
		}
		d.Skip()
		d.depth--
	}
}

func (d *Decoder) skipBody(c byte) {
	switch c >> 4 {
	case 0x4:
	case 0x5:
		d.take(1)
	case 0x6:
		d.take(2)
	case 0x7:
		d.take(4)
	case 0x8:
		d.take(8)
	case 0x9:
		d.take(16)
	case 0xa, 0xc, 0xe:
		d.take(int(d.u8()))
	case 0xb, 0xd, 0xf:
		d.take(d.size())
	default:
		d.failf("no such type: 0x%02x", c)
	}
}
