package mapping

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What ends in the mapping is known to whoever asked for it, wherever it ends.
func TestAsked(t *testing.T) {
	table, err := Compile([]Route{
		{Name: "drop", Subject: "cmd.drop.>", Drop: "not wanted"},
		{Name: "quiet", Subject: "cmd.quiet.{device}", Stream: "S", Device: "{device}", Allow: []string{"x"}},
		{Name: "told", Subject: "cmd.told.{device}", Stream: "S", Device: "{device}", Allow: []string{"x"}, Receipts: true},
		{Name: "acked", Subject: "cmd.acked.{device}", Stream: "S", Device: "{device}", Allow: []string{"x"}, Message: MessageRule{Ack: "full"}},
		{Name: "group", Subject: "cmd.group.>", Stream: "S", Devices: `{["a", "x"]}`, Allow: []string{"x"}, Receipts: true},
		{Name: "choice", Subject: "cmd.choice.>", Stream: "S", Device: "x", When: `int(header["N"]) > 0`, Receipts: true},
	}, TableOptions{Name: "b", Hubs: []HubOptions{{Name: "main"}}})
	require.NoError(t, err)
	for subject, want := range map[string]struct {
		header map[string][]string
		asked  []*Asked
	}{
		"cmd.drop.x":   {nil, []*Asked{nil}},
		"cmd.drop.y":   {map[string][]string{"Downlink-Reply-To": {"_INBOX.1"}}, []*Asked{{"_INBOX.1"}}},
		"cmd.drop.z":   {map[string][]string{"Downlink-Reply-To": {"elsewhere"}}, []*Asked{{}}},
		"cmd.quiet.y":  {nil, []*Asked{nil}},
		"cmd.quiet.x":  {map[string][]string{"Downlink-Reply-To": {"_INBOX.1"}}, []*Asked{nil}}, // its envelope says so
		"cmd.told.y":   {nil, []*Asked{{}}},
		"cmd.acked.y":  {nil, []*Asked{{}}},
		"cmd.group.1":  {nil, []*Asked{{}, nil}},
		"cmd.choice.1": {map[string][]string{"N": {"x"}}, []*Asked{{}}},
	} {
		var asked []*Asked
		for _, r := range table.Map(&Input{Subject: subject, Stream: "S", Sequence: 1, Header: want.header}) {
			asked = append(asked, r.Asked)
		}
		require.Equal(t, want.asked, asked, subject)
	}
	results := table.Map(&Input{Subject: "cmd.told.x", Stream: "S", Sequence: 1, Payload: []byte(strings.Repeat("x", MaxMessageSize+1))})
	require.Equal(t, &Asked{}, results[0].Asked)
}
