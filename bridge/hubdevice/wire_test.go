package hubdevice

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFrames(t *testing.T) {
	good := []byte{
		0x20, 2, 1, 0, // CONNACK
		0x90, 3, 0, 1, 1, // SUBACK
		0xd0, 0, // PINGRESP
		0x32, 7, 0, 1, 'a', 0, 9, 'x', 'y', // PUBLISH, QoS 1
		0x30, 0x83, 0x01, // PUBLISH of 131 bytes
	}
	good = append(good, make([]byte, 131)...)
	good = append(good, 0xd0, 0)
	for _, step := range []int{1, 2, 3, 5, len(good)} {
		var f frames
		for i := 0; i < len(good); i += step {
			require.NoError(t, f.see(good[i:min(i+step, len(good))]))
		}
		require.Zero(t, f.state+f.body, "ends between two packets")
	}
	for _, bad := range [][]byte{
		{0x20, 3}, {0x90, 4}, {0x90, 2}, {0xd0, 1}, {0x34, 4}, {0x36, 4}, {0x10, 0}, {0xe0, 0}, {0x40, 2}, {0x00, 0}, {0xf0, 0},
		{0x30, 0xff, 0xff, 0xff, 0x7f}, {0x30, 0xff, 0xff, 0xff, 0xff},
	} {
		var f frames
		require.Error(t, f.see(bad), "% x", bad)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x20, 2, 1, 0, 0x90, 3, 0, 1, 1, 0x32, 7, 0, 1, 'a', 0, 9, 'x', 'y'}, 3)
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff}, 1)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		if step < 1 {
			step = 1
		}
		var whole, parts frames
		errWhole := whole.see(data)
		var errParts error
		for i := 0; i < len(data) && errParts == nil; i += step {
			errParts = parts.see(data[i:min(i+step, len(data))])
		}
		// How the bytes were cut into reads makes no difference.
		require.Equal(t, errWhole, errParts)
		if errWhole == nil {
			require.Equal(t, whole, parts)
		}
	})
}
