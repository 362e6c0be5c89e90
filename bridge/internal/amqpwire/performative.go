package amqpwire

import "math"

// Performative is what a frame says: *Open, *Begin, *Attach, *Flow, *Transfer,
// *Disposition, *Detach, *End or *Close, or one of the SASL ones.
type Performative interface {
	// Append appends the described list; trailing absent fields are left out.
	Append(b []byte) []byte
	decode(d *Decoder)
}

// Role of a link endpoint (§2.8.1).
const (
	RoleSender   = false
	RoleReceiver = true
)

// Settlement modes (§2.8.2, §2.8.3).
const (
	SenderUnsettled uint8 = 0
	SenderSettled   uint8 = 1
	SenderMixed     uint8 = 2
	ReceiverFirst   uint8 = 0
	ReceiverSecond  uint8 = 1
)

// Open is §2.7.1. A decoded one has the defaults filled in.
type Open struct {
	ContainerID         string
	Hostname            string
	MaxFrameSize        uint32
	ChannelMax          uint16
	IdleTimeout         uint32 // milliseconds; 0 is none
	OfferedCapabilities []Symbol
	DesiredCapabilities []Symbol
	Properties          Map
}

// Append implements Performative.
func (o *Open) Append(b []byte) []byte {
	f := appendList(b, descOpen)
	f.set(AppendString(f.b, o.ContainerID))
	f.optString(o.Hostname)
	if o.MaxFrameSize == math.MaxUint32 {
		f.null()
	} else {
		f.uint(o.MaxFrameSize)
	}
	if o.ChannelMax == math.MaxUint16 {
		f.null()
	} else {
		f.set(AppendUshort(f.b, o.ChannelMax))
	}
	f.optUint(Opt[uint32]{o.IdleTimeout, o.IdleTimeout != 0})
	f.null() // outgoing-locales
	f.null() // incoming-locales
	f.symbols(o.OfferedCapabilities)
	f.symbols(o.DesiredCapabilities)
	f.value(o.Properties)
	return f.done()
}

func (o *Open) decode(d *Decoder) {
	*o = Open{MaxFrameSize: math.MaxUint32, ChannelMax: math.MaxUint16}
	f := d.List()
	if !f.Next() {
		d.failf("open without container-id")
		return
	}
	o.ContainerID = d.Text()
	if f.Next() {
		o.Hostname = d.Text()
	}
	if f.Next() {
		o.MaxFrameSize = d.Uint()
	}
	if f.Next() {
		o.ChannelMax = d.Ushort()
	}
	if f.Next() {
		o.IdleTimeout = d.Uint()
	}
	if f.Next() {
		d.Skip() // outgoing-locales
	}
	if f.Next() {
		d.Skip() // incoming-locales
	}
	if f.Next() {
		o.OfferedCapabilities = d.Symbols()
	}
	if f.Next() {
		o.DesiredCapabilities = d.Symbols()
	}
	o.Properties = lastMap(d, &f)
	f.Done()
}

// Begin is §2.7.2.
type Begin struct {
	RemoteChannel       Opt[uint16]
	NextOutgoingID      uint32
	IncomingWindow      uint32
	OutgoingWindow      uint32
	HandleMax           uint32
	OfferedCapabilities []Symbol
	DesiredCapabilities []Symbol
	Properties          Map
}

// Append implements Performative.
func (p *Begin) Append(b []byte) []byte {
	f := appendList(b, descBegin)
	if p.RemoteChannel.Set {
		f.set(AppendUshort(f.b, p.RemoteChannel.Value))
	} else {
		f.null()
	}
	f.uint(p.NextOutgoingID)
	f.uint(p.IncomingWindow)
	f.uint(p.OutgoingWindow)
	if p.HandleMax == math.MaxUint32 {
		f.null()
	} else {
		f.uint(p.HandleMax)
	}
	f.symbols(p.OfferedCapabilities)
	f.symbols(p.DesiredCapabilities)
	f.value(p.Properties)
	return f.done()
}

func (p *Begin) decode(d *Decoder) {
	*p = Begin{HandleMax: math.MaxUint32}
	f := d.List()
	if f.Next() {
		p.RemoteChannel = Some(d.Ushort())
	}
	p.NextOutgoingID = mandatory(d, &f, "begin without next-outgoing-id", d.Uint)
	p.IncomingWindow = mandatory(d, &f, "begin without incoming-window", d.Uint)
	p.OutgoingWindow = mandatory(d, &f, "begin without outgoing-window", d.Uint)
	if f.Next() {
		p.HandleMax = d.Uint()
	}
	if f.Next() {
		p.OfferedCapabilities = d.Symbols()
	}
	if f.Next() {
		p.DesiredCapabilities = d.Symbols()
	}
	p.Properties = lastMap(d, &f)
	f.Done()
}

// Attach is §2.7.3. A peer's unsettled map is checked and not kept.
type Attach struct {
	Name                 string
	Handle               uint32
	Role                 bool // RoleSender, RoleReceiver
	SenderSettleMode     Opt[uint8]
	ReceiverSettleMode   Opt[uint8]
	Source               *Source
	Target               *Target
	InitialDeliveryCount Opt[uint32]
	MaxMessageSize       uint64 // 0 is no limit
	OfferedCapabilities  []Symbol
	DesiredCapabilities  []Symbol
	Properties           Map
}

// Append implements Performative.
func (p *Attach) Append(b []byte) []byte {
	f := appendList(b, descAttach)
	f.set(AppendString(f.b, p.Name))
	f.uint(p.Handle)
	f.set(AppendBool(f.b, p.Role))
	f.ubyte(p.SenderSettleMode)
	f.ubyte(p.ReceiverSettleMode)
	if p.Source == nil {
		f.null()
	} else {
		f.set(p.Source.append(f.b))
	}
	if p.Target == nil {
		f.null()
	} else {
		f.set(p.Target.append(f.b))
	}
	f.null() // unsettled
	f.null() // incomplete-unsettled
	f.optUint(p.InitialDeliveryCount)
	if p.MaxMessageSize == 0 {
		f.null()
	} else {
		f.set(AppendUlong(f.b, p.MaxMessageSize))
	}
	f.symbols(p.OfferedCapabilities)
	f.symbols(p.DesiredCapabilities)
	f.value(p.Properties)
	return f.done()
}

func (p *Attach) decode(d *Decoder) {
	*p = Attach{}
	f := d.List()
	p.Name = mandatory(d, &f, "attach without name", d.Text)
	p.Handle = mandatory(d, &f, "attach without handle", d.Uint)
	p.Role = mandatory(d, &f, "attach without role", d.Bool)
	if f.Next() {
		p.SenderSettleMode = Some(d.Ubyte())
	}
	if f.Next() {
		p.ReceiverSettleMode = Some(d.Ubyte())
	}
	if f.Next() {
		p.Source = new(Source)
		p.Source.decode(d)
	}
	if f.Next() {
		p.Target = new(Target)
		p.Target.decode(d)
	}
	if f.Next() {
		d.Value() // unsettled
	}
	if f.Next() {
		d.Bool() // incomplete-unsettled
	}
	if f.Next() {
		p.InitialDeliveryCount = Some(d.Uint())
	}
	if f.Next() {
		p.MaxMessageSize = d.Ulong()
	}
	if f.Next() {
		p.OfferedCapabilities = d.Symbols()
	}
	if f.Next() {
		p.DesiredCapabilities = d.Symbols()
	}
	p.Properties = lastMap(d, &f)
	f.Done()
}

// Flow is §2.7.4.
type Flow struct {
	NextIncomingID Opt[uint32]
	IncomingWindow uint32
	NextOutgoingID uint32
	OutgoingWindow uint32
	Handle         Opt[uint32]
	DeliveryCount  Opt[uint32]
	LinkCredit     Opt[uint32]
	Available      Opt[uint32]
	Drain          bool
	Echo           bool
}

// Append implements Performative.
func (p *Flow) Append(b []byte) []byte {
	f := appendList(b, descFlow)
	f.optUint(p.NextIncomingID)
	f.uint(p.IncomingWindow)
	f.uint(p.NextOutgoingID)
	f.uint(p.OutgoingWindow)
	f.optUint(p.Handle)
	f.optUint(p.DeliveryCount)
	f.optUint(p.LinkCredit)
	f.optUint(p.Available)
	f.bool(p.Drain, false)
	f.bool(p.Echo, false)
	return f.done()
}

func (p *Flow) decode(d *Decoder) {
	*p = Flow{}
	f := d.List()
	p.NextIncomingID = optional(&f, d.Uint)
	p.IncomingWindow = mandatory(d, &f, "flow without incoming-window", d.Uint)
	p.NextOutgoingID = mandatory(d, &f, "flow without next-outgoing-id", d.Uint)
	p.OutgoingWindow = mandatory(d, &f, "flow without outgoing-window", d.Uint)
	p.Handle = optional(&f, d.Uint)
	p.DeliveryCount = optional(&f, d.Uint)
	p.LinkCredit = optional(&f, d.Uint)
	p.Available = optional(&f, d.Uint)
	if f.Next() {
		p.Drain = d.Bool()
	}
	if f.Next() {
		p.Echo = d.Bool()
	}
	skipMap(d, &f)
	f.Done()
}

// Transfer is §2.7.5. A decoded DeliveryTag aliases the input.
type Transfer struct {
	Handle             uint32
	DeliveryID         Opt[uint32]
	DeliveryTag        []byte
	MessageFormat      Opt[uint32]
	Settled            Opt[bool]
	More               bool
	ReceiverSettleMode Opt[uint8]
	State              DeliveryState
	Resume             bool
	Aborted            bool
	Batchable          bool
}

// Append implements Performative.
func (p *Transfer) Append(b []byte) []byte {
	f := appendList(b, descTransfer)
	f.uint(p.Handle)
	f.optUint(p.DeliveryID)
	if p.DeliveryTag == nil {
		f.null()
	} else {
		f.set(AppendBinary(f.b, p.DeliveryTag))
	}
	f.optUint(p.MessageFormat)
	f.optBool(p.Settled)
	f.bool(p.More, false)
	f.ubyte(p.ReceiverSettleMode)
	f.state(p.State)
	f.bool(p.Resume, false)
	f.bool(p.Aborted, false)
	f.bool(p.Batchable, false)
	return f.done()
}

func (p *Transfer) decode(d *Decoder) {
	*p = Transfer{}
	f := d.List()
	p.Handle = mandatory(d, &f, "transfer without handle", d.Uint)
	p.DeliveryID = optional(&f, d.Uint)
	if f.Next() {
		p.DeliveryTag = d.Binary()
	}
	p.MessageFormat = optional(&f, d.Uint)
	if f.Next() {
		p.Settled = Some(d.Bool())
	}
	if f.Next() {
		p.More = d.Bool()
	}
	if f.Next() {
		p.ReceiverSettleMode = Some(d.Ubyte())
	}
	if f.Next() {
		p.State = d.state()
	}
	if f.Next() {
		p.Resume = d.Bool()
	}
	if f.Next() {
		p.Aborted = d.Bool()
	}
	if f.Next() {
		p.Batchable = d.Bool()
	}
	f.Done()
}

// Disposition is §2.7.6. It speaks of the deliveries First to Last, or of First alone.
type Disposition struct {
	Role      bool
	First     uint32
	Last      Opt[uint32]
	Settled   bool
	State     DeliveryState
	Batchable bool
}

// Append implements Performative.
func (p *Disposition) Append(b []byte) []byte {
	f := appendList(b, descDisposition)
	f.set(AppendBool(f.b, p.Role))
	f.uint(p.First)
	f.optUint(p.Last)
	f.bool(p.Settled, false)
	f.state(p.State)
	f.bool(p.Batchable, false)
	return f.done()
}

func (p *Disposition) decode(d *Decoder) {
	*p = Disposition{}
	f := d.List()
	p.Role = mandatory(d, &f, "disposition without role", d.Bool)
	p.First = mandatory(d, &f, "disposition without first", d.Uint)
	p.Last = optional(&f, d.Uint)
	if f.Next() {
		p.Settled = d.Bool()
	}
	if f.Next() {
		p.State = d.state()
	}
	if f.Next() {
		p.Batchable = d.Bool()
	}
	f.Done()
}

// Detach is §2.7.7.
type Detach struct {
	Handle uint32
	Closed bool
	Error  *Error
}

// Append implements Performative.
func (p *Detach) Append(b []byte) []byte {
	f := appendList(b, descDetach)
	f.uint(p.Handle)
	f.bool(p.Closed, false)
	f.err(p.Error)
	return f.done()
}

func (p *Detach) decode(d *Decoder) {
	*p = Detach{}
	f := d.List()
	p.Handle = mandatory(d, &f, "detach without handle", d.Uint)
	if f.Next() {
		p.Closed = d.Bool()
	}
	p.Error = d.lastError(&f)
	f.Done()
}

// End is §2.7.8.
type End struct{ Error *Error }

// Append implements Performative.
func (p *End) Append(b []byte) []byte {
	f := appendList(b, descEnd)
	f.err(p.Error)
	return f.done()
}

func (p *End) decode(d *Decoder) {
	f := d.List()
	p.Error = d.lastError(&f)
	f.Done()
}

// Close is §2.7.9.
type Close struct{ Error *Error }

// Append implements Performative.
func (p *Close) Append(b []byte) []byte {
	f := appendList(b, descClose)
	f.err(p.Error)
	return f.done()
}

func (p *Close) decode(d *Decoder) {
	f := d.List()
	p.Error = d.lastError(&f)
	f.Done()
}

func mandatory[T any](d *Decoder, f *Fields, missing string, read func() T) T {
	if !f.Next() {
		d.failf("%s", missing)
		var zero T
		return zero
	}
	return read()
}

func optional[T any](f *Fields, read func() T) Opt[T] {
	if !f.Next() {
		return Opt[T]{}
	}
	return Some(read())
}

func lastMap(d *Decoder, f *Fields) Map {
	if !f.Next() {
		return nil
	}
	v := d.Value()
	m, ok := v.(Map)
	if !ok {
		d.failf("map wanted, got %T", v)
	}
	return m
}

func skipMap(d *Decoder, f *Fields) {
	if f.Next() {
		d.Skip()
	}
}
