package amqpd

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/internal/amqpwire"
)

// message reads a C2D message from a delivery; the result shares no memory with it. An error
// is the message's own fault.
func (c *conn) message(delivery []byte) (m c2d.Message, err error) {
	s := &c.sections
	if err := s.Split(delivery); err != nil {
		return m, decodeError(err)
	}
	if s.Properties != nil {
		var p amqpwire.Properties
		if err := p.Decode(s.Properties); err != nil {
			return m, decodeError(err)
		}
		m.To = p.To
		m.MessageID, m.CorrelationID = idText(p.MessageID), idText(p.CorrelationID)
		m.UserID = string(p.UserID)
		m.ContentType, m.ContentEncoding = string(p.ContentType), string(p.ContentEncoding)
		if p.AbsoluteExpiryTime.Set {
			m.ExpiresAt = time.UnixMilli(int64(p.AbsoluteExpiryTime.Value)).UTC()
			if m.ExpiresAt.IsZero() {
				m.ExpiresAt = m.ExpiresAt.Add(time.Nanosecond) // the year 1 is a bad expiry, not an absent one
			}
		}
	}
	if s.ApplicationProperties != nil {
		if err := readProperties(&m, s.ApplicationProperties); err != nil {
			return m, err
		}
	}
	return m, readBody(&m, s)
}

func decodeError(err error) error {
	return &c2d.Refusal{Condition: condDecode, Code: 400004, Text: err.Error()}
}

func argumentError(format string, args ...any) error {
	return &c2d.Refusal{Condition: condArgument, Code: 400004, Text: fmt.Sprintf(format, args...)}
}

func readProperties(m *c2d.Message, b []byte) error {
	var d amqpwire.Decoder
	d.Reset(b)
	d.ShareText()
	f := d.Map()
	if n := f.Len() / 2; n > 0 {
		m.Properties = make([]c2d.Property, 0, n)
	}
	for f.More() {
		name := d.Text()
		f.More()
		v := d.Value()
		if d.Err() != nil {
			break
		}
		value, ok := valueText(v)
		if !ok {
			return argumentError("application property %q has type %T: the hub takes texts, numbers and booleans", name, v)
		}
		if name == "iothub-ack" {
			m.Ack = value
			continue
		}
		m.Properties = append(m.Properties, c2d.Property{Name: name, Value: value, Null: v == nil})
	}
	f.Done()
	if err := d.Err(); err != nil {
		return decodeError(err)
	}
	if len(m.Properties) == 0 {
		m.Properties = nil
	}
	return nil
}

// valueText is the text form of a value that leaked through as another type, as numbers and
// booleans do from Python. Null is an empty text.
func valueText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case nil:
		return "", true
	case amqpwire.Symbol:
		return string(v), true
	case bool:
		return strconv.FormatBool(v), true
	case uint8:
		return strconv.FormatUint(uint64(v), 10), true
	case uint16:
		return strconv.FormatUint(uint64(v), 10), true
	case uint32:
		return strconv.FormatUint(uint64(v), 10), true
	case uint64:
		return strconv.FormatUint(v, 10), true
	case int8:
		return strconv.FormatInt(int64(v), 10), true
	case int16:
		return strconv.FormatInt(int64(v), 10), true
	case int32:
		return strconv.FormatInt(int64(v), 10), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case amqpwire.Char:
		return string(rune(v)), true
	case amqpwire.UUID:
		return v.String(), true
	case amqpwire.Timestamp:
		return time.UnixMilli(int64(v)).UTC().Format("2006-01-02T15:04:05.000Z07:00"), true
	}
	return "", false
}

// idText is the text form of a message-id: IDs of whatever type are texts to devices and in feedback
// (Node sends what looks like a UUID as one).
func idText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case uint64:
		return strconv.FormatUint(v, 10)
	case amqpwire.UUID:
		return v.String()
	case []byte:
		if utf8.Valid(v) {
			return string(v)
		}
		return base64.StdEncoding.EncodeToString(v)
	}
	return ""
}

func readBody(m *c2d.Message, s *amqpwire.Sections) error {
	switch s.Body {
	case amqpwire.BodyData:
		n := 0
		for _, b := range s.Data {
			n += len(b)
		}
		m.Body = make([]byte, 0, n)
		for _, b := range s.Data {
			m.Body = append(m.Body, b...)
		}
	case amqpwire.BodyValue:
		v, err := amqpwire.DecodeValue(s.Value)
		if err != nil {
			return decodeError(err)
		}
		switch v := v.(type) {
		case nil:
		case string:
			m.Body = []byte(v)
		case []byte:
			m.Body = append([]byte{}, v...)
		default:
			return argumentError("the body is a value of type %T: the hub takes bytes", v)
		}
	case amqpwire.BodySequence:
		return argumentError("the body is a sequence: the hub takes bytes")
	}
	return nil
}
