package amqpwire

import "math"

// Value reads one value of whatever type. Binaries alias the input.
func (d *Decoder) Value() any {
	c := d.u8()
	if d.err != nil {
		return nil
	}
	return d.value(c)
}

func (d *Decoder) value(c byte) any {
	if d.count++; d.count > maxValues {
		d.fail(ErrTooMany)
		return nil
	}
	switch c {
	case codeNull:
		return nil
	case codeTrue:
		return true
	case codeFalse:
		return false
	case codeBoolean:
		return d.boolean()
	case codeUbyte:
		return d.u8()
	case codeUshort:
		return d.u16()
	case codeUint0:
		return uint32(0)
	case codeSmallUint:
		return uint32(d.u8())
	case codeUint:
		return d.u32()
	case codeUlong0:
		return uint64(0)
	case codeSmallUlong:
		return uint64(d.u8())
	case codeUlong:
		return d.u64()
	case codeByte:
		return int8(d.u8())
	case codeShort:
		return int16(d.u16())
	case codeSmallInt:
		return int32(int8(d.u8()))
	case codeInt:
		return int32(d.u32())
	case codeSmallLong:
		return int64(int8(d.u8()))
	case codeLong:
		return int64(d.u64())
	case codeFloat:
		return math.Float32frombits(d.u32())
	case codeDouble:
		return math.Float64frombits(d.u64())
	case codeDecimal32:
		return fixed[Decimal32](d, 4)
	case codeDecimal64:
		return fixed[Decimal64](d, 8)
	case codeDecimal128:
		return fixed[Decimal128](d, 16)
	case codeChar:
		return Char(d.u32())
	case codeTimestamp:
		return Timestamp(d.u64())
	case codeUUID:
		return fixed[UUID](d, 16)
	case codeBinary8:
		return d.take(int(d.u8()))
	case codeBinary32:
		return d.take(d.size())
	case codeString8:
		return d.utf8(int(d.u8()))
	case codeString32:
		return d.utf8(d.size())
	case codeSymbol8:
		return d.ascii(int(d.u8()))
	case codeSymbol32:
		return d.ascii(d.size())
	}
	if d.depth >= maxDepth {
		d.fail(ErrTooDeep)
		return nil
	}
	d.depth++
	defer func() { d.depth-- }()
	switch c {
	case codeDescribed:
		v := Described{Descriptor: d.Value()}
		v.Value = d.Value()
		return v
	case codeList0:
		return List{}
	case codeList8, codeList32:
		f, out := d.enter(c), List{}
		for f.More() {
			out = append(out, d.Value())
		}
		f.Done()
		return out
	case codeMap8, codeMap32:
		f, out := d.enter(c), Map{}
		if f.left%2 != 0 {
			d.failf("map with a key without a value")
		}
		for f.More() {
			e := Entry{Key: d.Value()}
			f.More()
			e.Value = d.Value()
			out = append(out, e)
		}
		f.Done()
		return out
	case codeArray8, codeArray32:
		return d.array(c)
	}
	d.failf("no such type: 0x%02x", c)
	return nil
}

func fixed[T Decimal32 | Decimal64 | Decimal128 | UUID](d *Decoder, n int) T {
	var v T
	b := d.take(n)
	if b == nil {
		return v
	}
	switch p := any(&v).(type) {
	case *Decimal32:
		copy(p[:], b)
	case *Decimal64:
		copy(p[:], b)
	case *Decimal128:
		copy(p[:], b)
	case *UUID:
		copy(p[:], b)
	}
	return v
}

// array reads what follows an array's constructor: size, count, the constructor of the
// items, the items without constructors (§1.6.24).
func (d *Decoder) array(c byte) any {
	var size, n int
	if c == codeArray8 {
		size = int(d.u8())
	} else {
		size = d.size()
	}
	b := d.take(size)
	if d.err != nil {
		return nil
	}
	outer, end := d.buf, d.off
	d.buf, d.off = d.buf[:end], end-len(b)
	if c == codeArray8 {
		n = int(d.u8())
	} else {
		n = int(d.u32())
	}
	a := Array{Code: d.u8()}
	if a.Code == codeDescribed {
		a.Descriptor = d.Value()
		a.Code = d.u8()
	}
	if d.err == nil && a.Code == codeDescribed {
		d.failf("array of doubly described items")
	}
	// Appending grows with what was really read; items without bytes (null, true …) are
	// bounded by the count of values.
	for ; n > 0 && d.err == nil; n-- {
		a.Items = append(a.Items, d.value(a.Code))
	}
	if d.err == nil && d.off != end {
		d.failf("%d bytes too many in an array", end-d.off)
	}
	d.buf = outer
	return a
}
