package virtual_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/virtual"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]virtual.Rule{
		"pump-*=complete":                      {Pattern: "pump-*"},
		"pump-*=complete:200ms":                {Pattern: "pump-*", Behaviour: virtual.Behaviour{Delay: 200 * time.Millisecond}},
		"*=never":                              {Pattern: "*", Behaviour: virtual.Behaviour{Kind: virtual.Never}},
		"d=reject:1s":                          {Pattern: "d", Behaviour: virtual.Behaviour{Kind: virtual.Reject, Delay: time.Second}},
		"d=abandon":                            {Pattern: "d", Behaviour: virtual.Behaviour{Kind: virtual.Abandon}},
		"d=offline":                            {Pattern: "d", Behaviour: virtual.Behaviour{Kind: virtual.Offline}},
		"a=b,c=complete":                       {Pattern: "a=b,c"}, // a legal ID
		"d=complete,online=5s,offline=1m0s":    {Pattern: "d", Behaviour: virtual.Behaviour{Up: 5 * time.Second, Down: time.Minute}},
		"d=complete:1s,offline=1m0s,online=5s": {Pattern: "d", Behaviour: virtual.Behaviour{Delay: time.Second, Up: 5 * time.Second, Down: time.Minute, DownFirst: true}},
		"d=never,online=5s":                    {Pattern: "d", Behaviour: virtual.Behaviour{Kind: virtual.Never, Up: 5 * time.Second}},
		"d=complete,offline=5s":                {Pattern: "d", Behaviour: virtual.Behaviour{Down: 5 * time.Second, DownFirst: true}},
	} {
		got, err := virtual.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := virtual.Parse(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, got, again)
	}
	for text, want := range map[string]string{
		"":                       "write DEVICE=BEHAVIOUR",
		"pump":                   "write DEVICE=BEHAVIOUR",
		"=complete":              "write DEVICE=BEHAVIOUR",
		"d=explode":              `behaviour "explode" is none of complete, reject, abandon, never, offline`,
		"d=complete:soon":        `complete: "soon" is no duration above 0, such as 200ms or 5s`,
		"d=never:1s":             "never takes no delay",
		"d=complete,online=5":    `online: "5" is no duration`,
		"d=complete,away=5s":     `option "away=5s" is none of online=DURATION, offline=DURATION`,
		"d=offline,online=5s":    "stays offline has no times",
		"d=complete,":            "an option is missing",
		"d=complete,offline=-1s": "no duration above 0",
	} {
		_, err := virtual.Parse(text)
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("pump-*=complete,online=5s,offline=5s")
	f.Add("a=b=reject:1ms")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := virtual.Parse(text)
		if err != nil {
			return
		}
		again, err := virtual.Parse(r.String())
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}
