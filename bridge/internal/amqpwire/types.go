package amqpwire

import (
	"encoding/hex"
	"strings"
)

// The Go form of each AMQP type (§1.6) in an any: nil, bool, uint8, uint16, uint32,
// uint64, int8, int16, int32, int64, float32, float64, string and []byte for null, boolean,
// ubyte … long, float, double, string and binary, and the types below for the others.
type (
	// Symbol is an ASCII name from a constrained domain (§1.6.21).
	Symbol string
	// Timestamp is a point in time in milliseconds since the Unix epoch (§1.6.17).
	Timestamp int64
	// Char is one Unicode code point (§1.6.16).
	Char rune
	// UUID is in network byte order (§1.6.18).
	UUID [16]byte
	// Decimal32 is the undecoded IEEE 754-2008 decimal32 (§1.6.13).
	Decimal32 [4]byte
	// Decimal64 is the undecoded IEEE 754-2008 decimal64 (§1.6.14).
	Decimal64 [8]byte
	// Decimal128 is the undecoded IEEE 754-2008 decimal128 (§1.6.15).
	Decimal128 [16]byte
	// List is a sequence of values of any types (§1.6.22).
	List []any
	// Map keeps its entries in the order of the wire (§1.6.23).
	Map []Entry
	// Entry is one pair of a Map.
	Entry struct{ Key, Value any }
	// Array is a sequence of values of one type (§1.6.24). Code is the constructor of its
	// items; it is kept since an empty array has a type too. Descriptor is nil for plain items.
	Array struct {
		Code       byte
		Descriptor any
		Items      []any
	}
	// Described is a value with a descriptor, usually a uint64 or a Symbol (§1.2).
	Described struct{ Descriptor, Value any }
)

// String gives the usual text form of a UUID, in lower case.
func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// Get returns the value of the entry whose key is the string or symbol name, whatever its
// letter case; nil if there is none.
func (m Map) Get(name string) any {
	for _, e := range m {
		switch k := e.Key.(type) {
		case string:
			if strings.EqualFold(k, name) {
				return e.Value
			}
		case Symbol:
			if strings.EqualFold(string(k), name) {
				return e.Value
			}
		}
	}
	return nil
}

// Opt is a value that may be absent (null on the wire) where absence means something
// else than any value does.
type Opt[T any] struct {
	Value T
	Set   bool
}

// Some returns a present v.
func Some[T any](v T) Opt[T] { return Opt[T]{Value: v, Set: true} }

// Constructor codes (§1.6). The high nibble is the class: it alone says how
// many bytes follow (§1.2.1).
const (
	codeDescribed  = 0x00
	codeNull       = 0x40
	codeTrue       = 0x41
	codeFalse      = 0x42
	codeUint0      = 0x43
	codeUlong0     = 0x44
	codeList0      = 0x45
	codeUbyte      = 0x50
	codeByte       = 0x51
	codeSmallUint  = 0x52
	codeSmallUlong = 0x53
	codeSmallInt   = 0x54
	codeSmallLong  = 0x55
	codeBoolean    = 0x56
	codeUshort     = 0x60
	codeShort      = 0x61
	codeUint       = 0x70
	codeInt        = 0x71
	codeFloat      = 0x72
	codeChar       = 0x73
	codeDecimal32  = 0x74
	codeUlong      = 0x80
	codeLong       = 0x81
	codeDouble     = 0x82
	codeTimestamp  = 0x83
	codeDecimal64  = 0x84
	codeDecimal128 = 0x94
	codeUUID       = 0x98
	codeBinary8    = 0xa0
	codeString8    = 0xa1
	codeSymbol8    = 0xa3
	codeBinary32   = 0xb0
	codeString32   = 0xb1
	codeSymbol32   = 0xb3
	codeList8      = 0xc0
	codeMap8       = 0xc1
	codeList32     = 0xd0
	codeMap32      = 0xd1
	codeArray8     = 0xe0
	codeArray32    = 0xf0
)

// Descriptor codes of the performatives, types and sections that this package knows.
const (
	descOpen        = 0x10
	descBegin       = 0x11
	descAttach      = 0x12
	descFlow        = 0x13
	descTransfer    = 0x14
	descDisposition = 0x15
	descDetach      = 0x16
	descEnd         = 0x17
	descClose       = 0x18

	descError       = 0x1d
	descReceived    = 0x23
	descAccepted    = 0x24
	descRejected    = 0x25
	descReleased    = 0x26
	descModified    = 0x27
	descSource      = 0x28
	descTarget      = 0x29
	descCoordinator = 0x30

	descSASLMechanisms = 0x40
	descSASLInit       = 0x41
	descSASLChallenge  = 0x42
	descSASLResponse   = 0x43
	descSASLOutcome    = 0x44

	descHeader                = 0x70
	descDeliveryAnnotations   = 0x71
	descMessageAnnotations    = 0x72
	descProperties            = 0x73
	descApplicationProperties = 0x74
	descData                  = 0x75
	descSequence              = 0x76
	descValue                 = 0x77
	descFooter                = 0x78

	descUnknown = ^uint64(0)
)

// symbolic maps the symbolic descriptors to the numeric ones: a peer may send either.
var symbolic = map[Symbol]uint64{
	"amqp:open:list": descOpen, "amqp:begin:list": descBegin, "amqp:attach:list": descAttach,
	"amqp:flow:list": descFlow, "amqp:transfer:list": descTransfer, "amqp:disposition:list": descDisposition,
	"amqp:detach:list": descDetach, "amqp:end:list": descEnd, "amqp:close:list": descClose,
	"amqp:error:list": descError, "amqp:received:list": descReceived, "amqp:accepted:list": descAccepted,
	"amqp:rejected:list": descRejected, "amqp:released:list": descReleased, "amqp:modified:list": descModified,
	"amqp:source:list": descSource, "amqp:target:list": descTarget, "amqp:coordinator:list": descCoordinator,
	"amqp:sasl-mechanisms:list": descSASLMechanisms, "amqp:sasl-init:list": descSASLInit,
	"amqp:sasl-challenge:list": descSASLChallenge, "amqp:sasl-response:list": descSASLResponse,
	"amqp:sasl-outcome:list": descSASLOutcome,
	"amqp:header:list":       descHeader, "amqp:delivery-annotations:map": descDeliveryAnnotations,
	"amqp:message-annotations:map": descMessageAnnotations, "amqp:properties:list": descProperties,
	"amqp:application-properties:map": descApplicationProperties, "amqp:data:binary": descData,
	"amqp:amqp-sequence:list": descSequence, "amqp:amqp-value:*": descValue, "amqp:footer:map": descFooter,
}
