package mqttd

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadBodyAllocatesWhatComes(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 4097, maxPublish} {
		want := bytes.Repeat([]byte("x"), n)
		got, err := readBody(bytes.NewReader(append(want, "next"...)), n)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	}
	got, err := readBody(strings.NewReader("abc"), maxPublish)
	require.ErrorIs(t, unexpected(err), io.ErrUnexpectedEOF)
	require.Less(t, cap(got), 8192)
}
