package hubservice

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
	"downlink/mapping"
)

// propertyAck asks for feedback. It is an application property with a string
// value, not an annotation (IoT Hub developer guide, "Message feedback").
const propertyAck = "iothub-ack"

// appendMessage makes the wire form of e, in the spare room of b: properties,
// application properties in their order, one data section. The same envelope
// always gives the same bytes, so that the device side recognises what was sent
// twice. With an error b comes back as it was.
func appendMessage(b []byte, e *mapping.Envelope) ([]byte, error) {
	if err := checkText(e); err != nil {
		return b, err
	}
	id := sas.Escape(e.Device)
	size := 96 + len(devicesPrefix) + len(id) + len(devicesSuffix) + len(e.MessageID) + len(e.UserID) + len(e.CorrelationID) +
		len(e.ContentType) + len(e.ContentEncoding) + len(e.Body)
	for _, p := range e.Properties {
		size += len(p.Name) + len(p.Value) + 10
	}
	b = appendProperties(slices.Grow(b, size), e, id)
	b = appendApplicationProperties(b, e)
	b = append(b, 0x00, 0x53, 0x75) // described by amqp:data:binary (§3.2.6)
	return appendVariable(b, binary8, e.Body), nil
}

const devicesPrefix, devicesSuffix = "/devices/", "/messages/devicebound"

// appendProperties writes the section of system properties (§3.2.4): a list of
// fields by position, null where there is none, without the nulls at its end.
// It takes the 32-bit form whatever the size, as go-amqp does.
func appendProperties(b []byte, e *mapping.Envelope, device string) []byte {
	b = append(b, 0x00, 0x53, 0x73, 0xd0)
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // size and count, below
	nulls, count := 0, 0                  // nulls not written yet
	field := func(present bool) bool {
		if !present {
			nulls++
			return false
		}
		for ; nulls > 0; nulls-- {
			b = append(b, 0x40)
			count++
		}
		count++
		return true
	}
	text := func(form form, s string) {
		if field(s != "") {
			b = appendVariable(b, form, s)
		}
	}
	text(string8, e.MessageID)
	text(binary8, e.UserID)
	field(true) // to
	b = appendLength(b, string8, len(devicesPrefix)+len(device)+len(devicesSuffix))
	b = append(append(append(b, devicesPrefix...), device...), devicesSuffix...)
	nulls += 2 // subject, reply-to
	text(string8, e.CorrelationID)
	text(symbol8, e.ContentType)
	text(symbol8, e.ContentEncoding)
	if field(!e.ExpiresAt.IsZero()) {
		b = binary.BigEndian.AppendUint64(append(b, 0x83), uint64(e.ExpiresAt.UnixMilli())) // timestamp
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4)) // the size counts the count
	binary.BigEndian.PutUint32(b[start+4:], uint32(count))
	return b
}

// appendApplicationProperties writes the section in the order of the envelope.
// go-amqp would take a Go map, whose order changes from one encoding to the
// next, although the order of an AMQP map is part of its value (AMQP 1.0 §1.6.23).
func appendApplicationProperties(b []byte, e *mapping.Envelope) []byte {
	count, size := 2*len(e.Properties), 0
	pair := func(name, value string) { size += sizeOf(name) + sizeOf(value) }
	if e.Ack != mapping.AckNone {
		count += 2
		pair(propertyAck, string(e.Ack))
	}
	for _, p := range e.Properties {
		pair(p.Name, p.Value)
	}
	if count == 0 {
		return b
	}
	b = append(b, 0x00, 0x53, 0x74) // described by amqp:application-properties:map (§3.2.5)
	if size+1 <= math.MaxUint8 && count <= math.MaxUint8 {
		b = append(b, 0xc1, byte(size+1), byte(count)) // map8; the size counts the count
	} else {
		b = binary.BigEndian.AppendUint32(append(b, 0xd1), uint32(size+4)) // map32
		b = binary.BigEndian.AppendUint32(b, uint32(count))
	}
	if e.Ack != mapping.AckNone {
		b = appendVariable(appendVariable(b, string8, propertyAck), string8, string(e.Ack))
	}
	for _, p := range e.Properties {
		b = appendVariable(appendVariable(b, string8, p.Name), string8, p.Value)
	}
	return b
}

// form is the constructor of a variable-width type with a length of one byte;
// with 0x10 more its length has four (§1.6).
type form byte

const (
	binary8 form = 0xa0
	string8 form = 0xa1
	symbol8 form = 0xa3
)

func appendVariable[T string | []byte](b []byte, f form, v T) []byte {
	return append(appendLength(b, f, len(v)), v...)
}

func appendLength(b []byte, f form, n int) []byte {
	if n <= math.MaxUint8 {
		return append(b, byte(f), byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, byte(f)+0x10), uint32(n))
}

// sizeOf is what appendVariable writes for a string.
func sizeOf(s string) int {
	if len(s) <= math.MaxUint8 {
		return 2 + len(s)
	}
	return 5 + len(s)
}

// checkText refuses what AMQP cannot carry; the mapping lets nothing of it
// through, so this only guards other callers.
func checkText(e *mapping.Envelope) error {
	if e.Device == "" {
		return &bridge.Error{Class: bridge.Refused, Op: "encode", Reason: mapping.ReasonBadDevice, Err: fmt.Errorf("no device")}
	}
	for _, f := range []struct{ name, value string }{
		{"device", e.Device}, {"message_id", e.MessageID}, {"correlation_id", e.CorrelationID},
	} {
		if !utf8.ValidString(f.value) {
			return badProperty(f.name, "not UTF-8")
		}
	}
	// Symbols are ASCII (AMQP 1.0 §1.6.21).
	for _, f := range []struct{ name, value string }{
		{"content_type", e.ContentType}, {"content_encoding", e.ContentEncoding},
	} {
		for i := 0; i < len(f.value); i++ {
			if f.value[i] >= utf8.RuneSelf {
				return badProperty(f.name, "not ASCII")
			}
		}
	}
	for i, p := range e.Properties {
		if p.Name == "" || !utf8.ValidString(p.Name) || !utf8.ValidString(p.Value) {
			return badProperty(fmt.Sprintf("properties[%d]", i), "no name, or not UTF-8")
		}
	}
	return nil
}

func badProperty(field, text string) error {
	return &bridge.Error{Class: bridge.Refused, Op: "encode", Reason: mapping.ReasonBadProperty, Err: fmt.Errorf("%s: %s", field, text)}
}

// wireMessage makes a message that go-amqp sends as the bytes that are at b then, as they are.
//
// go-amqp has no way to send an encoded message, but it asks a Value that can
// encode itself to write into its buffer; encoded does, and clears what stood
// before it, the section's descriptor. The buffer's type is internal to go-amqp
// and is only inferred here, so a go-amqp that changes it does not compile, and
// TestWireForm pins the result.
func wireMessage(b *[]byte) *amqp.Message { return wireMessageFor((*amqp.Message).Marshal, b) }

func wireMessageFor[B buffer](_ func(*amqp.Message, B) error, b *[]byte) *amqp.Message {
	return &amqp.Message{Value: (*encoded[B])(b)}
}

type buffer interface {
	Reset()
	Append([]byte)
}

type encoded[B buffer] []byte

// Marshal implements what go-amqp's encoder looks for.
func (e *encoded[B]) Marshal(wr B) error {
	wr.Reset()
	wr.Append(*e)
	return nil
}
