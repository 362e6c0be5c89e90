package hubservice

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// frames makes bytes as a hub sends them, AMQP 1.0 §2.3: size, data offset, type, channel.
func frames(bodies ...[]byte) []byte {
	b := []byte("AMQP\x00\x01\x00\x00")
	for _, body := range bodies {
		b = binary.BigEndian.AppendUint32(b, uint32(len(body)+8))
		b = append(append(b, 2, 0, 0, 0), body...)
	}
	return b
}

func TestFrameScanner(t *testing.T) {
	detach := []byte{0x00, 0x53, 0x16, 0xc0, 0x03, 0x02, 0x43, 0x41}
	end := []byte{0x00, 0x53, 0x17, 0x45}
	extended := []byte{0, 0, 0, 16, 3, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef, 0x00, 0x53, 0x16, 0x45}
	for _, x := range []struct {
		name string
		b    []byte
		want int
	}{
		{"nothing", nil, 0},
		{"empty frames", frames(nil, nil), 0},
		{"disposition and transfer", frames([]byte{0x00, 0x53, 0x15, 0x45}, append([]byte{0x00, 0x53, 0x14, 0x45}, detach...)), 0},
		{"detach", frames(nil, detach), 1},
		{"detach, empty, end", frames(detach, nil, end), 2},
		{"extended header", append(frames(end), extended...), 2},
		{"not of AMQP", append(frames(), 0, 0, 0, 12, 2, 1, 0, 0, 0x00, 0x53, 0x16, 0x45), 0},
		{"too short for its size", append(frames(detach), 0, 0, 0, 7, 2, 0, 0, 0, 0x00, 0x53, 0x16), 1},
		{"offset beyond its size", append(frames(), 0, 0, 0, 12, 9, 0, 0, 0, 0x00, 0x53, 0x16, 0x45), 0},
		{"half", frames(detach)[:18], 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			for size := 1; size <= max(len(x.b), 1); size++ {
				var s frameScanner
				var got int
				for b := x.b; len(b) > 0; {
					n := min(size, len(b))
					got += s.count(b[:n])
					b = b[n:]
				}
				require.Equal(t, x.want, got, "in pieces of %d", size)
			}
		})
	}
}

// However the bytes are cut, the result is the same, and nothing panics.
func FuzzFrameScanner(f *testing.F) {
	f.Add(frames(nil, []byte{0x00, 0x53, 0x16, 0x45}), uint8(3))
	f.Add([]byte("AMQP\x00\x01\x00\x00\xff\xff\xff\xff\x02\x00\x00\x00"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, pieces frameScanner
		want := whole.count(b)
		var got int
		for rest := b; len(rest) > 0; {
			n := min(int(cut)+1, len(rest))
			got += pieces.count(rest[:n])
			rest = rest[n:]
		}
		require.Equal(t, want, got)
	})
}

type bytesConn struct {
	net.Conn
	r, w bytes.Buffer
}

func (c *bytesConn) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *bytesConn) Write(b []byte) (int, error) { return c.w.Write(b) }

func TestWireCounts(t *testing.T) {
	c := &bytesConn{}
	w := newWire(c)
	for _, b := range [][]byte{frames(), frames([]byte{0x00, 0x53, 0x14, 0x45})[8:], frames([]byte{0x00, 0x53, 0x12, 0x45})[8:]} {
		_, err := w.Write(b)
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, w.transfers.Load())
	c.r.Write(frames([]byte{0x00, 0x53, 0x16, 0x45}))
	_, err := w.Read(make([]byte, 100))
	require.NoError(t, err)
	require.Len(t, w.ended, 1)
}
