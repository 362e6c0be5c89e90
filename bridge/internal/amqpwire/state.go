package amqpwire

// Error is §2.8.14.
type Error struct {
	Condition   Symbol
	Description string
	Info        Map
}

// Error implements error.
func (e *Error) Error() string {
	if e.Description == "" {
		return string(e.Condition)
	}
	return string(e.Condition) + ": " + e.Description
}

func (e *Error) append(b []byte) []byte {
	f := appendList(b, descError)
	f.set(AppendSymbol(f.b, e.Condition))
	f.optString(e.Description)
	f.value(e.Info)
	return f.done()
}

func (f *fields) err(e *Error) {
	if e == nil {
		f.null()
		return
	}
	f.set(e.append(f.b))
}

func (d *Decoder) lastError(f *Fields) *Error {
	if !f.Next() {
		return nil
	}
	if c := d.descriptor(); d.err == nil && c != descError {
		d.failf("error wanted, got descriptor 0x%x", c)
		return nil
	}
	g, e := d.List(), new(Error)
	e.Condition = mandatory(d, &g, "error without condition", d.Symbol)
	if g.Next() {
		e.Description = d.Text()
	}
	e.Info = lastMap(d, &g)
	g.Done()
	return e
}

// DeliveryState is what one side says of a delivery (§3.4): Accepted, *Rejected, Released,
// *Modified, *Received, or *Other for a state this package does not know.
type DeliveryState interface{ append(b []byte) []byte }

type (
	// Accepted: the receiver has taken it over.
	Accepted struct{}
	// Rejected: it is invalid and cannot be processed.
	Rejected struct{ Error *Error }
	// Released: it was not and will not be acted upon.
	Released struct{}
	// Modified: like released, with a trace of the attempt.
	Modified struct {
		DeliveryFailed     bool
		UndeliverableHere  bool
		MessageAnnotations Map
	}
	// Received: as much of it has arrived; not an outcome.
	Received struct {
		SectionNumber uint32
		SectionOffset uint64
	}
	// Other is a state of an extension, such as a transaction's.
	Other struct{ Value Described }
)

func (Accepted) append(b []byte) []byte {
	return append(b, codeDescribed, codeSmallUlong, descAccepted, codeList0)
}

func (Released) append(b []byte) []byte {
	return append(b, codeDescribed, codeSmallUlong, descReleased, codeList0)
}

func (s *Rejected) append(b []byte) []byte {
	f := appendList(b, descRejected)
	f.err(s.Error)
	return f.done()
}

func (s *Modified) append(b []byte) []byte {
	f := appendList(b, descModified)
	f.bool(s.DeliveryFailed, false)
	f.bool(s.UndeliverableHere, false)
	f.value(s.MessageAnnotations)
	return f.done()
}

func (s *Received) append(b []byte) []byte {
	f := appendList(b, descReceived)
	f.uint(s.SectionNumber)
	f.set(AppendUlong(f.b, s.SectionOffset))
	return f.done()
}

func (s *Other) append(b []byte) []byte {
	out, err := AppendValue(b, s.Value)
	if err != nil {
		return AppendNull(b)
	}
	return out
}

func (f *fields) state(s DeliveryState) {
	if s == nil {
		f.null()
		return
	}
	f.set(s.append(f.b))
}

func (d *Decoder) state() DeliveryState {
	start := d.off
	switch c := d.descriptor(); c {
	case descAccepted, descReleased:
		f := d.List()
		f.Done()
		if c == descAccepted {
			return Accepted{}
		}
		return Released{}
	case descRejected:
		f, s := d.List(), new(Rejected)
		s.Error = d.lastError(&f)
		f.Done()
		return s
	case descModified:
		f, s := d.List(), new(Modified)
		if f.Next() {
			s.DeliveryFailed = d.Bool()
		}
		if f.Next() {
			s.UndeliverableHere = d.Bool()
		}
		s.MessageAnnotations = lastMap(d, &f)
		f.Done()
		return s
	case descReceived:
		f, s := d.List(), new(Received)
		s.SectionNumber = mandatory(d, &f, "received without section-number", d.Uint)
		s.SectionOffset = mandatory(d, &f, "received without section-offset", d.Ulong)
		f.Done()
		return s
	}
	if d.err != nil {
		return nil
	}
	d.off = start
	v, _ := d.Value().(Described)
	return &Other{Value: v}
}

// Source is §3.5.3, without what only a node with real queues needs.
type Source struct {
	Address          Opt[string]
	Durable          uint32
	ExpiryPolicy     Symbol
	Timeout          uint32
	Dynamic          bool
	DistributionMode Symbol
	Filter           Map
	DefaultOutcome   DeliveryState
	Outcomes         []Symbol
	Capabilities     []Symbol
}

func (s *Source) append(b []byte) []byte {
	f := appendList(b, descSource)
	f.terminus(s.Address, s.Durable, s.ExpiryPolicy, s.Timeout, s.Dynamic)
	f.optSymbol(s.DistributionMode)
	f.value(s.Filter)
	f.state(s.DefaultOutcome)
	f.symbols(s.Outcomes)
	f.symbols(s.Capabilities)
	return f.done()
}

func (s *Source) decode(d *Decoder) {
	if c := d.descriptor(); d.err == nil && c != descSource {
		d.failf("source wanted, got descriptor 0x%x", c)
		return
	}
	f := d.List()
	d.terminus(&f, &s.Address, &s.Durable, &s.ExpiryPolicy, &s.Timeout, &s.Dynamic)
	if f.Next() {
		s.DistributionMode = d.Symbol()
	}
	s.Filter = lastMap(d, &f)
	if f.Next() {
		s.DefaultOutcome = d.state()
	}
	if f.Next() {
		s.Outcomes = d.Symbols()
	}
	if f.Next() {
		s.Capabilities = d.Symbols()
	}
	f.Done()
}

// Target is §3.5.4, or a transaction coordinator (§4.5.1), of which only the fact is kept.
type Target struct {
	Address      Opt[string]
	Durable      uint32
	ExpiryPolicy Symbol
	Timeout      uint32
	Dynamic      bool
	Capabilities []Symbol
	Coordinator  bool
}

func (t *Target) append(b []byte) []byte {
	if t.Coordinator {
		f := appendList(b, descCoordinator)
		f.symbols(t.Capabilities)
		return f.done()
	}
	f := appendList(b, descTarget)
	f.terminus(t.Address, t.Durable, t.ExpiryPolicy, t.Timeout, t.Dynamic)
	f.symbols(t.Capabilities)
	return f.done()
}

func (t *Target) decode(d *Decoder) {
	c := d.descriptor()
	switch {
	case d.err != nil:
		return
	case c == descCoordinator:
		t.Coordinator = true
		f := d.List()
		if f.Next() {
			t.Capabilities = d.Symbols()
		}
		f.Done()
		return
	case c != descTarget:
		d.failf("target wanted, got descriptor 0x%x", c)
		return
	}
	f := d.List()
	d.terminus(&f, &t.Address, &t.Durable, &t.ExpiryPolicy, &t.Timeout, &t.Dynamic)
	if f.Next() {
		t.Capabilities = d.Symbols()
	}
	f.Done()
}

// terminus writes the fields that source and target begin with; the properties of a
// dynamic node are not among what we ask for.
func (f *fields) terminus(address Opt[string], durable uint32, expiry Symbol, timeout uint32, dynamic bool) {
	if address.Set {
		f.set(AppendString(f.b, address.Value))
	} else {
		f.null()
	}
	f.optUint(Opt[uint32]{durable, durable != 0})
	f.optSymbol(expiry)
	f.optUint(Opt[uint32]{timeout, timeout != 0})
	f.bool(dynamic, false)
	f.null()
}

func (d *Decoder) terminus(f *Fields, address *Opt[string], durable *uint32, expiry *Symbol, timeout *uint32, dynamic *bool) {
	*address = optional(f, d.Text)
	if f.Next() {
		*durable = d.Uint()
	}
	if f.Next() {
		*expiry = d.Symbol()
	}
	if f.Next() {
		*timeout = d.Uint()
	}
	if f.Next() {
		*dynamic = d.Bool()
	}
	skipMap(d, f)
}
