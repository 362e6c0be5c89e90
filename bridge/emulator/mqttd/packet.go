package mqttd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	// maxConnect bounds a CONNECT, which anybody may send: IDs, a user name, a
	// token and a will of ordinary size.
	maxConnect = 64 * 1024
	// maxPublish bounds a PUBLISH: a device-to-cloud message of 256 KB (IoT Hub
	// developer guide, "Quotas") and the longest topic.
	maxPublish = 256*1024 + 64*1024 + 4
	// maxOther bounds SUBSCRIBE and UNSUBSCRIBE.
	maxOther = 16 * 1024
)

// errViolation marks what a peer may not send. The hub answers by closing the
// connection (developer guide, "Communicate using the MQTT protocol").
var errViolation = errors.New("protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errViolation, fmt.Sprintf(format, args...))
}

// readPacket reads one packet that a client may send. The packets package
// allocates what the length says and pads what is missing with zeros, so the
// frame is bounded here, and decoded from a reader that knows no short reads.
func readPacket(r *bufio.Reader) (packets.ControlPacket, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	header := packets.FixedHeader{
		MessageType: first >> 4, Dup: first&8 != 0, Qos: first >> 1 & 3, Retain: first&1 != 0,
	}
	limit, err := frameLimit(header.MessageType, first&0x0f)
	if err != nil {
		return nil, err
	}
	if header.RemainingLength, err = readLength(r); err != nil {
		return nil, err
	}
	if header.RemainingLength > limit {
		return nil, violation("%s of %d bytes", packets.PacketNames[header.MessageType], header.RemainingLength)
	}
	body, err := readBody(r, header.RemainingLength)
	if err != nil {
		return nil, unexpected(err)
	}
	return decode(header, body)
}

// readBody reads n bytes. Of many it allocates only what has come: a peer that
// announces a long packet and does not send it costs nothing.
func readBody(r io.Reader, n int) ([]byte, error) {
	const trusted = 4096
	if n <= trusted {
		body := make([]byte, n)
		_, err := io.ReadFull(r, body)
		return body, err
	}
	var b bytes.Buffer
	b.Grow(trusted)
	_, err := io.CopyN(&b, r, int64(n))
	return b.Bytes(), err
}

// frameLimit checks the flags that MQTT 3.1.1 §2.2.2 fixes and bounds the length.
func frameLimit(kind, flags byte) (int, error) {
	want, limit := byte(0), 0
	switch kind {
	case packets.Connect:
		limit = maxConnect
	case packets.Publish:
		if flags>>1&3 > 1 {
			return 0, violation("PUBLISH with QoS %d", flags>>1&3)
		}
		return maxPublish, nil
	case packets.Puback:
		limit = 2
	case packets.Subscribe, packets.Unsubscribe:
		want, limit = 2, maxOther
	case packets.Pingreq, packets.Disconnect:
	default:
		return 0, violation("packet type %d from a client", kind)
	}
	if flags != want {
		return 0, violation("%s with flags %04b", packets.PacketNames[kind], flags)
	}
	return limit, nil
}

// readLength reads the remaining length, at most four bytes (MQTT 3.1.1 §2.2.3).
func readLength(r *bufio.Reader) (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, violation("remaining length of more than four bytes")
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func decode(h packets.FixedHeader, body []byte) (p packets.ControlPacket, err error) {
	// The packets package is not written for hostile peers; whatever it does, it
	// ends this connection alone.
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, violation("malformed %s", packets.PacketNames[h.MessageType])
		}
	}()
	if p, err = packets.NewControlPacketWithHeader(h); err != nil {
		return nil, violation("%v", err)
	}
	rest := &strictReader{body}
	err = p.Unpack(rest)
	if c, ok := p.(*packets.ConnectPacket); ok && c.ProtocolName == "MQTT" && c.ProtocolVersion != 4 && c.ProtocolVersion != 0 {
		return p, nil // another version has another layout; its own CONNACK says so
	}
	if u, ok := p.(*packets.UnsubscribePacket); ok && h.RemainingLength != unsubscribeLength(u) {
		err = io.ErrUnexpectedEOF // its Unpack takes a cut topic filter for the end
	}
	if err != nil || len(rest.b) != 0 {
		return nil, violation("malformed %s", packets.PacketNames[h.MessageType])
	}
	return p, check(p)
}

func unsubscribeLength(u *packets.UnsubscribePacket) int {
	n := 2
	for _, t := range u.Topics {
		n += 2 + len(t)
	}
	return n
}

// strictReader fills the whole buffer or fails.
type strictReader struct{ b []byte }

func (s *strictReader) Read(p []byte) (int, error) {
	if len(p) > len(s.b) {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, s.b)
	s.b = s.b[n:]
	return n, nil
}

// check holds a decoded packet against the rules that its fields must keep.
func check(p packets.ControlPacket) error {
	switch p := p.(type) {
	case *packets.ConnectPacket:
		switch {
		case p.ProtocolName != "MQTT" && p.ProtocolName != "MQIsdp":
			return violation("protocol %.16q", p.ProtocolName)
		case p.ReservedBit != 0, p.WillQos > 2, !p.WillFlag && (p.WillQos != 0 || p.WillRetain), p.PasswordFlag && !p.UsernameFlag:
			return violation("CONNECT flags") // MQTT 3.1.1 §3.1.2
		case !text(p.ClientIdentifier), !text(p.WillTopic), !text(p.Username):
			return violation("CONNECT with illegal text")
		}
	case *packets.PublishPacket:
		switch {
		case p.Qos > 0 && p.MessageID == 0:
			return violation("PUBLISH without packet identifier")
		case p.TopicName == "", !text(p.TopicName), strings.ContainsAny(p.TopicName, "+#"):
			return violation("PUBLISH topic") // MQTT 3.1.1 §3.3.2.1
		}
	case *packets.SubscribePacket:
		if p.MessageID == 0 || len(p.Topics) == 0 {
			return violation("SUBSCRIBE without packet identifier or topic filter")
		}
		for i, t := range p.Topics {
			if t == "" || !text(t) || p.Qoss[i] > 2 {
				return violation("SUBSCRIBE topic filter or QoS")
			}
		}
	case *packets.UnsubscribePacket:
		if p.MessageID == 0 || len(p.Topics) == 0 {
			return violation("UNSUBSCRIBE without packet identifier or topic filter")
		}
	}
	return nil
}

// text reports whether s may be an MQTT string: UTF-8 without U+0000 (MQTT 3.1.1 §1.5.3).
func text(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// encodePublish writes a PUBLISH to b. The topic must be at most 65,535 bytes:
// the packets package would cut it.
func encodePublish(b *bytes.Buffer, topic string, payload []byte, qos byte, id uint16, dup bool) {
	p := packets.PublishPacket{
		FixedHeader: packets.FixedHeader{MessageType: packets.Publish, Qos: qos, Dup: dup},
		TopicName:   topic, MessageID: id, Payload: payload,
	}
	_ = p.Write(b) // to memory: cannot fail
}
