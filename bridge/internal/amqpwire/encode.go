package amqpwire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The Append functions add the shortest encoding of one value to b and return it.

// AppendNull appends null.
func AppendNull(b []byte) []byte { return append(b, codeNull) }

// AppendBool appends a boolean.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, codeTrue)
	}
	return append(b, codeFalse)
}

// AppendUbyte appends a ubyte.
func AppendUbyte(b []byte, v uint8) []byte { return append(b, codeUbyte, v) }

// AppendUshort appends a ushort.
func AppendUshort(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, codeUshort), v)
}

// AppendUint appends a uint.
func AppendUint(b []byte, v uint32) []byte {
	switch {
	case v == 0:
		return append(b, codeUint0)
	case v <= math.MaxUint8:
		return append(b, codeSmallUint, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, codeUint), v)
}

// AppendUlong appends a ulong.
func AppendUlong(b []byte, v uint64) []byte {
	switch {
	case v == 0:
		return append(b, codeUlong0)
	case v <= math.MaxUint8:
		return append(b, codeSmallUlong, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, codeUlong), v)
}

// AppendInt appends an int.
func AppendInt(b []byte, v int32) []byte {
	if v >= math.MinInt8 && v <= math.MaxInt8 {
		return append(b, codeSmallInt, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, codeInt), uint32(v))
}

// AppendLong appends a long.
func AppendLong(b []byte, v int64) []byte {
	if v >= math.MinInt8 && v <= math.MaxInt8 {
		return append(b, codeSmallLong, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, codeLong), uint64(v))
}

// AppendTimestamp appends a timestamp.
func AppendTimestamp(b []byte, v Timestamp) []byte {
	return binary.BigEndian.AppendUint64(append(b, codeTimestamp), uint64(v))
}

// AppendBinary appends a binary.
func AppendBinary(b []byte, v []byte) []byte {
	return append(appendVar(b, codeBinary8, codeBinary32, len(v)), v...)
}

// AppendString appends a string.
func AppendString(b []byte, v string) []byte {
	return append(appendVar(b, codeString8, codeString32, len(v)), v...)
}

// AppendSymbol appends a symbol.
func AppendSymbol(b []byte, v Symbol) []byte {
	return append(appendVar(b, codeSymbol8, codeSymbol32, len(v)), v...)
}

// AppendSymbols appends an array of symbols, also for one or none: some clients
// refuse the single symbol that §1.4 allows in its place.
func AppendSymbols(b []byte, v []Symbol) []byte {
	a := Array{Code: codeSymbol8}
	for _, s := range v {
		if len(s) > math.MaxUint8 {
			a.Code = codeSymbol32
		}
		a.Items = append(a.Items, s)
	}
	b, _ = AppendValue(b, a) // symbols always encode
	return b
}

func appendVar(b []byte, short, long byte, n int) []byte {
	if n <= math.MaxUint8 {
		return append(b, short, byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, long), uint32(n))
}

// AppendValue appends v, which must have one of the types listed at Symbol. On an error b
// is returned as it was.
func AppendValue(b []byte, v any) ([]byte, error) {
	n := len(b)
	out, err := appendValue(b, v, 0)
	if err != nil {
		return b[:n], err
	}
	return out, nil
}

func appendValue(b []byte, v any, depth int) ([]byte, error) {
	if depth > maxDepth {
		return b, ErrTooDeep
	}
	switch v := v.(type) {
	case nil:
		return AppendNull(b), nil
	case bool:
		return AppendBool(b, v), nil
	case uint32:
		return AppendUint(b, v), nil
	case uint64:
		return AppendUlong(b, v), nil
	case int32:
		return AppendInt(b, v), nil
	case int64:
		return AppendLong(b, v), nil
	case []byte:
		return AppendBinary(b, v), nil
	case string:
		return AppendString(b, v), nil
	case Symbol:
		return AppendSymbol(b, v), nil
	case List:
		if len(v) == 0 {
			return append(b, codeList0), nil
		}
		return appendCompound(b, codeList8, len(v), depth, func(b []byte, depth int) (_ []byte, err error) {
			for _, item := range v {
				if b, err = appendValue(b, item, depth); err != nil {
					return b, err
				}
			}
			return b, nil
		})
	case Map:
		return appendCompound(b, codeMap8, 2*len(v), depth, func(b []byte, depth int) (_ []byte, err error) {
			for _, e := range v {
				if b, err = appendValue(b, e.Key, depth); err != nil {
					return b, err
				}
				if b, err = appendValue(b, e.Value, depth); err != nil {
					return b, err
				}
			}
			return b, nil
		})
	case Array:
		return appendCompound(b, codeArray8, len(v.Items), depth, func(b []byte, depth int) (_ []byte, err error) {
			if v.Descriptor != nil {
				if b, err = appendValue(append(b, codeDescribed), v.Descriptor, depth); err != nil {
					return b, err
				}
			}
			b = append(b, v.Code)
			for _, item := range v.Items {
				if b, err = appendItem(b, v.Code, item, depth); err != nil {
					return b, err
				}
			}
			return b, nil
		})
	case Described:
		b, err := appendValue(append(b, codeDescribed), v.Descriptor, depth+1)
		if err != nil {
			return b, err
		}
		return appendValue(b, v.Value, depth+1)
	}
	c, ok := fixedCode(v)
	if !ok {
		return b, fmt.Errorf("amqp: no AMQP type for %T", v)
	}
	return appendItem(append(b, c), c, v, depth)
}

// fixedCode is the constructor of the types that have but one.
func fixedCode(v any) (byte, bool) {
	switch v.(type) {
	case uint8:
		return codeUbyte, true
	case int8:
		return codeByte, true
	case uint16:
		return codeUshort, true
	case int16:
		return codeShort, true
	case float32:
		return codeFloat, true
	case float64:
		return codeDouble, true
	case Char:
		return codeChar, true
	case Timestamp:
		return codeTimestamp, true
	case UUID:
		return codeUUID, true
	case Decimal32:
		return codeDecimal32, true
	case Decimal64:
		return codeDecimal64, true
	case Decimal128:
		return codeDecimal128, true
	}
	return 0, false
}

// appendItem appends v without its constructor, in the form that constructor c asks for.
func appendItem(b []byte, c byte, v any, depth int) ([]byte, error) {
	mismatch := func() ([]byte, error) { return b, fmt.Errorf("amqp: %T in an array of type 0x%02x", v, c) }
	be := binary.BigEndian
	switch v := v.(type) {
	case nil:
		if c == codeNull {
			return b, nil
		}
	case bool:
		switch {
		case c == codeBoolean && v:
			return append(b, 1), nil
		case c == codeBoolean:
			return append(b, 0), nil
		case c == codeTrue && v, c == codeFalse && !v:
			return b, nil
		}
	case uint8:
		if c == codeUbyte {
			return append(b, v), nil
		}
	case int8:
		if c == codeByte {
			return append(b, byte(v)), nil
		}
	case uint16:
		if c == codeUshort {
			return be.AppendUint16(b, v), nil
		}
	case int16:
		if c == codeShort {
			return be.AppendUint16(b, uint16(v)), nil
		}
	case uint32:
		switch {
		case c == codeUint:
			return be.AppendUint32(b, v), nil
		case c == codeSmallUint && v <= math.MaxUint8:
			return append(b, byte(v)), nil
		case c == codeUint0 && v == 0:
			return b, nil
		}
	case int32:
		switch {
		case c == codeInt:
			return be.AppendUint32(b, uint32(v)), nil
		case c == codeSmallInt && v == int32(int8(v)):
			return append(b, byte(v)), nil
		}
	case uint64:
		switch {
		case c == codeUlong:
			return be.AppendUint64(b, v), nil
		case c == codeSmallUlong && v <= math.MaxUint8:
			return append(b, byte(v)), nil
		case c == codeUlong0 && v == 0:
			return b, nil
		}
	case int64:
		switch {
		case c == codeLong:
			return be.AppendUint64(b, uint64(v)), nil
		case c == codeSmallLong && v == int64(int8(v)):
			return append(b, byte(v)), nil
		}
	case float32:
		if c == codeFloat {
			return be.AppendUint32(b, math.Float32bits(v)), nil
		}
	case float64:
		if c == codeDouble {
			return be.AppendUint64(b, math.Float64bits(v)), nil
		}
	case Char:
		if c == codeChar {
			return be.AppendUint32(b, uint32(v)), nil
		}
	case Timestamp:
		if c == codeTimestamp {
			return be.AppendUint64(b, uint64(v)), nil
		}
	case UUID:
		if c == codeUUID {
			return append(b, v[:]...), nil
		}
	case Decimal32:
		if c == codeDecimal32 {
			return append(b, v[:]...), nil
		}
	case Decimal64:
		if c == codeDecimal64 {
			return append(b, v[:]...), nil
		}
	case Decimal128:
		if c == codeDecimal128 {
			return append(b, v[:]...), nil
		}
	case []byte:
		return appendVarItem(b, c, codeBinary8, codeBinary32, string(v))
	case string:
		return appendVarItem(b, c, codeString8, codeString32, v)
	case Symbol:
		return appendVarItem(b, c, codeSymbol8, codeSymbol32, string(v))
	case List, Map, Array:
		return appendCompoundItem(b, c, v, depth)
	}
	return mismatch()
}

func appendVarItem(b []byte, c, short, long byte, v string) ([]byte, error) {
	switch {
	case c == long:
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
	case c == short && len(v) <= math.MaxUint8:
		b = append(b, byte(len(v)))
	default:
		return b, fmt.Errorf("amqp: %d bytes of text in an array of type 0x%02x", len(v), c)
	}
	return append(b, v...), nil
}

// appendCompoundItem encodes v as usual and then takes the constructor away, after
// widening it to c if it came out short.
func appendCompoundItem(b []byte, c byte, v any, depth int) ([]byte, error) {
	item, err := appendValue(nil, v, depth+1)
	if err != nil {
		return b, err
	}
	switch {
	case item[0] == c:
		return append(b, item[1:]...), nil
	case item[0] == codeList0 && c == codeList8:
		return append(b, 1, 0), nil
	case item[0] == codeList0 && c == codeList32:
		return append(b, 0, 0, 0, 4, 0, 0, 0, 0), nil
	case item[0] == c-0x10 && c>>4 != 0xe: // short form of 0xd0, 0xd1, 0xf0
		return widen(b, item[1], item[2], item[3:]), nil
	}
	return b, fmt.Errorf("amqp: type 0x%02x in an array of type 0x%02x", item[0], c)
}

func widen(b []byte, size, count byte, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(size)+3)
	b = binary.BigEndian.AppendUint32(b, uint32(count))
	return append(b, body...)
}

// appendCompound writes a list, map or array: short is its 8-bit constructor, the 32-bit
// one is 0x10 above.
func appendCompound(b []byte, short byte, n, depth int, items func([]byte, int) ([]byte, error)) ([]byte, error) {
	start := len(b)
	b, err := items(append(b, short, 0, 0), depth+1)
	if err != nil {
		return b, err
	}
	return closeCompound(b, start, n), nil
}

// closeCompound fills in size and count of the compound whose 8-bit constructor is at start,
// and makes it a 32-bit one if they ask for it.
func closeCompound(b []byte, start, n int) []byte {
	size := len(b) - start - 2
	if size <= math.MaxUint8 && n <= math.MaxUint8 {
		b[start+1], b[start+2] = byte(size), byte(n)
		return b
	}
	b = append(b, 0, 0, 0, 0, 0, 0)
	copy(b[start+9:], b[start+3:])
	b[start] += 0x10
	binary.BigEndian.PutUint32(b[start+1:], uint32(size)+3)
	binary.BigEndian.PutUint32(b[start+5:], uint32(n))
	return b
}
