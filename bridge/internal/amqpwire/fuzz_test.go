package amqpwire

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// What decodes must encode, and decode to the same again.
func FuzzFrames(f *testing.F) {
	for _, v := range frameVectors {
		f.Add(unhex(f, v.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewFrameReader(bytes.NewReader(b), 4096)
		var p Parser
		for {
			fr, err := r.Next()
			if err != nil {
				return
			}
			perf, payload, err := p.Parse(fr.Type, fr.Body)
			if err != nil {
				continue
			}
			require.LessOrEqual(t, len(payload), len(fr.Body))
			first := perf.Append(nil)
			again, rest, err := new(Parser).Parse(fr.Type, append(first, payload...))
			require.NoError(t, err)
			require.Equal(t, payload, rest)
			require.Equal(t, first, again.Append(nil))
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(unhex(f, wholeMessage))
	for _, v := range valueVectors {
		f.Add(append([]byte{0, codeSmallUlong, descValue}, unhex(f, v.bytes)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Sections
		if s.Split(b) != nil {
			return
		}
		var h Header
		if s.Header != nil && h.Decode(s.Header) == nil {
			var again Header
			require.NoError(t, again.Decode(h.Append(nil)[3:]))
			require.Equal(t, h, again)
		}
		var p Properties
		if s.Properties != nil && p.Decode(s.Properties) == nil {
			first := p.Append(nil)
			var again Properties
			require.NoError(t, again.Decode(first[3:]))
			require.Equal(t, first, again.Append(nil))
		}
		for _, m := range [][]byte{s.DeliveryAnnotations, s.MessageAnnotations, s.ApplicationProperties, s.Footer} {
			DecodeMap(m)
		}
		for _, v := range append(s.Sequence, s.Value) {
			value, err := DecodeValue(v)
			if err != nil {
				continue
			}
			first, err := AppendValue(nil, value)
			if err != nil {
				continue // arrays of compounds that do not fit the constructor their peer chose
			}
			again, err := DecodeValue(first)
			require.NoError(t, err)
			second, err := AppendValue(nil, again)
			require.NoError(t, err)
			require.Equal(t, first, second)
		}
	})
}
