package hubservice

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
	"downlink/bridge/internal/sas"
	"downlink/mapping"
)

// propertyAck asks for feedback. It is an application property with a string
// value, not an annotation (IoT Hub developer guide, "Message feedback").
const propertyAck = "iothub-ack"

// encode makes the wire form of e: properties, application properties in their
// order, one data section. The same envelope always gives the same bytes, so
// that the device side recognises what was sent twice.
func encode(e *mapping.Envelope) ([]byte, error) {
	if err := checkText(e); err != nil {
		return nil, err
	}
	to := "/devices/" + sas.Escape(e.Device) + "/messages/devicebound"
	p := &amqp.MessageProperties{To: &to}
	if e.MessageID != "" {
		p.MessageID = e.MessageID
	}
	if e.UserID != "" {
		p.UserID = []byte(e.UserID)
	}
	if e.CorrelationID != "" {
		p.CorrelationID = e.CorrelationID
	}
	if e.ContentType != "" {
		p.ContentType = &e.ContentType
	}
	if e.ContentEncoding != "" {
		p.ContentEncoding = &e.ContentEncoding
	}
	if !e.ExpiresAt.IsZero() {
		p.AbsoluteExpiryTime = &e.ExpiresAt
	}

	head, err := (&amqp.Message{Properties: p}).MarshalBinary()
	if err != nil {
		return nil, badProperty("system properties", err.Error())
	}
	body, err := amqp.NewMessage(e.Body).MarshalBinary()
	if err != nil {
		return nil, &bridge.Error{Class: bridge.Refused, Op: "encode", Reason: mapping.ReasonTooLarge, Err: err}
	}
	return append(appendApplicationProperties(head, e), body...), nil
}

// appendApplicationProperties writes the section in the order of the envelope.
// go-amqp would take a Go map, whose order changes from one encoding to the
// next, although the order of an AMQP map is part of its value (AMQP 1.0 §1.6.23).
func appendApplicationProperties(b []byte, e *mapping.Envelope) []byte {
	var pairs []byte
	count := 0
	add := func(name, value string) {
		pairs = appendString(appendString(pairs, name), value)
		count += 2
	}
	if e.Ack != mapping.AckNone {
		add(propertyAck, string(e.Ack))
	}
	for _, p := range e.Properties {
		add(p.Name, p.Value)
	}
	if count == 0 {
		return b
	}
	b = append(b, 0x00, 0x53, 0x74) // described by amqp:application-properties:map (§3.2.5)
	if len(pairs)+1 <= math.MaxUint8 && count <= math.MaxUint8 {
		b = append(b, 0xc1, byte(len(pairs)+1), byte(count)) // map8; the size counts the count
	} else {
		b = binary.BigEndian.AppendUint32(append(b, 0xd1), uint32(len(pairs)+4)) // map32
		b = binary.BigEndian.AppendUint32(b, uint32(count))
	}
	return append(b, pairs...)
}

func appendString(b []byte, s string) []byte {
	if len(s) <= math.MaxUint8 {
		b = append(b, 0xa1, byte(len(s))) // str8-utf8
	} else {
		b = binary.BigEndian.AppendUint32(append(b, 0xb1), uint32(len(s))) // str32-utf8
	}
	return append(b, s...)
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

// wireMessage makes go-amqp send b as the message, byte for byte.
//
// go-amqp has no way to send an encoded message, but it asks a Value that can
// encode itself to write into its buffer; encoded does, and clears what stood
// before it, the section's descriptor. The buffer's type is internal to go-amqp
// and is only inferred here, so a go-amqp that changes it does not compile, and
// TestWireForm pins the result.
func wireMessage(b []byte) *amqp.Message { return wireMessageFor((*amqp.Message).Marshal, b) }

func wireMessageFor[B buffer](_ func(*amqp.Message, B) error, b []byte) *amqp.Message {
	return &amqp.Message{Value: encoded[B](b)}
}

type buffer interface {
	Reset()
	Append([]byte)
}

type encoded[B buffer] []byte

// Marshal implements what go-amqp's encoder looks for.
func (e encoded[B]) Marshal(wr B) error {
	wr.Reset()
	wr.Append(e)
	return nil
}
