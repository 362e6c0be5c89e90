package c2d

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPage(t *testing.T) {
	s := New(Options{})
	var all []string
	for i := range 250 {
		id := fmt.Sprintf("%c-%d", 'a'+i%2, i)
		all = append(all, id)
		_, err := s.Create(Device{ID: id})
		require.NoError(t, err)
	}
	slices.Sort(all)
	var got []string
	for after := ""; ; {
		page := s.Page("", after, 40)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
		after = page[len(page)-1]
	}
	require.Equal(t, all, got)
	require.Equal(t, all[:125], s.Page("a-", "", 1000))
	require.Equal(t, all[3:5], s.Page("a-", all[2], 2))
	require.Empty(t, s.Page("", "z", 5))
	require.Empty(t, s.Page("", "", 0))
}
