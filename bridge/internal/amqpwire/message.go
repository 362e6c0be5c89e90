package amqpwire

import "errors"

// BodyKind says which of the three forms a message's body has (§3.2).
type BodyKind int

// The forms of a body. BodyNone is a message without one, which the specification does not
// allow and some clients send.
const (
	BodyNone BodyKind = iota
	BodyData
	BodyValue
	BodySequence
)

// Sections is a message cut into its sections. Each []byte is the encoded value of one section,
// without its descriptor, nil if the message has none; all alias the input.
type Sections struct {
	Header                []byte
	DeliveryAnnotations   []byte
	MessageAnnotations    []byte
	Properties            []byte
	ApplicationProperties []byte
	Body                  BodyKind
	Data                  [][]byte // the bytes of each data section, decoded
	Value                 []byte
	Sequence              [][]byte
	Footer                []byte
}

var errOrder = errors.New("amqp: message sections out of order or repeated")

// Split cuts a message into sections and checks their order (§3.2), not what is in them. s is reused.
func (s *Sections) Split(message []byte) error {
	*s = Sections{Data: s.Data[:0], Sequence: s.Sequence[:0]}
	var d Decoder
	d.Reset(message)
	var last uint64
	for d.More() {
		code := d.descriptor()
		if d.err != nil {
			break
		}
		if code < descHeader || code > descFooter {
			d.failf("no message section has descriptor 0x%x", code)
			break
		}
		repeats := code == last && (code == descData || code == descSequence)
		if last != 0 && code <= last && !repeats || s.Body != BodyNone && code != descFooter && !repeats {
			return errOrder
		}
		last = code
		start := d.off
		if code == descData {
			s.Body, s.Data = BodyData, append(s.Data, d.Binary())
			continue
		}
		d.Skip()
		if d.err != nil {
			break
		}
		value := d.buf[start:d.off:d.off]
		switch code {
		case descHeader:
			s.Header = value
		case descDeliveryAnnotations:
			s.DeliveryAnnotations = value
		case descMessageAnnotations:
			s.MessageAnnotations = value
		case descProperties:
			s.Properties = value
		case descApplicationProperties:
			s.ApplicationProperties = value
		case descSequence:
			s.Body, s.Sequence = BodySequence, append(s.Sequence, value)
		case descValue:
			s.Body, s.Value = BodyValue, value
		case descFooter:
			s.Footer = value
		}
	}
	return d.err
}

// Header is §3.2.1; Priority is 4 by default.
type Header struct {
	Durable       bool
	Priority      uint8
	TTL           Opt[uint32] // milliseconds
	FirstAcquirer bool
	DeliveryCount uint32
}

// Decode reads a Sections.Header.
func (h *Header) Decode(b []byte) error {
	*h = Header{Priority: 4}
	var d Decoder
	d.Reset(b)
	f := d.List()
	if f.Next() {
		h.Durable = d.Bool()
	}
	if f.Next() {
		h.Priority = d.Ubyte()
	}
	h.TTL = optional(&f, d.Uint)
	if f.Next() {
		h.FirstAcquirer = d.Bool()
	}
	if f.Next() {
		h.DeliveryCount = d.Uint()
	}
	f.Done()
	return d.end()
}

// Append appends the section.
func (h *Header) Append(b []byte) []byte {
	f := appendList(b, descHeader)
	f.bool(h.Durable, false)
	f.ubyte(Opt[uint8]{h.Priority, h.Priority != 4})
	f.optUint(h.TTL)
	f.bool(h.FirstAcquirer, false)
	f.optUint(Opt[uint32]{h.DeliveryCount, h.DeliveryCount != 0})
	return f.done()
}

// Properties is §3.2.4. MessageID and CorrelationID are nil, a uint64, UUID, []byte or string.
type Properties struct {
	MessageID          any
	UserID             []byte
	To                 string
	Subject            string
	ReplyTo            string
	CorrelationID      any
	ContentType        Symbol
	ContentEncoding    Symbol
	AbsoluteExpiryTime Opt[Timestamp]
	CreationTime       Opt[Timestamp]
	GroupID            string
	GroupSequence      Opt[uint32]
	ReplyToGroupID     string
}

// Decode reads a Sections.Properties. []byte fields alias b; the strings share one copy of it.
func (p *Properties) Decode(b []byte) error {
	*p = Properties{}
	var d Decoder
	d.Reset(b)
	d.ShareText()
	f := d.List()
	if f.Next() {
		p.MessageID = d.messageID()
	}
	if f.Next() {
		p.UserID = d.Binary()
	}
	if f.Next() {
		p.To = d.Text()
	}
	if f.Next() {
		p.Subject = d.Text()
	}
	if f.Next() {
		p.ReplyTo = d.Text()
	}
	if f.Next() {
		p.CorrelationID = d.messageID()
	}
	if f.Next() {
		p.ContentType = d.Symbol()
	}
	if f.Next() {
		p.ContentEncoding = d.Symbol()
	}
	p.AbsoluteExpiryTime = optional(&f, d.Timestamp)
	p.CreationTime = optional(&f, d.Timestamp)
	if f.Next() {
		p.GroupID = d.Text()
	}
	p.GroupSequence = optional(&f, d.Uint)
	if f.Next() {
		p.ReplyToGroupID = d.Text()
	}
	f.Done()
	return d.end()
}

func (d *Decoder) messageID() any {
	switch v := d.Value().(type) {
	case uint64, UUID, []byte, string:
		return v
	default:
		d.failf("message id of type %T", v)
		return nil
	}
}

// Append appends the section.
func (p *Properties) Append(b []byte) []byte {
	f := appendList(b, descProperties)
	f.value(p.MessageID)
	f.optBinary(p.UserID)
	f.optString(p.To)
	f.optString(p.Subject)
	f.optString(p.ReplyTo)
	f.value(p.CorrelationID)
	f.optSymbol(p.ContentType)
	f.optSymbol(p.ContentEncoding)
	f.optTimestamp(p.AbsoluteExpiryTime)
	f.optTimestamp(p.CreationTime)
	f.optString(p.GroupID)
	f.optUint(p.GroupSequence)
	f.optString(p.ReplyToGroupID)
	return f.done()
}

// DecodeMap reads a section that is a map: annotations, application properties, footer.
func DecodeMap(b []byte) (Map, error) {
	var d Decoder
	d.Reset(b)
	v := d.Value()
	if err := d.end(); err != nil {
		return nil, err
	}
	m, ok := v.(Map)
	if !ok {
		return nil, errors.New("amqp: section is not a map")
	}
	return m, nil
}

// DecodeValue reads a Sections.Value or an element of Sections.Sequence.
func DecodeValue(b []byte) (any, error) {
	var d Decoder
	d.Reset(b)
	v := d.Value()
	return v, d.end()
}

// end is for sections: nothing may follow the value.
func (d *Decoder) end() error {
	if d.err == nil && d.off != len(d.buf) {
		d.failf("%d bytes after the section's value", len(d.buf)-d.off)
	}
	return d.err
}

// AppendMessageAnnotations appends the section; on an error b is returned as it was.
func AppendMessageAnnotations(b []byte, m Map) ([]byte, error) {
	return appendSection(b, descMessageAnnotations, m)
}

// AppendApplicationProperties appends the section; on an error b is returned as it was.
func AppendApplicationProperties(b []byte, m Map) ([]byte, error) {
	return appendSection(b, descApplicationProperties, m)
}

// AppendBodyValue appends an amqp-value section; on an error b is returned as it was.
func AppendBodyValue(b []byte, v any) ([]byte, error) { return appendSection(b, descValue, v) }

// AppendBodyData appends a data section.
func AppendBodyData(b, data []byte) []byte {
	return AppendBinary(append(b, codeDescribed, codeSmallUlong, descData), data)
}

func appendSection(b []byte, descriptor byte, v any) ([]byte, error) {
	n := len(b)
	b, err := AppendValue(append(b, codeDescribed, codeSmallUlong, descriptor), v)
	if err != nil {
		return b[:n], err
	}
	return b, nil
}
