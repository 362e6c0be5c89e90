package hubservice

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

// The expected bytes were assembled from the AMQP 1.0 type system (part 1,
// section 1.6) and message format (part 3, section 3.2), not with this package.
func TestWireForm(t *testing.T) {
	want := strings.Join([]string{
		"005373", "d0", "00000074", "00000009", // properties: list32, 9 fields
		"a10c" + hex.EncodeToString([]byte("COMMANDS:7:x")), // message-id, str8
		"a003" + hex.EncodeToString([]byte("ann")),          // user-id, vbin8
		"a132" + hex.EncodeToString([]byte("/devices/berlin-p%C3%BCmp%237/messages/devicebound")),
		"40", "40", // subject, reply-to
		"a103" + hex.EncodeToString([]byte("c-1")),
		"a310" + hex.EncodeToString([]byte("application/json")), // sym8
		"a305" + hex.EncodeToString([]byte("utf-8")),
		"830000019b76daa87b",       // 2026-01-01T00:00:00.123Z in ms
		"005374", "c1", "30", "08", // application-properties: map8, 8 items
		"a10a" + hex.EncodeToString([]byte("iothub-ack")), "a104" + hex.EncodeToString([]byte("full")),
		"a104" + hex.EncodeToString([]byte("verb")), "a106" + hex.EncodeToString([]byte("reboot")),
		"a10141", "a10131",
		"a105" + hex.EncodeToString([]byte("empty")), "a100",
		"005375", "a004", "7b226122", // data: vbin8
	}, "")

	e := envelope()
	for range 20 { // a Go map would change its order
		b, err := appendMessage(nil, e)
		require.NoError(t, err)
		require.Equal(t, want, hex.EncodeToString(b))

		sent, err := wireMessage(&b).MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, want, hex.EncodeToString(sent), "go-amqp sends the bytes as they are")
	}
}

func envelope() *mapping.Envelope {
	return &mapping.Envelope{
		Device:          "berlin-pümp#7",
		MessageID:       "COMMANDS:7:x",
		CorrelationID:   "c-1",
		UserID:          "ann",
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		ExpiresAt:       time.UnixMilli(1767225600123),
		Ack:             mapping.AckFull,
		Properties:      []mapping.Property{{Name: "verb", Value: "reboot"}, {Name: "A", Value: "1"}, {Name: "empty"}},
		Body:            []byte(`{"a"`),
	}
}

// Only "to" and an empty data section: what is empty is not sent.
func TestWireFormBare(t *testing.T) {
	b, err := appendMessage(nil, &mapping.Envelope{Device: "d1"})
	require.NoError(t, err)
	require.Equal(t, "005373"+"d0"+"00000028"+"00000003"+"4040"+
		"a120"+hex.EncodeToString([]byte("/devices/d1/messages/devicebound"))+
		"005375a000", hex.EncodeToString(b))
}

// The sections that go-amqp can encode too are its, byte for byte, whatever
// fields there are and however long.
func TestWireFormAsGoAMQP(t *testing.T) {
	lengths := []int{0, 1, 255, 256, 70_000}
	text := func(n int) string { return strings.Repeat("x", n) }
	r := rand.New(rand.NewPCG(1, 2))
	pick := func() string { return text(lengths[r.IntN(len(lengths))]) }
	for range 300 {
		e := &mapping.Envelope{
			Device: "d" + pick(), MessageID: pick(), UserID: pick(), CorrelationID: pick(), ContentType: pick(), ContentEncoding: pick(), Body: []byte(pick()),
		}
		if r.IntN(2) == 0 {
			e.ExpiresAt = time.UnixMilli(r.Int64N(1 << 42))
		}
		to := "/devices/" + e.Device + "/messages/devicebound"
		m := &amqp.Message{Properties: &amqp.MessageProperties{To: &to}, Data: [][]byte{e.Body}}
		if e.MessageID != "" {
			m.Properties.MessageID = e.MessageID
		}
		if e.UserID != "" {
			m.Properties.UserID = []byte(e.UserID)
		}
		if e.CorrelationID != "" {
			m.Properties.CorrelationID = e.CorrelationID
		}
		if e.ContentType != "" {
			m.Properties.ContentType = &e.ContentType
		}
		if e.ContentEncoding != "" {
			m.Properties.ContentEncoding = &e.ContentEncoding
		}
		if !e.ExpiresAt.IsZero() {
			m.Properties.AbsoluteExpiryTime = &e.ExpiresAt
		}
		want, err := m.MarshalBinary()
		require.NoError(t, err)
		got, err := appendMessage(nil, e)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%d %d %d %d %d %d", len(e.MessageID), len(e.UserID), len(e.CorrelationID), len(e.ContentType), len(e.ContentEncoding), len(e.Body))
	}
}

// Long maps and texts take the 32-bit forms, and go-amqp reads them back.
func TestWireFormLarge(t *testing.T) {
	e := envelope()
	e.Properties = nil
	for i := range 200 {
		e.Properties = append(e.Properties, mapping.Property{Name: "p" + strings.Repeat("x", i), Value: strings.Repeat("ä", i)})
	}
	e.Body = []byte(strings.Repeat("b", 60<<10))
	b, err := appendMessage(nil, e)
	require.NoError(t, err)
	var m amqp.Message
	require.NoError(t, m.UnmarshalBinary(b))
	require.Len(t, m.ApplicationProperties, 201)
	require.Equal(t, strings.Repeat("ä", 199), m.ApplicationProperties["p"+strings.Repeat("x", 199)])
	require.Equal(t, e.Body, m.GetData())
	require.Equal(t, e.ExpiresAt.UTC(), m.Properties.AbsoluteExpiryTime.UTC())
}

func TestEncodeRefusesWhatAMQPCannotCarry(t *testing.T) {
	for want, change := range map[string]func(*mapping.Envelope){
		"encode: no device":                            func(e *mapping.Envelope) { e.Device = "" },
		"encode: message_id: not UTF-8":                func(e *mapping.Envelope) { e.MessageID = "\xff" },
		"encode: content_type: not ASCII":              func(e *mapping.Envelope) { e.ContentType = "text/ä" },
		"encode: properties[1]: no name, or not UTF-8": func(e *mapping.Envelope) { e.Properties[1].Value = "\xff" },
		"encode: properties[2]: no name, or not UTF-8": func(e *mapping.Envelope) { e.Properties[2].Name = "" },
	} {
		e := envelope()
		change(e)
		_, err := appendMessage(nil, e)
		require.EqualError(t, err, want)
		var be *bridge.Error
		require.ErrorAs(t, err, &be)
		require.Equal(t, bridge.Refused, be.Class)
	}
}

func BenchmarkEncode(b *testing.B) {
	e := envelope()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := appendMessage(nil, e); err != nil {
			b.Fatal(err)
		}
	}
}
