package amqpwire

// fields writes a described list field by field and leaves trailing nulls out (§1.4).
type fields struct {
	b             []byte
	start         int
	n             int
	kept, keptEnd int
}

func appendList(b []byte, descriptor byte) fields {
	b = append(b, codeDescribed, codeSmallUlong, descriptor, codeList8, 0, 0)
	return fields{b: b, start: len(b) - 3, keptEnd: len(b)}
}

func (f *fields) null() { f.b, f.n = append(f.b, codeNull), f.n+1 }

func (f *fields) set(b []byte) {
	f.n++
	f.b, f.kept, f.keptEnd = b, f.n, len(b)
}

func (f *fields) done() []byte {
	if f.kept == 0 {
		return append(f.b[:f.start], codeList0)
	}
	return closeCompound(f.b[:f.keptEnd], f.start, f.kept)
}

func (f *fields) bool(v, def bool) {
	if v == def {
		f.null()
		return
	}
	f.set(AppendBool(f.b, v))
}

func (f *fields) optBool(v Opt[bool]) {
	if !v.Set {
		f.null()
		return
	}
	f.set(AppendBool(f.b, v.Value))
}

func (f *fields) ubyte(v Opt[uint8]) {
	if !v.Set {
		f.null()
		return
	}
	f.set(AppendUbyte(f.b, v.Value))
}

func (f *fields) uint(v uint32) { f.set(AppendUint(f.b, v)) }

func (f *fields) optUint(v Opt[uint32]) {
	if !v.Set {
		f.null()
		return
	}
	f.uint(v.Value)
}

func (f *fields) optString(v string) {
	if v == "" {
		f.null()
		return
	}
	f.set(AppendString(f.b, v))
}

func (f *fields) optSymbol(v Symbol) {
	if v == "" {
		f.null()
		return
	}
	f.set(AppendSymbol(f.b, v))
}

func (f *fields) optTimestamp(v Opt[Timestamp]) {
	if !v.Set {
		f.null()
		return
	}
	f.set(AppendTimestamp(f.b, v.Value))
}

func (f *fields) symbols(v []Symbol) {
	if v == nil {
		f.null()
		return
	}
	f.set(AppendSymbols(f.b, v))
}

// value appends any value; one without an AMQP form, which a program and not a peer
// made, becomes null.
func (f *fields) value(v any) {
	if m, ok := v.(Map); v == nil || ok && m == nil {
		f.null()
		return
	}
	b, err := AppendValue(f.b, v)
	if err != nil {
		f.null()
		return
	}
	f.set(b)
}
